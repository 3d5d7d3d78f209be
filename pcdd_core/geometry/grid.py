"""Operations on positions in the box of a grid. `clouds` states the units."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .clouds import Grid, PointClouds, clouds_from_list, offsets_of


def scattered(
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
    coordinates = within_box(torch.rand(sum(sizes), 3, generator=generator) * size, grid)
    return clouds_from_list(coordinates.split(list(sizes)), labels, grid, class_names)


def within_box(coordinates: Tensor, grid: Grid) -> Tensor:
    """Clamp coordinates to the box of the grid, [0, cells) along each axis.

    Along an axis of one cell, points lie in its middle, 0.5, because nothing determines a position
    there. NaN stays NaN, because hiding it would hide a diverged run.
    """
    cells = coordinates.new_tensor(grid)
    upper = torch.nextafter(cells, torch.zeros_like(cells))
    middle, flat = torch.full_like(cells, 0.5), cells == 1
    return coordinates.clamp(
        min=torch.where(flat, middle, torch.zeros_like(cells)),
        max=torch.where(flat, middle, upper),
    )


def boundary_check(coordinates: Tensor, grid: Grid) -> Tensor:
    """Clamp coordinates to [0, cells - 1] along each axis (paper, section 3.1.2).

    So no point of the paper's lift goes beyond the lower corner of the last cell, where the paper
    puts real points. In a flat grid the depth is 0. NaN stays NaN, as in `within_box`.
    """
    upper = torch.tensor(grid, dtype=coordinates.dtype, device=coordinates.device) - 1
    return coordinates.clamp(min=torch.zeros_like(upper), max=upper)


def cell_centres(clouds: PointClouds) -> PointClouds:
    """Move every point to the centre of its cell.

    An occupancy grid determines the cell of a point, but not its position within the cell. The
    centre is a fair estimate of that position.
    """
    return clouds.with_coordinates(clouds.coordinates.floor() + 0.5)


def at_lower_corners(clouds: PointClouds) -> PointClouds:
    """Move points from the centres of their cells to the lower corners, exactly in float32.

    The paper's data preparation (section 3.1.1) writes an occupied cell as its integer index.
    """
    return clouds.with_coordinates(clouds.coordinates - 0.5)


def clouds_from_unit_ball(
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
    offsets = offsets_of(torch.full((shapes,), count, dtype=torch.int64))
    return PointClouds(
        coordinates, offsets, labels.long(), (cells, cells, cells), tuple(class_names)
    )


def into_grid(points: Tensor, grid: Grid) -> Tensor:
    """Move and scale a cloud to fill the grid's box.

    points: (points, 3) in any unit, in the order depth, height, width
    Returns coordinates in cells, of the same shape. All axes have the same scale, so proportions
    stay. The result is centred. The scale is the largest at which the outermost points lie at the
    centres of the outermost cells. Raises InputError if the shape is wrong, there is no point, or
    coordinates are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or not points.isfinite().all():
        raise InputError(
            f"points of shape {tuple(points.shape)}: "
            "expected one or more rows of 3 finite coordinates"
        )
    size = torch.tensor(grid, dtype=torch.float64)
    low, high = points.double().amin(0), points.double().amax(0)
    extent = high - low
    scale = min(
        [float((size[axis] - 1) / extent[axis]) for axis in range(3) if extent[axis] > 0],
        default=1.0,
    )
    return within_box(((points - (low + high) / 2) * scale + size / 2).float(), grid)
