"""The point cloud type, and operations on whole clouds.

Units: coordinates are in cells of the grid, in the order depth, height, width (paper, section
3.1.2). The cell of a point is the floor of its coordinates: the coordinate 3.7 lies in cell 3,
whose centre is 3.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from .export import CloudDataset

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
        offsets = offsets_of(sizes)
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

    def to_dataset(
        self, project: bool = False, transform: Callable[[Tensor], Any] | None = None
    ) -> "CloudDataset":
        """Return a torch data set of (points, target) or, projected, of (image, target).

        See `CloudDataset`. `padded_collate` and `ragged_collate` make batches of points.
        """
        from .export import CloudDataset  # which imports this module

        return CloudDataset(self, project, transform)


def clouds_from_list(
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
    depth, height, width = grid
    return PointClouds(
        coordinates, offsets_of(sizes), labels, (depth, height, width), tuple(class_names)
    )


def from_occupancy(
    occupied: Tensor, labels: Tensor, class_names: Sequence[str], max_points: int | None = None
) -> PointClouds:
    """Turn occupied cells into points, in raster order (paper, section 3.1.1).

    occupied: bool (clouds, depth, height, width)
    max_points: keep only the first points of each cloud, 250 in the paper's code; None: keep all
    A point lies at the centre of its cell. The paper puts it at the cell's lower corner, which
    `grid.at_lower_corners` does.
    """
    cells = occupied.nonzero()
    cloud, coordinates = cells[:, 0], cells[:, 1:] + 0.5
    sizes = torch.bincount(cloud, minlength=len(occupied))
    if max_points is not None:
        rank = torch.arange(len(cloud), device=cloud.device) - offsets_of(sizes)[:-1][cloud]
        coordinates, sizes = coordinates[rank < max_points], sizes.clamp(max=max_points)
    depth, height, width = occupied.shape[1:]
    return PointClouds(
        coordinates, offsets_of(sizes), labels.long(), (depth, height, width), tuple(class_names)
    )


def padded_coordinates(clouds: PointClouds) -> tuple[Tensor, Tensor]:
    """Pad the coordinates of all clouds to the same number of points.

    Returns the coordinates (clouds, most points, 3), with padding of zeros after the points of each
    cloud, and a mask (clouds, most points): 1 for points, 0 for padding.
    """
    starts = clouds.offsets[:-1].repeat_interleave(clouds.sizes)
    place = (clouds.cloud_index, torch.arange(len(starts), device=clouds.device) - starts)
    padded = clouds.coordinates.new_zeros(len(clouds), int(clouds.sizes.max()), 3)
    present = torch.zeros_like(padded[..., 0]).index_put(place, padded.new_ones(()))
    return padded.index_put(place, clouds.coordinates), present


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
    return clouds_from_list(kept, clouds.labels, clouds.grid, clouds.class_names)


def offsets_of(sizes: Tensor) -> Tensor:
    """Return the `offsets` of clouds with these numbers of points."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
