"""A method of distillation: the pieces of a run, and the random draws that a seed determines."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..errors import InputError
from ..geometry.clouds import PointClouds, members_per_class, sample
from ..nn.grid import GridNetwork, Network
from ..seeds import generator
from .lifts import CoordinatesAsFeatures, GaussianOccupancy, Lift
from .objectives import GradientMatching, Matching, Objective
from .optimisers import Adam, Optimiser, Schedule


@dataclass(frozen=True)
class Method:
    """The pieces of a distillation. Each has a default that works on images.

    seed: of all random draws; each use derives its own generator
    """

    lift: Lift = GaussianOccupancy()
    network: Network = GridNetwork()
    objective: Objective = GradientMatching()
    optimiser: Optimiser = Adam()
    schedule: Schedule = Schedule()
    seed: int = 0

    def progress(self, iteration: int) -> float:
        """Return the finished fraction of the run before this iteration: 0 first, 1 last."""
        return iteration / max(self.schedule.iterations - 1, 1)

    def lift_at(self, iteration: int, real: bool = False) -> Callable[[PointClouds], Any]:
        """Return the lift of this iteration, a function from clouds to inputs of the network.

        real: for real clouds
        """
        return partial(self.lift, progress=self.progress(iteration), real=real)

    def objective_at(self, iteration: int) -> Objective:
        """Return the objective of this iteration."""
        return self.objective.at(iteration / self.schedule.iterations)

    def draw_network(self, real: PointClouds, number: int) -> nn.Module:
        """Initialise the network with index `number` in the run, on the device of `real`."""
        draws = generator(self.seed, "network", number)
        classes = len(real.class_names)
        return self.network.new(self.lift.channels, real.grid, classes, draws).to(real.device)

    def batch_at(self, real: PointClouds, members: Sequence[Tensor], iteration: int) -> Tensor:
        """Return the indices of this iteration's real clouds, sorted by class: int64 (clouds,).

        Each class has `objective.real_batch` of them. members: indices of each class's clouds.
        """
        counts = [self.objective.real_batch] * len(members)
        return sample(members, counts, generator(self.seed, "batch", iteration), real.class_names)

    def training_batch_at(self, real: PointClouds, iteration: int, number: int) -> PointClouds:
        """Return the real clouds of training step `number` in this iteration, of all classes.

        Clouds are drawn with replacement.
        """
        draws = generator(self.seed, "training batch", iteration, number)
        chosen = torch.randint(len(real), (self.schedule.training_batch,), generator=draws)
        return real.select(chosen.to(real.device))

    @property
    def learns_labels(self) -> bool:
        """Whether the objective learns the labels of the clouds too."""
        return getattr(self.objective, "learned_labels", False)

    @property
    def stored_gradients(self) -> int:
        """Number of batches per class whose real gradients are stored; 0: none."""
        stored = getattr(self.objective, "real_gradients", "fresh")
        return stored if isinstance(stored, int) else 0

    def check(self, real: PointClouds) -> None:
        """Raise InputError if the pieces do not fit the data or each other."""
        for name, (wrong, reason) in self._conflicts(real).items():
            if wrong:
                piece, _, field = name.partition(".")
                value = getattr(getattr(self, piece), field)
                raise InputError(f"setting {name} = {json.dumps(value)}: {reason}")
        classes = len(real.class_names)
        if ranks.count() > classes:
            raise InputError(
                f"{ranks.count()} processes for {classes} classes; expected at most one for each "
                "class"
            )
        self.batch_at(real, members_per_class(real), iteration=0)
        self.draw_network(real, number=0)

    def _conflicts(self, real: PointClouds) -> dict[str, tuple[bool, str]]:
        """Return, for settings that can conflict with others: whether they do, and the reason."""
        lift, network, objective = self.lift, self.network, self.objective
        reduced = isinstance(objective, Matching) and objective.real_precision != "float32"
        constant = {
            "objective.augmentation=false": not objective.augmentation,
            "lift.name=coordinates or points": not isinstance(lift, GaussianOccupancy),
            "schedule.training_steps=0": self.schedule.training_steps == 0,
        }
        missing = [needed for needed, met in constant.items() if not met]
        return {
            "network.name": (
                lift.gives not in network.takes,
                f"it takes {' or '.join(network.takes)}, and lift.name={lift.name} gives "
                f"{lift.gives}; expected network.name=pointnet with lift.name=points, or neither",
            ),
            "objective.augmentation": (
                objective.augmentation and not lift.beyond_grid,
                "augmented points may leave the grid, which "
                f"lift.name={lift.name} cannot represent; it needs lift.name=gaussian or points",
            ),
            "optimiser.turn_step_size": (
                self.optimiser.turn_step_size is not None and min(real.grid) == 1,
                f"clouds would rotate out of the flat grid {real.grid}; it needs a grid with "
                "depth, or null",
            ),
            "objective.name": (
                objective.needs_point_features and "points" not in network.takes,
                "it compares features of points; it needs network.name=pointnet",
            ),
            "objective.real_batch": (
                objective.real_batch < objective.least_real_batch,
                f"objective.name={objective.name} measures distances between real clouds of a "
                f"class; it needs {objective.least_real_batch} or more",
            ),
            "objective.real_precision": (
                reduced and not network.mixed_precision,
                f"network.name={network.name} computes in float32; it needs network.name=torch or "
                "pointnet",
            ),
            "objective.per_class": (
                ranks.count() > 1 and not objective.per_class,
                f"the classes of objective.name={objective.name} cannot be shared among "
                f"{ranks.count()} processes; expected one process",
            ),
            "network.origin_shift": (
                getattr(network, "origin_shift", False)
                and not isinstance(lift, CoordinatesAsFeatures),
                "it shifts occupied cells; it needs lift.name=coordinates, not "
                f"lift.name={lift.name}",
            ),
            "objective.real_gradients": (
                self.stored_gradients > 0 and bool(missing),
                "stored gradients need a target that depends on the network only; it needs "
                f"{''.join(missing[:1])}",
            ),
        }
