"""Forces and energies against the engine's own steps and against finite differences."""

from dataclasses import replace
from itertools import islice

import pytest
import tiny
import torch

from pcdd_core.engine.distill import matching_losses
from pcdd_core.geometry.clouds import members_per_class
from pcdd_core.view.forces import next_energy

CASES = [
    {},
    {"objective__distance": "sum_of_squares", "schedule__iterations_per_network": 0},
    {"lift__name": "coordinates", "schedule__iterations_per_network": 3},
    {"schedule__iterations_per_network": 0, "schedule__training_steps": 2},
    {"objective__augmentation": True},
    {"objective__name": "maximum_mean_discrepancy"},
    {"objective__name": "feature_regression"},
    {"objective__real_gradients": 2, "lift__name": "coordinates"},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("made", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_forces_are_minus_the_gradient_of_the_iteration_that_follows(changes, made):
    config, real = tiny.config(**changes), tiny.three_digits()
    steps = config.distill(real)
    last = list(islice(steps, made))[-1] if made else None
    energy = next_energy(config.method, real, config.start(real), last)
    forces, value = energy.forces(), energy.of(energy.clouds.coordinates)
    following = next(steps)
    assert energy.iteration == following.iteration
    # threads sum in another order, so tolerate rounding in units of the largest force
    rounding = 1e-6 * following.gradient.abs().max().item()
    assert torch.allclose(-forces, following.gradient, rtol=1e-4, atol=rounding)
    assert value == pytest.approx(sum(following.matching_loss), rel=1e-4)
    assert forces.abs().max() > 0


@pytest.mark.parametrize("solid", [False, True])
def test_force_is_the_slope_of_the_energy_map(solid):
    """The map's central difference along each axis is minus the force on the point."""
    real = tiny.three_solids() if solid else tiny.three_digits()
    config = tiny.config(objective__real_batch=2)
    energy = next_energy(config.method, real, config.start(real))
    energy = replace(
        energy,
        network=energy.network.double(),
        real=energy.real.with_coordinates(energy.real.coordinates.double()),
        clouds=energy.clouds.with_coordinates(energy.clouds.coordinates.double()),
    )
    forces = energy.forces()
    point = int(forces.norm(dim=1).argmax())
    for axis in (0, 1, 2) if solid else (1, 2):
        small = torch.zeros(3, dtype=torch.float64)
        small[axis] = 1e-5
        place = energy.clouds.coordinates[point]
        ends = [energy.with_point_at(point, place + sign * small) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-5
        assert -slope == pytest.approx(forces[point, axis].item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["gradient_matching", "feature_regression"])
def test_energy_map_is_the_objective_with_the_point_moved(name):
    """Move the point in the clouds themselves, and compute the loss as `distill` does."""
    config, real = tiny.config(objective__name=name), tiny.three_digits()
    energy = next_energy(config.method, real, config.start(real))
    point, place = 25, torch.tensor([0.0, 3.2, 5.1])
    label = int(energy.clouds.labels[energy.clouds.cloud_index[point]])
    coordinates = energy.clouds.coordinates.clone()
    coordinates[point] = place
    moved = energy.clouds.with_coordinates(coordinates)
    batch = config.method.batch_at(energy.real, members_per_class(energy.real), 0)
    parts = matching_losses(config.method, energy.network, energy.real.select(batch), moved, 0)
    losses = torch.cat([part() for part in parts])
    per_class = config.method.objective.per_class
    expected = losses[label] if per_class else losses.sum()
    assert energy.with_point_at(point, place) == pytest.approx(expected.item(), rel=1e-5)
    # other points are where they were
    assert torch.equal(energy.clouds.coordinates, config.start(real).coordinates)


def test_places_outside_of_the_grid_are_moved_into_it():
    config, real = tiny.config(), tiny.three_digits()
    energy = next_energy(config.method, real, config.start(real))
    far, edge = torch.tensor([0.0, -3.0, 99.0]), torch.tensor([0.5, 0.0, 28.0])
    assert energy.with_point_at(3, far) == energy.with_point_at(3, edge)
