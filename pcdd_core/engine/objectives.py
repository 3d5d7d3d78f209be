"""Objectives: the pieces that choose a matching loss and hold its settings.

`losses.py` computes the losses.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..geometry.clouds import PointClouds, members_per_class, sample
from ..geometry.moves import draw_moves
from ..pieces import Count, NonNegative, Piece, Positive, setting
from .distances import Distance, layerwise_cosine_of_weights
from .losses import (
    distribution_matching,
    feature_regression,
    match_gradients,
    maximum_mean_discrepancy,
    real_gradients,
    sorted_feature_matching,
    unrolled_training,
)


@dataclass(frozen=True)
class Batch:
    """Real or synthetic clouds of one comparison, and their lift.

    clouds: of one class, if the objective compares classes one at a time, else of all classes
    lift:   converts them to inputs of the network
    draws:  generator of the random numbers of the objective
    """

    clouds: PointClouds
    lift: Callable[[PointClouds], Any]
    draws: torch.Generator

    @cached_property
    def inputs(self) -> Any:
        """Inputs of the network. Synthetic inputs have a gradient to the coordinates."""
        return self.lift(self.clouds)

    @property
    def labels(self) -> Tensor:
        """Classes: int64 (clouds,)."""
        return self.clouds.labels

    def moved(self) -> "Batch":
        """Return the batch with each cloud moved at random (augmentation)."""
        move = draw_moves(len(self.clouds), self.clouds.grid, self.draws)
        return replace(self, clouds=move(self.clouds))

    def subsample(self, clouds_per_class: int) -> "Batch":
        """Return a random subsample, with at most this many clouds of each class."""
        members = members_per_class(self.clouds)
        counts = [min(clouds_per_class, len(indices)) for indices in members]
        chosen = sample(members, counts, self.draws, self.clouds.class_names)
        return replace(self, clouds=self.clouds.select(chosen.to(self.clouds.device)))


class Objective(Piece):
    """A kind of loss that moves the points. A choice defines `loss`.

    per_class:             compares one class at a time, so classes can be shared among threads and
                           processes
    needs_point_features:  the network must have a method `point_features`
    least_real_batch:      smallest `real_batch`
    """

    real_batch: Count = setting(
        default=32, help="real clouds per class and iteration", kw_only=True
    )
    augmentation: bool = setting(
        default=False,
        help="shift, scale or rotate real and synthetic clouds before each comparison: all clouds "
        "of a class by the same random move (DSA); feature_regression: each cloud by its own move; "
        "unrolled_training: synthetic clouds only, before each step",
        kw_only=True,
    )
    per_class: ClassVar[bool] = True
    needs_point_features: ClassVar[bool] = False
    least_real_batch: ClassVar[int] = 1

    @abstractmethod
    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return the loss, with a graph to the coordinates of the synthetic clouds.

        network: maps `real.inputs` to logits; `network.features` gives the input of its head
        Returns a scalar. If `per_class` is false it may also be one loss for each real cloud.
        """

    def at(self, progress: float) -> "Objective":
        """Return the objective at this fraction of the run, 0 to 1."""
        return self


class Matching(Objective):
    """Settings of objectives that match a constant target, computed on real clouds."""

    real_precision: Literal["float32", "bfloat16"] = setting(
        default="float32",
        help="precision of the network's passes on real clouds (mixed precision): bfloat16 is "
        "faster on processors that support it, and its error is a fraction of the difference "
        "between two batches; for network.name=torch and pointnet only",
        kw_only=True,
    )

    @property
    def precision(self) -> torch.dtype:
        """Type of `real_precision`."""
        return getattr(torch, self.real_precision)


class GradientMatching(Matching, name="gradient_matching"):
    """Distance between the gradients of real and synthetic clouds (the paper)."""

    distance: Distance = setting(
        default=layerwise_cosine_of_weights,
        help="distance between real and synthetic gradients, see pcdd_core/engine/distances.py",
    )
    real_gradients: Literal["fresh"] | Count = setting(
        default="fresh",
        help="fresh: compute real gradients on a new batch in each iteration (the paper); a "
        "number: compute them on that many batches per class, once for each network, and sample "
        "one batch in each iteration",
    )

    def target(self, network: nn.Module, real: Batch) -> list[Tensor]:
        """Return the constant gradients of the real clouds, see `real_gradients`."""
        return real_gradients(network, real.inputs, real.labels, self.precision)

    def compare(self, target: Sequence[Tensor], network: nn.Module, synthetic: Batch) -> Tensor:
        """Return the distance of the synthetic gradients from `target`."""
        return match_gradients(target, network, synthetic.inputs, synthetic.labels, self.distance)

    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return the distance between the gradients: a scalar."""
        return self.compare(self.target(network, real), network, synthetic)


class DistributionMatching(Matching, name="distribution_matching"):
    """Distance between mean features."""

    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return `distribution_matching` of the batches."""
        return distribution_matching(network, real.inputs, synthetic.inputs, self.precision)


class MaximumMeanDiscrepancy(Matching, name="maximum_mean_discrepancy"):
    """Distance between the distributions of features, for several clouds per class."""

    least_real_batch = 2  # distances between real clouds are the unit of its kernels

    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return `maximum_mean_discrepancy` of the batches."""
        return maximum_mean_discrepancy(network, real.inputs, synthetic.inputs, self.precision)


class SortedFeatureMatching(Matching, name="sorted_feature_matching"):
    """Distance between the distributions of sorted point features (SADM)."""

    needs_point_features = True
    least_real_batch = 2  # as of `MaximumMeanDiscrepancy`

    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return `sorted_feature_matching` of the batches."""
        return sorted_feature_matching(network, real.inputs, synthetic.inputs, self.precision)


class AfterDistributionMatching(Objective):
    """Settings of costly objectives that refine points after cheap distribution matching."""

    distribution_matching_until: Annotated[float, Field(ge=0, le=1)] = setting(
        default=0.0,
        help="minimise distribution_matching, which is cheap, until this fraction of the run; it "
        "places the points, and this objective refines them; 0: never",
        kw_only=True,
    )
    per_class = False

    def at(self, progress: float) -> Objective:
        """Return distribution matching at first, then this objective."""
        if progress >= self.distribution_matching_until:
            return self
        return DistributionMatching(real_batch=self.real_batch, augmentation=self.augmentation)


class FeatureRegression(AfterDistributionMatching, name="feature_regression"):
    """Error on real clouds of a linear fit to the features of synthetic clouds (FRePo)."""

    ridge: Positive = setting(
        default=1e-3, help="ridge regularisation, in units of the mean squared length of features"
    )

    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return the error of each real cloud: (real clouds,)."""
        if self.augmentation:
            real, synthetic = real.moved(), synthetic.moved()
        classes = len(real.clouds.class_names)
        parts = real.inputs, real.labels, synthetic.inputs, synthetic.labels
        return feature_regression(network, *parts, classes, self.ridge)


class UnrolledTraining(AfterDistributionMatching, name="unrolled_training"):
    """Cross-entropy on real clouds after some steps of training on synthetic clouds."""

    unrolled_steps: Count = setting(
        default=50, help="differentiated training steps; memory grows with their number"
    )
    unrolled_steps_before: NonNegative = setting(
        default=0,
        help="a random number of steps, at most this, comes first and is not differentiated",
    )
    unrolled_step_size: Positive = setting(
        default=0.01, help="step size of the training (SGD, momentum 0.9, as in the evaluation)"
    )
    unrolled_batch: Count | None = setting(
        default=None,
        help="synthetic clouds per class in each training step, a new random subsample for each "
        "step; null: all clouds",
    )
    learned_labels: bool = setting(
        default=False,
        help="learn the label of each cloud too, as class probabilities; of ten classes, a cloud's "
        "own class starts at 0.94",
    )

    def loss(self, network: nn.Module, real: Batch, synthetic: Batch) -> Tensor:
        """Return the cross-entropy of each real cloud: (real clouds,)."""

        def step_inputs() -> tuple[Any, Tensor]:
            batch = synthetic
            if self.unrolled_batch is not None:
                batch = batch.subsample(self.unrolled_batch)
            if self.augmentation:
                batch = batch.moved()
            return batch.lift(batch.clouds), batch.clouds.targets

        before = torch.randint(self.unrolled_steps_before + 1, (), generator=synthetic.draws)
        return unrolled_training(
            network,
            real.inputs,
            real.labels,
            step_inputs,
            self.unrolled_steps,
            self.unrolled_step_size,
            int(before),
        )
