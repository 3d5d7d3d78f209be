"""Baselines: real clouds chosen from the training set, to be scored by the same evaluation as distilled ones."""

import torch

from .clouds import PointClouds, members_per_class, refuse_too_few, sample
from .evaluation import project
from .randomness import generator


def random(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Clouds drawn at random from each class."""
    counts = [clouds_per_class] * len(real.class_names)
    return real.select(sample(members_per_class(real), counts, generator(seed, "random coreset"), real.class_names))


def herding(real: PointClouds, clouds_per_class: int, seed: int) -> PointClouds:
    """Herding (Welling 2009) on the projected images: the next cloud brings the mean of those chosen closest to the class's.

    The first pick is the cloud nearest the class mean. Nothing is random: the seed is there to match `random`.
    """
    classes, chosen = members_per_class(real), []
    refuse_too_few(classes, [clouds_per_class] * len(classes), real.class_names)
    for members in classes:
        images = project(real.select(members)).flatten(1)
        mean, total = images.mean(0), torch.zeros(images.shape[1])
        left = torch.ones(len(members), dtype=torch.bool)
        for count in range(1, clouds_per_class + 1):
            distance = ((total + images) / count - mean).square().sum(1).masked_fill(~left, torch.inf)
            best = distance.argmin()
            left[best] = False
            total = total + images[best]
            chosen.append(members[best])
    return real.select(torch.stack(chosen))


BASELINES = {"random": random, "herding": herding}
