"""Optimisers of the coordinates, and the schedule of a run."""

from abc import abstractmethod
from collections.abc import Sequence
from math import cos, pi
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ..pieces import Count, Fraction, NonNegative, Piece, Positive, setting


class Optimiser(Piece):
    """A kind of optimiser. A choice defines `make`."""

    step_size: Positive = setting(
        default=0.1, help="sgd: cells per unit of gradient; adam: cells per iteration"
    )
    label_step_size: Positive = setting(
        default=0.02, help="objective.learned_labels: step size of the logits of the labels"
    )
    turn_step_size: Positive | None = setting(
        default=None,
        help="grids with depth: also rotate each cloud as a whole, as SADM does, with this step "
        "size (sgd: radians per unit of gradient; adam: radians per iteration); null: do not "
        "rotate",
    )
    momentum: Fraction = setting(
        default=0.5, help="sgd: momentum; adam: beta 1, decay of the first moment"
    )
    final_step_fraction: Annotated[float, Field(gt=0, le=1)] = setting(
        default=1.0,
        help="decrease the step size along a cosine to this fraction of its initial value; 1: "
        "constant",
    )

    @abstractmethod
    def make(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimiser of torch for these parameter groups."""

    def step_fraction(self, progress: float) -> float:
        """Return the step size as a fraction of its initial value.

        progress: finished fraction of the run, 0 to 1
        Decreases along half a cosine from 1 to `final_step_fraction`.
        """
        lowest = self.final_step_fraction
        return lowest + (1 - lowest) * (1 + cos(pi * progress)) / 2


class SGD(Optimiser, name="sgd"):
    """Stochastic gradient descent: moves by step_size x gradient (the paper)."""

    def make(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's SGD."""
        return torch.optim.SGD(groups, momentum=self.momentum)


class Adam(Optimiser, name="adam"):
    """Adam: moves by about step_size."""

    step_size: Positive = setting(default=0.3, help="cells per iteration")
    final_step_fraction: Annotated[float, Field(gt=0, le=1)] = setting(
        default=0.1,
        help="decrease the step size along a cosine to this fraction of its initial value; 1: "
        "constant",
    )

    def make(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's Adam."""
        return torch.optim.Adam(groups, betas=(self.momentum, 0.999))


class Schedule(Piece):
    """Length of the run and changes of the network."""

    iterations: Count = setting(default=600, help="updates of the coordinates")
    iterations_per_network: NonNegative = setting(
        default=1,
        help="initialise a new random network after this many iterations (DC's outer loop); 0: one "
        "network for the whole run (the paper)",
    )
    training_steps: NonNegative = setting(
        default=0,
        help="train the network for this many steps after each iteration (DC's inner loop), so "
        "that points are matched at many stages of its training",
    )
    training_data: Literal["synthetic", "real"] = setting(
        default="synthetic",
        help="data for training_steps: the synthetic clouds (DC), or `training_batch` real clouds "
        "(IDC)",
    )
    training_batch: Count = setting(
        default=64, help="training_data=real: real clouds per training step, of all classes"
    )
    training_step_size: Positive = setting(
        default=0.01, help="step size of training_steps (SGD, momentum 0.5)"
    )
    snapshots: Count = setting(
        default=60, help="number of evenly spaced snapshots of the coordinates, for pictures"
    )
