"""How much of the coordinates' true gradient reaches them through a backend that is differentiable only once.

Points are moved by the gradient of a distance between gradients, so every layer must be differentiated twice. A layer that
hands back gradients without a graph is a silent gap: what would have come that way is missing from the sum. Here the same
network, with the same weights, clouds and batch, is differentiated by such a backend and by `sparse`, and the two are
compared, parameter by parameter.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .clouds import PointClouds, members_per_class
from .config import Config
from .distillation import batch_at, draw_network, lift_at
from .objectives import DISTANCES, gradients_without_graph, parameter_gradients


def second_derivatives(
    config: Config, real: PointClouds, synthetic: PointClouds, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """What a record says of them: `gradients_without_graph`, and where there are any, all that `missed_gradient` finds.

    Nothing for objectives that need first derivatives only.
    """
    if config.objective.name != "gradient_matching":
        return {"gradients_without_graph": []}
    network, lift = draw_network(config, real.to(device), 0), lift_at(config, 0)
    own = synthetic.select(members_per_class(synthetic)[0]).to(device)
    without = gradients_without_graph(network, lift(own), own.labels)
    return (
        missed_gradient(config, real, synthetic, device)
        if without
        else {"gradients_without_graph": without}
    )


def sentence(found: dict[str, Any]) -> str:
    """What `second_derivatives` found, in words; empty if nothing is missing."""
    names = found["gradients_without_graph"]
    if not names:
        return ""
    parts = [
        f"{layer} {part['missed']:.1%}"
        for layer, part in found["layers"].items()
        if part["missed"] > 1e-3
    ]
    return (
        f"no second derivatives for the gradients of {', '.join(names)}: at the start the points miss {found['missed']:.1%} of "
        f"the true gradient (cosine {found['cosine']:.4f}; by layer: {', '.join(parts)}); network.backend=sparse has all of it"
    )


def missed_gradient(
    config: Config,
    real: PointClouds,
    synthetic: PointClouds,
    device: torch.device | str = "cpu",
    iteration: int = 0,
) -> dict[str, Any]:
    """Compare the backend of `config` with the twice differentiable `sparse`, at the first network and `iteration`'s batch.

    Returns, with |.| the Euclidean norm over all coordinates of all classes,
        gradients_without_graph     names of the parameters whose gradient the backend returns as a constant
        missed                      |true gradient - the backend's| / |true gradient|
        cosine                      between the two
        layers                      for each: `share`, |its true part| / |true gradient|, and `missed`, of its own part
    """
    if config.network.backend == "torch":
        raise ValueError(
            "network.backend is torch, whose network has no twin in `sparse` to compare with"
        )
    twin = replace(config, network=replace(config.network, backend="sparse"))
    real = real.to(device)
    network, true_network = draw_network(config, real, 0), draw_network(twin, real, 0)
    true_network.load_state_dict(network.state_dict())
    batch = batch_at(config, real, members_per_class(real), iteration).to(device)
    found, true = [], []
    for chosen, own in zip(batch.split(config.objective.real_batch), members_per_class(synthetic)):
        theirs, ours = real.select(chosen), synthetic.select(own).to(device)
        found.append(coordinate_gradients(config, network, theirs, ours, iteration))
        true.append(coordinate_gradients(twin, true_network, theirs, ours, iteration))
    without = gradients_without_graph(network, lift_at(config, iteration)(ours), ours.labels)

    def stacked(parts: list[dict[str, Tensor]], layer: str | None = None) -> Tensor:
        """The summed gradient of one layer, or of all: all coordinates of all classes in one vector."""
        names = [name for name in parts[0] if layer in (None, layer_of(name))]
        return torch.cat([sum(part[name] for name in names).flatten() for part in parts])

    whole, all_found = stacked(true), stacked(found)
    layers = {}
    for layer in dict.fromkeys(map(layer_of, true[0])):
        part = stacked(true, layer)
        layers[layer] = {
            "share": _ratio(part.norm(), whole.norm()),
            "missed": _ratio((part - stacked(found, layer)).norm(), part.norm()),
        }
    return {
        "gradients_without_graph": without,
        "missed": _ratio((whole - all_found).norm(), whole.norm()),
        "cosine": max(-1.0, min(1.0, _ratio(whole @ all_found, whole.norm() * all_found.norm()))),
        "layers": layers,
    }


def coordinate_gradients(
    config: Config, network: nn.Module, real: PointClouds, synthetic: PointClouds, iteration: int
) -> dict[str, Tensor]:
    """The gradient of one class's matching loss with respect to the coordinates, split by the parameter it comes through.

    real, synthetic: clouds of that class. Returns for every parameter (points, 3); their sum is what moves the points.
    """
    lift = lift_at(config, iteration)
    coordinates = synthetic.coordinates.detach().clone().requires_grad_()
    target = [
        gradient.detach()
        for gradient in parameter_gradients(
            network, lift_at(config, iteration, real=True)(real), real.labels
        )
    ]
    lifted = lift(synthetic.with_coordinates(coordinates))
    gradients = parameter_gradients(network, lifted, synthetic.labels, create_graph=True)
    leaves = [gradient.detach().requires_grad_() for gradient in gradients]
    directions = torch.autograd.grad(
        DISTANCES[config.objective.distance](target, leaves), leaves, allow_unused=True
    )
    parts = {}
    for (name, _), gradient, direction in zip(
        network.named_parameters(), gradients, directions, strict=True
    ):
        part = None
        if direction is not None and gradient.grad_fn is not None:
            part = torch.autograd.grad(
                gradient, coordinates, direction, retain_graph=True, allow_unused=True
            )[0]
        parts[name] = torch.zeros_like(coordinates) if part is None else part
    return parts


def layer_of(parameter: str) -> str:
    """`convolution_weights.0` belongs to "convolution 1", `norm_biases.1` to "norm 2", `head.weight` to "head"."""
    kind, _, place = parameter.partition(".")
    return f"{kind.split('_')[0]} {int(place) + 1}" if place.isdigit() else kind


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0
