"""Use sets outside pcdd: torch data sets, and files in common formats, with the way back.

Five lines:

>>> import pcdd_core as pcdd, torch
>>> clouds = pcdd.released("mnist-1")
>>> loader = torch.utils.data.DataLoader(clouds.to_dataset(), 5, collate_fn=pcdd.padded_collate)
>>> folder = pcdd.export_clouds(clouds, "exports/mnist-1", ["csv", "ply", "png", "pt"])
>>> again = pcdd.clouds_from_export(folder)

An export is a folder with these files:

manifest.json           all fields of the set but its points: `labels` (one per cloud), `grid`,
                        `class_names` and, if labels are learned, `label_probabilities`
clouds.pt               a dict for `torch.load(path, weights_only=True)`: the fields of the set as
                        tensors, and the class names as a list
clouds.csv              one row per point: cloud, label, class, depth, height, width
ply/LABEL/CLOUD.ply     the points of one cloud: float32 x = width, y = depth, z = -height
png/LABEL/CLOUD.png     the projection of one cloud along the depth: 255 in occupied pixels, else 0

LABEL and CLOUD are numbers. Coordinates are in cells (see `clouds`). Height runs downwards, so
shapes and digits stand upright in a viewer with z up, and the plane z = 0 touches their top edge of
the grid. The points of a flat grid lie in the plane y = 0, which is to be viewed along y.

The way back is exact from .pt, .csv and .ply. A .png holds the occupied pixels only. It gives the
occupied cells of a flat grid, one point for each (`from_occupancy`), and is refused for a grid with
depth. Points come from the files, everything else from the manifest.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..errors import InputError, nearest_names
from ..files import (
    atomic_write,
    atomic_write_text,
    refuse_file_in_the_way,
    refuse_impossible_path,
)
from .clouds import Grid, PointClouds, from_occupancy, offsets_of
from .storage import arrays_of, clouds_from_arrays

POINTS = ("coordinates", "offsets")  # the fields of a set that the manifest leaves out
KINDS = ("pt", "csv", "ply", "png")  # in the order in which they are looked for
MANIFEST = "manifest.json"
COLUMNS = ("cloud", "label", "class", "depth", "height", "width")
FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
)  # spreadsheets run cells that start with one (OWASP)
AXES = "cells; .csv, .pt: depth, height, width; .ply: x = width, y = depth, z = -height"

Parsed = TypeVar("Parsed")
Item = tuple[Tensor, Tensor]  # points or image, and target


# --- torch data sets ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CloudDataset(Dataset[Item]):
    """A torch data set of clouds. Item i is (points, target) or (image, target) of cloud i.

    points:    float32 (points of the cloud, 3), in cells, order depth, height, width
    image:     float32 (1, height, width), the `projection`, if `project`
    target:    int64 (), the label; float32 (classes,), the learned label, if the set has learned
               labels. `torch.nn.functional.cross_entropy` takes both.
    transform: called with points or image; its result takes their place
    Items are on the device of the clouds and have no gradient.
    """

    clouds: PointClouds
    project: bool = False
    transform: Callable[[Tensor], Any] | None = None

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, cloud: int) -> Item:
        points = self.clouds[cloud].detach().float()
        item = projection(points, self.clouds.grid) if self.project else points
        target = self.clouds.targets[cloud].detach()
        return item if self.transform is None else self.transform(item), target


def projection(points: Tensor, grid: Grid) -> Tensor:
    """Project one cloud along the depth axis to a binary image: float32 (1, height, width).

    points: (points, 3), in cells. A pixel is 1 if a point lies in one of its cells (paper, section
    3.1.1). Raises ValueError if a point lies outside the grid.
    """
    cells = points.floor().long()
    if not ((cells >= 0) & (cells < cells.new_tensor(grid))).all():
        raise ValueError(f"a point lies outside the grid {grid}")
    image = torch.zeros(1, *grid[1:], device=points.device)
    image[0, cells[:, 1], cells[:, 2]] = 1.0
    return image


def padded_collate(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch of points with padding, as `collate_fn` of a DataLoader.

    Returns points (clouds, most points, 3), with zeros after the points of each cloud; a mask, bool
    (clouds, most points), True for points; targets (clouds,) or (clouds, classes).
    """
    clouds, targets = zip(*items)
    ones = [torch.ones(len(cloud), dtype=torch.bool, device=cloud.device) for cloud in clouds]
    return (
        pad_sequence(list(clouds), batch_first=True),
        pad_sequence(ones, batch_first=True),
        torch.stack(targets),
    )


def ragged_collate(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch of concatenated points, as `collate_fn` of a DataLoader.

    Returns points (points of all clouds, 3); offsets, int64 (clouds + 1,): cloud i has the rows
    offsets[i] to offsets[i + 1] - 1; targets (clouds,) or (clouds, classes).
    """
    clouds, targets = zip(*items)
    sizes = torch.tensor([len(cloud) for cloud in clouds], device=clouds[0].device)
    return torch.cat(clouds), offsets_of(sizes), torch.stack(targets)


# --- files ----------------------------------------------------------------------------------------


def export_clouds(clouds: PointClouds, folder: Path | str, kinds: Sequence[str]) -> Path:
    """Write a set to a new folder in common formats. The module lists the files.

    kinds: one or more of "pt", "csv", "ply", "png"
    The manifest is written last, so a folder with a manifest is complete. Returns the folder.
    Raises InputError if a kind is unknown, the folder has files already or is not writable, or
    `clouds_from_arrays` refuses the clouds.
    """
    folder = Path(folder)
    if not kinds:
        raise InputError(f"{folder}: no kind of file is given; expected some of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"no kind of file is called {kind!r}; {nearest_names(kind, KINDS)}")
    refuse_file_in_the_way(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: has files already; choose another folder, or delete this one")
    arrays = arrays_of(clouds)
    clouds = clouds_from_arrays(folder, arrays)
    kinds = [kind for kind in KINDS if kind in kinds]
    contents = {"pt": _pt, "csv": _csv, "ply": _plys, "png": _pngs}
    for kind in kinds:
        for path, content in zip(_paths(folder, kind, clouds), contents[kind](clouds), strict=True):
            _write(path, content)
    described = {name: arrays[name].tolist() for name in arrays if name not in POINTS}
    manifest = {"coordinates": AXES, "kinds": kinds, "set": described}
    atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return folder


def clouds_from_export(folder: Path | str, kind: str | None = None) -> PointClouds:
    """Read a set that `export_clouds` wrote. The module states which formats are exact.

    kind: the kind of file to read the points from; None: the first of pt, csv, ply, png that the
        export has
    The number and the positions of points may have changed since, for instance in an editor.
    Raises InputError that names file, field and value if anything is wrong, and if the files are
    .png and the grid has a depth.
    """
    folder = Path(folder)
    kinds, described = _parsed(folder / MANIFEST, lambda data: _described(folder / MANIFEST, data))
    kind = kinds[0] if kind is None else kind
    if kind not in kinds:
        raise InputError(f"{folder}: was exported without {kind}; expected {' or '.join(kinds)}")
    read = {"pt": _from_pt, "csv": _from_csv, "ply": _from_plys, "png": _from_pngs}[kind]
    return read(_paths(folder, kind, described), described)


def _paths(folder: Path, kind: str, clouds: PointClouds) -> list[Path]:
    """Return the paths of the files of one kind."""
    if kind in ("pt", "csv"):
        return [folder / f"clouds.{kind}"]
    # equal numbers of digits, so that names sort as numbers do
    label_digits, cloud_digits = len(str(len(clouds.class_names) - 1)), len(str(len(clouds) - 1))
    return [
        folder / kind / f"{label:0{label_digits}}" / f"{cloud:0{cloud_digits}}.{kind}"
        for cloud, label in enumerate(clouds.labels.tolist())
    ]


def _write(path: Path, content: bytes) -> None:
    def write(file: BinaryIO) -> None:
        file.write(content)

    atomic_write(path, write)


def _pt(clouds: PointClouds) -> Iterator[bytes]:
    fields: dict[str, Any] = {
        name: torch.from_numpy(array)
        for name, array in arrays_of(clouds).items()
        if name != "class_names"
    }
    file = io.BytesIO()
    torch.save(fields | {"class_names": list(clouds.class_names)}, file)
    yield file.getvalue()


def _csv(clouds: PointClouds) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    names = ["'" + name if name.startswith(FORMULA) else name for name in clouds.class_names]
    owners, labels = clouds.cloud_index.tolist(), clouds.labels.tolist()
    for cloud, point in zip(owners, clouds.coordinates.tolist(), strict=True):
        # 9 significant digits determine a float32
        numbers = [f"{coordinate:.9g}" for coordinate in point]
        writer.writerow([cloud, labels[cloud], names[labels[cloud]], *numbers])
    yield text.getvalue().encode()


def _plys(clouds: PointClouds) -> Iterator[bytes]:
    from trimesh import PointCloud  # imported here, because it takes long
    from trimesh.exchange.ply import export_ply

    for number in range(len(clouds)):
        depth, height, width = clouds[number].numpy().T
        # without a shift of z, which would round
        yield export_ply(PointCloud(np.stack([width, depth, -height], 1)))


def _pngs(clouds: PointClouds) -> Iterator[bytes]:
    from PIL import Image

    for number in range(len(clouds)):
        file = io.BytesIO()
        image = projection(clouds[number], clouds.grid)[0]
        Image.fromarray((255 * image).byte().numpy()).save(file, "png")
        yield file.getvalue()


def _parsed(path: Path, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Parse the contents of a file.

    Raises InputError if the file is missing, or if `parse` raises any error.
    """
    refuse_impossible_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an export of pcdd")
    try:
        return parse(path.read_bytes())
    except InputError:
        raise
    except Exception as error:  # the libraries raise about ten types for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable {path.suffix} file ({reason})") from None


def _described(path: Path, data: bytes) -> tuple[list[str], PointClouds]:
    """Return the kinds of files, and the set with one point per cloud, from a manifest."""
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("set"), dict):
        raise InputError(f"{path}: field 'set' is missing; expected the manifest of an export")
    kinds = manifest.get("kinds")
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        raise InputError(
            f"{path}: field 'kinds' is {kinds!r:.80}; expected some of {', '.join(KINDS)}"
        )
    arrays = {name: np.array(value) for name, value in manifest["set"].items()}
    count = arrays["labels"].size if "labels" in arrays else 0
    points = {"coordinates": np.zeros((count, 3)), "offsets": np.arange(count + 1)}
    return kinds, clouds_from_arrays(path, arrays | points)


def _with_points(
    path: Path, described: PointClouds, coordinates: np.ndarray, offsets: np.ndarray
) -> PointClouds:
    """Return the described clouds with other points. `path` is the file of the points."""
    points = {"coordinates": coordinates, "offsets": offsets}
    return clouds_from_arrays(path, arrays_of(described) | points)


def _from_pt(paths: list[Path], described: PointClouds) -> PointClouds:
    path = paths[0]

    def parse(data: bytes) -> dict[str, np.ndarray]:
        fields = torch.load(io.BytesIO(data), weights_only=True)
        for name in (*POINTS, "labels"):
            if not isinstance(fields, dict) or not isinstance(fields.get(name), Tensor):
                raise InputError(f"{path}: field '{name}' is missing; expected a tensor")
        return {name: fields[name].numpy() for name in (*POINTS, "labels")}

    fields = _parsed(path, parse)
    labels, expected = fields["labels"], described.labels.numpy()
    if labels.shape != expected.shape:
        raise InputError(
            f"{path}: field 'labels' is of shape {labels.shape}; "
            f"expected {expected.shape}, as in {MANIFEST}"
        )
    if (wrong := np.flatnonzero(labels != expected)).size:
        raise InputError(
            f"{path}: field 'labels' is {labels[wrong[0]]} at cloud {wrong[0]}; "
            f"expected {expected[wrong[0]]}, as in {MANIFEST}"
        )
    return _with_points(path, described, *(fields[name] for name in POINTS))


def _from_csv(paths: list[Path], described: PointClouds) -> PointClouds:
    path, labels = paths[0], described.labels.tolist()

    def parse(data: bytes) -> tuple[list[int], list[list[float]]]:
        # spreadsheets write a byte order mark, which utf-8-sig skips
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        if (header := next(rows, [])) != list(COLUMNS):
            raise InputError(
                f"{path}: its columns are {','.join(header)!r:.80}; expected {','.join(COLUMNS)}"
            )
        owners, points = [], []
        for row in rows:
            try:
                owner, label, _, depth, height, width = row
                owners.append(int(owner))
                points.append([float(depth), float(height), float(width)])
                fits = 0 <= owners[-1] < len(labels) and int(label) == labels[owners[-1]]
            except ValueError:
                fits = False
            if not fits:
                raise InputError(
                    f"{path}: line {rows.line_num} is {','.join(row)!r:.80}; "
                    f"expected a cloud from 0 to {len(labels) - 1}, "
                    f"its label as in {MANIFEST}, its class, 3 coordinates"
                )
        return owners, points

    owners, points = _parsed(path, parse)
    order = np.argsort(owners, kind="stable")
    sizes = np.bincount(np.array(owners, dtype=np.int64), minlength=len(labels))
    coordinates = np.array(points, dtype=np.float64).reshape(-1, 3)[order]
    return _with_points(path, described, coordinates, np.append(0, sizes.cumsum()))


def _from_plys(paths: list[Path], described: PointClouds) -> PointClouds:
    from trimesh.exchange.ply import load_ply

    def parse(data: bytes) -> np.ndarray:
        width, depth, up = np.asarray(load_ply(io.BytesIO(data))["vertices"]).T
        return np.stack([depth, -up, width], 1)

    clouds = [_parsed(path, parse) for path in paths]
    for cloud, (path, points) in enumerate(zip(paths, clouds, strict=True)):
        # so that an error names the file, not a row of the whole set
        one = described.select(torch.tensor([cloud]))
        _with_points(path, one, points, np.array([0, len(points)]))
    sizes = [len(points) for points in clouds]
    return _with_points(paths[0].parent, described, np.concatenate(clouds), np.cumsum([0, *sizes]))


def _from_pngs(paths: list[Path], described: PointClouds) -> PointClouds:
    from PIL import Image

    depth, height, width = described.grid
    if depth > 1:
        raise InputError(
            f"{paths[0]}: is a projection of a grid with {depth} cells of depth, so the depth of "
            "its points is lost; expected an export with pt, csv or ply"
        )

    def read(path: Path) -> np.ndarray:
        def parse(data: bytes) -> np.ndarray:
            image = Image.open(io.BytesIO(data), formats=["PNG"])
            if image.size != (width, height):
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels; "
                    f"expected {width} x {height}, the grid in {MANIFEST}"
                )
            return np.asarray(image.convert("L")) > 127

        return _parsed(path, parse)

    occupied = np.stack([read(path) for path in paths])
    if (blank := np.flatnonzero(~occupied.any((1, 2)))).size:
        raise InputError(
            f"{paths[blank[0]]}: no pixel is above 127; expected at least one occupied pixel"
        )
    cells = from_occupancy(
        torch.from_numpy(occupied)[:, None], described.labels, described.class_names
    )
    return _with_points(
        paths[0].parent, described, cells.coordinates.numpy(), cells.offsets.numpy()
    )
