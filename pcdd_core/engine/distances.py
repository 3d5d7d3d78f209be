"""Distances between gradients: functions of two sequences of gradients, real and synthetic.

A gradient is a matrix per parameter, with one row per output channel. A 1-D parameter is one row.
`@distance` adds a function of your own to the names that the setting `objective.distance` takes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, cast

import torch
from torch import Tensor

from ..pieces import registered

DISTANCES, distance, _check = registered("distance")
Distance = Annotated[Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor], _check]


def as_rows(gradient: Tensor) -> Tensor:
    """Reshape a gradient to (output channels, columns); leave 1-D gradients, (columns,), unchanged.

    The output channel is the first axis of dense kernels and linear weights, and the last axis of
    sparse kernels (volume, in, out).
    """
    if gradient.dim() == 1:
        return gradient
    if gradient.dim() == 3:
        return gradient.permute(2, 0, 1).flatten(1)
    return gradient.flatten(1)


@distance
def sum_of_squares(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum the squared differences over all entries of all parameters (paper, section 4.3)."""
    return _total((s - r).square().sum() for r, s in zip(real, synthetic))


@distance
def layerwise_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum 1 - cosine over the rows of all parameters, biases and norms included (the paper)."""
    return _total(_one_minus_cosine(r, s).sum() for r, s in zip(real, synthetic))


@distance
def layerwise_cosine_of_weights(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Compute `layerwise_cosine` without 1-D parameters (DC: Zhao et al. 2021, eq. 10 and code)."""
    return _total(_one_minus_cosine(r, s).sum() for r, s in zip(real, synthetic) if r.dim() > 1)


@distance
def mean_squared_error(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Compute `sum_of_squares` divided by the number of entries."""
    return sum_of_squares(real, synthetic) / sum(r.numel() for r in real)


@distance
def global_cosine(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Compute 1 - cosine of all gradients, concatenated to one vector."""
    r = torch.cat([gradient.flatten() for gradient in real])
    s = torch.cat([gradient.flatten() for gradient in synthetic])
    return _one_minus_cosine(r, s)


def _total(terms: Iterable[Tensor]) -> Tensor:
    """Sum at least one tensor."""
    return cast(Tensor, sum(terms))


def _one_minus_cosine(real: Tensor, synthetic: Tensor) -> Tensor:
    """Compute 1 - cosine along the last axis.

    The 1e-12 in the root keeps second derivatives finite where a gradient is exactly zero. It
    corresponds to the 1e-6 that DC's code adds to the product of the norms: rows with
    |real| |synthetic| far below 1e-6 count as 1.
    """
    norms = (real.square().sum(-1) * synthetic.square().sum(-1) + 1e-12).sqrt()
    return 1 - (real * synthetic).sum(-1) / norms
