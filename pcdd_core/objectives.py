"""The energy that moves the points: the distance between what real and what synthetic clouds do to a network.

`gradient_matching` compares the gradients they cause, `distribution_matching` their mean features, `maximum_mean_discrepancy`
the distributions of their features; these look at one class at a time. `feature_regression` asks how well a linear fit to the synthetic clouds' features predicts the real ones,
`unrolled_training` how well a network does that is trained on them.

Gradients are compared as matrices, one per parameter, with one row per output channel; 1-D parameters are one row.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
KERNEL_WIDTHS = (
    0.25,
    0.5,
    1.0,
    2.0,
    4.0,
)  # of `maximum_mean_discrepancy`, in units of the real clouds' mean squared distance


def parameter_gradients(
    network: nn.Module, lifted, labels: Tensor, create_graph: bool = False
) -> list[Tensor]:
    """Gradients of the mean cross-entropy with respect to every parameter, each as `as_rows` lays it out."""
    loss = F.cross_entropy(network(lifted), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)
    return [as_rows(gradient) for gradient in gradients]


def gradients_without_graph(network: nn.Module, lifted, labels: Tensor) -> list[str]:
    """Names of the parameters whose gradient is a mere constant to autograd: matching it moves no point."""
    gradients = parameter_gradients(network, lifted, labels, create_graph=True)
    return [
        name
        for (name, _), gradient in zip(network.named_parameters(), gradients)
        if gradient.grad_fn is None
    ]


def in_precision(network: nn.Module, precision: torch.dtype) -> torch.autocast:
    """Compute in mixed precision, weights and norms in float32 (Micikevicius et al. 2018); float32 changes nothing.

    For targets, which are no more exact than their batch: bfloat16's error is far below the difference between two batches
    (tests/test_objectives.py).
    """
    device = next(network.parameters()).device.type
    return torch.autocast(device, precision, enabled=precision != torch.float32)


def constant_features(network: nn.Module, real, precision: torch.dtype = torch.float32) -> Tensor:
    """What the head sees of real clouds, (clouds, features), as constants."""
    with torch.no_grad(), in_precision(network, precision):
        features = network.features(real)
    return features.to(torch.promote_types(features.dtype, torch.float32))


def real_gradients(
    network: nn.Module, real, real_labels: Tensor, precision: torch.dtype = torch.float32
) -> list[Tensor]:
    """The constant target of gradient matching: `parameter_gradients` of lifted real clouds, without a graph.

    precision: of the forward and backward pass, `in_precision`.
    """
    with in_precision(network, precision):
        return [gradient.detach() for gradient in parameter_gradients(network, real, real_labels)]


def match_gradients(
    target: Sequence[Tensor], network: nn.Module, synthetic, labels: Tensor, distance: Distance
) -> Tensor:
    """The distance between `target`, from `real_gradients`, and the gradients of lifted synthetic clouds: a scalar with a graph."""
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
    """The matching loss of one class (Zhao et al. 2021, equation 9; paper, section 3.2.1): a scalar with a graph.

    real, synthetic: lifted clouds of that class, inputs of `network`. precision: of `real_gradients`.
    """
    target = real_gradients(network, real, real_labels, precision)
    return match_gradients(target, network, synthetic, labels, distance)


def distribution_matching(
    network: nn.Module, real, synthetic, precision: torch.dtype = torch.float32
) -> Tensor:
    """The squared distance between the mean features of one class's clouds (DM: Zhao and Bilen 2023, equation 4).

    Features are what the network's head sees. The real mean is a constant target. precision: of the real features, `in_precision`.
    """
    target = constant_features(network, real, precision).mean(0)
    return (network.features(synthetic).mean(0) - target).square().sum()


def maximum_mean_discrepancy(
    network: nn.Module, real, synthetic, precision: torch.dtype = torch.float32
) -> Tensor:
    """The squared maximum mean discrepancy of one class's features, with Gaussian kernels (Gretton et al. 2012; M3D: Zhang et al. 2024).

    Zero only where the features are distributed alike, not merely their means as in `distribution_matching`: each
    synthetic cloud is drawn to where real ones are and pushed away from its own kind. Kernels exp(-d^2 / (f v)), f of
    `KERNEL_WIDTHS`, are averaged; v is the mean squared distance d^2 between real clouds. Real features are constants.
    precision: of the real features, `in_precision`.
    """
    return _discrepancy(constant_features(network, real, precision), network.features(synthetic))


def sorted_feature_matching(
    network: nn.Module, real, synthetic, precision: torch.dtype = torch.float32
) -> Tensor:
    """`maximum_mean_discrepancy` of what PointNet knows of every point, sorted per channel, and of its maximum (SADM: Yim et al. 2025).

    A network that takes a maximum over the points hands their gradient to few of them. Sorted, features of clouds can be compared
    one by one whatever the order of the points, and every point is moved. Clouds of other sizes are compared at as many
    quantiles as the synthetic ones have points. network: with `point_features`, `point_networks.PointNet`.
    """
    with torch.no_grad(), in_precision(network, precision):
        seen = network.point_features(real)
    seen, ours = (
        _sorted(features, synthetic.shape[1])
        for features in (seen.to(synthetic.dtype), network.point_features(synthetic))
    )
    return _discrepancy(seen.flatten(1), ours.flatten(1)) + _discrepancy(
        seen[..., -1], ours[..., -1]
    )


def _sorted(features: Tensor, quantiles: int) -> Tensor:
    """Each channel's values of a cloud in rising order, at so many quantiles: (clouds, points, channels) to (clouds, channels, quantiles)."""
    ordered = _in_rising_order(features.transpose(1, 2).contiguous())
    if ordered.shape[2] != quantiles:
        place = torch.linspace(0, ordered.shape[2] - 1, quantiles, device=ordered.device)
        low, share = place.floor().long().clamp(max=ordered.shape[2] - 1), place.frac().to(ordered)
        high = (low + 1).clamp(max=ordered.shape[2] - 1)
        ordered = torch.lerp(ordered[..., low], ordered[..., high], share)
    return ordered


def _in_rising_order(values: Tensor) -> Tensor:
    """Sorted along the last axis. On a CPU by NumPy, whose vectorised sort takes a tenth to a fortieth of torch's time."""
    if values.is_cuda:
        return values.sort().values
    if not values.requires_grad:
        return torch.from_numpy(np.sort(values.numpy()))
    return values.gather(-1, torch.from_numpy(np.argsort(values.detach().numpy())))


def _discrepancy(seen: Tensor, ours: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two sets of rows, with the kernels that `maximum_mean_discrepancy` describes."""
    scale = 2 * (seen - seen.mean(0)).square().sum(1).mean()

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        lengths = first.square().sum(1)[:, None] + second.square().sum(1)
        distances = (lengths - 2 * first @ second.T).clamp(min=0) / scale
        return torch.stack([torch.exp(-distances / width).mean() for width in KERNEL_WIDTHS]).mean()

    return kernel(ours, ours) - 2 * kernel(ours, seen) + kernel(seen, seen)


def feature_regression(
    network: nn.Module,
    real,
    real_labels: Tensor,
    synthetic,
    labels: Tensor,
    classes: int,
    ridge: float,
) -> Tensor:
    """Squared errors on real clouds of the ridge regression fitted to the synthetic ones (FRePo: Zhou et al. 2022, eq. 5).

    Returns (real clouds,): the squared error of each, summed over classes and halved. Targets are one-hot, less 1 / classes.
    ridge: in units of the mean squared length of the synthetic features. Real features are constants. The classes come
    together here, so what is compared is how well they are told apart; and only first derivatives are needed.
    """
    seen = constant_features(network, real)
    fitted = network.features(synthetic)
    kernel = fitted @ fitted.T
    kernel = kernel + ridge * kernel.diagonal().mean() * torch.eye(len(kernel)).to(kernel)
    targets = F.one_hot(labels, classes).to(fitted) - 1 / classes
    predicted = seen @ fitted.T @ torch.linalg.solve(kernel, targets)
    return (F.one_hot(real_labels, classes).to(seen) - 1 / classes - predicted).square().sum(1) / 2


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
    """Cross-entropy of each real cloud after the network was trained on the synthetic ones: (real clouds,).

    The plainest objective (Wang et al. 2018, algorithm 1): what evaluation will do, `steps` steps of it, differentiated from end to
    end. synthetic: called before each step for lifted synthetic clouds and their labels, since each step may take others of
    them, and move them anew. Labels are (clouds,), or probabilities, (clouds, classes), which may be learned as well.
    Training starts from the network's parameters, which stay as they are. Memory grows with `steps`; through the
    `steps_before` them nothing is differentiated (truncated as in RaT-BPTT: Feng et al. 2023), so they cost little.
    """
    parameters = dict(network.named_parameters())
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


def as_rows(gradient: Tensor) -> Tensor:
    """(rows, columns) with one row per output channel; 1-D parameters stay as they are, (columns,).

    Dense kernels and linear weights have the output channel first, sparse kernels (volume, in, out) have it last.
    """
    if gradient.dim() == 1:
        return gradient
    if gradient.dim() == 3:
        return gradient.permute(2, 0, 1).flatten(1)
    return gradient.flatten(1)


def sum_of_squares(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Squared differences summed over all entries of all parameters (paper, section 4.3)."""
    return sum((s - r).square().sum() for r, s in zip(real, synthetic))


def layerwise_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """1 - cosine per row, summed over rows and parameters, biases and norms included (the paper's version)."""
    return sum(_one_minus_cosine(r, s).sum() for r, s in zip(real, synthetic))


def layerwise_cosine_of_weights(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """`layerwise_cosine` without the 1-D parameters, as in DC (Zhao et al. 2021, equation 10 and its code)."""
    return sum(_one_minus_cosine(r, s).sum() for r, s in zip(real, synthetic) if r.dim() > 1)


def mean_squared_error(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """`sum_of_squares` divided by the number of entries."""
    return sum_of_squares(real, synthetic) / sum(r.numel() for r in real)


def global_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """1 - cosine of all gradients taken as one vector."""
    r = torch.cat([gradient.flatten() for gradient in real])
    s = torch.cat([gradient.flatten() for gradient in synthetic])
    return _one_minus_cosine(r, s)


DISTANCES: dict[str, Distance] = {
    distance.__name__: distance
    for distance in (
        sum_of_squares,
        layerwise_cosine,
        layerwise_cosine_of_weights,
        mean_squared_error,
        global_cosine,
    )
}


def _one_minus_cosine(real: Tensor, synthetic: Tensor) -> Tensor:
    """Along the last axis. The 1e-12 in the root keeps second derivatives finite where a gradient is exactly zero.

    It has the size of the 1e-6 beside the norms in DC's code: rows with |real| |synthetic| far below 1e-6 count as 1.
    """
    norms = (real.square().sum(-1) * synthetic.square().sum(-1) + 1e-12).sqrt()
    return 1 - (real * synthetic).sum(-1) / norms
