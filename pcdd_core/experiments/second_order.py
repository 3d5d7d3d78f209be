"""Measure the gradient that a backend without second derivatives loses.

Gradient matching differentiates a distance between gradients, so it needs the second derivatives of
every layer. A layer that returns gradients without a graph raises no error, but its terms are
missing from the gradient of the coordinates. This module differentiates the same network, with
equal weights, clouds and batch, in such a backend and in `sparse`. It compares the results for each
parameter.
"""

from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..engine.losses import gradients_without_graph, parameter_gradients
from ..engine.method import Method
from ..engine.objectives import GradientMatching
from ..errors import InputError
from ..geometry.clouds import PointClouds, members_per_class
from ..nn.grid import OnCells, SparseNetwork


def second_derivatives(
    method: Method, real: PointClouds, synthetic: PointClouds, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return the entry for a record: which second derivatives the network of `method` lacks.

    Returns `gradients_without_graph` only, if no gradient lacks its graph; else the result of
    `missed_gradient`. The list is empty for objectives that need first derivatives only.
    real, synthetic: training clouds and synthetic clouds before the first iteration, on any device
    """
    if not isinstance(method.objective, GradientMatching):
        return {"gradients_without_graph": []}
    network, lift = method.draw_network(real.to(device), 0), method.lift_at(0)
    own = synthetic.select(members_per_class(synthetic)[0]).to(device)
    without = gradients_without_graph(network, lift(own), own.labels)
    return (
        missed_gradient(method, real, synthetic, device)
        if without
        else {"gradients_without_graph": without}
    )


def sentence(found: dict[str, Any]) -> str:
    """Describe the result of `second_derivatives`; return "" if nothing is missing."""
    names = found["gradients_without_graph"]
    if not names:
        return ""
    parts = [
        f"{layer} {part['missed']:.1%}"
        for layer, part in found["layers"].items()
        if part["missed"] > 1e-3
    ]
    return (
        f"no second derivatives for the gradients of {', '.join(names)}: at the start the "
        f"coordinates lose {found['missed']:.1%} of their true gradient (cosine "
        f"{found['cosine']:.4f}; by layer: {', '.join(parts)}); network.name=sparse has the "
        "full gradient"
    )


def missed_gradient(
    method: Method,
    real: PointClouds,
    synthetic: PointClouds,
    device: torch.device | str = "cpu",
    iteration: int = 0,
) -> dict[str, Any]:
    """Compare the network of `method` with the twice differentiable network `sparse`.

    Uses the first network of the run and the batch of `iteration`. Raises InputError for networks
    without such a counterpart, and for other objectives. Returns a dictionary; |.| is the Euclidean
    norm over all coordinates of all classes:

    gradients_without_graph: names of the parameters whose gradient the backend returns without a
                             graph
    missed:                  |true gradient - gradient of the backend| / |true gradient|
    cosine:                  cosine between the two gradients
    layers:                  for each layer: `share`, |true part| / |true gradient|, and `missed`,
                             as above for the part of this layer
    """
    network_settings, objective = method.network, method.objective
    if not isinstance(network_settings, OnCells) or not isinstance(objective, GradientMatching):
        raise InputError(
            f"setting network.name = {network_settings.name!r} with objective.name="
            f"{objective.name}: no equal sparse network to compare with; expected "
            "network.name=minkowski or sparse with objective.name=gradient_matching"
        )
    shared = {field.name: getattr(network_settings, field.name) for field in fields(OnCells)}
    twin = replace(method, network=SparseNetwork(**shared))
    real = real.to(device)
    network, true_network = method.draw_network(real, 0), twin.draw_network(real, 0)
    true_network.load_state_dict(network.state_dict())
    batch = method.batch_at(real, members_per_class(real), iteration).to(device)
    computed, true = [], []
    for chosen, own in zip(batch.split(objective.real_batch), members_per_class(synthetic)):
        targets, clouds = real.select(chosen), synthetic.select(own).to(device)
        computed.append(coordinate_gradients(method, network, targets, clouds, iteration))
        true.append(coordinate_gradients(twin, true_network, targets, clouds, iteration))
    without = gradients_without_graph(network, method.lift_at(iteration)(clouds), clouds.labels)

    def stacked(parts: list[dict[str, Tensor]], layer: str | None = None) -> Tensor:
        """Return the gradient through one layer, or all, for all classes as one vector."""
        names = [name for name in parts[0] if layer in (None, layer_of(name))]
        return torch.cat(
            [cast(Tensor, sum(part[name] for name in names)).flatten() for part in parts]
        )

    whole, whole_computed = stacked(true), stacked(computed)
    layers = {}
    for layer in dict.fromkeys(map(layer_of, true[0])):
        part = stacked(true, layer)
        layers[layer] = {
            "share": _ratio(part.norm(), whole.norm()),
            "missed": _ratio((part - stacked(computed, layer)).norm(), part.norm()),
        }
    return {
        "gradients_without_graph": without,
        "missed": _ratio((whole - whole_computed).norm(), whole.norm()),
        "cosine": max(
            -1.0, min(1.0, _ratio(whole @ whole_computed, whole.norm() * whole_computed.norm()))
        ),
        "layers": layers,
    }


def coordinate_gradients(
    method: Method, network: nn.Module, real: PointClouds, synthetic: PointClouds, iteration: int
) -> dict[str, Tensor]:
    """Return the gradient of one class's matching loss, as one term per network parameter.

    real, synthetic: clouds of that class
    Returns {parameter: (points, 3)}. The sum of the terms is the gradient with respect to the
    coordinates, which moves the points.
    """
    lift = method.lift_at(iteration)
    coordinates = synthetic.coordinates.detach().clone().requires_grad_()
    target = [
        gradient.detach()
        for gradient in parameter_gradients(
            network, method.lift_at(iteration, real=True)(real), real.labels
        )
    ]
    lifted = lift(synthetic.with_coordinates(coordinates))
    gradients = parameter_gradients(network, lifted, synthetic.labels, create_graph=True)
    leaves = [gradient.detach().requires_grad_() for gradient in gradients]
    directions = torch.autograd.grad(
        cast(GradientMatching, method.objective).distance(target, leaves), leaves, allow_unused=True
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
    """Return the layer of a parameter.

    For instance "convolution 1" for `convolution_weights.0`, "norm 2" for `norm_biases.1`, and
    "head" for `head.weight`.
    """
    kind, _, place = parameter.partition(".")
    return f"{kind.split('_')[0]} {int(place) + 1}" if place.isdigit() else kind


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0
