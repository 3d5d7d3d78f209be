"""The point cloud type and operations on positions.

Units: coordinates are in cells of the grid, in the order depth, height, width (paper, section
3.1.2). The cell of a point is the floor of its coordinates: the coordinate 3.7 lies in cell 3,
whose centre is 3.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, nearest_names
from .files import atomic_write

FORMAT_VERSION = 2
# the best distilled sets, each with the record of its run beside it
RELEASED = Path(__file__).with_name("released")
Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class PointClouds:
    """Labelled clouds with a variable number of points each.

    coordinates: float32 (points, 3), in cells, order depth, height, width; clouds are concatenated
    offsets:     int64 (clouds + 1,); cloud i has the rows offsets[i] to offsets[i + 1] - 1
    labels:      int64 (clouds,)
    grid:        number of cells along depth, height, width
    class_names: one name per class
    label_probabilities: float32 (clouds, classes), learned labels: the target probabilities of a
                 classifier; None: the targets are `labels`
    """

    coordinates: Tensor
    offsets: Tensor
    labels: Tensor
    grid: Grid
    class_names: tuple[str, ...]
    label_probabilities: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, cloud: int) -> Tensor:
        """Return the coordinates of one cloud: float32 (points of the cloud, 3), in cells."""
        cloud = range(len(self))[cloud]
        return self.coordinates[self.offsets[cloud] : self.offsets[cloud + 1]]

    @property
    def sizes(self) -> Tensor:
        """Number of points per cloud: int64 (clouds,)."""
        return self.offsets.diff()

    @property
    def cloud_index(self) -> Tensor:
        """Index of the cloud of each point: int64 (points,)."""
        clouds = torch.arange(len(self), device=self.offsets.device)
        return clouds.repeat_interleave(self.sizes, output_size=len(self.coordinates))

    @property
    def device(self) -> torch.device:
        """Device of all tensors of the clouds."""
        return self.coordinates.device

    @property
    def targets(self) -> Tensor:
        """Targets of the cross-entropy.

        int64 (clouds,), or float32 (clouds, classes) if labels are learned.
        """
        return self.labels if self.label_probabilities is None else self.label_probabilities

    def select(self, clouds: Tensor) -> "PointClouds":
        """Select clouds by index, in the given order. Repeats are allowed.

        Differentiable in the coordinates.
        """
        sizes, starts = self.sizes[clouds], self.offsets[:-1][clouds]
        offsets = _offsets(sizes)
        shift = (starts - offsets[:-1]).repeat_interleave(sizes)
        rows = torch.arange(len(shift), device=shift.device) + shift
        probabilities = self.label_probabilities
        return replace(
            self,
            coordinates=self.coordinates.index_select(0, rows),
            offsets=offsets,
            labels=self.labels[clouds],
            label_probabilities=None if probabilities is None else probabilities[clouds],
        )

    def with_coordinates(self, coordinates: Tensor) -> "PointClouds":
        """Return the same clouds with other coordinates: (points, 3), in cells."""
        return replace(self, coordinates=coordinates)

    def to(self, device: torch.device | str) -> "PointClouds":
        """Return the same clouds on another device."""
        return replace(
            self,
            coordinates=self.coordinates.to(device),
            offsets=self.offsets.to(device),
            labels=self.labels.to(device),
            label_probabilities=None
            if self.label_probabilities is None
            else self.label_probabilities.to(device),
        )


def from_list(
    clouds: Sequence[Tensor], labels: Sequence[int] | Tensor, grid: Grid, class_names: Sequence[str]
) -> PointClouds:
    """Build clouds from one (points, 3) tensor per cloud. Units: cells."""
    sizes = torch.tensor([len(cloud) for cloud in clouds], dtype=torch.int64)
    coordinates = (
        torch.cat([cloud.reshape(-1, 3).float() for cloud in clouds])
        if len(clouds)
        else torch.zeros(0, 3)
    )
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return PointClouds(coordinates, _offsets(sizes), labels, tuple(grid), tuple(class_names))


def from_occupancy(
    occupied: Tensor, labels: Tensor, class_names: Sequence[str], max_points: int | None = None
) -> PointClouds:
    """Turn occupied cells into points, in raster order (paper, section 3.1.1).

    occupied: bool (clouds, depth, height, width)
    max_points: keep only the first points of each cloud, 250 in the paper's code; None: keep all
    A point lies at the integer coordinates of its cell, by the paper's convention.
    """
    cells = occupied.nonzero()
    cloud, coordinates = cells[:, 0], cells[:, 1:].float()
    sizes = torch.bincount(cloud, minlength=len(occupied))
    if max_points is not None:
        rank = torch.arange(len(cloud), device=cloud.device) - _offsets(sizes)[:-1][cloud]
        coordinates, sizes = coordinates[rank < max_points], sizes.clamp(max=max_points)
    return PointClouds(
        coordinates, _offsets(sizes), labels.long(), tuple(occupied.shape[1:]), tuple(class_names)
    )


def scatter(
    sizes: Sequence[int],
    labels: Sequence[int],
    grid: Grid,
    class_names: Sequence[str],
    generator: torch.Generator,
) -> PointClouds:
    """Place points uniformly in the grid's box: the paper's initialisation (section 3.1.2).

    sizes: number of points of each cloud
    labels: class of each cloud
    """
    size = torch.tensor(grid, dtype=torch.float32)
    coordinates = boundary_check(torch.rand(sum(sizes), 3, generator=generator) * size, grid)
    return from_list(coordinates.split(list(sizes)), labels, grid, class_names)


def boundary_check(coordinates: Tensor, grid: Grid) -> Tensor:
    """Clamp coordinates to [0, cells - 1] along each axis (paper, section 3.1.2).

    In a flat grid the depth stays 0. NaN stays NaN, because hiding it would hide a diverged run.
    """
    upper = torch.tensor(grid, dtype=coordinates.dtype, device=coordinates.device) - 1
    return coordinates.clamp(min=torch.zeros_like(upper), max=upper)


def cell_centres(clouds: PointClouds) -> PointClouds:
    """Move every point to the centre of its cell. Along an axis of one cell it stays at 0.

    An occupancy grid determines the cell of a point, but not its position within the cell. The
    centre is a fair estimate of that position.
    """
    half = torch.tensor([0.5 if cells > 1 else 0.0 for cells in clouds.grid], device=clouds.device)
    return clouds.with_coordinates(clouds.coordinates.floor() + half)


def known_positions(clouds: PointClouds) -> PointClouds:
    """Return the clouds at the best positions that the data determines.

    If all coordinates are integers, the data consists of occupied cells, and the points move to
    their `cell_centres`. Other clouds stay unchanged.
    """
    return (
        cell_centres(clouds)
        if bool((clouds.coordinates == clouds.coordinates.floor()).all())
        else clouds
    )


def from_unit_ball(
    points: Tensor, labels: Tensor, class_names: Sequence[str], cells: int
) -> PointClouds:
    """Put shapes from the unit ball on a cubic grid of `cells` cells per axis.

    points: (shapes, points, 3) as x, y, z with z up, at most distance 1 from the origin
    labels: (shapes,)
    x becomes width, y becomes depth, and -z becomes height. Height runs downwards in pictures, so
    shapes stand upright. The ball leaves one cell free on every side.
    """
    shapes, count, _ = points.shape
    x, y, z = points.reshape(-1, 3).float().unbind(1)
    coordinates = cells / 2 + torch.stack([y, -z, x], 1) * (cells / 2 - 1)
    offsets = _offsets(torch.full((shapes,), count, dtype=torch.int64))
    return PointClouds(
        coordinates, offsets, labels.long(), (cells, cells, cells), tuple(class_names)
    )


def into_grid(points: Tensor, grid: Grid) -> Tensor:
    """Move and scale a cloud to fill the grid's box.

    points: (points, 3) in any unit, in the order depth, height, width
    Returns coordinates in cells, of the same shape. All axes have the same scale, so proportions
    stay. The scale is the largest that fits, and the result is centred. Raises InputError if the
    shape is wrong, there is no point, or coordinates are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or not points.isfinite().all():
        raise InputError(
            f"points of shape {tuple(points.shape)}: "
            "expected one or more rows of 3 finite coordinates"
        )
    room = torch.tensor(grid, dtype=torch.float64) - 1  # see boundary_check
    low, high = points.double().amin(0), points.double().amax(0)
    extent = high - low
    scale = min(
        [float(room[axis] / extent[axis]) for axis in range(3) if extent[axis] > 0], default=1.0
    )
    return boundary_check(((points - (low + high) / 2) * scale + room / 2).float(), grid)


def members_per_class(clouds: PointClouds) -> list[Tensor]:
    """Return the cloud indices of each class: int64, one tensor per class."""
    return [
        (clouds.labels == label).nonzero().flatten() for label in range(len(clouds.class_names))
    ]


def refuse_too_few(
    members: Sequence[Tensor], counts: Sequence[int], class_names: Sequence[str]
) -> None:
    """Raise InputError if a class has fewer clouds than its count in `counts`."""
    for indices, count, name in zip(members, counts, class_names):
        if len(indices) < count:
            raise InputError(
                f"class '{name}' has {len(indices)} clouds to sample from, "
                f"but {count} were asked for; lower the number of clouds per class "
                "(clouds.clouds_per_class) or the batch size (objective.real_batch)"
            )


def sample(
    members: Sequence[Tensor],
    counts: Sequence[int],
    draws: torch.Generator,
    class_names: Sequence[str],
) -> Tensor:
    """Sample clouds of each class at random, without replacement.

    members: cloud indices of each class
    counts: number of clouds to sample from each class
    Returns indices, class after class: int64 (sum of counts,). Raises InputError if a class has
    fewer clouds than its count.
    """
    refuse_too_few(members, counts, class_names)
    chosen = []
    for indices, count in zip(members, counts):
        chosen.append(indices.cpu()[torch.randperm(len(indices), generator=draws)[:count]])
    return torch.cat(chosen)


def resampled(clouds: PointClouds, sizes: Sequence[int], draws: torch.Generator) -> PointClouds:
    """Resample each cloud at random to the number of points in `sizes`.

    A cloud with more points is subsampled without replacement. A cloud with fewer points keeps all
    of them and gets random repeats.
    """
    kept = []
    for number, size in enumerate(sizes):
        points = clouds[number]
        order = torch.randperm(len(points), generator=draws)
        again = torch.randint(len(points), (max(size - len(points), 0),), generator=draws)
        kept.append(points if size == len(points) else points[torch.cat([order[:size], again])])
    return from_list(kept, clouds.labels, clouds.grid, clouds.class_names)


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


# --- files of distilled sets ----------------------------------------------------------------------


def save(clouds: PointClouds, path: Path | str) -> None:
    """Write a set as .npz without pickles, atomically.

    The fields are those of `PointClouds`, and `format_version`. A set with learned labels has
    format version 2. A set without them has no field `label_probabilities` and format version 1,
    which every pcdd reads.
    Raises InputError if a cloud is empty or the folder is not writable.
    """
    if (empty := (clouds.sizes == 0).nonzero()).numel():
        raise InputError(
            f"{path}: cloud {int(empty[0])} is empty; every cloud of a set needs a point"
        )
    learned = clouds.label_probabilities
    arrays = dict(
        coordinates=clouds.coordinates.detach().cpu().numpy().astype(np.float32),
        offsets=clouds.offsets.cpu().numpy(),
        labels=clouds.labels.cpu().numpy(),
        grid=np.array(clouds.grid, dtype=np.int64),
        class_names=np.array(clouds.class_names, dtype=np.str_),
        format_version=np.int64(1 if learned is None else 2),
    )
    if learned is not None:
        arrays["label_probabilities"] = learned.detach().cpu().numpy().astype(np.float32)
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def load(path: Path | str) -> PointClouds:
    """Read a set that `save` wrote.

    Raises InputError if anything is wrong. The message names the file, the field and the value.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a distilled set (.npz)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib raise about ten types for damaged files
        reason = (
            "it contains an object array, and unpickling one can run code"
            if "pickle" in str(error).lower()
            else str(error)
        )
        raise InputError(
            f"{path}: not a readable distilled set ({reason}); expected an .npz of plain arrays"
        ) from None
    arrays = _checked(path, arrays)
    learned = arrays.get("label_probabilities")
    return PointClouds(
        torch.from_numpy(arrays["coordinates"]),
        torch.from_numpy(arrays["offsets"]),
        torch.from_numpy(arrays["labels"]),
        tuple(arrays["grid"].tolist()),
        tuple(arrays["class_names"].tolist()),
        None if learned is None else torch.from_numpy(learned),
    )


def released(name: str) -> PointClouds:
    """Load a set that comes with pcdd, by name: `released("mnist-1")`.

    Raises InputError with the nearest valid names if there is no such set.
    """
    return load(released_path(name))


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
            arrays[field] = arrays[field].astype(dtype if kind != "U" else arrays[field].dtype)
    version = arrays["format_version"]
    if version.shape != () or not 1 <= version <= FORMAT_VERSION:
        refuse(
            "format_version",
            version.tolist(),
            f"1 to {FORMAT_VERSION}; a newer pcdd may read this set",
        )
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
