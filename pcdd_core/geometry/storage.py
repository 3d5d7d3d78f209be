"""Read and write distilled sets."""

import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..arrays import read_arrays
from ..errors import InputError, nearest_names
from ..files import atomic_write, refuse_impossible_path
from .clouds import PointClouds

FORMAT_VERSION = 2
FIELDS = ("format_version", "coordinates", "offsets", "labels", "grid", "class_names")
OPTIONAL_FIELDS = ("label_probabilities",)
LARGEST_SET = 2**28  # bytes of all arrays of a set: 22 million points
# the best distilled sets, each with the record of its run beside it
RELEASED = Path(__file__).parents[1] / "released"


def save_clouds(clouds: PointClouds, path: Path | str) -> None:
    """Write a set as .npz without pickles, atomically.

    The fields are those of `PointClouds`, and `format_version`. A set with learned labels has
    format version 2. A set without them has no field `label_probabilities` and format version 1,
    which all versions of pcdd read.
    Raises InputError if a cloud is empty, the arrays have more than LARGEST_SET bytes, or the
    folder is not writable.
    """
    if (empty := (clouds.sizes == 0).nonzero()).numel():
        raise InputError(
            f"{path}: cloud {int(empty[0])} is empty; every cloud of a set needs a point"
        )
    arrays = arrays_of(clouds)
    if (size := sum(array.nbytes for array in arrays.values())) > LARGEST_SET:
        raise InputError(
            f"{path}: the set has {size} bytes; expected at most {LARGEST_SET}, the largest set "
            "that can be read again"
        )
    write_arrays(path, arrays)


def write_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to a compressed .npz with `atomic_write`."""
    atomic_write(
        path,
        # pyright takes the arrays for the option allow_pickle
        lambda file: np.savez_compressed(file, **arrays),  # pyright: ignore[reportArgumentType]
    )


def load_clouds(path: Path | str) -> PointClouds:
    """Read a set that `save_clouds` wrote.

    Raises InputError if anything is wrong. The message names the file, the field and the value.
    """
    path = Path(path)
    refuse_impossible_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a distilled set (.npz)")
    fields = (*FIELDS, *OPTIONAL_FIELDS)
    return clouds_from_arrays(path, read_arrays(path, fields, LARGEST_SET))


def arrays_of(clouds: PointClouds) -> dict[str, np.ndarray]:
    """Return the fields of a set's file, see `save_clouds`."""
    learned = clouds.label_probabilities
    arrays = dict(
        coordinates=clouds.coordinates.detach().cpu().numpy().astype(np.float32),
        offsets=clouds.offsets.cpu().numpy(),
        labels=clouds.labels.cpu().numpy(),
        grid=np.array(clouds.grid, dtype=np.int64),
        class_names=np.array(clouds.class_names, dtype=np.str_),
        format_version=np.array(1 if learned is None else 2, dtype=np.int64),
    )
    if learned is not None:
        arrays["label_probabilities"] = learned.detach().cpu().numpy().astype(np.float32)
    return arrays


def clouds_from_arrays(path: Path, arrays: dict[str, np.ndarray]) -> PointClouds:
    """Build clouds from the fields of a set's file.

    path: the file, for the error message
    Raises InputError for the first field that is missing or wrong.
    """
    arrays = _checked(path, dict(arrays))
    learned = arrays.get("label_probabilities")
    return PointClouds(
        torch.from_numpy(arrays["coordinates"]),
        torch.from_numpy(arrays["offsets"]),
        torch.from_numpy(arrays["labels"]),
        tuple(arrays["grid"].tolist()),
        tuple(arrays["class_names"].tolist()),
        None if learned is None else torch.from_numpy(learned),
    )


def packed_bytes(clouds: PointClouds) -> Tensor:
    """Return the bytes that the occupied cells of each cloud need: int64 (clouds,).

    The smaller of two encodings counts, each rounded up to whole bytes. A bitmap has 1 bit per cell
    of the grid. A list has ceil(log2(cells of the grid)) bits per distinct occupied cell. On
    28 x 28 cells these are 98 bytes and 10 bits, so the list is smaller up to 78 cells. Labels and
    the choice of the encoding are not counted.
    """
    cells = math.prod(clouds.grid)
    depth, height, width = clouds.coordinates.detach().floor().long().unbind(1)
    cell = (depth * clouds.grid[1] + height) * clouds.grid[2] + width
    occupied = torch.unique(clouds.cloud_index * cells + cell) // cells  # the cloud of each cell
    listed = torch.bincount(occupied, minlength=len(clouds)) * (cells - 1).bit_length()
    return (listed.clamp(max=cells) + 7) // 8


def released(name: str) -> PointClouds:
    """Load a set that comes with pcdd, by name: `released("mnist-1")`.

    Raises InputError with the nearest valid names if there is no such set.
    """
    return load_clouds(released_path(name))


def released_names() -> list[str]:
    """Return the names of the sets that come with pcdd."""
    return sorted(path.stem for path in RELEASED.glob("*.npz"))


def released_path(name: str) -> Path:
    """Return the path of a released set. Its record has the same name with the suffix .json.

    Raises InputError with the nearest valid names if there is no such set.
    """
    if name not in released_names():
        raise InputError(
            f"no released set is called {name!r}; {nearest_names(name, released_names())}"
        )
    return RELEASED / f"{name}.npz"


def _wrong_code_point(name: np.ndarray) -> str | None:
    """Return the first code point that is not a character, for instance U+D800, or None."""
    for point in name.tolist():
        if point > 0x10FFFF or unicodedata.category(chr(point)) == "Cs":
            return f"U+{point:04X}"
    return None


def _checked(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the arrays to the types of `PointClouds`.

    Raises InputError for the first field that is wrong.
    """

    def refuse(field: str, value: object, expected: str):
        raise InputError(f"{path}: field '{field}' is {value}; expected {expected}")

    kinds = {
        "format_version": "iu",
        "coordinates": "f",
        "offsets": "iu",
        "labels": "iu",
        "grid": "iu",
        "class_names": "U",
    }
    if "label_probabilities" in arrays:
        kinds["label_probabilities"] = "f"
    types = {"f": (np.float32, "floats"), "iu": (np.int64, "integers"), "U": (np.str_, "text")}
    for field, kind in kinds.items():
        dtype, words = types[kind]
        if not isinstance(arrays.get(field), np.ndarray):
            refuse(field, "not an array" if field in arrays else "missing", f"an array of {words}")
        if arrays[field].dtype.kind not in kind:
            refuse(field, f"of type {arrays[field].dtype}", words)
        with np.errstate(over="ignore"):  # overflow gives inf, which is refused below
            own = arrays[field].dtype.newbyteorder("=")
            arrays[field] = arrays[field].astype(own if kind == "U" else dtype)
    version = arrays["format_version"]
    if version.shape != () or not 1 <= version <= FORMAT_VERSION:
        refuse(
            "format_version",
            version.tolist(),
            f"1 to {FORMAT_VERSION}; a newer pcdd may read this set",
        )
    if version == 2 and "label_probabilities" not in arrays:
        refuse("label_probabilities", "missing", "the learned labels, which format_version 2 has")
    coordinates, offsets, labels = (arrays[field] for field in ("coordinates", "offsets", "labels"))
    grid, names = arrays["grid"], arrays["class_names"]
    if coordinates.ndim != 2 or coordinates.shape[1] != 3:
        refuse("coordinates", f"of shape {coordinates.shape}", "(points, 3)")
    if labels.ndim != 1 or len(labels) == 0:
        refuse("labels", f"of shape {labels.shape}", "(clouds,) with at least one cloud")
    if offsets.shape != (len(labels) + 1,):
        refuse(
            "offsets",
            f"of shape {offsets.shape}",
            f"({len(labels) + 1},): one more than the number of labels",
        )
    if offsets[0] != 0 or offsets[-1] != len(coordinates) or (np.diff(offsets) < 0).any():
        refuse(
            "offsets",
            f"{offsets[0]} ... {offsets[-1]}",
            f"non-decreasing values from 0 to {len(coordinates)}, the number of points",
        )
    if (empty := np.flatnonzero(np.diff(offsets) == 0)).size:
        refuse(
            "offsets",
            f"constant at cloud {empty[0]}, which is empty",
            "at least one point in every cloud",
        )
    if grid.shape != (3,) or (grid < 1).any():
        refuse("grid", grid.tolist(), "three positive numbers of cells: depth, height, width")
    if names.ndim != 1 or len(names) == 0:
        refuse("class_names", f"of shape {names.shape}", "(classes,)")
    code_points = np.ascontiguousarray(names).view(np.uint32).reshape(len(names), -1)
    for number, name in enumerate(code_points):
        if (point := _wrong_code_point(name)) is not None:
            refuse("class_names", f"{point} in name {number}", "text: U+0000 to U+10FFFF")
    if (wrong := np.flatnonzero((labels < 0) | (labels >= len(names)))).size:
        refuse(
            "labels",
            f"{labels[wrong[0]]} at cloud {wrong[0]}",
            f"0 to {len(names) - 1} ({len(names)} classes)",
        )
    if (learned := arrays.get("label_probabilities")) is not None:
        if learned.shape != (len(labels), len(names)):
            refuse(
                "label_probabilities",
                f"of shape {learned.shape}",
                f"({len(labels)}, {len(names)}): clouds, classes",
            )
        if (wrong := np.argwhere(~((learned >= 0) & (learned <= 1)))).size:
            row, column = wrong[0]
            refuse("label_probabilities", f"{learned[row, column]} at [{row}, {column}]", "0 to 1")
        if (wrong := np.flatnonzero(abs(learned.sum(1) - 1) > 1e-3)).size:
            refuse(
                "label_probabilities",
                f"of sum {learned[wrong[0]].sum()} at cloud {wrong[0]}",
                "a sum of 1 per cloud",
            )
    if (wrong := np.argwhere(~np.isfinite(coordinates))).size:
        row, axis = wrong[0]
        refuse("coordinates", f"{coordinates[row, axis]} at [{row}, {axis}]", "finite numbers")
    if (wrong := np.argwhere((coordinates < 0) | (coordinates >= grid))).size:
        row, axis = wrong[0]
        refuse("coordinates", f"{coordinates[row, axis]} at [{row}, {axis}], outside the grid",
               f"0 or more and below {grid[axis]}")  # fmt: skip
    return arrays
