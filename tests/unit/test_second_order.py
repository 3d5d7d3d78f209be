"""The missed part of the coordinate gradient: finite differences, and a lossy backend."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny import needs_minkowski

from pcdd_core.engine.distances import DISTANCES
from pcdd_core.engine.losses import (
    gradient_matching,
    gradients_without_graph,
    parameter_gradients,
)
from pcdd_core.engine.method import Method
from pcdd_core.experiments.second_order import (
    coordinate_gradients,
    layer_of,
    missed_gradient,
    second_derivatives,
    sentence,
)
from pcdd_core.geometry.grid import cell_centres
from pcdd_core.nn import grid as networks
from pcdd_core.nn import sparse

CONVOLUTIONS = ["convolution_weights.0", "convolution_weights.1"]
GRID = (1, 8, 8)


def config(backend, **changes):
    """Return settings of two layers of width 2 on raw coordinates, in batches of 2 real clouds."""
    settings = {
        "network__name": backend,
        "network__width": 2,
        "network__norm": "none",
        "lift__name": "coordinates",
    }
    return tiny.config(
        **{
            **settings,
            "objective__real_batch": 2,
            "objective__distance": "sum_of_squares",
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def float64_networks(monkeypatch):
    """Draw networks in float64, because the clouds below are in float64."""
    draw_network = Method.draw_network
    monkeypatch.setattr(Method, "draw_network", lambda *settings: draw_network(*settings).double())


@pytest.fixture(scope="module")
def real(random_clouds):
    """Return three clouds in each of three classes, with points at the centres of cells."""
    return cell_centres(random_clouds([9, 8, 7, 9, 8, 7, 6, 9, 8], GRID, seed=1))


@pytest.fixture(scope="module")
def synthetic(random_clouds):
    """Return one cloud in each class."""
    return random_clouds([5, 4, 6], GRID, seed=2)


# --- engines that lose second derivatives ---------------------------------------------------------


class DifferentiableOnce(torch.autograd.Function):
    """A function of tensors whose gradients have no graph, as in MinkowskiEngine's layers."""

    @staticmethod
    def forward(context, function, *tensors):
        context.function = function
        context.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(context, gradient):
        with torch.enable_grad():
            tensors = [tensor.detach().requires_grad_() for tensor in context.saved_tensors]
            gradients = torch.autograd.grad(context.function(*tensors), tensors, gradient.detach())
        return None, *gradients


def once(layer):
    """Return a layer of `sparse.py` without second derivatives."""

    def lossy(tensor, *arguments):
        weights = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        settings = arguments[len(weights) :]

        def features(values, *weights):
            return layer(tensor.with_features(values), *weights, *settings).features

        return layer(tensor, *arguments).with_features(
            DifferentiableOnce.apply(features, tensor.features, *weights)
        )

    return lossy


@pytest.fixture
def losing(monkeypatch):
    """Return losing("pool", ...), which replaces backend minkowski by `sparse.py`.

    The named layers lose their second derivatives.
    """

    def replace_engine(*layers):
        names = (
            "from_points",
            "from_dense",
            "convolution",
            "pool",
            "relu",
            "instance_norm",
            "batch_norm",
        )
        engine = {name: getattr(sparse, name) for name in names} | {
            name: once(getattr(sparse, name)) for name in layers
        }
        engine |= {"engine": lambda: None, "from_sparse": lambda tensor: tensor}
        imitation = SimpleNamespace(**engine)
        monkeypatch.setattr(networks, "minkowski", imitation)
        monkeypatch.setattr(networks.MinkowskiNetwork, "layer_library", imitation)

    return replace_engine


@pytest.fixture(params=["imitation", pytest.param("minkowski", marks=needs_minkowski)])
def engine(request, losing):
    """Provide an engine that loses what MinkowskiEngine loses: an imitation, and itself."""
    if request.param == "imitation":
        losing("convolution", "pool", "instance_norm", "batch_norm")


# --- the gradient, split by parameters ------------------------------------------------------------


@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_coordinate_gradients_sum_to_the_gradient_of_the_points(
    real, synthetic, distance, backend, lift
):
    settings = config(
        backend, objective__distance=distance, network__norm="instance", lift__name=lift
    )
    network = settings.method.draw_network(real, 0).double()
    real_batch, synthetic_cloud = (
        real.select(torch.tensor([0, 3])),
        synthetic.select(torch.tensor([0])),
    )
    parts = coordinate_gradients(settings.method, network, real_batch, synthetic_cloud, iteration=2)

    lifted, lifted_real = settings.method.lift_at(2), settings.method.lift_at(2, real=True)
    coordinates = synthetic_cloud.coordinates.clone().requires_grad_()
    synthetic_lifted = lifted(synthetic_cloud.with_coordinates(coordinates))
    loss = gradient_matching(
        network,
        lifted_real(real_batch),
        real_batch.labels,
        synthetic_lifted,
        synthetic_cloud.labels,
        DISTANCES[distance],
    )
    loss.backward(inputs=[coordinates], retain_graph=True)
    assert coordinates.grad.abs().max() > 0
    torch.testing.assert_close(sum(parts.values()), coordinates.grad, rtol=1e-9, atol=1e-12)

    # each part remains if all other gradients are constant
    target = [
        gradient.detach()
        for gradient in parameter_gradients(network, lifted_real(real_batch), real_batch.labels)
    ]
    gradients = parameter_gradients(
        network, synthetic_lifted, synthetic_cloud.labels, create_graph=True
    )
    names = [name for name, _ in network.named_parameters()]
    assert list(parts) == names
    for moved, name in enumerate(names):
        held = [
            gradient if place == moved else gradient.detach()
            for place, gradient in enumerate(gradients)
        ]
        expected = torch.zeros_like(coordinates)
        if (distance_to_held := DISTANCES[distance](target, held)).requires_grad:
            options = {"retain_graph": True, "materialize_grads": True}
            (expected,) = torch.autograd.grad(distance_to_held, coordinates, **options)
        torch.testing.assert_close(parts[name], expected, rtol=1e-9, atol=1e-12)


def test_a_parameter_that_the_distance_leaves_out_moves_no_point(real, synthetic):
    settings = config("torch", objective__distance="layerwise_cosine_of_weights")
    network = settings.method.draw_network(real, 0).double()
    synthetic_cloud = synthetic.select(torch.tensor([0]))
    parts = coordinate_gradients(
        settings.method, network, real.select(torch.tensor([0, 3])), synthetic_cloud, iteration=0
    )
    for name, part in parts.items():
        assert part.shape == synthetic_cloud.coordinates.shape
        assert (part.abs().sum() > 0) == ("bias" not in name)


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("convolution_weights.0", "convolution 1"),
        ("convolution_biases.0", "convolution 1"),
        ("convolution_weights.10", "convolution 11"),
        ("norm_weights.1", "norm 2"),
        ("norm_biases.1", "norm 2"),
        ("head.weight", "head"),
        ("head.bias", "head"),
    ],
)
def test_layer_of_names_the_layer_of_a_parameter(parameter, layer):
    assert layer_of(parameter) == layer


# --- nothing missed -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
def test_sparse_misses_nothing(real, synthetic, lift, norm):
    measured = missed_gradient(
        config("sparse", lift__name=lift, network__norm=norm).method, real, synthetic
    )
    assert measured["gradients_without_graph"] == [] and measured["missed"] == 0
    assert measured["cosine"] == pytest.approx(1, abs=1e-6)
    assert {layer["missed"] for layer in measured["layers"].values()} == {0}
    # parts may cancel, so the sum can exceed 1
    assert sum(layer["share"] for layer in measured["layers"].values()) > 1 - 1e-6
    assert sentence(measured) == ""


@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_record_of_a_complete_gradient_lists_no_parameter(real, synthetic, backend):
    measured = second_derivatives(config(backend).method, real, synthetic)
    assert measured == {"gradients_without_graph": []}
    assert sentence(measured) == ""


# --- something missed -----------------------------------------------------------------------------


def parts_by_finite_differences(settings, network, real_batch, synthetic_cloud, iteration):
    """Return the coordinate gradient of the sum of squares by layer, from first derivatives."""
    lift = settings.method.lift_at(iteration)
    real = settings.method.lift_at(iteration, real=True)(real_batch)

    def gradients(coordinates):
        return parameter_gradients(
            network, lift(synthetic_cloud.with_coordinates(coordinates)), synthetic_cloud.labels
        )

    differences = zip(
        gradients(synthetic_cloud.coordinates),
        parameter_gradients(network, real, real_batch.labels),
        strict=True,
    )
    names, directions = (
        [name for name, _ in network.named_parameters()],
        [2 * (s - r) for s, r in differences],
    )
    parts = {layer_of(name): torch.zeros_like(synthetic_cloud.coordinates) for name in names}
    for point in range(len(synthetic_cloud.coordinates)):
        for axis in range(3):
            move = torch.zeros_like(synthetic_cloud.coordinates)
            move[point, axis] = 1e-6
            ahead, behind = (
                gradients(synthetic_cloud.coordinates + move),
                gradients(synthetic_cloud.coordinates - move),
            )
            for name, direction, a, b in zip(names, directions, ahead, behind, strict=True):
                parts[layer_of(name)][point, axis] += ((a - b) * direction).sum() / 2e-6
    return parts


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(("norm", "pooling"), [("none", "max"), ("batch", "average")])
def test_missed_gradient_agrees_with_finite_differences(engine, real, synthetic, norm, pooling):
    settings, iteration = config("minkowski", network__norm=norm, network__pooling=pooling), 1
    measured = missed_gradient(settings.method, real, synthetic, iteration=iteration)

    # finite differences use first derivatives, which this backend has
    network = settings.method.draw_network(real, 0).double()
    members = [torch.tensor([label, label + 3, label + 6]) for label in range(3)]
    batch = settings.method.batch_at(real, members, iteration).split(2)
    pairs = [
        (real.select(chosen), synthetic.select(torch.tensor([label])))
        for label, chosen in enumerate(batch)
    ]
    true = [parts_by_finite_differences(settings, network, *pair, iteration) for pair in pairs]
    moving = []
    for real_batch, synthetic_cloud in pairs:
        coordinates, lift = (
            synthetic_cloud.coordinates.clone().requires_grad_(),
            settings.method.lift_at(iteration),
        )
        lifted = (
            settings.method.lift_at(iteration, real=True)(real_batch),
            real_batch.labels,
            lift(synthetic_cloud.with_coordinates(coordinates)),
            synthetic_cloud.labels,
        )
        gradient_matching(network, *lifted, DISTANCES["sum_of_squares"]).backward(
            inputs=[coordinates]
        )
        moving.append(coordinates.grad)

    whole, moving = flat(sum(parts.values()) for parts in true), flat(moving)
    assert measured["missed"] == pytest.approx(
        float((whole - moving).norm() / whole.norm()), rel=1e-5
    )
    assert measured["cosine"] == pytest.approx(
        float(torch.cosine_similarity(whole, moving, dim=0)), abs=1e-5
    )
    assert measured["missed"] > 0.01 and -1 <= measured["cosine"] < 0.9999
    assert measured["layers"].keys() == true[0].keys()
    for layer, numbers in measured["layers"].items():
        part = flat(parts[layer] for parts in true)
        assert numbers["share"] == pytest.approx(float(part.norm() / whole.norm()), rel=1e-5)


def test_convolutions_lose_all_of_their_part_and_the_head_nothing(engine, real, synthetic):
    measured = missed_gradient(config("minkowski").method, real, synthetic)
    assert measured["gradients_without_graph"] == CONVOLUTIONS
    assert list(measured["layers"]) == ["convolution 1", "convolution 2", "head"]
    for layer, numbers in measured["layers"].items():
        assert numbers["missed"] == pytest.approx(0 if layer == "head" else 1, abs=1e-12)
        assert numbers["share"] > 0
    shares = [numbers["share"] for numbers in measured["layers"].values()]
    # the missed part is the norm of the sum of what both lose
    assert sum(shares[:2]) >= measured["missed"] >= abs(shares[0] - shares[1])
    assert sum(shares) >= 1


def test_record_and_sentence_of_a_missed_gradient_agree(engine, real, synthetic):
    settings = config("minkowski")
    measured = second_derivatives(settings.method, real, synthetic)
    assert measured == missed_gradient(settings.method, real, synthetic)
    words = sentence(measured)
    assert ", ".join(CONVOLUTIONS) in words and "head" not in words
    assert f"{100 * measured['missed']:.1f}%" in words and f"{measured['cosine']:.4f}" in words


def test_the_sentence_names_parameters_and_numbers():
    words = sentence(
        {"gradients_without_graph": ["one", "two"], "missed": 0.1234, "cosine": -0.5, "layers": {}}
    )
    assert (
        "one, two" in words
        and "12.3%" in words
        and "-0.5000" in words
        and "network.name=sparse" in words
    )


def test_a_lossless_imitation_misses_nothing(losing, real, synthetic):
    losing()
    measured = missed_gradient(
        config("minkowski", network__norm="instance").method, real, synthetic
    )
    assert measured["gradients_without_graph"] == [] and measured["missed"] == 0


def test_a_norm_that_loses_its_second_derivative_is_found(losing, real, synthetic):
    losing("batch_norm")
    measured = missed_gradient(config("minkowski", network__norm="batch").method, real, synthetic)
    assert set(measured["gradients_without_graph"]) >= {"norm_weights.0", "norm_weights.1"}
    assert (
        measured["layers"]["norm 1"]["missed"] > 0.1
        and measured["layers"]["norm 2"]["missed"] > 0.1
    )
    assert measured["layers"]["head"]["missed"] == pytest.approx(0, abs=1e-12)


def test_a_loss_that_leaves_every_gradient_a_graph_is_measured_all_the_same(
    losing, real, synthetic
):
    # one factor of a weight's gradient is now a constant; the other still depends on the points
    losing("pool")
    measured = missed_gradient(
        config("minkowski", network__pooling="average").method, real, synthetic
    )
    assert measured["gradients_without_graph"] == []
    assert measured["missed"] > 0.01 and measured["cosine"] < 0.9999


def test_measuring_leaves_the_clouds_as_they_were(real, synthetic):
    before = synthetic.coordinates.clone()
    missed_gradient(config("sparse").method, real, synthetic)
    assert torch.equal(synthetic.coordinates, before)
    assert not synthetic.coordinates.requires_grad and synthetic.coordinates.grad is None


# --- parameters without a graph -------------------------------------------------------------------


def test_gradients_without_graph_are_named_in_the_order_of_the_parameters(losing, real):
    losing("convolution")
    settings = config("minkowski", network__layers=3)
    network, lifted = settings.method.draw_network(real, 0), settings.method.lift_at(0)(real)
    assert gradients_without_graph(network.double(), lifted, real.labels) == [
        *CONVOLUTIONS,
        "convolution_weights.2",
    ]
