"""Lifts: convert point clouds to inputs of a network.

Each lift is a function of clouds, and a piece that holds its settings. All but `occupancy` have a
gradient with respect to the coordinates.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..geometry.clouds import Grid, PointClouds, padded_coordinates
from ..geometry.grid import at_lower_corners, boundary_check, within_box
from ..nn import sparse
from ..pieces import Piece, Positive, setting


class Lift(Piece):
    """A kind of lift. A choice defines `__call__`.

    gives:       kind of its result: "grid" (clouds, channels, depth, height, width), "cells" (a
                 sparse tensor), "points" (clouds, points, 3 or 4), or one of your own that your
                 network takes
    channels:    number of channels of its result
    beyond_grid: accepts points outside the grid, as augmentation makes them
    """

    gives: ClassVar[str] = "grid"
    channels: ClassVar[int] = 1
    beyond_grid: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, clouds: PointClouds, progress: float = 1.0, real: bool = False) -> Any:
        """Convert clouds to inputs of a network, differentiably in the coordinates.

        progress: finished fraction of the run, 0 to 1, for lifts that change over the run
        real: the clouds are real; they may be lifted with less blur than synthetic ones
        """

    def bounded(self, coordinates: Tensor, grid: Grid) -> Tensor:
        """Clamp synthetic points (points, 3) to where this lift keeps them: `within_box`."""
        return within_box(coordinates, grid)


class CoordinatesAsFeatures(Lift, name="coordinates"):
    """The paper's lift: raw coordinates as features of the occupied cells."""

    gives = "cells"
    channels = 3
    beyond_grid = False

    def __call__(self, clouds: PointClouds, progress: float = 1.0, real: bool = False) -> Any:
        """Return `coordinates_as_features` of the clouds; real ones are `at_lower_corners`."""
        return coordinates_as_features(at_lower_corners(clouds) if real else clouds)

    def bounded(self, coordinates: Tensor, grid: Grid) -> Tensor:
        """Clamp synthetic points (points, 3) with the paper's `boundary_check`."""
        return boundary_check(coordinates, grid)


class GaussianOccupancy(Lift, name="gaussian"):
    """Differentiable occupancy: every point is a Gaussian, which narrows over the run."""

    bandwidth_start: Positive = setting(
        default=2.5, help="standard deviation at the first iteration, in cells"
    )
    bandwidth_end: Positive = setting(
        default=0.5, help="standard deviation at the last iteration, in cells"
    )
    real_bandwidth_end: Positive | None = setting(
        default=None,
        help="bandwidth_end for real clouds, in cells; smaller values make them sharper than "
        "synthetic clouds; null: as bandwidth_end",
    )
    saturation: Positive = setting(
        default=6.0,
        help="a cell with mass m has the value 1 - exp(-saturation m); at the last iteration",
    )
    saturation_start: Positive | None = setting(
        default=None,
        help="saturation at the first iteration; null: as saturation. Near 1, the values of a wide "
        "point sum to about one cell. At 6 they sum to several cells; this excess disappears as "
        "points become narrow, and leaves holes",
    )
    closed: bool = setting(
        default=False,
        help="true: a point's mass beyond the grid counts in the outermost cells; false: it is "
        "lost, and unneeded points collect at the edge of the grid, where they have little mass, "
        "above all in the corners of 3D grids",
    )
    hard_from: Annotated[float, Field(ge=0, le=1)] = setting(
        default=1.0,
        help="from this fraction of the run on, cells have the values 0 or 1, as in the "
        "evaluation, with the gradient of the Gaussian occupancy; 1: never",
    )

    def __call__(self, clouds: PointClouds, progress: float = 1.0, real: bool = False) -> Tensor:
        """Return `gaussian_occupancy` or `straight_through_occupancy` of the clouds."""
        end = (real and self.real_bandwidth_end) or self.bandwidth_end
        bandwidth = annealed(progress, self.bandwidth_start, end)
        start = self.saturation_start or self.saturation
        saturation = annealed(progress, start, self.saturation)
        hard = self.hard_from < 1 and progress >= self.hard_from
        lifted = straight_through_occupancy if hard else gaussian_occupancy
        return lifted(clouds, bandwidth, saturation, self.closed)


class Points(Lift, name="points"):
    """The points themselves, for networks that take points."""

    gives = "points"
    channels = 3

    def __call__(self, clouds: PointClouds, progress: float = 1.0, real: bool = False) -> Tensor:
        """Return `centred_points` of the clouds."""
        return centred_points(clouds)


def coordinates_as_features(clouds: PointClouds, from_points: Callable = sparse.from_points):
    """Return a sparse tensor whose features are the raw coordinates of the points (three channels).

    Source: paper, section 3.1.3. A point's coordinates set its cell and are its features. Features
    of points in the same cell are averaged. The gradient reaches the coordinates through the
    features only: it does not account for a change of cell.
    from_points: makes the sparse tensor; `sparse.from_points` or `minkowski.from_points`
    """
    return from_points(
        clouds.coordinates, clouds.coordinates, clouds.cloud_index, len(clouds), clouds.grid
    )


def occupancy(clouds: PointClouds) -> Tensor:
    """Return 1 in each cell that holds a point, else 0, without a gradient.

    Returns float32 (clouds, 1, depth, height, width). Raises ValueError if a point lies outside the
    grid.
    """
    cells = clouds.coordinates.detach().floor().long()
    if not _inside(cells, clouds).all():
        raise ValueError(f"a point lies outside the grid {clouds.grid}; see grid.within_box")
    return _filled(cells, clouds.cloud_index, clouds)


def gaussian_occupancy(
    clouds: PointClouds, bandwidth: float, saturation: float, closed: bool = False
) -> Tensor:
    """Return differentiable occupancy: (clouds, 1, depth, height, width), values in [0, 1].

    Each point is a Gaussian of total mass 1. A cell with mass m has the value
    1 - exp(-saturation m), so a second point in an occupied cell adds little. As the bandwidth goes
    to 0, the mass becomes the number of points per cell; with large saturation, the value becomes
    `occupancy`. The Gaussian is separable, so one batched matrix product of masses per axis
    computes it. Twice differentiable, in 2D and 3D.
    bandwidth: standard deviation, cells
    closed: mass beyond the grid counts in the outermost cells. Otherwise it is lost: a point keeps
        half its mass at a face of the grid and an eighth in a corner. Unneeded points collect
        there, where they affect the network least.
    """
    coordinates, present = padded_coordinates(clouds)
    masses = [
        _mass_per_cell(coordinates[..., axis], cells, bandwidth, closed)
        for axis, cells in enumerate(clouds.grid)
    ]
    depth_height = torch.einsum("bn,bnd,bnh->bndh", present, masses[0], masses[1]).flatten(2)
    dense = torch.bmm(depth_height.transpose(1, 2), masses[2])  # (clouds, depth x height, width)
    # Beyond 50 the value is 1, and exp would return denormal numbers, which are slow.
    return (1 - torch.exp(-(saturation * dense).clamp(max=50))).view(len(clouds), 1, *clouds.grid)


def straight_through_occupancy(
    clouds: PointClouds, bandwidth: float, saturation: float, closed: bool = False
) -> Tensor:
    """Return `occupancy` with the gradient of `gaussian_occupancy`.

    This is a straight-through estimate (Bengio et al. 2013). The network gets the values of the
    evaluation, 0 or 1, and the gradient still pulls points towards cells that need mass. Points
    outside the grid occupy no cell. Returns (clouds, 1, depth, height, width).
    bandwidth, saturation, closed: as in `gaussian_occupancy`
    """
    soft = gaussian_occupancy(clouds, bandwidth, saturation, closed)
    cells = clouds.coordinates.detach().floor().long()
    inside = _inside(cells, clouds)
    return soft + (_filled(cells[inside], clouds.cloud_index[inside], clouds) - soft).detach()


def centred_points(clouds: PointClouds) -> Tensor:
    """Return the points as a padded tensor, centred on the grid and scaled: float32.

    Returns (clouds, points, 3) if all clouds have the same number of points, else
    (clouds, most points, 4). The fourth column is 1 for points and 0 for padding; padding has
    coordinates 0. The unit is half the longest side of the grid, so coordinates are -1 to 1 along
    that side.
    """
    middle = clouds.coordinates.new_tensor(clouds.grid) / 2
    centred = clouds.with_coordinates((clouds.coordinates - middle) / (max(clouds.grid) / 2))
    if bool((clouds.sizes == clouds.sizes[0]).all()):
        return centred.coordinates.view(len(clouds), -1, 3)
    coordinates, present = padded_coordinates(centred)
    return torch.cat([coordinates, present[..., None]], dim=-1)


def annealed(progress: float, start: float, end: float) -> float:
    """Return the bandwidth or saturation after a fraction `progress` of the run.

    Changes geometrically from `start` to `end`. A wide bandwidth at first gives scattered points a
    gradient towards distant targets. A narrow one at the end lets them settle on cells.
    """
    return start * (end / start) ** min(max(progress, 0.0), 1.0)


def _inside(cells: Tensor, clouds: PointClouds) -> Tensor:
    """Return which of the cells (points, 3) lie in the grid: bool (points,)."""
    return ((cells >= 0) & (cells < cells.new_tensor(clouds.grid))).all(1)


def _filled(cells: Tensor, cloud_index: Tensor, clouds: PointClouds) -> Tensor:
    """Return 1 in the given cells, else 0: float32 (clouds, 1, depth, height, width).

    cells: int64 (points, 3); cloud_index: the cloud of each cell, int64 (points,)
    """
    dense = torch.zeros(len(clouds), 1, *clouds.grid, device=clouds.device)
    depth, height, width = cells.unbind(1)
    dense[cloud_index, 0, depth, height, width] = 1.0
    return dense


def _mass_per_cell(position: Tensor, cells: int, bandwidth: float, closed: bool) -> Tensor:
    """Return the mass of a Gaussian in each cell of one axis: (clouds, points, cells).

    position: (clouds, points), cells. closed: extend the first and the last cell to infinity.
    """
    if cells == 1:
        return torch.ones_like(position)[..., None]
    edges = torch.arange(cells + 1, device=position.device, dtype=position.dtype)
    # Cut the tail past 4 standard deviations (3e-5) to exactly 0. This avoids denormal numbers,
    # which are very slow on CPUs, and leaves cells empty that a sparse network then skips.
    distance = ((edges - position[..., None]) / bandwidth).clamp(-4, 4)
    if closed:
        below, above = torch.full_like(distance[..., :1], -4), torch.full_like(distance[..., :1], 4)
        distance = torch.cat([below, distance[..., 1:-1], above], dim=-1)
    return torch.erf(distance * 0.5**0.5).diff(dim=-1) / 2
