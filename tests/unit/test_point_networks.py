"""Networks on points and their objectives: order, padding and both derivatives."""

import numpy as np
import pytest
import tiny
import torch
from torch.testing import assert_close

from pcdd_core.engine.distances import layerwise_cosine_of_weights
from pcdd_core.engine.lifts import Lift, centred_points
from pcdd_core.engine.losses import (
    gradient_matching,
    gradients_without_graph,
    maximum_mean_discrepancy,
    sorted_feature_matching,
)
from pcdd_core.engine.objectives import Objective
from pcdd_core.errors import InputError
from pcdd_core.experiments.config import override
from pcdd_core.nn import points as point_networks
from pcdd_core.nn.points import PointNet, PointNetwork, PointNorm
from pcdd_core.seeds import generator

SOLID = (6, 6, 6)
LABELS = torch.tensor([0, 1, 2])


def network(width=8) -> PointNet:
    return PointNetwork(width=width).new(3, SOLID, 3, generator(5)).double()


@pytest.fixture
def points(random_clouds):
    """Return the points of three clouds of 7, 5 and 7 points: (3, 7, 4)."""
    return centred_points(random_clouds([7, 5, 7], SOLID, seed=3))


# --- PointNet -------------------------------------------------------------------------------------


def test_order_of_points_and_padding_have_no_effect(points):
    net, order = network(), torch.randperm(7, generator=generator(1))
    assert_close(net(points[:, order]), net(points))
    filled = points.clone()
    filled[1, 5:, :3] = 9.0  # not points: their last column is 0
    assert_close(net(filled), net(points))
    assert_close(net(torch.cat([points, torch.zeros(3, 4, 4, dtype=points.dtype)], 1)), net(points))


def test_a_point_more_or_less_does_matter(points):
    net = network()
    fewer = points.clone()
    fewer[:, 0] = 0
    assert not torch.allclose(net.point_features(fewer), net.point_features(points))


def test_features_are_the_largest_of_any_point(points):
    net = network()
    expected = [net.point_features(cloud[None, cloud[:, 3] == 1]).max(1).values for cloud in points]
    assert_close(net.features(points).relu(), torch.cat(expected))


def test_clouds_of_as_many_points_need_no_fourth_column(random_clouds):
    net, clouds = network(), random_clouds([6, 6], SOLID, seed=4)
    points = centred_points(clouds)
    assert points.shape == (2, 6, 3)
    marked = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    assert_close(net(points), net(marked))
    assert_close(net.point_features(points), net.point_features(marked))


def test_the_largest_value_is_looked_for_in_less_precision_and_computed_in_full(monkeypatch):
    """The result is the value of some point.

    It is below the largest value by at most a few hundredths of the standard deviation.
    """
    net = network(width=200).float()
    points = torch.rand(4, 500, 3, generator=generator(6)) * 2 - 1
    monkeypatch.setattr(point_networks, "search_precision", lambda hidden: torch.bfloat16)
    features = net.features(points)
    values = net.last(net._hidden(points)[0].transpose(1, 2))
    missed = values.amax(1) - features
    assert (missed > -1e-5).all() and 0 < missed.max() < 0.04 * values.std()
    assert (values - features[:, None]).abs().amin(1).max() < 1e-5


def test_norms_are_instance_norms_without_the_padding(points):
    features, norm = (
        torch.randn(3, 4, 7, dtype=torch.float64, generator=generator(8)),
        PointNorm(4).double(),
    )
    torch.nn.init.uniform_(norm.weight), torch.nn.init.uniform_(norm.bias)
    normed = norm(features, points[..., 3:].transpose(1, 2))
    for cloud, count in enumerate((7, 5, 7)):
        own = features[cloud, None, :, :count]
        expected = torch.nn.functional.instance_norm(own, weight=norm.weight, bias=norm.bias)[0]
        assert_close(normed[cloud, :, :count], expected)
        assert_close(norm(own, None)[0], expected)


def test_networks_are_drawn_by_their_generator():
    assert_close(list(network().parameters()), list(network().parameters()), rtol=0, atol=0)
    assert network(width=8).last.out_features == 8


def test_both_derivatives_of_pointnet(check_two_derivatives, points):
    net = network(width=4)
    present = points[..., 3:]
    check_two_derivatives(
        lambda coordinates: net(torch.cat([coordinates * present, present], -1)), points[..., :3]
    )


def test_every_parameter_of_pointnet_has_a_gradient_with_a_graph(points):
    assert gradients_without_graph(network(), points.requires_grad_(), LABELS) == []


def test_the_gradient_of_matching_gradients_against_finite_differences(points):
    net, present = network(width=4), points[..., 3:]
    real = centred_points_of(4)

    def loss(coordinates):
        moved = torch.cat([coordinates * present, present], -1)
        return gradient_matching(net, real, LABELS, moved, LABELS, layerwise_cosine_of_weights)

    assert torch.autograd.gradcheck(loss, points[..., :3].detach().requires_grad_())


def centred_points_of(seed: int) -> torch.Tensor:
    draws = generator(seed)
    coordinates = torch.rand(3, 6, 3, dtype=torch.float64, generator=draws) * 2 - 1
    return torch.cat([coordinates, torch.ones(3, 6, 1, dtype=torch.float64)], -1)


# --- sorted features ------------------------------------------------------------------------------


def test_sorted_features_are_equal_only_for_equal_clouds(points):
    net, order = network(), torch.randperm(6, generator=generator(2))
    clouds, others = centred_points_of(1), centred_points_of(2)
    assert abs(sorted_feature_matching(net, clouds, clouds[:, order]).item()) < 1e-12
    assert sorted_feature_matching(net, clouds, others).item() > 1e-3


class Coordinates(torch.nn.Linear):
    """Features that are the coordinates of each point."""

    def point_features(self, points):
        return points[..., :3]

    def features(self, points):
        return self.point_features(points).amax(1)


def test_sorted_features_move_every_point_where_their_maximum_moves_few():
    real, moved = centred_points_of(1), {}
    for objective in (maximum_mean_discrepancy, sorted_feature_matching):
        synthetic = centred_points_of(2).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(Coordinates(1, 1), real, synthetic), synthetic)
        moved[objective.__name__] = int((gradient[..., :3] != 0).any(-1).sum())
    assert moved["sorted_feature_matching"] == 18
    # at most the farthest point along each axis of each of the three clouds
    assert moved["maximum_mean_discrepancy"] <= 9


@pytest.mark.parametrize("count", [1, 4, 6, 9])
def test_clouds_of_other_sizes_are_compared_at_quantiles(count, monkeypatch):
    from pcdd_core.engine import losses

    features = torch.rand(2, 6, 3, dtype=torch.float64, generator=generator(3))
    expected = np.quantile(
        features.numpy(), np.linspace(0, 1, count) if count > 1 else [0.0], axis=1
    ).swapaxes(0, 1)
    assert_close(losses._sorted(features, count), torch.from_numpy(expected).transpose(1, 2))


def test_gradient_of_sorted_features_against_finite_differences():
    net, real = network(width=4), centred_points_of(1)
    # clouds of another size
    other = torch.cat([centred_points_of(6)[:, :4], centred_points_of(7)[:, :1]], 1)
    for synthetic in (centred_points_of(2), other):

        def loss(coordinates, present=synthetic[..., 3:]):
            return sorted_feature_matching(net, real, torch.cat([coordinates, present], -1))

        assert torch.autograd.gradcheck(loss, synthetic[..., :3].clone().requires_grad_())


# --- the whole ------------------------------------------------------------------------------------

SHAPES = {
    "data__name": "solids",
    "data__points": 40,
    "clouds__points_per_cloud": 30,
    "lift__name": "points",
    "network__name": "pointnet",
    "network__width": 16,
    "optimiser__step_size": 0.3,
}


def shapes_config(**changes):
    """Return a tiny configuration for shapes; its network has no setting `layers`."""
    changes = {name.replace("__", "."): value for name, value in {**SHAPES, **changes}.items()}
    return override(tiny.config(), changes)


OBJECTIVES = [
    "gradient_matching",
    "distribution_matching",
    "maximum_mean_discrepancy",
    "sorted_feature_matching",
    "feature_regression",
    "unrolled_training",
]


@pytest.fixture(scope="module")
def solids():
    return shapes_config().data.load().train


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_moves_the_points_of_shapes(name, solids):
    few = {"objective__unrolled_steps": 2} if name == "unrolled_training" else {}
    steps = list(shapes_config(objective__name=name, **few).distill(solids))
    assert steps[-1].clouds.grid == (24, 24, 24)
    assert all(step.mean_absolute_displacement > 1e-3 for step in steps)


def test_all_objectives_are_tested():
    assert set(OBJECTIVES) == set(Objective.choices)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sorted_feature_matching", "distribution_matching"])
def test_matching_the_features_of_one_network_reduces_the_loss(name, solids):
    config = shapes_config(
        schedule__iterations=40,
        objective__name=name,
        objective__real_batch=16,
        objective__augmentation=False,
        schedule__iterations_per_network=0,
    )
    losses = [sum(step.matching_loss) for step in config.distill(solids)]
    assert np.mean(losses[-5:]) < 0.65 * np.mean(losses[:5])


@pytest.mark.parametrize(("optimiser", "turn_step_size"), [("adam", 0.02), ("sgd", 1e-4)])
def test_clouds_with_a_rotation_step_size_rotate_as_a_whole(
    optimiser, turn_step_size, solids, monkeypatch
):
    """Let the single points hardly move, so that each cloud only rotates."""
    # a rotation moves corners out of the grid
    monkeypatch.setattr(Lift, "bounded", lambda lift, coordinates, grid: coordinates.clone())
    config = shapes_config(
        optimiser__step_size=1e-9,
        optimiser__name=optimiser,
        optimiser__turn_step_size=turn_step_size,
    )
    steps = list(config.distill(solids))
    assert steps[-1].mean_absolute_displacement > 1e-3 or optimiser == "sgd"
    first, last = steps[0].clouds, steps[-1].clouds
    for before, after in zip(
        first.coordinates.split(first.sizes.tolist()), last.coordinates.split(last.sizes.tolist())
    ):
        assert_close(torch.pdist(after.double()), torch.pdist(before.double()), atol=1e-3, rtol=0)
        assert not torch.equal(after, before)


def test_run_that_rotates_clouds_resumes(solids):
    config = shapes_config(optimiser__turn_step_size=0.05)
    unbroken = [(step.clouds.coordinates, step.state()) for step in config.distill(solids)]
    again = list(config.distill(solids, state=unbroken[1][1]))
    assert torch.equal(again[-1].clouds.coordinates, unbroken[-1][0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"network__name": "torch"},
            'network.name = "torch": it takes grid or cells, .*=points gives points; expected',
        ),
        (
            {"lift__name": "gaussian"},
            'network.name = "pointnet": it takes points, and lift.name=gaussian gives grid',
        ),
        (
            {
                "lift__name": "gaussian",
                "network__name": "torch",
                "objective__name": "sorted_feature_matching",
            },
            "needs network.name=pointnet",
        ),
    ],
)
def test_network_that_does_not_fit_the_lift_is_refused(changes, said, solids):
    with pytest.raises(InputError, match=said):
        shapes_config(**changes).distill(solids)


def test_one_real_cloud_is_refused_where_distances_between_real_clouds_are_needed(solids):
    changes = {"objective__name": "sorted_feature_matching", "objective__real_batch": 1}
    with pytest.raises(InputError, match="objective.real_batch = 1: .* needs 2 or more"):
        shapes_config(**changes).distill(solids)


def test_rotation_of_clouds_on_a_flat_grid_is_refused():
    with pytest.raises(
        InputError, match="turn_step_size = 0.1: clouds would rotate out of the flat grid"
    ):
        tiny.config(optimiser__turn_step_size=0.1).distill(tiny.three_digits())
