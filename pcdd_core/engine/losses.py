"""Matching losses: compare the effects of real and synthetic clouds on a network.

`gradient_matching` compares gradients, `distribution_matching` mean features, and
`maximum_mean_discrepancy` and `sorted_feature_matching` distributions of features. Each of these
compares one class at a time. `feature_regression` fits a linear model to the features of the
synthetic clouds and measures its error on real clouds. `unrolled_training` trains the network on
the synthetic clouds and measures its loss on real clouds.

The functions take inputs of a network.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.grid import features_of
from .distances import Distance, as_rows

# Of the kernels of `maximum_mean_discrepancy`, in units of the mean squared distance between the
# features of real clouds.
KERNEL_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def parameter_gradients(
    network: nn.Module, lifted, labels: Tensor, create_graph: bool = False
) -> list[Tensor]:
    """Return the gradients of the mean cross-entropy with respect to all parameters.

    The shapes are those of `as_rows`.
    lifted: clouds as inputs of `network`
    labels: int64 (clouds,)
    create_graph: keep the graph for second derivatives
    """
    loss = F.cross_entropy(network(lifted), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)
    return [as_rows(gradient) for gradient in gradients]


def gradients_without_graph(network: nn.Module, lifted, labels: Tensor) -> list[str]:
    """Return the names of the parameters whose gradient has no graph.

    Autograd treats such a gradient as a constant, so matching it moves no point.
    """
    gradients = parameter_gradients(network, lifted, labels, create_graph=True)
    return [
        name
        for (name, _), gradient in zip(network.named_parameters(), gradients)
        if gradient.grad_fn is None
    ]


def in_precision(network: nn.Module, precision: torch.dtype) -> torch.autocast:
    """Return a context for mixed precision, with weights and norms in float32.

    Follows Micikevicius et al. 2018. With float32 the context has no effect. Use it for targets
    only: their sampling error exceeds the rounding error. The error of bfloat16 is far below the
    difference between two batches (tests/unit/test_objectives.py).
    """
    device = next(network.parameters()).device.type
    return torch.autocast(device, precision, enabled=precision != torch.float32)


def constant_features(network: nn.Module, real, precision: torch.dtype = torch.float32) -> Tensor:
    """Return the features of lifted real clouds, the inputs of the head, without a graph.

    precision: of the forward pass, see `in_precision`
    Returns (clouds, features), float32 at least.
    """
    with torch.no_grad(), in_precision(network, precision):
        features = features_of(network, real)
    return features.to(torch.promote_types(features.dtype, torch.float32))


def real_gradients(
    network: nn.Module, real, real_labels: Tensor, precision: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return the constant target of gradient matching: `parameter_gradients` without a graph.

    real: lifted real clouds
    precision: of the forward and the backward pass, see `in_precision`
    """
    with in_precision(network, precision):
        return [gradient.detach() for gradient in parameter_gradients(network, real, real_labels)]


def match_gradients(
    target: Sequence[Tensor], network: nn.Module, synthetic, labels: Tensor, distance: Distance
) -> Tensor:
    """Return the distance between `target` and the gradients of lifted synthetic clouds.

    target: from `real_gradients`. Returns a scalar with a graph.
    """
    return distance(target, parameter_gradients(network, synthetic, labels, create_graph=True))


def gradient_matching(
    network: nn.Module,
    real,
    real_labels: Tensor,
    synthetic,
    labels: Tensor,
    distance: Distance,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Return the gradient matching loss of one class: a scalar with a graph.

    Source: Zhao et al. 2021, equation 9; paper, section 3.2.1.
    real, synthetic: lifted clouds of that class, inputs of `network`
    precision: for `real_gradients`
    """
    target = real_gradients(network, real, real_labels, precision)
    return match_gradients(target, network, synthetic, labels, distance)


def distribution_matching(
    network: nn.Module, real, synthetic, precision: torch.dtype = torch.float32
) -> Tensor:
    """Return the squared distance between the mean features of one class: a scalar with a graph.

    Source: DM (Zhao and Bilen 2023, equation 4). Features are the inputs of the network's head. The
    mean of the real features is a constant target.
    real, synthetic: lifted clouds of that class
    precision: for the real features, see `in_precision`
    """
    target = constant_features(network, real, precision).mean(0)
    return (features_of(network, synthetic).mean(0) - target).square().sum()


def maximum_mean_discrepancy(
    network: nn.Module, real, synthetic, precision: torch.dtype = torch.float32
) -> Tensor:
    """Return the squared maximum mean discrepancy of one class's features: a scalar with a graph.

    Sources: Gretton et al. 2012; M3D (Zhang et al. 2024). The loss is zero only if the features
    have equal distributions. `distribution_matching` compares their means only. Real clouds attract
    each synthetic cloud, and the other synthetic clouds repel it. The kernel is the mean of the
    Gaussians exp(-d^2 / (f v)) over f in `KERNEL_WIDTHS`. d is the distance between two features,
    and v is the mean of d^2 between real clouds. Real features are constants.
    real, synthetic: lifted clouds of that class
    precision: for the real features, see `in_precision`
    """
    target = constant_features(network, real, precision)
    return _discrepancy(target, features_of(network, synthetic))


def sorted_feature_matching(
    network: nn.Module, real, synthetic, precision: torch.dtype = torch.float32
) -> Tensor:
    """Return the discrepancy of point features, sorted per channel, plus that of their maxima.

    Source: SADM (Yim et al. 2025). Both terms are squared maximum mean discrepancies, as in
    `maximum_mean_discrepancy`. A maximum over the points has a gradient for few points only.
    Sorting makes the features of two clouds comparable for any order of the points, so every point
    moves. Clouds of other sizes are compared at as many quantiles as synthetic clouds have points.
    network: with a method `point_features`, such as `points.PointNet`
    real, synthetic: lifted clouds of one class, from `lifts.centred_points`
    precision: for the real features, see `in_precision`
    """
    point_features = cast(Callable[[Any], Tensor], network.point_features)
    with torch.no_grad(), in_precision(network, precision):
        real_features = point_features(real)
    real_features, synthetic_features = (
        _sorted(features, synthetic.shape[1])
        for features in (real_features.to(synthetic.dtype), point_features(synthetic))
    )
    return _discrepancy(real_features.flatten(1), synthetic_features.flatten(1)) + _discrepancy(
        real_features[..., -1], synthetic_features[..., -1]
    )


def _sorted(features: Tensor, quantiles: int) -> Tensor:
    """Sort each channel of each cloud in ascending order; interpolate at equidistant quantiles.

    features: (clouds, points, channels). Returns (clouds, channels, quantiles).
    """
    ordered = _in_rising_order(features.transpose(1, 2).contiguous())
    if ordered.shape[2] != quantiles:
        place = torch.linspace(0, ordered.shape[2] - 1, quantiles, device=ordered.device)
        low, share = place.floor().long().clamp(max=ordered.shape[2] - 1), place.frac().to(ordered)
        high = (low + 1).clamp(max=ordered.shape[2] - 1)
        ordered = torch.lerp(ordered[..., low], ordered[..., high], share)
    return ordered


def _in_rising_order(values: Tensor) -> Tensor:
    """Sort along the last axis.

    On a CPU, NumPy's vectorised sort takes a tenth to a fortieth of torch's time.
    """
    if values.is_cuda:
        return values.sort().values
    if not values.requires_grad:
        return torch.from_numpy(np.sort(values.numpy()))
    return values.gather(-1, torch.from_numpy(np.argsort(values.detach().numpy())))


def _discrepancy(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two sets of rows, (clouds, features) each.

    `maximum_mean_discrepancy` describes the kernel.
    """
    scale = 2 * (real - real.mean(0)).square().sum(1).mean()

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        lengths = first.square().sum(1)[:, None] + second.square().sum(1)
        distances = (lengths - 2 * first @ second.T).clamp(min=0) / scale
        return torch.stack([torch.exp(-distances / width).mean() for width in KERNEL_WIDTHS]).mean()

    return kernel(synthetic, synthetic) - 2 * kernel(synthetic, real) + kernel(real, real)


def feature_regression(
    network: nn.Module,
    real,
    real_labels: Tensor,
    synthetic,
    labels: Tensor,
    classes: int,
    ridge: float,
) -> Tensor:
    """Fit a ridge regression to synthetic features and return its squared errors on real clouds.

    Source: FRePo (Zhou et al. 2022, equation 5). Targets are one-hot labels minus 1 / classes. Real
    features are constants. The fit uses all classes together, so the loss measures how well they
    are separated. The loss needs first derivatives of the network only.
    real, synthetic: lifted clouds
    ridge: regularisation, in units of the mean squared length of the synthetic features
    Returns (real clouds,): the error of each cloud, summed over classes and halved.
    """
    query = constant_features(network, real)
    fitted = features_of(network, synthetic)
    kernel = fitted @ fitted.T
    kernel = kernel + ridge * kernel.diagonal().mean() * torch.eye(len(kernel)).to(kernel)
    targets = F.one_hot(labels, classes).to(fitted) - 1 / classes
    predicted = query @ fitted.T @ torch.linalg.solve(kernel, targets)
    return (F.one_hot(real_labels, classes).to(query) - 1 / classes - predicted).square().sum(1) / 2


def unrolled_training(
    network: nn.Module,
    real,
    real_labels: Tensor,
    synthetic: Callable[[], tuple[object, Tensor]],
    steps: int,
    step_size: float,
    steps_before: int = 0,
    momentum: float = 0.9,
) -> Tensor:
    """Train the network on synthetic clouds and return its cross-entropy on each real cloud.

    Source: Wang et al. 2018, algorithm 1. The objective runs `steps` training steps, as evaluation
    does, and differentiates through all of them. Training starts from the parameters of `network`
    and leaves them unchanged. Memory grows with `steps`. The `steps_before` steps that come first
    are not differentiated (truncation as in RaT-BPTT: Feng et al. 2023), so they cost little.
    real: lifted clouds
    synthetic: called before each step; returns lifted synthetic clouds and their labels. Each step
        may use another subset and another augmentation. Labels are int64 (clouds,), or
        probabilities (clouds, classes), which may be learned too.
    step_size, momentum: of SGD
    Returns (real clouds,).
    """
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    velocities = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for step in range(steps_before + steps):
        differentiated = step >= steps_before
        lifted, labels = synthetic()
        loss = F.cross_entropy(torch.func.functional_call(network, parameters, (lifted,)), labels)
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=differentiated
        )
        velocities = {
            name: momentum * velocities[name] + gradient
            for name, gradient in zip(parameters, gradients)
        }
        parameters = {
            name: parameter - step_size * velocities[name] for name, parameter in parameters.items()
        }
        if not differentiated:
            parameters = {
                name: parameter.detach().requires_grad_() for name, parameter in parameters.items()
            }
    return F.cross_entropy(
        torch.func.functional_call(network, parameters, (real,)), real_labels, reduction="none"
    )
