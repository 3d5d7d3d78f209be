"""Random moves of clouds: their sizes, what they move, and their derivative."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcdd_core.geometry.clouds import clouds_from_list
from pcdd_core.geometry.moves import ROTATION, SCALE, SHIFT, draw_moves, rotated
from pcdd_core.seeds import generator

FLAT, SOLID = (1, 28, 20), (8, 12, 10)
GRIDS = st.sampled_from([FLAT, SOLID])


def middle(grid):
    return torch.tensor([cells / 2 if cells > 1 else 0.0 for cells in grid])


@given(grid=GRIDS, seed=st.integers(0, 500))
def test_a_move_is_a_shift_a_scaling_or_a_rotation_within_bounds(grid, seed):
    move = draw_moves(1, grid, generator(seed))
    matrix, shift = move.matrix[0], move.shift[0]
    free = torch.tensor([cells > 1 for cells in grid])
    assert (shift.abs() <= SHIFT * torch.tensor(grid)).all() and (shift[~free] == 0).all()
    identity = torch.eye(3)
    if torch.equal(matrix, identity):
        assert (shift[free] != 0).all()
        return
    assert (shift == 0).all()
    first, second = (1, 2) if grid[0] == 1 else (0, 2)
    if matrix[first, second] == 0:  # a scaling
        factors = matrix.diagonal()
        assert torch.equal(matrix, factors.diag())
        assert ((factors - 1).abs() <= SCALE + 1e-6).all() and (factors[~free] == 1).all()
    else:  # a rotation in the plane of height and width; of shapes, about the vertical axis
        torch.testing.assert_close(matrix @ matrix.T, identity)
        axis = 3 - first - second
        assert torch.equal(matrix[axis], identity[axis]) and matrix.det() > 0
        assert matrix[first, second].abs() <= torch.tensor(ROTATION).sin() + 1e-6


def test_each_kind_of_move_is_as_likely_as_the_others():
    move = draw_moves(3000, FLAT, generator(0))
    shifted = (move.shift != 0).any(1)
    rotation = move.matrix[:, 1, 2] != 0
    for kind in (shifted, rotation, ~shifted & ~rotation):
        assert 900 < int(kind.sum()) < 1100


@given(grid=GRIDS, seed=st.integers(0, 99))
def test_clouds_are_moved_about_the_middle_of_the_grid(random_clouds, grid, seed):
    clouds = random_clouds([4, 1, 6], grid, seed)
    for count in (1, 3):  # one move for all clouds, one move per cloud
        move = draw_moves(count, grid, generator(seed))
        moved = move(clouds)
        for cloud in range(3):
            number = cloud if count == 3 else 0
            matrix, shift = move.matrix[number].double(), move.shift[number].double()
            expected = (clouds[cloud] - middle(grid)) @ matrix.T + middle(grid) + shift
            torch.testing.assert_close(moved[cloud], expected)
        assert torch.equal(moved.labels, clouds.labels) and torch.equal(
            moved.offsets, clouds.offsets
        )
        if grid[0] == 1:
            assert torch.equal(moved.coordinates[:, 0], clouds.coordinates[:, 0])


def test_a_plane_with_one_axis_of_one_cell_is_not_turned():
    move = draw_moves(100, (8, 1, 8), generator(0))
    assert (move.matrix[:, 1, 2] == 0).all()


def test_moves_are_differentiable_in_the_coordinates(random_clouds):
    clouds, move = random_clouds([3, 2], SOLID, 0), draw_moves(2, SOLID, generator(1))
    coordinates = clouds.coordinates.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: move(clouds.with_coordinates(x)).coordinates, coordinates
    )
    assert torch.autograd.gradgradcheck(
        lambda x: move(clouds.with_coordinates(x)).coordinates.square(), coordinates
    )


@pytest.mark.parametrize("seed", range(3))
def test_same_draws_same_moves(seed):
    one, other = (draw_moves(5, FLAT, generator(seed)) for _ in range(2))
    assert torch.equal(one.matrix, other.matrix) and torch.equal(one.shift, other.shift)


def test_clouds_are_turned_about_the_middle_of_the_grid_by_their_own_angles():
    point = torch.tensor([[4.0, 6.0, 4.0]])  # two cells along the second axis from the middle
    clouds = clouds_from_list([point, point, point, point], [0] * 4, (8, 8, 8), "a")
    quarter = torch.pi / 2
    angles = torch.tensor([[0, 0, 0], [quarter, 0, 0], [0, quarter, 0], [0, 0, quarter]])
    expected = torch.tensor([[4.0, 6, 4], [4, 4, 6], [4, 6, 4], [2, 4, 4]])
    torch.testing.assert_close(rotated(clouds, angles).coordinates, expected)


@given(seed=st.integers(0, 99))
def test_turning_keeps_distances(random_clouds, seed):
    clouds = random_clouds([4, 3], (8, 8, 8), seed)
    angles = 3 * torch.randn(
        2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    for before, after in zip(
        clouds.coordinates.split([4, 3]), rotated(clouds, angles).coordinates.split([4, 3])
    ):
        torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before))


def test_both_derivatives_of_turning(random_clouds, check_two_derivatives):
    clouds = random_clouds([3, 2], (8, 8, 8))
    angles = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.0, 0.0]], dtype=torch.float64)
    check_two_derivatives(
        lambda x, by: rotated(clouds.with_coordinates(x), by).coordinates,
        clouds.coordinates,
        angles,
    )
