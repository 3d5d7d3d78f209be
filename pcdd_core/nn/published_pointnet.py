"""The PointNet that published work on the distillation of 3D clouds trains for its scores.

It has batch norm and dropout. Training updates statistics, and testing uses them.
"""

from typing import cast

import torch
from torch import Tensor, nn

from .points import search_precision

DROPOUT = 0.3
MOMENTUM = 0.1  # of running statistics, torch's default


class PublishedPointNet(nn.Module):
    """PointNet with an input transform, batch norm and dropout, as in SADM's evaluation.

    Yim et al., NeurIPS 2025; facts from github.com/donguk071/SADM, `pointnet_model.py`. A small
    PointNet computes a 3 x 3 matrix that transforms the points. Layers of 64, 128 and 1024 channels
    are shared by all points. The maximum over the points and layers of 512 and 256 follow. There is
    no ReLU before the maximum. Dropout comes before the batch norm of the layer of 256.

    Clouds of unequal sizes are refused: padding would enter the statistics.
    """

    def __init__(self, classes: int, draws: torch.Generator):
        """Build the module.

        draws: source of the dropout
        """
        super().__init__()
        self.draws = draws
        self.transform = SharedLayers()
        self.transform_head = nn.Sequential(
            nn.ReLU(), normed(1024, 512), normed(512, 256), nn.Linear(256, 9)
        )
        self.shared = SharedLayers()
        self.first, self.second = normed(1024, 512), nn.Linear(512, 256)
        self.norm, self.last = nn.BatchNorm1d(256), nn.Linear(256, classes)

    def forward(self, points: Tensor) -> Tensor:
        """Return logits: (clouds, classes).

        points: (clouds, points, 3)
        """
        assert points.shape[2] == 3, "clouds of equal sizes"
        matrix = self.transform_head(self.transform(points)).view(-1, 3, 3)
        moved = points @ (matrix + torch.eye(3, device=points.device))
        hidden = self._dropout(self.second(self.first(self.shared(moved))))
        return self.last(self.norm(hidden).relu())

    def _dropout(self, hidden: Tensor) -> Tensor:
        """Apply dropout from the module's own generator, so that threads do not share draws."""
        if not self.training:
            return hidden
        kept = torch.rand(hidden.shape, generator=self.draws).to(hidden.device) >= DROPOUT
        return hidden * kept / (1 - DROPOUT)


class SharedLayers(nn.Module):
    """Layers of 64, 128 and 1024 channels that all points share, and the maximum over the points.

    Batch norm follows each layer, ReLU the first two. The widest layer does nine tenths of the
    work, so it is computed for the points of the maxima only. A search without gradients finds
    them. Its batch norm needs the mean and variance of each channel. Both are functions of the mean
    and covariance of the 128 channels before.
    """

    def __init__(self):
        super().__init__()
        self.narrow = nn.Sequential(normed(3, 64), normed(64, 128))
        self.wide, self.norm = nn.Linear(128, 1024), nn.BatchNorm1d(1024)

    def forward(self, points: Tensor) -> Tensor:
        """Return the maximum of each channel over the points: (clouds, 1024).

        points: (clouds, points, 3)
        """
        hidden, weight = self.narrow(points.flatten(0, 1)), self.wide.weight
        mean, variance = self._statistics(hidden)
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        with torch.no_grad():
            # a negative scale turns the largest value into the smallest
            directions = weight * scale.sign()[:, None]
            precision = search_precision(hidden)
            each = hidden.to(precision).view(*points.shape[:2], -1).transpose(1, 2)
            # the layout of `bmm` lets `max` run over neighbours in memory, several times faster
            values = directions.to(precision).expand(len(points), -1, -1).bmm(each)
            largest = values.max(2).indices
            first = torch.arange(len(points), device=points.device)[:, None] * points.shape[1]
        chosen = hidden.index_select(0, (first + largest).flatten()).view(*largest.shape, -1)
        highest = (chosen * weight).sum(2) + self.wide.bias
        return (highest - mean) * scale + self.norm.bias

    def _statistics(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the widest layer over all points: (1024,) each.

        hidden: (all points, 128). Training updates the running statistics as `BatchNorm1d` does.
        """
        weight, running = self.wide.weight, (self.norm.running_mean, self.norm.running_var)
        running_mean, running_variance = (cast(Tensor, values) for values in running)
        if not self.training:
            return running_mean, running_variance
        centre = hidden.mean(0)
        centred = hidden - centre
        covariance = centred.T @ centred / len(hidden)
        mean = self.wide(centre)
        variance = ((weight @ covariance) * weight).sum(1)
        with torch.no_grad():
            unbiased = variance * len(hidden) / (len(hidden) - 1)
            running_mean.lerp_(mean, MOMENTUM)
            running_variance.lerp_(unbiased, MOMENTUM)
        return mean, variance


def normed(before: int, after: int) -> nn.Sequential:
    """Build a linear layer, batch norm and ReLU."""
    return nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
