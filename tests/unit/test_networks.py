"""Networks against literal torch layers and against each other; initial weights."""

import itertools
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import needs_minkowski
from torch import nn

from pcdd_core.engine.lifts import coordinates_as_features
from pcdd_core.engine.losses import gradients_without_graph
from pcdd_core.errors import InputError
from pcdd_core.nn.grid import average_pool
from pcdd_core.nn.minkowski import from_points as minkowski_points
from pcdd_core.nn.sparse import from_dense
from pcdd_core.seeds import generator

FLAT, SOLID = (1, 8, 8), (4, 4, 4)
BACKENDS = ["torch", "sparse"]
POOLINGS = ["max", "average"]
NORMS = ["none", "instance", "batch"]


def built(backend="torch", grid=FLAT, channels=3, classes=5, seed=0, **settings):
    description = tiny.network_of(backend=backend, **{"layers": 2, "width": 4} | settings)
    return description.new(channels, grid, classes, generator(seed, "network"))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def with_drawn_norms(network, seed=3):
    """Draw scales and shifts of the norms, so that they are not 1 and 0."""
    draws = generator(seed)
    for parameter in [*network.norm_weights, *network.norm_biases]:
        parameter.data.normal_(1.0, 0.3, generator=draws)
    return network


def test_padding_by_3_makes_the_network_that_scores():
    """Compare with a literal ConvNet-3: 28 x 28, padded to 32 x 32, pooled to 4 x 4."""
    network = with_drawn_norms(
        built(
            grid=(1, 28, 28),
            channels=1,
            classes=10,
            layers=3,
            width=6,
            norm="instance",
            pooling="average",
            padding=3,
        )
    )
    channels, literal = [1, 6, 6], []
    for layer, (inputs, padding) in enumerate(zip(channels, (3, 1, 1))):
        convolution, norm = nn.Conv2d(inputs, 6, 3, padding=padding), nn.GroupNorm(6, 6)
        convolution.weight.data, convolution.bias.data = (
            network.convolution_weights[layer].data[:, :, 0],
            network.convolution_biases[layer].data,
        )
        norm.weight.data, norm.bias.data = (
            network.norm_weights[layer].data,
            network.norm_biases[layer].data,
        )
        literal += [convolution, norm, nn.ReLU(), nn.AvgPool2d(2)]
    images = torch.rand(3, 1, 28, 28, generator=generator(1))
    expected = network.head(nn.Sequential(*literal)(images).flatten(1))
    torch.testing.assert_close(network(images[:, :, None]), expected, rtol=1e-4, atol=1e-5)


def test_padding_surrounds_solid_grids_too_and_leaves_axes_of_one_cell():
    assert built(grid=(6, 6, 6), padding=2).head.in_features == 4 * 2**3
    assert built(grid=(1, 6, 6), padding=2).head.in_features == 4 * 2**2


def test_padding_of_the_paper_layout_is_refused():
    with pytest.raises(InputError, match="network.padding = 3"):
        built(padding=3, paper_layout=True)


# --- the paper's dense network --------------------------------------------------------------------


def literal_paper_network(network, layers, pooling):
    """Return the layers of the paper's code with the weights of `network`.

    The paper's code pads and pools the depth axis, too.
    """
    stack = []
    for layer in range(layers):
        convolution = nn.Conv3d(4 if layer else 3, 4, (1, 3, 3), padding=1)
        stack += [
            convolution,
            nn.ReLU(),
            {"max": nn.MaxPool3d, "average": nn.AvgPool3d}[pooling](2),
        ]
        convolution.weight, convolution.bias = (
            network.convolution_weights[layer],
            network.convolution_biases[layer],
        )
    return nn.Sequential(*stack, nn.Flatten(), network.head)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_paper_layout_equals_the_literal_layers(random_clouds, pooling, layers):
    network = built(layers=layers, pooling=pooling, paper_layout=True).double()
    literal = literal_paper_network(network, layers, pooling)
    # few points in a large grid: most windows are empty, and there the planes tie
    images = coordinates_as_features(random_clouds([6, 3, 9], FLAT)).dense().requires_grad_()
    assert_close(network(images), literal(images))
    inputs = [images, *network.parameters()]
    by_network = torch.autograd.grad(network(images).square().sum(), inputs)
    by_literal = torch.autograd.grad(literal(images).square().sum(), inputs)
    for actual, expected in zip(by_network, by_literal, strict=True):
        assert_close(actual, expected)


def test_paper_layout_does_not_hide_nan():
    network = built(paper_layout=True)
    images = torch.full((1, 3, *FLAT), torch.nan)
    assert literal_paper_network(network, 2, "max")(images).isnan().all()
    assert network(images).isnan().all()


@pytest.mark.parametrize("settings, grid", [(dict(norm="instance"), FLAT), ({}, SOLID)])
def test_paper_layout_where_it_is_not_defined_is_an_input_error(settings, grid):
    with pytest.raises(InputError, match="network.paper_layout"):
        built(grid=grid, paper_layout=True, **settings)


# --- norms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, kind", [("instance", nn.InstanceNorm3d), ("batch", nn.BatchNorm3d)])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "grid, kernel, window", [(FLAT, (1, 3, 3), (1, 2, 2)), (SOLID, (3, 3, 3), (2, 2, 2))]
)
def test_norms_of_the_dense_network_equal_the_literal_layers(
    random_clouds, norm, kind, pooling, grid, kernel, window
):
    network = with_drawn_norms(built(grid=grid, norm=norm, pooling=pooling).double())
    stack = []
    for layer in range(2):
        convolution = nn.Conv3d(4 if layer else 3, 4, kernel, padding="same")
        convolution.weight, convolution.bias = (
            network.convolution_weights[layer],
            network.convolution_biases[layer],
        )
        normalise = kind(4, affine=True, track_running_stats=False)
        normalise.weight, normalise.bias = network.norm_weights[layer], network.norm_biases[layer]
        pool = {"max": nn.MaxPool3d, "average": nn.AvgPool3d}[pooling](window)
        stack += [convolution, normalise, nn.ReLU(), pool]
    images = coordinates_as_features(random_clouds([6, 3, 9], grid)).dense()
    assert_close(network(images), nn.Sequential(*stack, nn.Flatten(), network.head)(images))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_batch_norm_alone_do_logits_depend_on_the_other_clouds_of_the_batch(
    random_clouds, backend, norm
):
    clouds = random_clouds([9, 7, 8, 6], SOLID)
    network = with_drawn_norms(built(backend, SOLID, norm=norm).double())
    alone, in_a_batch = (
        network(coordinates_as_features(clouds.select(torch.arange(count)))) for count in (1, 4)
    )
    if norm == "batch":
        assert (alone[0] - in_a_batch[0]).abs().max() > 0.01
    else:
        assert_close(alone[0], in_a_batch[0])


# --- sparse and dense -----------------------------------------------------------------------------


def dense_twin(network, grid, **settings):
    """Return a dense network with the weights of a sparse one: kernels reordered, no bias."""
    twin = built("torch", grid, **settings).double()
    for own, weight, bias in zip(
        twin.convolution_weights, network.convolution_weights, twin.convolution_biases
    ):
        # depth is the fastest axis
        kernel = weight.detach().view(3, 3, 3, *weight.shape[1:]).permute(4, 3, 2, 1, 0)
        own.data = kernel if grid[0] > 1 else kernel[:, :, 1:2]
        bias.data.zero_()
    for part in ("head", "norm_weights", "norm_biases"):
        getattr(twin, part).load_state_dict(getattr(network, part).state_dict())
    return twin


@pytest.mark.parametrize("grid", [FLAT, SOLID])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", [1, 2])
# the two instance norms have different epsilons
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_sparse_and_dense_networks_agree_on_a_fully_occupied_grid(grid, pooling, layers, norm):
    settings = dict(layers=layers, pooling=pooling, norm=norm)
    network = with_drawn_norms(built("sparse", grid, **settings).double())
    twin = dense_twin(network, grid, **settings)
    images = torch.randn(2, 3, *grid, dtype=torch.float64, generator=generator(1)).requires_grad_()
    assert_close(network(from_dense(images)), twin(images))
    actual = torch.autograd.grad(
        network(from_dense(images)).square().sum(), [images, network.head.weight]
    )
    expected = torch.autograd.grad(twin(images).square().sum(), [images, twin.head.weight])
    assert_close(actual, expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("paper_layout", [False, True])
def test_the_sparse_network_does_not_depend_on_the_order_of_points(
    random_clouds, norm, paper_layout
):
    clouds = random_clouds([9, 1, 14], FLAT)
    network = built("sparse", norm=norm, paper_layout=paper_layout).double()
    shuffled = [cloud[torch.randperm(len(cloud), generator=generator(2))] for cloud in clouds]
    assert not torch.equal(torch.cat(shuffled), clouds.coordinates)
    assert_close(
        network(coordinates_as_features(clouds.with_coordinates(torch.cat(shuffled)))),
        network(coordinates_as_features(clouds)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_dense_and_sparse_inputs_give_the_same_logits(random_clouds, backend, norm):
    lifted = coordinates_as_features(random_clouds([9, 2, 14], SOLID))
    network = built(backend, SOLID, norm=norm).double()
    assert_close(network(lifted), network(lifted.dense()))


def test_paper_layout_gives_the_sparse_head_the_whole_grid_with_one_corner_filled(
    random_clouds,
):
    network = built("sparse", paper_layout=True).double()
    assert network.head.in_features == 4 * math.prod(FLAT)
    network(coordinates_as_features(random_clouds([30, 30], FLAT))).sum().backward()
    used = network.head.weight.grad.abs().sum(0).view(4, *FLAT).sum((0, 1)) > 0
    assert used[:2, :2].any()
    assert not used[2:].any() and not used[:, 2:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_instance_norm_makes_logits_independent_of_the_scale_of_a_clouds_features(
    random_clouds, backend
):
    lifted = coordinates_as_features(random_clouds([9, 14], SOLID))
    network = built(backend, SOLID, norm="instance").double()
    for bias in getattr(network, "convolution_biases", []):
        bias.data.zero_()
    scaled = lifted.with_features(lifted.features * 7)
    # the epsilon makes the equality inexact
    torch.testing.assert_close(network(scaled), network(lifted), rtol=1e-4, atol=1e-4)


@needs_minkowski
@pytest.mark.parametrize("norm", NORMS)
def test_minkowski_and_sparse_networks_agree_where_points_share_a_cell(random_clouds, norm):
    clouds = random_clouds([12, 9, 11], (1, 4, 4))  # on 16 cells
    sparse, minkowski = (
        with_drawn_norms(built(name, (1, 4, 4), norm=norm).double())
        for name in ("sparse", "minkowski")
    )
    minkowski.load_state_dict(sparse.state_dict())
    assert_close(
        minkowski(coordinates_as_features(clouds, minkowski_points)),
        sparse(coordinates_as_features(clouds)),
    )


# --- second derivatives ---------------------------------------------------------------------------

HALVINGS = (1, 16, 16)  # room for 4 layers


# every pooling with every norm; more layers repeat the same operations, so one case is enough
DEPTHS = [(2, *pair) for pair in itertools.product(POOLINGS, NORMS)]
DEPTHS += [pytest.param(4, "max", "none", marks=pytest.mark.slow)]


@pytest.mark.parametrize("layers, pooling, norm", DEPTHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_derivatives_of_a_network(
    check_two_derivatives, random_clouds, backend, layers, pooling, norm
):
    # With these weights no network is dead, and no feature is so near to a kink or a tie that
    # finite differences cross it.
    network = built(
        backend, HALVINGS, classes=2, layers=layers, width=2, pooling=pooling, norm=norm
    ).double()
    draws = generator(227, "weights")
    weights = {
        name: torch.randn(p.shape, dtype=p.dtype, generator=draws)
        for name, p in network.named_parameters()
    }
    for name in weights:
        if name.startswith("norm"):
            weights[name] = 1 + 0.3 * weights[name]
    directions = [
        torch.randn(p.shape, dtype=p.dtype, generator=generator(1, name))
        for name, p in weights.items()
    ]
    clouds = random_clouds([4, 3], HALVINGS, seed=1)

    def logits(coordinates, steps):
        """Return the logits of moved points; each parameter moves a step in its own direction."""
        moved = {
            name: weights[name] + step * way
            for name, step, way in zip(weights, steps, directions, strict=True)
        }
        lifted = coordinates_as_features(clouds.with_coordinates(coordinates))
        return torch.func.functional_call(network, moved, (lifted,))

    check_two_derivatives(
        logits, clouds.coordinates, torch.zeros(len(weights), dtype=torch.float64)
    )
    coordinates = clouds.coordinates.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        logits(coordinates, [0.0] * len(weights)).square().sum(), coordinates
    )
    assert gradient.abs().max() > 0.1  # a dead network would pass: both of its derivatives are 0


LAYOUTS = [("torch", "none", True)]  # backend torch defines paper_layout only without a norm
LAYOUTS += [("sparse", norm, True) for norm in NORMS] + [
    (*pair, False) for pair in itertools.product(BACKENDS, NORMS)
]


@pytest.mark.parametrize("backend, norm, paper_layout", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_every_parameter_gradient_has_a_graph(
    random_clouds, backend, norm, paper_layout, pooling, layers
):
    settings = dict(layers=layers, pooling=pooling, norm=norm, paper_layout=paper_layout)
    network = built(backend, HALVINGS, **settings).double()
    lifted = coordinates_as_features(random_clouds([8, 5], HALVINGS))
    assert gradients_without_graph(network, lifted, torch.tensor([1, 1])) == []


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid, most", [(FLAT, 3), (SOLID, 2), ((1, 28, 28), 4)])
def test_more_layers_than_the_grid_has_halvings_is_an_input_error(backend, grid, most):
    built(backend, grid, layers=most)
    with pytest.raises(InputError, match=f"network.layers = {most + 1}.*at most {most}"):
        built(backend, grid, layers=most + 1)


def test_a_sparse_network_on_a_grid_of_one_cell_is_an_input_error():
    with pytest.raises(InputError):
        built("sparse", (1, 1, 1), layers=1)


# --- initial weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["default", "kaiming_normal"])
def test_weights_are_a_function_of_the_seed(backend, weights):
    first, same, other = (
        built(backend, weights=weights, norm="instance", seed=seed) for seed in (0, 0, 1)
    )
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        drawn = not name.startswith("norm")
        assert torch.equal(parameter, other.get_parameter(name)) != drawn


@pytest.mark.parametrize("backend", BACKENDS)
def test_draw_gives_other_weights(backend):
    network = built(backend)
    before = [parameter.clone() for parameter in network.parameters()]
    network.initialise(generator(9))
    assert not any(torch.equal(old, new) for old, new in zip(before, network.parameters()))


def is_uniform(weight, bound):
    """Check limits and standard deviation of uniform draws in +-bound, for thousands of draws."""
    return (
        0.98 * bound < weight.abs().max() <= bound
        and abs(weight.std() / (bound / 3**0.5) - 1) < 0.03
    )


@pytest.mark.parametrize("backend, volume", [("torch", 9), ("sparse", 27)])
def test_default_weights_are_uniform_within_one_over_root_fan_in(backend, volume):
    network = built(backend, width=64)
    for layer, inputs in enumerate((3, 64)):
        assert is_uniform(network.convolution_weights[layer], (inputs * volume) ** -0.5)
    assert is_uniform(network.head.weight, network.head.in_features**-0.5)


def test_default_weights_have_the_distribution_that_torch_gives_a_new_layer():
    torch_bound = nn.Conv3d(64, 64, (1, 3, 3)).weight.abs().max().item()
    assert math.isclose(
        built(width=64).convolution_weights[1].abs().max().item(), torch_bound, rel_tol=0.001
    )


@pytest.mark.parametrize("backend, volume", [("torch", 9), ("sparse", 27)])
def test_kaiming_weights_are_normal_with_variance_two_over_fan_out(backend, volume):
    network = built(backend, width=64, weights="kaiming_normal")
    for weight in network.convolution_weights:
        scaled = weight.detach() / (2 / (64 * volume)) ** 0.5
        assert abs(scaled.std() - 1) < 0.05
        assert abs((scaled.abs() < 1).float().mean() - 0.6827) < 0.03
    assert is_uniform(network.head.weight, network.head.in_features**-0.5)


@pytest.mark.parametrize("weights", ["default", "kaiming_normal"])
def test_biases_are_uniform_within_one_over_root_fan_in(weights):
    network = built(width=512, layers=1, weights=weights)
    bias, bound = network.convolution_biases[0], (3 * 9) ** -0.5
    assert 0.95 * bound < bias.abs().max() <= bound
    assert bias.min() < -0.9 * bound and bias.max() > 0.9 * bound


def test_norms_start_as_the_identity():
    network = built(norm="instance")
    assert [weight.tolist() for weight in network.norm_weights] == [[1] * 4] * 2
    assert [bias.tolist() for bias in network.norm_biases] == [[0] * 4] * 2


@given(
    st.lists(st.integers(2, 7), min_size=2, max_size=3),
    st.lists(st.sampled_from([1, 2]), min_size=3, max_size=3),
    st.integers(0, 99),
)
def test_average_pool_equals_torch_s_with_its_first_and_second_derivatives(grid, window, seed):
    """Include odd lengths, which lose their last cell in both."""
    window = tuple(window[: len(grid)])
    features = torch.randn(
        2, 3, *grid, dtype=torch.float64, generator=generator(seed)
    ).requires_grad_()
    torch_s = F.avg_pool2d if len(grid) == 2 else F.avg_pool3d
    results = []
    for pool in (average_pool, torch_s):
        pooled = pool(features, window)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), features, create_graph=True)
        (second,) = torch.autograd.grad(gradient.pow(3).sum(), features)
        results.append((pooled, gradient, second))
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
