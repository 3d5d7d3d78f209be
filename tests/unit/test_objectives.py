"""Objectives: distances between gradients, losses, and their gradients by finite differences."""

import itertools

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from torch import nn

from pcdd_core.engine.distances import DISTANCES, as_rows, layerwise_cosine_of_weights
from pcdd_core.engine.lifts import coordinates_as_features, gaussian_occupancy, occupancy
from pcdd_core.engine.losses import (
    KERNEL_WIDTHS,
    distribution_matching,
    feature_regression,
    gradient_matching,
    in_precision,
    maximum_mean_discrepancy,
    parameter_gradients,
    unrolled_training,
)
from pcdd_core.seeds import generator

SHAPES = [(3, 4), (3,), (1, 5)]  # a weight, a bias, a weight with one row


def dense_network(width):
    description = tiny.network_of(layers=3, width=width, norm="instance", pooling="average")
    return description.new(1, tiny.digits().train.grid, 10, generator(0))


def gradients(seed, shapes=SHAPES):
    draws = generator(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=draws) for shape in shapes]


# --- distances ------------------------------------------------------------------------------------


def cosine_distances(real, synthetic):
    """Return 1 - cosine for each row; a bias is one row."""
    return [
        1 - r @ s / np.sqrt(r @ r * (s @ s))
        for r, s in zip(np.atleast_2d(real), np.atleast_2d(synthetic))
    ]


FORMULAS = {
    "sum_of_squares": lambda real, synthetic: sum(
        ((s - r) ** 2).sum() for r, s in zip(real, synthetic)
    ),
    "layerwise_cosine": lambda real, synthetic: sum(
        sum(cosine_distances(r, s)) for r, s in zip(real, synthetic)
    ),
    "layerwise_cosine_of_weights": lambda real, synthetic: sum(
        sum(cosine_distances(real[place], synthetic[place])) for place in (0, 2)
    ),
    "mean_squared_error": lambda real, synthetic: np.mean(
        np.concatenate([(s - r).ravel() ** 2 for r, s in zip(real, synthetic)])
    ),
    "global_cosine": lambda real, synthetic: cosine_distances(
        *([np.concatenate([gradient.ravel() for gradient in side])] for side in (real, synthetic))
    )[0],
}


def test_every_distance_has_a_formula_here():
    assert DISTANCES.keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", DISTANCES)
@given(seed=st.integers(0, 1000))
def test_a_distance_equals_its_formula(name, seed):
    real, synthetic = gradients(seed), gradients(seed + 1)
    expected = FORMULAS[name](
        [gradient.numpy() for gradient in real], [gradient.numpy() for gradient in synthetic]
    )
    # The 1e-12 in the root changes cosines by 1e-12 over the squared norms, which are not tiny.
    np.testing.assert_allclose(
        DISTANCES[name](real, synthetic).item(), expected, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_zero_between_equal_gradients_and_positive_between_others(name):
    distance, real = DISTANCES[name], gradients(0)
    assert abs(distance(real, real)) < 1e-10
    assert distance(real, gradients(1)) > 0.1


@pytest.mark.parametrize("name", [name for name in DISTANCES if "cosine" in name])
def test_cosines_ignore_the_length_of_gradients(name):
    real, synthetic = gradients(0), gradients(1)
    longer = [7 * gradient for gradient in synthetic]
    torch.testing.assert_close(DISTANCES[name](real, longer), DISTANCES[name](real, synthetic))


def test_layerwise_cosine_of_weights_ignores_one_dimensional_parameters():
    real, synthetic = gradients(0), gradients(1)
    with_other_bias = [synthetic[0], -3 * synthetic[1] + 1, synthetic[2]]
    same = layerwise_cosine_of_weights(real, synthetic)
    assert torch.equal(layerwise_cosine_of_weights(real, with_other_bias), same)
    assert DISTANCES["layerwise_cosine"](real, with_other_bias) != DISTANCES["layerwise_cosine"](
        real, synthetic
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_both_derivatives_of_a_distance(check_two_derivatives, name):
    # some distances ignore biases
    shapes = [shape for shape in SHAPES if len(shape) > 1]
    real = gradients(0, shapes)
    check_two_derivatives(
        lambda *synthetic: DISTANCES[name](real, synthetic), *gradients(1, shapes)
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_derivatives_are_finite_where_a_gradient_is_exactly_zero(name):
    synthetic = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]
    options = dict(create_graph=True, materialize_grads=True)
    first = torch.autograd.grad(DISTANCES[name](gradients(0), synthetic), synthetic, **options)
    second = torch.autograd.grad(
        sum(gradient.square().sum() for gradient in first), synthetic, **options
    )
    for gradient in (*first, *second):
        assert gradient.isfinite().all()


# --- gradients as matrices ------------------------------------------------------------------------


def test_as_rows_gives_dense_weights_one_row_per_output_channel():
    linear, kernel = torch.randn(5, 7), torch.randn(5, 2, 1, 3, 3)
    assert torch.equal(as_rows(linear), linear)
    assert as_rows(kernel).shape == (5, 18)
    for output in range(5):
        assert torch.equal(as_rows(kernel)[output], kernel[output].flatten())


def test_as_rows_gives_sparse_weights_one_row_per_output_channel():
    kernel = torch.randn(27, 2, 5)  # (volume, in, out)
    assert as_rows(kernel).shape == (5, 54)
    for output in range(5):
        assert torch.equal(as_rows(kernel)[output], kernel[:, :, output].flatten())


def test_as_rows_leaves_a_bias_as_it_is():
    bias = torch.randn(5)
    assert torch.equal(as_rows(bias), bias)


# --- the matching loss ----------------------------------------------------------------------------

GRIDS = {"flat": (1, 8, 8), "solid": (4, 4, 4)}
LIFTS = {
    "coordinates": coordinates_as_features,
    "gaussian": lambda clouds: gaussian_occupancy(clouds, 0.9, 3.0),
}
CASES = [
    (backend, pooling, norm, lift, grid, False)
    for backend in ("torch", "sparse")
    for pooling in ("max", "average")
    for norm in ("none", "instance")
    for lift in LIFTS
    for grid in GRIDS
] + [
    ("torch", "max", "none", "coordinates", "flat", True),
    ("torch", "average", "none", "gaussian", "flat", True),
    ("sparse", "max", "instance", "coordinates", "flat", True),
    ("sparse", "average", "none", "gaussian", "flat", True),
]
every_case = pytest.mark.parametrize("backend, pooling, norm, lift, grid, paper_layout", CASES)
REAL_LABELS, LABELS = torch.tensor([1, 1, 1]), torch.tensor([1, 1])


def matching_case(random_clouds, backend, pooling, norm, lift, grid, paper_layout):
    """Return a network, lifted real clouds, and synthetic clouds, all in float64."""
    grid = GRIDS[grid]
    description = tiny.network_of(
        backend=backend, layers=2, width=4, pooling=pooling, norm=norm, paper_layout=paper_layout
    )
    network = description.new(
        {"coordinates": 3, "gaussian": 1}[lift], grid, 3, generator(0)
    ).double()
    return (
        network,
        LIFTS[lift](random_clouds([7, 4, 9], grid, seed=1)),
        random_clouds([5, 3], grid, seed=2),
    )


@every_case
def test_every_parameter_gradient_of_the_synthetic_loss_has_a_graph(
    random_clouds, backend, pooling, norm, lift, grid, paper_layout
):
    network, _, clouds = matching_case(
        random_clouds, backend, pooling, norm, lift, grid, paper_layout
    )
    coordinates = clouds.coordinates.requires_grad_()
    lifted = LIFTS[lift](clouds.with_coordinates(coordinates))
    by_parameter = parameter_gradients(network, lifted, LABELS, create_graph=True)
    for (name, _), gradient in zip(network.named_parameters(), by_parameter, strict=True):
        assert gradient.grad_fn is not None, name
        # the graph also leads to the points, not only to the weights
        (by_point,) = torch.autograd.grad(gradient.square().sum(), coordinates, retain_graph=True)
        assert by_point.abs().sum() > 0, name


@pytest.mark.parametrize("distance", ["sum_of_squares", "layerwise_cosine"])
@every_case
def test_the_gradient_of_the_matching_loss_agrees_with_finite_differences(
    random_clouds, backend, pooling, norm, lift, grid, paper_layout, distance
):
    network, real, clouds = matching_case(
        random_clouds, backend, pooling, norm, lift, grid, paper_layout
    )

    def loss(coordinates):
        lifted = LIFTS[lift](clouds.with_coordinates(coordinates))
        return gradient_matching(network, real, REAL_LABELS, lifted, LABELS, DISTANCES[distance])

    coordinates = clouds.coordinates.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(coordinates), coordinates)
    step, draws = 1e-6, generator(0, "directions")
    assert gradient.abs().max() > 1e-6
    for _ in range(4):  # a wrong gradient differs along almost every direction
        way = torch.randn(gradient.shape, dtype=gradient.dtype, generator=draws)
        ahead, behind = (loss(clouds.coordinates + side * step * way) for side in (1, -1))
        torch.testing.assert_close(
            (gradient * way).sum(),
            (ahead - behind) / (2 * step),
            rtol=1e-5,
            atol=1e-6 * gradient.abs().max().item(),
        )


@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_the_matching_loss_is_the_distance_of_gradients_of_two_cross_entropies(
    random_clouds, backend
):
    network, real, clouds = matching_case(
        random_clouds, backend, "max", "instance", "coordinates", "flat", False
    )
    lifted = coordinates_as_features(clouds)
    sides = []
    for inputs, labels in ((real, REAL_LABELS), (lifted, LABELS)):
        logits = network(inputs)
        loss = -sum(
            logits[cloud].log_softmax(0)[label] for cloud, label in enumerate(labels)
        ) / len(labels)
        sides.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
        )
    actual = gradient_matching(
        network, real, REAL_LABELS, lifted, LABELS, DISTANCES["sum_of_squares"]
    )
    torch.testing.assert_close(actual.detach(), (sides[0] - sides[1]).square().sum())


def test_parameter_gradients_are_those_of_backward_in_the_order_of_the_parameters(random_clouds):
    network, real, _ = matching_case(
        random_clouds, "sparse", "max", "instance", "coordinates", "solid", False
    )
    by_parameter = parameter_gradients(network, real, REAL_LABELS)
    F.cross_entropy(network(real), REAL_LABELS).backward()
    for parameter, gradient in zip(network.parameters(), by_parameter, strict=True):
        assert not gradient.requires_grad
        torch.testing.assert_close(gradient, as_rows(parameter.grad))


def test_the_matching_loss_is_zero_for_equal_clouds_and_has_no_gradient_there(random_clouds):
    network, _, clouds = matching_case(
        random_clouds, "torch", "max", "none", "gaussian", "flat", False
    )
    coordinates = clouds.coordinates.requires_grad_()
    lifted = LIFTS["gaussian"](clouds.with_coordinates(coordinates))
    loss = gradient_matching(network, lifted, LABELS, lifted, LABELS, DISTANCES["sum_of_squares"])
    (gradient,) = torch.autograd.grad(loss, coordinates)
    assert loss == 0
    assert (gradient == 0).all()


def test_the_real_clouds_are_a_constant_target(random_clouds):
    network, _, clouds = matching_case(
        random_clouds, "torch", "max", "none", "gaussian", "flat", False
    )
    real = clouds.coordinates.clone().requires_grad_()
    synthetic = (clouds.coordinates + 0.05).requires_grad_()
    lifted = [
        LIFTS["gaussian"](clouds.with_coordinates(coordinates)) for coordinates in (real, synthetic)
    ]
    gradient_matching(
        network, lifted[0], LABELS, lifted[1], LABELS, DISTANCES["sum_of_squares"]
    ).backward()
    assert real.grad is None
    assert synthetic.grad.abs().sum() > 0


# --- features -------------------------------------------------------------------------------------


class Features(nn.Module):
    """A small smooth network, in double precision."""

    def __init__(self):
        super().__init__()
        draws = generator(3)
        self.weight = nn.Parameter(torch.randn(6, 5, generator=draws, dtype=torch.float64))

    def features(self, inputs):
        return (inputs @ self.weight).tanh()


def numbers(rows, seed):
    return torch.randn(rows, 6, generator=generator(seed), dtype=torch.float64)


def test_distribution_matching_equals_its_formula():
    network, real, synthetic = Features(), numbers(7, 0), numbers(2, 1)
    means = [
        np.mean([np.tanh(row @ network.weight.detach().numpy()) for row in x.numpy()], axis=0)
        for x in (real, synthetic)
    ]
    assert distribution_matching(network, real, synthetic).item() == pytest.approx(
        ((means[0] - means[1]) ** 2).sum()
    )


def test_maximum_mean_discrepancy_equals_scikit_learn_s_kernels():
    network, real, synthetic = Features(), numbers(7, 0), numbers(4, 1)
    s, r = (network.features(clouds).detach().numpy() for clouds in (synthetic, real))
    scale = np.mean([((a - b) ** 2).sum() for a in r for b in r])
    expected = np.mean(
        [
            rbf_kernel(s, s, gamma).mean()
            - 2 * rbf_kernel(s, r, gamma).mean()
            + rbf_kernel(r, r, gamma).mean()
            for gamma in 1 / (scale * np.array(KERNEL_WIDTHS))
        ]
    )
    assert maximum_mean_discrepancy(network, real, synthetic).item() == pytest.approx(expected)


def test_maximum_mean_discrepancy_sees_a_spread_that_distribution_matching_does_not():
    network, real = Features(), numbers(8, 0)
    # tanh is odd, so the mean feature is 0, which is also the feature of a cloud at 0
    real[4:] = -real[:4]
    at_the_mean = torch.zeros(4, 6, dtype=torch.float64)
    assert distribution_matching(network, real, at_the_mean) < 1e-25
    assert maximum_mean_discrepancy(network, real, at_the_mean) > 0.1
    assert abs(maximum_mean_discrepancy(network, real, real)) < 1e-12
    assert maximum_mean_discrepancy(network, real, real[[0, 1, 4, 5]]) < maximum_mean_discrepancy(
        network, real, at_the_mean
    )


def test_feature_regression_equals_scikit_learn_s_ridge():
    network, real, synthetic = Features(), numbers(7, 0), numbers(4, 1)
    real_labels, labels = torch.tensor([0, 1, 2, 0, 1, 2, 2]), torch.tensor([0, 1, 2, 1])
    synthetic_features, real_features = (
        network.features(x).detach().numpy() for x in (synthetic, real)
    )
    targets, wanted = (np.eye(3)[y] - 1 / 3 for y in (labels, real_labels))
    model = Ridge(
        alpha=0.3 * (synthetic_features**2).sum(1).mean(), fit_intercept=False, solver="cholesky"
    ).fit(synthetic_features, targets)
    expected = ((model.predict(real_features) - wanted) ** 2).sum(1) / 2
    losses = feature_regression(network, real, real_labels, synthetic, labels, classes=3, ridge=0.3)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "objective", ["distribution_matching", "maximum_mean_discrepancy", "feature_regression"]
)
def test_gradient_of_a_feature_objective_against_finite_differences(objective):
    network, real, labels = Features(), numbers(7, 0), torch.tensor([0, 1, 2, 1])
    real_labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])

    def loss(synthetic):
        if objective == "distribution_matching":
            return distribution_matching(network, real, synthetic)
        if objective == "maximum_mean_discrepancy":
            return maximum_mean_discrepancy(network, real, synthetic)
        return feature_regression(network, real, real_labels, synthetic, labels, 3, 1e-2)

    synthetic = numbers(4, 1).requires_grad_()
    assert loss(synthetic).grad_fn is not None
    assert torch.autograd.gradcheck(loss, synthetic)


@pytest.mark.parametrize("width", [8, 64])
def test_less_precision_changes_a_real_gradient_far_less_than_another_batch_does(width):
    """Check the claim of `in_precision` for the weights of every layer of ConvNet-3 on digits."""
    network = dense_network(width)
    train = tiny.digits().train
    threes = occupancy(train.select((train.labels == 3).nonzero().flatten()[:100]))
    labels = torch.full((50,), 3)

    def weights(inputs, precision=torch.float32):
        with in_precision(network, precision):
            return [
                gradient
                for gradient in parameter_gradients(network, inputs, labels)
                if gradient.dim() > 1
            ]

    exact, less, other = (
        weights(threes[:50]),
        weights(threes[:50], torch.bfloat16),
        weights(threes[50:]),
    )
    for layer, gradient in enumerate(exact):
        by_precision, by_batch = (
            1 - F.cosine_similarity(gradient, changed[layer]).mean().item()
            for changed in (less, other)
        )
        assert 0 < by_precision < 0.03 * by_batch
        assert less[layer].dtype == torch.float32


# --- unrolled training ----------------------------------------------------------------------------

LABELS_OF_7, LABELS_OF_4 = torch.tensor([0, 1, 2, 0, 1, 2, 2]), torch.tensor([0, 1, 2, 1])


def smooth_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def moved_at_each_call(synthetic, labels=LABELS_OF_4):
    """Return a function that gives other clouds at each call: they grow, and one is left out."""
    numbers = itertools.count(1)

    def next_clouds():
        number = next(numbers)
        kept = torch.arange(4) != number % 4
        return (synthetic * (1 + 0.1 * number))[kept], labels[kept]

    return next_clouds


@pytest.mark.parametrize("steps", [1, 4])
def test_unrolled_training_equals_training_by_torch_s_sgd(steps):
    network, trained, synthetic = smooth_network(), smooth_network(), numbers(4, 1)
    optimiser, next_clouds = (
        torch.optim.SGD(trained.parameters(), 0.3, momentum=0.9),
        moved_at_each_call(synthetic),
    )
    for _ in range(steps):
        optimiser.zero_grad()
        clouds, labels = next_clouds()
        F.cross_entropy(trained(clouds), labels).backward()
        optimiser.step()
    expected = F.cross_entropy(trained(numbers(7, 0)), LABELS_OF_7, reduction="none")
    before = [parameter.detach().clone() for parameter in network.parameters()]
    next_clouds = moved_at_each_call(synthetic)
    losses = unrolled_training(
        network, numbers(7, 0), LABELS_OF_7, next_clouds, steps, step_size=0.3
    )
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, before, network.parameters()))


def test_gradient_through_unrolled_training_against_finite_differences():
    network, real, synthetic = smooth_network(), numbers(7, 0), numbers(4, 1).requires_grad_()

    def loss(synthetic):
        return unrolled_training(
            network, real, LABELS_OF_7, moved_at_each_call(synthetic), 5, step_size=0.3
        )

    assert torch.autograd.gradcheck(loss, synthetic)


def test_steps_before_unrolled_training_train_alike_without_differentiation():
    network, synthetic = smooth_network(), numbers(4, 1).requires_grad_()
    losses = unrolled_training(
        network,
        numbers(7, 0),
        LABELS_OF_7,
        moved_at_each_call(synthetic),
        3,
        step_size=0.3,
        steps_before=4,
    )
    same = unrolled_training(
        network, numbers(7, 0), LABELS_OF_7, moved_at_each_call(synthetic), 7, step_size=0.3
    )
    torch.testing.assert_close(losses, same, rtol=1e-12, atol=1e-12)

    whole = moved_at_each_call(synthetic)
    untouched = moved_at_each_call(synthetic.detach())
    calls = itertools.count()

    def last_three():  # the same numbers, with a graph only from the fifth call on
        one, other = whole(), untouched()
        return one if next(calls) >= 4 else other

    expected = unrolled_training(network, numbers(7, 0), LABELS_OF_7, last_three, 7, step_size=0.3)
    gradients = [torch.autograd.grad(loss.sum(), synthetic)[0] for loss in (losses, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_unrolled_training_on_probabilities_that_are_certain_is_that_on_labels():
    by_labels, network = moved_at_each_call(numbers(4, 1)), smooth_network()
    expected = unrolled_training(network, numbers(7, 0), LABELS_OF_7, by_labels, 3, step_size=0.3)
    certain = moved_at_each_call(numbers(4, 1), F.one_hot(LABELS_OF_4, 3).double())
    losses = unrolled_training(network, numbers(7, 0), LABELS_OF_7, certain, 3, step_size=0.3)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


def test_label_gradient_of_unrolled_training_against_finite_differences():
    network, real, synthetic, logits = (
        smooth_network(),
        numbers(7, 0),
        numbers(4, 1),
        numbers(4, 2)[:, :3].requires_grad_(),
    )

    def loss(logits):
        next_clouds = moved_at_each_call(synthetic, logits.softmax(1))
        return unrolled_training(network, real, LABELS_OF_7, next_clouds, 5, step_size=0.3)

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_coordinate_gradient_of_unrolled_training_against_finite_differences(
    backend, random_clouds
):
    """Differentiate along a random direction of all coordinates, through lift and three steps."""
    clouds = random_clouds([6, 5, 4], (1, 8, 8), 0)
    settings = tiny.network_of(
        backend=backend, layers=2, width=3, norm="instance", pooling="average"
    )
    network = settings.new(1, (1, 8, 8), 3, generator(0)).double()
    real, labels = (
        gaussian_occupancy(random_clouds([5, 7, 6], (1, 8, 8), 1), 1.0, 3.0),
        torch.arange(3),
    )
    direction = torch.randn(clouds.coordinates.shape, generator=generator(2), dtype=torch.float64)

    def loss(length):
        lifted = gaussian_occupancy(
            clouds.with_coordinates(clouds.coordinates + length * direction), 1.0, 3.0
        )
        return unrolled_training(
            network, real, labels, lambda: (lifted, labels), 3, step_size=0.1
        ).sum()

    length = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, length)
    assert torch.autograd.grad(loss(length), length)[0] != 0


# --- features and heads ---------------------------------------------------------------------------


@pytest.mark.parametrize("lift", [coordinates_as_features, gaussian_occupancy])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_network_is_its_features_and_its_head(backend, lift, random_clouds):
    clouds = random_clouds([9, 7], (1, 8, 8), 0)
    lifted = lift(clouds) if lift is coordinates_as_features else lift(clouds, 1.0, 3.0)
    channels = 3 if lift is coordinates_as_features else 1
    network = tiny.network_of(backend=backend, layers=2, width=4).new(
        channels, (1, 8, 8), 3, generator(0)
    )
    network = network.double()  # the clouds are in float64
    features = network.features(lifted)
    assert features.shape == (2, network.head.in_features)
    torch.testing.assert_close(network.head(features), network(lifted))
