"""Baselines: what real clouds give without distillation, to be scored by the same evaluation as distilled ones.

All but `class_mean` choose among the clouds of the training set, and all but `whole` return them class after class.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifiers import ConvNet
from .clouds import (
    PointClouds,
    from_occupancy,
    known_positions,
    members_per_class,
    refuse_too_few,
    sample,
)
from .errors import InputError
from .evaluation import project
from .lifts import centred_points, occupancy
from .point_networks import PointNet
from .randomness import generator

EPOCHS = 5  # of the classifier that `forgetting` and `craig` look at, and for shapes `herding` and `k_center`
WIDTH = 32  # its channels, of images
BATCH, BATCH_OF_SHAPES = 256, 32  # clouds per step of its training


def random(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Clouds drawn at random from each class."""
    counts = [clouds_per_class] * len(real.class_names)
    return real.select(
        sample(members_per_class(real), counts, generator(seed, "random coreset"), real.class_names)
    )


def herding(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Herding (Welling 2009) on `_descriptions`: the next cloud brings the mean of those chosen closest to the class's.

    The first pick is the cloud nearest the class mean. On flat grids nothing is random: the seed is there to match `random`.
    """
    chosen = []
    for members, described in _descriptions(real, clouds_per_class, seed):
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
    """Greedy k-centre (Sener & Savarese 2018) on `_descriptions`: the next cloud is the farthest from all those chosen.

    The first pick is the cloud nearest the class mean. On flat grids nothing is random: the seed is there to match `random`.
    """
    chosen = []
    for members, described in _descriptions(real, clouds_per_class, seed):
        best = (described - described.mean(0)).square().sum(1).argmin()
        nearest = torch.full(
            (len(members),), torch.inf
        )  # squared distance to the nearest chosen cloud
        for _ in range(clouds_per_class):
            chosen.append(members[best])
            nearest = nearest.minimum((described - described[best]).square().sum(1))
            nearest[best] = -1  # not again: less than a double of it, which is at 0, has
            best = nearest.argmax()
    return real.select(torch.stack(chosen))


def class_mean(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Of each class one cloud of the cells that its clouds occupy most often, as many as they occupy on average (rounded).

    Of cells that are occupied equally often the first in raster order are taken. Points lie where `from_occupancy` puts
    them. Nothing is random: the seed is there to match `random`. Raises InputError for more than one cloud per class.
    """
    if clouds_per_class > 1:
        raise InputError(
            f"there is one mean per class, {clouds_per_class} clouds per class were asked for; ask for 1"
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
    """The clouds that a classifier in training forgets most often (Toneva et al. 2019); ties in random order.

    The paper looks at a sample whenever it is in a batch; here all clouds are looked at after each epoch, by one network.
    """
    classes, chosen = _members(real, clouds_per_class), []
    events = forgetting_events(_learning(real, seed).argmax(2) == real.labels)
    draws = generator(seed, "forgetting ties")
    for members in classes:
        shuffled = members[torch.randperm(len(members), generator=draws)]
        chosen.append(
            shuffled[events[shuffled].argsort(descending=True, stable=True)[:clouds_per_class]]
        )
    return real.select(torch.cat(chosen))


def forgetting_events(correct: Tensor) -> Tensor:
    """How often each cloud went from right to wrong: bool (epochs, clouds) to int64 (clouds,).

    As in the paper, a cloud that was never right counts as the most forgotten: with one event per epoch, which is more
    than any other can have.
    """
    events = (correct[:-1] & ~correct[1:]).sum(0)
    return events.where(correct.any(0), len(correct))


def craig(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """CRAIG (Mirzasoleiman et al. 2020): the clouds whose gradients of a trained classifier's last layer cover the class's.

    Greedy facility location: the next cloud is the one that leaves the least sum, over the class, of the distances to the
    nearest chosen cloud. The paper also weighs each chosen cloud by the number it stands for: those weights are dropped,
    because our evaluation weighs all clouds alike.
    """
    classes, chosen = _members(real, clouds_per_class), []
    # The gradient is the softmax minus the one-hot label. Within a class the label is the same and cancels in differences.
    gradients = _learning(real, seed)[-1].softmax(1)
    for members in classes:
        # by differences: gradients of well learnt clouds are too close for the matrix product that cdist takes otherwise
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
    """All real clouds, the ceiling for any set: clouds_per_class and the seed are there to match the others."""
    return real


BASELINES = {
    "random": random,
    "herding": herding,
    "k_center": k_center,
    "class_mean": class_mean,
    "forgetting": forgetting,
    "craig": craig,
    "whole": whole,
}


def _members(real: PointClouds, clouds_per_class: int) -> list[Tensor]:
    """The indices of each class's clouds. Raises InputError if a class has too few."""
    classes = members_per_class(real)
    refuse_too_few(classes, [clouds_per_class] * len(classes), real.class_names)
    return classes


def _descriptions(
    real: PointClouds, clouds_per_class: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each class the indices of its clouds, and what tells these clouds apart: (clouds, features).

    That is the occupied cells; for shapes, two of which share few cells even where they are alike, what the head of a PointNet
    sees of them that has learnt for some epochs to tell all real shapes apart.
    """
    classes = _members(real, clouds_per_class)
    if min(real.grid) == 1:
        for members in classes:
            yield members, occupancy(real.select(members)).flatten(1)
        return
    network, points = _learner(real, seed)
    _train(network, points, real.labels, seed)
    with torch.no_grad():
        features = torch.cat([network.features(shown) for shown in points.split(BATCH_OF_SHAPES)])
    for members in classes:
        yield members, features[members]


def _learner(real: PointClouds, seed: int) -> tuple[nn.Module, Tensor]:
    """A new classifier, of images or, where grids have depth, of points, and what it sees of the clouds: (clouds, ...)."""
    if min(real.grid) == 1:
        seen = project(real)
        network = ConvNet(*seen.shape[-2:], len(real.class_names), WIDTH)
    else:
        seen, network = centred_points(known_positions(real)), PointNet(len(real.class_names))
    network.draw(generator(seed, "coreset classifier"))
    return network, seen


def _learning(real: PointClouds, seed: int) -> Tensor:
    """What a classifier says of the real clouds while it learns them: as `_train`."""
    network, seen = _learner(real, seed)
    return _train(network, seen, real.labels, seed)


def _train(network: nn.Module, seen: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Train the classifier on all real clouds; returns what it says of each after each epoch: logits (epochs, clouds, classes).

    SGD 0.01, momentum 0.9, without augmentation.
    """
    size, logits = BATCH if seen.ndim == 4 else BATCH_OF_SHAPES, []
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(
            len(seen), generator=generator(seed, "coreset epoch", epoch)
        ).split(size):
            optimiser.zero_grad()
            F.cross_entropy(network(seen[batch]), labels[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            logits.append(torch.cat([network(shown) for shown in seen.split(size)]))
    return torch.stack(logits)
