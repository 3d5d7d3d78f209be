"""How much of the coordinates' gradient is missed: against finite differences, with a backend that loses some on purpose."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny import needs_minkowski

from pcdd_core import distillation, networks, second_order, sparse
from pcdd_core.distillation import batch_at, draw_network, lift_at
from pcdd_core.objectives import (
    DISTANCES,
    gradient_matching,
    gradients_without_graph,
    parameter_gradients,
)
from pcdd_core.second_order import (
    coordinate_gradients,
    layer_of,
    missed_gradient,
    second_derivatives,
    sentence,
)

CONVOLUTIONS = ["convolution_weights.0", "convolution_weights.1"]
GRID = (1, 8, 8)


def config(backend, **changes):
    """Two layers of width 2 on raw coordinates, in batches of 2 real clouds."""
    settings = {
        "network__backend": backend,
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
    """The clouds below are in float64."""
    monkeypatch.setattr(
        second_order, "draw_network", lambda *settings: draw_network(*settings).double()
    )


@pytest.fixture(scope="module")
def real(random_clouds):
    """Three clouds in each of three classes."""
    return random_clouds([9, 8, 7, 9, 8, 7, 6, 9, 8], GRID, seed=1)


@pytest.fixture(scope="module")
def synthetic(random_clouds):
    """One cloud in each class."""
    return random_clouds([5, 4, 6], GRID, seed=2)


# --- engines that lose second derivatives -------------------------------------------------------------------------


class DifferentiableOnce(torch.autograd.Function):
    """A function of tensors that hands its gradients back without a graph, as MinkowskiEngine's layers do."""

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
    """A layer of `sparse.py` with one derivative only."""

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
    """losing("pool", ...): backend minkowski becomes `sparse.py`, of which these layers lose their second derivative."""

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
        for module in (networks, distillation):
            monkeypatch.setattr(module, "minkowski", SimpleNamespace(**engine))

    return replace_engine


@pytest.fixture(params=["imitation", pytest.param("minkowski", marks=needs_minkowski)])
def engine(request, losing):
    """Backend minkowski loses what MinkowskiEngine loses: an imitation of it, and MinkowskiEngine itself."""
    if request.param == "imitation":
        losing("convolution", "pool", "instance_norm", "batch_norm")


# --- the gradient, split by parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_coordinate_gradients_are_the_parts_of_what_moves_the_points(
    real, synthetic, distance, backend, lift
):
    settings = config(
        backend, objective__distance=distance, network__norm="instance", lift__name=lift
    )
    network = draw_network(settings, real, 0).double()
    theirs, ours = real.select(torch.tensor([0, 3])), synthetic.select(torch.tensor([0]))
    parts = coordinate_gradients(settings, network, theirs, ours, iteration=2)

    lifted = lift_at(settings, 2)
    coordinates = ours.coordinates.clone().requires_grad_()
    synthetic_lifted = lifted(ours.with_coordinates(coordinates))
    loss = gradient_matching(
        network, lifted(theirs), theirs.labels, synthetic_lifted, ours.labels, DISTANCES[distance]
    )
    loss.backward(inputs=[coordinates], retain_graph=True)
    assert coordinates.grad.abs().max() > 0
    torch.testing.assert_close(sum(parts.values()), coordinates.grad, rtol=1e-9, atol=1e-12)

    # and each part is what is left if all other gradients are held fast
    target = [
        gradient.detach()
        for gradient in parameter_gradients(network, lifted(theirs), theirs.labels)
    ]
    gradients = parameter_gradients(network, synthetic_lifted, ours.labels, create_graph=True)
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
    network = draw_network(settings, real, 0).double()
    ours = synthetic.select(torch.tensor([0]))
    parts = coordinate_gradients(
        settings, network, real.select(torch.tensor([0, 3])), ours, iteration=0
    )
    for name, part in parts.items():
        assert part.shape == ours.coordinates.shape
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


# --- nothing missed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
def test_sparse_misses_nothing(real, synthetic, lift, norm):
    found = missed_gradient(config("sparse", lift__name=lift, network__norm=norm), real, synthetic)
    assert found["gradients_without_graph"] == [] and found["missed"] == 0
    assert found["cosine"] == pytest.approx(1, abs=1e-6)
    assert {layer["missed"] for layer in found["layers"].values()} == {0}
    assert (
        sum(layer["share"] for layer in found["layers"].values()) > 1 - 1e-6
    )  # parts may cancel, so more than 1
    assert sentence(found) == ""


@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_where_nothing_is_missed_the_record_says_just_that(real, synthetic, backend):
    found = second_derivatives(config(backend), real, synthetic)
    assert found == {"gradients_without_graph": []}
    assert sentence(found) == ""


# --- something missed ---------------------------------------------------------------------------------------------


def parts_by_finite_differences(settings, network, theirs, ours, iteration):
    """The gradient of the sum of squares with respect to the coordinates, by layer, from first derivatives only."""
    lift = lift_at(settings, iteration)

    def gradients(coordinates):
        return parameter_gradients(network, lift(ours.with_coordinates(coordinates)), ours.labels)

    differences = zip(
        gradients(ours.coordinates),
        parameter_gradients(network, lift(theirs), theirs.labels),
        strict=True,
    )
    names, directions = (
        [name for name, _ in network.named_parameters()],
        [2 * (s - r) for s, r in differences],
    )
    parts = {layer_of(name): torch.zeros_like(ours.coordinates) for name in names}
    for point in range(len(ours.coordinates)):
        for axis in range(3):
            move = torch.zeros_like(ours.coordinates)
            move[point, axis] = 1e-6
            ahead, behind = gradients(ours.coordinates + move), gradients(ours.coordinates - move)
            for name, direction, a, b in zip(names, directions, ahead, behind, strict=True):
                parts[layer_of(name)][point, axis] += ((a - b) * direction).sum() / 2e-6
    return parts


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_what_is_missed_agrees_with_finite_differences(engine, real, synthetic, norm, pooling):
    settings, iteration = config("minkowski", network__norm=norm, network__pooling=pooling), 1
    found = missed_gradient(settings, real, synthetic, iteration=iteration)

    network = draw_network(
        settings, real, 0
    ).double()  # differences of first derivatives, which this backend has
    members = [torch.tensor([label, label + 3, label + 6]) for label in range(3)]
    batch = batch_at(settings, real, members, iteration).split(2)
    pairs = [
        (real.select(chosen), synthetic.select(torch.tensor([label])))
        for label, chosen in enumerate(batch)
    ]
    true = [parts_by_finite_differences(settings, network, *pair, iteration) for pair in pairs]
    moving = []
    for theirs, ours in pairs:
        coordinates, lift = ours.coordinates.clone().requires_grad_(), lift_at(settings, iteration)
        lifted = lift(theirs), theirs.labels, lift(ours.with_coordinates(coordinates)), ours.labels
        gradient_matching(network, *lifted, DISTANCES["sum_of_squares"]).backward(
            inputs=[coordinates]
        )
        moving.append(coordinates.grad)

    whole, moving = flat(sum(parts.values()) for parts in true), flat(moving)
    assert found["missed"] == pytest.approx(float((whole - moving).norm() / whole.norm()), rel=1e-5)
    assert found["cosine"] == pytest.approx(
        float(torch.cosine_similarity(whole, moving, dim=0)), abs=1e-5
    )
    assert found["missed"] > 0.01 and -1 <= found["cosine"] < 0.9999
    assert found["layers"].keys() == true[0].keys()
    for layer, numbers in found["layers"].items():
        part = flat(parts[layer] for parts in true)
        assert numbers["share"] == pytest.approx(float(part.norm() / whole.norm()), rel=1e-5)


def test_convolutions_lose_all_of_their_part_and_the_head_nothing(engine, real, synthetic):
    found = missed_gradient(config("minkowski"), real, synthetic)
    assert found["gradients_without_graph"] == CONVOLUTIONS
    assert list(found["layers"]) == ["convolution 1", "convolution 2", "head"]
    for layer, numbers in found["layers"].items():
        assert numbers["missed"] == pytest.approx(0 if layer == "head" else 1, abs=1e-12)
        assert numbers["share"] > 0
    shares = [numbers["share"] for numbers in found["layers"].values()]
    assert (
        sum(shares[:2]) >= found["missed"] >= abs(shares[0] - shares[1])
    )  # it is the norm of what both lose
    assert sum(shares) >= 1


def test_where_something_is_missed_the_record_says_what_and_the_sentence_how_much(
    engine, real, synthetic
):
    settings = config("minkowski")
    found = second_derivatives(settings, real, synthetic)
    assert found == missed_gradient(settings, real, synthetic)
    words = sentence(found)
    assert ", ".join(CONVOLUTIONS) in words and "head" not in words
    assert f"{100 * found['missed']:.1f}%" in words and f"{found['cosine']:.4f}" in words


def test_the_sentence_names_parameters_and_numbers():
    words = sentence(
        {"gradients_without_graph": ["one", "two"], "missed": 0.1234, "cosine": -0.5, "layers": {}}
    )
    assert (
        "one, two" in words
        and "12.3%" in words
        and "-0.5000" in words
        and "network.backend=sparse" in words
    )


def test_a_lossless_imitation_misses_nothing(losing, real, synthetic):
    losing()
    found = missed_gradient(config("minkowski", network__norm="instance"), real, synthetic)
    assert found["gradients_without_graph"] == [] and found["missed"] == 0


def test_a_norm_that_loses_its_second_derivative_is_found(losing, real, synthetic):
    losing("batch_norm")
    found = missed_gradient(config("minkowski", network__norm="batch"), real, synthetic)
    assert set(found["gradients_without_graph"]) >= {"norm_weights.0", "norm_weights.1"}
    assert found["layers"]["norm 1"]["missed"] > 0.1 and found["layers"]["norm 2"]["missed"] > 0.1
    assert found["layers"]["head"]["missed"] == pytest.approx(0, abs=1e-12)


def test_a_loss_that_leaves_every_gradient_a_graph_is_measured_all_the_same(
    losing, real, synthetic
):
    losing(
        "pool"
    )  # of a weight's gradient one factor is a constant now, the other one still depends on the points
    found = missed_gradient(config("minkowski", network__pooling="average"), real, synthetic)
    assert found["gradients_without_graph"] == []
    assert found["missed"] > 0.01 and found["cosine"] < 0.9999


def test_measuring_leaves_the_clouds_as_they_were(real, synthetic):
    before = synthetic.coordinates.clone()
    missed_gradient(config("sparse"), real, synthetic)
    assert torch.equal(synthetic.coordinates, before)
    assert not synthetic.coordinates.requires_grad and synthetic.coordinates.grad is None


# --- parameters without a graph -----------------------------------------------------------------------------------


def test_gradients_without_graph_are_named_in_the_order_of_the_parameters(losing, real):
    losing("convolution")
    settings = config("minkowski", network__layers=3)
    network, lifted = draw_network(settings, real, 0), lift_at(settings, 0)(real)
    assert gradients_without_graph(network.double(), lifted, real.labels) == [
        *CONVOLUTIONS,
        "convolution_weights.2",
    ]
