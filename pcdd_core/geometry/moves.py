"""Shift, scale or rotate whole clouds at random.

The moves and their ranges are those of the evaluation's augmentation of images (Zhao et al. 2021).
Images are resampled, which blurs pixels. Coordinates are transformed exactly and differentiably.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .clouds import PointClouds

SHIFT = 4 / 28  # largest shift, as a fraction of the grid's cells along the axis
SCALE = 0.2  # largest relative change of size
ROTATION = torch.pi / 4  # largest angle to either side, radians


@dataclass(frozen=True)
class Move:
    """Affine maps x -> matrix (x - middle) + middle + shift about the middle of the grid.

    matrix: (moves, 3, 3)
    shift:  (moves, 3), cells
    """

    matrix: Tensor
    shift: Tensor

    def __call__(self, clouds: PointClouds) -> PointClouds:
        """Move each cloud by its own move, or all clouds by a single one.

        Points may leave the grid.
        """
        middle = clouds.coordinates.new_tensor(
            [cells / 2 if cells > 1 else 0.0 for cells in clouds.grid]
        )
        index = clouds.cloud_index if len(self.shift) > 1 else torch.zeros_like(clouds.cloud_index)
        matrix, shift = (part.to(clouds.coordinates)[index] for part in (self.matrix, self.shift))
        moved = (matrix @ (clouds.coordinates - middle)[..., None])[..., 0] + middle + shift
        return clouds.with_coordinates(moved)


def rotated(clouds: PointClouds, angles: Tensor) -> PointClouds:
    """Rotate each cloud about the middle of the grid by its own angles.

    angles: (clouds, 3), radians about the first, second and third axis. They form a rotation
    vector, so the order of the axes does not matter. Differentiable in coordinates and angles.
    """
    about_first, about_second, about_third = angles.unbind(1)
    zero = torch.zeros_like(about_first)
    rows = (
        [zero, -about_third, about_second],
        [about_third, zero, -about_first],
        [-about_second, about_first, zero],
    )
    generators = torch.stack([torch.stack(row, 1) for row in rows], 1)
    return Move(torch.linalg.matrix_exp(generators), torch.zeros_like(angles))(clouds)


def draw_moves(count: int, grid: tuple[int, int, int], draws: torch.Generator) -> Move:
    """Draw `count` random moves for a grid: shift, scale or rotation with equal probability.

    shift:    up to a seventh of the grid along each axis
    scale:    a factor of 0.8 to 1.2 along each axis
    rotation: -45 to 45 degrees; in the plane of a flat grid, else about the vertical axis (height),
              which keeps shapes upright

    Axes of one cell do not change.
    """
    first, second = (1, 2) if grid[0] == 1 else (0, 2)
    free = torch.tensor([cells > 1 for cells in grid])
    choice = torch.randint(3, (count,), generator=draws)
    shift = (torch.rand(count, 3, generator=draws) * 2 - 1) * SHIFT * torch.tensor(grid) * free
    scale = 1 + (torch.rand(count, 3, generator=draws) * 2 - 1) * SCALE * free
    angle = (torch.rand(count, generator=draws) * 2 - 1) * ROTATION * (free[first] & free[second])
    rotation = torch.eye(3).repeat(count, 1, 1)
    rotation[:, first, first], rotation[:, first, second] = angle.cos(), -angle.sin()
    rotation[:, second, first], rotation[:, second, second] = angle.sin(), angle.cos()
    is_scale, is_rotation = (choice == 1)[:, None, None], (choice == 2)[:, None, None]
    matrix = torch.where(
        is_rotation, rotation, torch.where(is_scale, torch.diag_embed(scale), torch.eye(3))
    )
    return Move(matrix, shift * (choice == 0)[:, None])
