"""Lifts from points to network inputs, against loops over points; their derivatives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcdd_core.engine.lifts import (
    annealed,
    coordinates_as_features,
    gaussian_occupancy,
    occupancy,
    straight_through_occupancy,
)
from pcdd_core.geometry.clouds import clouds_from_list

FLAT, SOLID = (1, 6, 5), (4, 3, 5)
GRIDS = st.sampled_from([FLAT, SOLID])


def one_cloud(points, grid, dtype=torch.float64):
    coordinates = torch.tensor(points, dtype=dtype)
    return clouds_from_list([coordinates], [0], grid, "a").with_coordinates(coordinates)


# --- hard occupancy -------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 8), min_size=1, max_size=4), grid=GRIDS, seed=st.integers(0, 99)
)
def test_occupancy_is_one_in_the_cells_of_points(random_clouds, sizes, grid, seed):
    clouds = random_clouds(sizes, grid, seed)
    expected = torch.zeros(len(sizes), 1, *grid)
    for cloud in range(len(sizes)):
        for point in clouds[cloud].tolist():
            expected[(cloud, 0, *map(math.floor, point))] = 1
    assert torch.equal(occupancy(clouds), expected)


# --- the paper's lift -----------------------------------------------------------------------------


def test_coordinates_as_features_holds_the_mean_coordinates_of_each_cell():
    clouds = one_cloud([[0, 3.25, 1.5], [0, 2, 2], [0, 3.75, 1]], FLAT)
    lifted = coordinates_as_features(clouds)
    assert lifted.cells.tolist() == [[0, 0, 2, 2], [0, 0, 3, 1]]
    assert lifted.features.tolist() == [[0, 2, 2], [0, 3.5, 1.25]]
    assert (lifted.clouds, lifted.grid, lifted.stride) == (1, FLAT, 1)


@pytest.mark.parametrize("grid", [FLAT, SOLID])
def test_both_derivatives_of_coordinates_as_features(check_two_derivatives, random_clouds, grid):
    clouds = random_clouds([3, 2], grid)
    check_two_derivatives(
        lambda x: coordinates_as_features(clouds.with_coordinates(x)).features, clouds.coordinates
    )


# --- Gaussian occupancy ---------------------------------------------------------------------------


def loop_gaussian(clouds, bandwidth, saturation, closed=False):
    """Add the mass of each point with math.erf, with tails cut at 4 standard deviations."""

    def share(position, cell, cells):
        if cells == 1:
            return 1.0
        below, above = (
            min(max((edge - position) / bandwidth, -4.0), 4.0) for edge in (cell, cell + 1)
        )
        if closed:
            below, above = -4.0 if cell == 0 else below, 4.0 if cell == cells - 1 else above
        return (math.erf(above / math.sqrt(2)) - math.erf(below / math.sqrt(2))) / 2

    image = torch.zeros(len(clouds), 1, *clouds.grid, dtype=torch.float64)
    for cloud, channel, *cell in torch.ones_like(image).nonzero().tolist():
        mass = 0.0
        for point in clouds[cloud].tolist():
            mass += math.prod(share(*along) for along in zip(point, cell, clouds.grid))
        image[(cloud, channel, *cell)] = 1 - math.exp(-saturation * mass)
    return image


@pytest.mark.parametrize("grid", [FLAT, SOLID])
@pytest.mark.parametrize("bandwidth, saturation", [(0.3, 5.0), (1.0, 3.0), (2.5, 0.7)])
@pytest.mark.parametrize("closed", [False, True])
def test_gaussian_occupancy_equals_a_loop_over_points(
    random_clouds, grid, bandwidth, saturation, closed
):
    clouds = random_clouds([4, 1, 0, 6], grid)
    expected = loop_gaussian(clouds, bandwidth, saturation, closed)
    torch.testing.assert_close(
        gaussian_occupancy(clouds, bandwidth, saturation, closed), expected, rtol=1e-12, atol=1e-14
    )


@given(seed=st.integers(0, 1000), bandwidth=st.floats(0.2, 6), grid=GRIDS)
def test_a_closed_grid_loses_no_mass_wherever_points_are(random_clouds, seed, bandwidth, grid):
    clouds = random_clouds([1], grid, seed)
    # moves some points out of the grid
    moved = clouds.with_coordinates(clouds.coordinates * 1.5 - 0.5)
    mass = -torch.log(1 - gaussian_occupancy(moved, bandwidth, saturation=1.0, closed=True))
    assert math.isclose(
        mass.sum(), math.erf(4 / math.sqrt(2)) ** sum(cells > 1 for cells in grid), rel_tol=1e-9
    )


def test_a_point_in_a_corner_loses_seven_eighths_of_its_mass_in_an_open_grid():
    corner = one_cloud([[0.0, 0.0, 0.0]], (16, 16, 16))
    masses = [
        -torch.log(1 - gaussian_occupancy(corner, 1.5, 1.0, closed)).sum().item()
        for closed in (False, True)
    ]
    assert math.isclose(masses[0], 1 / 8, rel_tol=1e-3) and math.isclose(masses[1], 1, rel_tol=1e-3)


@pytest.mark.parametrize(
    "grid, place", [((1, 16, 16), [0, 7.3, 8.6]), ((16, 16, 16), [8.1, 7.3, 8.6])]
)
def test_mass_is_conserved_away_from_the_borders(grid, place):
    clouds = one_cloud([place, [place[0], 7.9, 8.2], place], grid)
    mass = -torch.log(1 - gaussian_occupancy(clouds, bandwidth=1.2, saturation=2.0)) / 2.0
    within_four_deviations = math.erf(4 / math.sqrt(2)) ** sum(cells > 1 for cells in grid)
    assert math.isclose(mass.sum(), 3 * within_four_deviations, rel_tol=1e-12)


def test_cells_past_four_standard_deviations_are_exactly_zero():
    image = gaussian_occupancy(
        one_cloud([[0, 8.5, 8.5]], (1, 17, 17)), bandwidth=1.0, saturation=3.0
    )
    reached = (torch.arange(17) - 8).abs() <= 4
    assert torch.equal(image[0, 0, 0] > 0, reached[:, None] & reached)


def test_moving_a_point_by_whole_cells_moves_the_image():
    points, shift = (
        torch.tensor([[5.2, 6.7, 5.4], [4.6, 5.1, 6.9]]).double(),
        torch.tensor([2, 1, -2]),
    )
    image = gaussian_occupancy(one_cloud(points.tolist(), (12, 12, 12)), 0.7, 3.0)
    moved = gaussian_occupancy(one_cloud((points + shift).tolist(), (12, 12, 12)), 0.7, 3.0)
    torch.testing.assert_close(
        moved, image.roll(shift.tolist(), dims=(2, 3, 4)), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("grid", [FLAT, SOLID])
def test_tiny_bandwidth_and_large_saturation_give_hard_occupancy(random_clouds, grid):
    clouds = random_clouds([6, 3], grid)
    torch.testing.assert_close(gaussian_occupancy(clouds, 1e-3, 1e3), occupancy(clouds).double())


def test_tiny_bandwidth_counts_the_points_of_a_cell():
    image = gaussian_occupancy(
        one_cloud([[0, 1.5, 1.5], [0, 1.2, 1.7], [0, 3.5, 0.5]], FLAT), 1e-3, 2.0
    )
    count = -torch.log(1 - image[0, 0, 0]) / 2.0
    expected = torch.zeros(6, 5, dtype=torch.float64)
    expected[1, 1], expected[3, 0] = 2, 1
    torch.testing.assert_close(count, expected * math.erf(4 / math.sqrt(2)) ** 2)


@given(
    seed=st.integers(0, 1000),
    bandwidth=st.floats(0.05, 5),
    saturation=st.floats(0.1, 3),
    grid=GRIDS,
)
def test_values_are_at_least_zero_and_below_one(random_clouds, seed, bandwidth, saturation, grid):
    image = gaussian_occupancy(random_clouds([9, 3], grid, seed), bandwidth, saturation)
    assert image.min() >= 0
    assert image.max() < 1


@given(seed=st.integers(0, 1000), bandwidth=st.floats(0.2, 2.5))
def test_neither_values_nor_gradients_are_denormal(random_clouds, seed, bandwidth):
    clouds = random_clouds([12, 4], (1, 28, 28), seed)
    coordinates = clouds.coordinates.float().requires_grad_()
    image = gaussian_occupancy(clouds.with_coordinates(coordinates), bandwidth, 3.0)
    image.sum().backward()
    for values in (image, coordinates.grad):
        smallest = values[values != 0].abs().min()
        assert smallest >= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("grid", [FLAT, SOLID])
def test_a_cloud_does_not_depend_on_the_others_of_its_batch(random_clouds, grid):
    clouds = random_clouds([5, 1, 3], grid)
    together = gaussian_occupancy(clouds, 0.8, 3.0)
    for cloud in range(3):
        alone = gaussian_occupancy(clouds.select(torch.tensor([cloud])), 0.8, 3.0)
        torch.testing.assert_close(alone[0], together[cloud], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("grid", [FLAT, SOLID])
@pytest.mark.parametrize(("bandwidth", "closed"), [(0.4, True), (1.3, False)])
def test_both_derivatives_of_gaussian_occupancy(
    check_two_derivatives, random_clouds, grid, bandwidth, closed
):
    clouds = random_clouds([3, 2], grid)
    check_two_derivatives(
        lambda x: gaussian_occupancy(clouds.with_coordinates(x), bandwidth, 3.0, closed),
        clouds.coordinates,
    )


# --- annealing ------------------------------------------------------------------------------------


def test_the_bandwidth_falls_geometrically_between_its_ends_and_stays_there():
    assert annealed(0.0, 2.5, 0.4) == 2.5
    assert math.isclose(annealed(0.5, 2.5, 0.4), 1.0)
    assert math.isclose(annealed(1.0, 2.5, 0.4), 0.4)
    assert annealed(-0.1, 2.5, 0.4) == 2.5
    assert annealed(1.1, 2.5, 0.4) == annealed(1.0, 2.5, 0.4)


# --- straight through -----------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4), grid=GRIDS, seed=st.integers(0, 99)
)
def test_straight_through_shows_occupancy_and_has_the_gaussian_s_gradients(
    random_clouds, sizes, grid, seed
):
    clouds = random_clouds(sizes, grid, seed)
    weights = torch.randn(len(sizes), 1, *grid, generator=torch.Generator().manual_seed(seed))
    derivatives = []
    for lift in (straight_through_occupancy, gaussian_occupancy):
        coordinates = clouds.coordinates.clone().requires_grad_()
        lifted = lift(clouds.with_coordinates(coordinates), 0.8, 3.0)
        (first,) = torch.autograd.grad((lifted * weights).sum(), coordinates, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), coordinates)
        derivatives.append((first, second))
        if lift is straight_through_occupancy:
            assert torch.equal(lifted.detach().round(), occupancy(clouds))
            assert set(lifted.unique().tolist()) <= {0.0, 1.0}
    for hard, soft in zip(*derivatives):
        torch.testing.assert_close(hard, soft)


def test_straight_through_leaves_out_points_outside_the_grid():
    clouds = one_cloud([[0, 2.5, 2.5], [0, -0.5, 2.5], [0, 9.0, 2.5]], FLAT)
    assert straight_through_occupancy(clouds, 0.5, 3.0).sum() == 1
    with pytest.raises(ValueError, match="outside the grid"):
        occupancy(clouds)
