"""From points to what a network sees. Each lift is a function of clouds; all but `occupancy` can move points."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import sparse
from .clouds import PointClouds


def coordinates_as_features(clouds: PointClouds, from_points: Callable = sparse.from_points):
    """The paper's lift (section 3.1.3): a point's coordinates are its position and, raw, its three features.

    Points in one cell are averaged. The gradient reaches the coordinates through the features only, so within its cell
    a point feels the network's taste for other coordinates, but not that it could change cells.
    from_points makes the sparse tensor that is returned: `sparse.from_points` or `minkowski.from_points`.
    """
    return from_points(
        clouds.coordinates, clouds.coordinates, clouds.cloud_index, len(clouds), clouds.grid
    )


def occupancy(clouds: PointClouds) -> Tensor:
    """1 in every cell that holds a point, else 0: float32 (clouds, 1, depth, height, width). No gradient.

    Raises ValueError if a point lies outside the grid.
    """
    cells = clouds.coordinates.detach().floor().long()
    if not _inside(cells, clouds).all():
        raise ValueError(f"a point lies outside the grid {clouds.grid}; see clouds.boundary_check")
    return _filled(cells, clouds.cloud_index, clouds)


def gaussian_occupancy(
    clouds: PointClouds, bandwidth: float, saturation: float, closed: bool = False
) -> Tensor:
    """Differentiable occupancy: (clouds, 1, depth, height, width), values in [0, 1].

    Every point is a Gaussian of `bandwidth` cells standard deviation and total mass 1. A cell receives the mass m that
    falls into it, and saturates: 1 - exp(-saturation * m), so that a second point in a taken cell gains little.
    As the bandwidth goes to 0 this becomes a count per cell, and for large saturation hard occupancy.
    Mass that falls beyond the grid is lost or, if `closed`, is in the outermost cells. Where it is lost, a point shows half
    its mass at a face of the grid and an eighth in a corner, and points that are not wanted hide there from the network.
    The Gaussian is separable: one batched matrix product of per-axis masses, twice differentiable, in 2D and 3D.
    """
    coordinates, present = padded_coordinates(clouds)
    masses = [
        _mass_per_cell(coordinates[..., axis], cells, bandwidth, closed)
        for axis, cells in enumerate(clouds.grid)
    ]
    depth_height = torch.einsum("bn,bnd,bnh->bndh", present, masses[0], masses[1]).flatten(2)
    dense = torch.bmm(depth_height.transpose(1, 2), masses[2])  # (clouds, depth x height, width)
    # beyond 50 the cell is full, and exp would make denormal numbers
    return (1 - torch.exp(-(saturation * dense).clamp(max=50))).view(len(clouds), 1, *clouds.grid)


def straight_through_occupancy(
    clouds: PointClouds, bandwidth: float, saturation: float, closed: bool = False
) -> Tensor:
    """`occupancy` with the gradient of `gaussian_occupancy` (a straight-through estimate, Bengio et al. 2013).

    The network sees what will be scored, 0 or 1, and points still feel where mass is wanted. Points outside of the grid
    show nothing.
    """
    soft, cells = (
        gaussian_occupancy(clouds, bandwidth, saturation, closed),
        clouds.coordinates.detach().floor().long(),
    )
    inside = _inside(cells, clouds)
    return soft + (_filled(cells[inside], clouds.cloud_index[inside], clouds) - soft).detach()


def centred_points(clouds: PointClouds) -> Tensor:
    """The points as they are, float32: (clouds, points, 3) if all clouds have as many, else (clouds, most points, 4).

    The fourth column is 1 where a point is, and where none is all are 0. Coordinates are from the middle of the grid, in units of
    half its longest side: -1 to 1 along that.
    """
    middle = clouds.coordinates.new_tensor(
        [cells / 2 if cells > 1 else 0.0 for cells in clouds.grid]
    )
    centred = clouds.with_coordinates((clouds.coordinates - middle) / (max(clouds.grid) / 2))
    if bool((clouds.sizes == clouds.sizes[0]).all()):
        return centred.coordinates.view(len(clouds), -1, 3)
    coordinates, present = padded_coordinates(centred)
    return torch.cat([coordinates, present[..., None]], dim=-1)


def padded_coordinates(clouds: PointClouds) -> tuple[Tensor, Tensor]:
    """Coordinates with zero rows after the end of short clouds, (clouds, most points, 3), and 1 where a point is."""
    starts = clouds.offsets[:-1].repeat_interleave(clouds.sizes)
    place = (clouds.cloud_index, torch.arange(len(starts), device=clouds.device) - starts)
    padded = clouds.coordinates.new_zeros(len(clouds), int(clouds.sizes.max()), 3)
    present = torch.zeros_like(padded[..., 0]).index_put(place, padded.new_ones(()))
    return padded.index_put(place, clouds.coordinates), present


def annealed(progress: float, start: float, end: float) -> float:
    """Bandwidth or saturation after a fraction `progress` of the run: geometric from `start` to `end`.

    Bandwidth: wide at first, so that scattered points feel distant targets; narrow at last, so that they settle on cells.
    """
    return start * (end / start) ** min(max(progress, 0.0), 1.0)


def _inside(cells: Tensor, clouds: PointClouds) -> Tensor:
    """Which cells, (points, 3), are in the grid: (points,)."""
    return ((cells >= 0) & (cells < cells.new_tensor(clouds.grid))).all(1)


def _filled(cells: Tensor, cloud_index: Tensor, clouds: PointClouds) -> Tensor:
    """1 in these cells of these clouds, else 0."""
    dense = torch.zeros(len(clouds), 1, *clouds.grid, device=clouds.device)
    depth, height, width = cells.unbind(1)
    dense[cloud_index, 0, depth, height, width] = 1.0
    return dense


def _mass_per_cell(position: Tensor, cells: int, bandwidth: float, closed: bool) -> Tensor:
    """Share of a Gaussian at `position` (clouds, points) that falls into each of `cells` cells: (clouds, points, cells).

    closed: the first and the last cell reach to infinity.
    """
    if cells == 1:
        return torch.ones_like(position)[..., None]
    edges = torch.arange(cells + 1, device=position.device, dtype=position.dtype)
    # Past 4 standard deviations the tail (3e-5) is cut to exactly 0: no denormal numbers, which are very slow on CPUs,
    # and cells that a sparse network need not look at.
    distance = ((edges - position[..., None]) / bandwidth).clamp(-4, 4)
    if closed:
        below, above = torch.full_like(distance[..., :1], -4), torch.full_like(distance[..., :1], 4)
        distance = torch.cat([below, distance[..., 1:-1], above], dim=-1)
    return torch.erf(distance * 0.5**0.5).diff(dim=-1) / 2
