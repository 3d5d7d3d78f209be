"""Baselines without distillation, scored by the same evaluation as distilled clouds.

All baselines except `class_mean` select clouds of the training set. All except `whole` return the
clouds class after class.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.lifts import centred_points, occupancy
from ..errors import InputError
from ..geometry.clouds import (
    PointClouds,
    from_occupancy,
    members_per_class,
    refuse_too_few,
    resampled,
    sample,
)
from ..geometry.storage import released
from ..nn.classifiers import ConvNet
from ..nn.grid import features_of
from ..nn.points import PointNetwork
from ..pieces import Count, Piece, setting
from ..seeds import generator
from .evaluate import project

# `forgetting` and `craig` train a classifier, and for shapes `herding` and `k_center` do too.
EPOCHS = 5  # of its training
WIDTH = 32  # its channels on images
BATCH, BATCH_OF_SHAPES = 256, 32  # clouds per training step


def random(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Sample clouds of each class at random. Raises InputError if a class has too few."""
    counts = [clouds_per_class] * len(real.class_names)
    return real.select(
        sample(members_per_class(real), counts, generator(seed, "random coreset"), real.class_names)
    )


def herding(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Herding (Welling 2009) on the features of `_selection_features`.

    The next cloud is the one that brings the mean of the selected clouds closest to the class mean.
    So the first is the cloud nearest the class mean. On flat grids nothing is random, and
    `seed` has no effect. Raises InputError if a class has too few clouds.
    """
    chosen = []
    for members, described in _selection_features(real, clouds_per_class, seed):
        mean, total = described.mean(0), torch.zeros(described.shape[1])
        left = torch.ones(len(members), dtype=torch.bool)
        for count in range(1, clouds_per_class + 1):
            distance = (
                ((total + described) / count - mean).square().sum(1).masked_fill(~left, torch.inf)
            )
            best = distance.argmin()
            left[best] = False
            total = total + described[best]
            chosen.append(members[best])
    return real.select(torch.stack(chosen))


def k_center(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Greedy k-centre (Sener & Savarese 2018) on the features of `_selection_features`.

    The next cloud is the farthest from all selected clouds. The first is the cloud nearest the
    class mean. On flat grids nothing is random, and `seed` has no effect. Raises
    InputError if a class has too few clouds.
    """
    chosen = []
    for members, described in _selection_features(real, clouds_per_class, seed):
        best = (described - described.mean(0)).square().sum(1).argmin()
        # squared distance to the nearest selected cloud
        nearest = torch.full((len(members),), torch.inf)
        for _ in range(clouds_per_class):
            chosen.append(members[best])
            nearest = nearest.minimum((described - described[best]).square().sum(1))
            nearest[best] = -1  # below 0, the distance of a duplicate, so it is not taken again
            best = nearest.argmax()
    return real.select(torch.stack(chosen))


def class_mean(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Build one cloud per class from the cells that the clouds of the class occupy most often.

    The number of cells is the average number of occupied cells (rounded). Ties go to the first
    cells in raster order. Points lie where `from_occupancy` puts them. Nothing is random, and
    `seed` has no effect. Raises InputError for more than one cloud per class.
    """
    if clouds_per_class > 1:
        raise InputError(
            f"there is one mean per class, {clouds_per_class} clouds per class were asked for; "
            "expected 1"
        )
    classes = _members(real, clouds_per_class)
    means = torch.zeros(len(classes), *real.grid, dtype=torch.bool)
    for mean, members in zip(means, classes, strict=True):
        filled = occupancy(real.select(members))
        cells = round(int(filled.count_nonzero()) / len(members))
        order = filled.sum(0).flatten().argsort(descending=True, stable=True)
        mean.view(-1)[order[:cells]] = True
    return from_occupancy(means, torch.arange(len(classes)), real.class_names)


def forgetting(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Select the clouds that a classifier forgets most often in training (Toneva et al. 2019).

    Ties are in random order. The paper evaluates a sample whenever it is in a batch. Here one
    network evaluates all clouds after each epoch. Raises InputError if a class has too few clouds.
    """
    classes, chosen = _members(real, clouds_per_class), []
    events = forgetting_events(_training_logits(real, seed).argmax(2) == real.labels)
    draws = generator(seed, "forgetting ties")
    for members in classes:
        shuffled = members[torch.randperm(len(members), generator=draws)]
        chosen.append(
            shuffled[events[shuffled].argsort(descending=True, stable=True)[:clouds_per_class]]
        )
    return real.select(torch.cat(chosen))


def forgetting_events(correct: Tensor) -> Tensor:
    """Count how often each cloud changes from right to wrong: int64 (clouds,).

    correct: bool (epochs, clouds)
    As in the paper, a cloud that is never right counts as the most forgotten. It gets one event per
    epoch, which is more than any other cloud can have.
    """
    events = (correct[:-1] & ~correct[1:]).sum(0)
    return events.where(correct.any(0), len(correct))


def craig(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """CRAIG (Mirzasoleiman et al. 2020): select clouds whose gradients cover those of the class.

    The gradients are those of a trained classifier's last layer. Selection is greedy facility
    location: the next cloud minimises the sum, over the class, of the distances to the nearest
    selected cloud. The paper also weights each selected cloud by the number of clouds it
    represents. These weights are dropped, because the evaluation here weights all clouds equally.
    Raises InputError if a class has too few clouds.
    """
    classes, chosen = _members(real, clouds_per_class), []
    # The gradient is the softmax minus the one-hot label. The label is the same within a class and
    # cancels in differences.
    gradients = _training_logits(real, seed)[-1].softmax(1)
    for members in classes:
        # The default of cdist is a matrix product, which is not exact enough: gradients of clouds
        # that are learnt well differ too little.
        distances = torch.cdist(
            gradients[members], gradients[members], compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest = torch.full((len(members), 1), torch.inf)
        left = torch.ones(len(members), dtype=torch.bool)
        for _ in range(clouds_per_class):
            best = nearest.minimum(distances).sum(0).masked_fill(~left, torch.inf).argmin()
            left[best] = False
            nearest = nearest.minimum(distances[:, best, None])
            chosen.append(members[best])
    return real.select(torch.stack(chosen))


def whole(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Return all real clouds, the reference for smaller sets.

    `clouds_per_class` and `seed` have no effect.
    """
    return real


class Baseline(Piece):
    """A kind of set to compare with. A choice defines `select` or `choose`.

    fixed: nothing is random on flat grids, so one seed is enough
    """

    clouds_per_class: Count = setting(default=1, help="clouds per class")
    points: Count | None = setting(
        default=None,
        help="subsample each cloud to this many points at random; null: keep all points",
    )
    fixed: ClassVar[bool] = False
    select: ClassVar[Callable[[PointClouds, int, int], PointClouds]]

    def choose(self, real: PointClouds, seed: int) -> PointClouds:
        """Make the set from the training clouds.

        Raises InputError if a class has too few clouds.
        """
        chosen = type(self).select(real, self.clouds_per_class, seed)
        if self.points is None:
            return chosen
        draws = generator(seed, "fewer points")
        return resampled(chosen, [self.points] * len(chosen), draws)

    @property
    def label(self) -> str:
        """Name of the set in tables and files, for instance herding-1-of-256-points."""
        few = "" if self.points is None else f"-of-{self.points}-points"
        return f"{self.name}-{self.clouds_per_class}{few}"


class Random(Baseline, name="random"):
    """Random clouds of each class."""

    select = staticmethod(random)


class Herding(Baseline, name="herding"):
    """Herding (Welling 2009)."""

    fixed = True
    select = staticmethod(herding)


class KCenter(Baseline, name="k_center"):
    """Greedy k-centre (Sener & Savarese 2018)."""

    fixed = True
    select = staticmethod(k_center)


class ClassMean(Baseline, name="class_mean"):
    """The cells that the clouds of a class occupy most often."""

    fixed = True
    select = staticmethod(class_mean)


class Forgetting(Baseline, name="forgetting"):
    """The clouds that a classifier forgets most often (Toneva et al. 2019)."""

    select = staticmethod(forgetting)


class Craig(Baseline, name="craig"):
    """CRAIG (Mirzasoleiman et al. 2020)."""

    select = staticmethod(craig)


class Whole(Baseline, name="whole"):
    """All training clouds, the ceiling for any set."""

    fixed = True
    select = staticmethod(whole)


class Released(Baseline, name="released"):
    """A set that comes with pcdd."""

    file: str = setting(default="", help="name of the released set, without the suffix")
    fixed = True

    def choose(self, real: PointClouds, seed: int) -> PointClouds:
        """Load the set."""
        return released(self.file)

    @property
    def label(self) -> str:
        """Name of the set in tables and files."""
        return f"released-{self.file}"


def _members(real: PointClouds, clouds_per_class: int) -> list[Tensor]:
    """Return the cloud indices of each class. Raises InputError if a class has too few."""
    classes = members_per_class(real)
    refuse_too_few(classes, [clouds_per_class] * len(classes), real.class_names)
    return classes


def _selection_features(
    real: PointClouds, clouds_per_class: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the cloud indices of each class, and features of these clouds: (clouds, features).

    On flat grids the features are the occupied cells. Shapes share few cells even if they are
    alike, so their features are the input of the head of a PointNet, after some epochs of training
    to classify all real shapes.
    """
    classes = _members(real, clouds_per_class)
    if min(real.grid) == 1:
        for members in classes:
            yield members, occupancy(real.select(members)).flatten(1)
        return
    network, points = _new_classifier(real, seed)
    _train(network, points, real.labels, seed)
    with torch.no_grad():
        features = torch.cat(
            [features_of(network, _trimmed(batch)) for batch in points.split(BATCH_OF_SHAPES)]
        )
    for members in classes:
        yield members, features[members]


def _new_classifier(real: PointClouds, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a new classifier and its input from the clouds: (clouds, ...).

    The input is images on flat grids, points on grids with depth.
    """
    classes, draws = len(real.class_names), generator(seed, "coreset classifier")
    if min(real.grid) == 1:
        inputs = project(real)
        network = ConvNet(WIDTH).new(real.grid, classes, draws)
    else:
        inputs = centred_points(real)
        network = PointNetwork().new(3, real.grid, classes, draws)
    return network, inputs


def _training_logits(real: PointClouds, seed: int) -> Tensor:
    """Train a new classifier on the real clouds. Returns its logits, as `_train` does."""
    network, inputs = _new_classifier(real, seed)
    return _train(network, inputs, real.labels, seed)


def _train(network: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Train the classifier on all real clouds with SGD 0.01, momentum 0.9, without augmentation.

    Returns the logits on all clouds after each epoch: (epochs, clouds, classes).
    """
    size, logits = BATCH if inputs.ndim == 4 else BATCH_OF_SHAPES, []
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(
            len(inputs), generator=generator(seed, "coreset epoch", epoch)
        ).split(size):
            optimiser.zero_grad()
            F.cross_entropy(network(_trimmed(inputs[batch])), labels[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            logits.append(torch.cat([network(_trimmed(part)) for part in inputs.split(size)]))
    return torch.stack(logits)


def _trimmed(inputs: Tensor) -> Tensor:
    """Return points (clouds, most points, 4) without the padding that no cloud of them needs.

    Other inputs stay as they are. Clouds of very different sizes would take twice the time with it.
    """
    if inputs.ndim != 3 or inputs.shape[2] != 4:
        return inputs
    return inputs[:, : int(inputs[..., 3].sum(1).max())]
