"""Forces on points: the matching loss of one iteration as an energy of the coordinates.

The energy is what `distill` minimises in that iteration: the same network, the same real clouds.
The force on a point is minus the gradient of the energy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from ..engine.distill import GradientPool, RealGradients, Step, matching_losses
from ..engine.method import Method
from ..engine.objectives import Batch, GradientMatching
from ..geometry.clouds import PointClouds, members_per_class


@dataclass(frozen=True)
class Energy:
    """The energy of synthetic clouds in one iteration.

    method:    the pieces of the run
    network:   the network of the iteration
    real:      all training clouds, as `distill` uses them
    clouds:    the synthetic clouds before the iteration
    iteration: number of the iteration, from 0
    """

    method: Method
    network: nn.Module
    real: PointClouds
    clouds: PointClouds
    iteration: int

    @cached_property
    def _real_batch(self) -> PointClouds:
        batch = self.method.batch_at(self.real, members_per_class(self.real), self.iteration)
        return self.real.select(batch.to(self.real.device))

    @cached_property
    def _pool(self) -> RealGradients | None:
        method = self.method
        if not isinstance(method.objective_at(self.iteration), GradientMatching):
            return None
        if method.stored_gradients:
            number = self.iteration // _iterations_per_network(method)
            members = members_per_class(self.real)
            return GradientPool(method, self.network, number, self.real, members)
        return None if method.objective.augmentation else _OfOneBatch(self)

    def of(self, coordinates: Tensor, label: int | None = None) -> float:
        """Return the energy with the points at `coordinates`: (points, 3), in cells.

        label: the terms of this class only, which are all that its points can change; objectives
            that do not compare class by class have one term
        """
        return sum(part().sum().item() for part in self._parts(coordinates, label))

    def forces(self) -> Tensor:
        """Return the force on each point: (points, 3), energy per cell."""
        coordinates = self.clouds.coordinates.detach().clone().requires_grad_()
        forces = torch.zeros_like(coordinates)
        for part in self._parts(coordinates):
            forces -= torch.autograd.grad(part().sum(), [coordinates])[0]
        return forces

    def _parts(self, coordinates: Tensor, label: int | None = None) -> list[Callable[[], Tensor]]:
        own = [label] if label is not None and self.method.objective.per_class else None
        clouds = self.clouds.with_coordinates(coordinates)
        return matching_losses(
            self.method, self.network, self._real_batch, clouds, self.iteration, own, self._pool
        )

    def with_point_at(self, point: int, place: Tensor) -> float:
        """Return the energy of the point's class with this point moved, the others unmoved.

        place: (3,), in cells; places outside of the grid are moved into it
        """
        coordinates = self.clouds.coordinates.detach().clone()
        coordinates[point] = self.method.lift.bounded(
            place[None].to(coordinates), self.clouds.grid
        )[0]
        label = int(self.clouds.labels[self.clouds.cloud_index[point]])
        return self.of(coordinates, label)


class _OfOneBatch:
    """The real gradients of the iteration of an energy. Each is computed once."""

    def __init__(self, energy: Energy):
        self.energy = energy
        self.kept: dict[int, list[Tensor]] = {}

    def draw(self, label: int, iteration: int) -> list[Tensor]:
        """Return the real gradients of this class, in the shapes of `as_rows`."""
        if label not in self.kept:
            energy, draws = self.energy, torch.Generator()
            real = energy._real_batch
            chosen = real.select(members_per_class(real)[label])
            batch = Batch(chosen, energy.method.lift_at(iteration, real=True), draws)
            objective = cast(GradientMatching, energy.method.objective_at(iteration))
            self.kept[label] = objective.target(energy.network, batch)
        return self.kept[label]


def next_energy(
    method: Method, real: PointClouds, start: PointClouds, last: Step | None = None
) -> Energy:
    """Return the energy of the iteration that comes next.

    real: training clouds
    start: clouds before the first iteration
    last: the latest step of the run; None: the run has not begun
    """
    iteration = 0 if last is None else last.iteration + 1
    clouds = start if last is None else last.clouds
    real = real.to(clouds.device)
    per_network = _iterations_per_network(method)
    network = method.draw_network(real, number=iteration // per_network)
    if last is not None and iteration % per_network:
        network.load_state_dict(last.state()["network"])
    clouds = clouds.with_coordinates(method.lift.bounded(clouds.coordinates, clouds.grid))
    return Energy(method, network, real, clouds, iteration)


def _iterations_per_network(method: Method) -> int:
    return method.schedule.iterations_per_network or method.schedule.iterations
