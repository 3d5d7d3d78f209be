"""Networks that see points themselves, (clouds, most points, 4) as `lifts.centred_points` makes them: no grid, no order."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .drawing import draw_linear


class PointNet(nn.Module):
    """PointNet (Qi et al. 2017), the version without transformation networks, and without dropout.

    The same layers 64-64-64-128-`width` for every point, the maximum over the points, layers 512-256. Norms are those of one
    cloud, over its points and channels together, instead of batch norms, which would mix the clouds and the padding. (Over the
    channels of each point alone, PointNet hardly learns from a few clouds: how far out a point lies is lost at the first norm.)
    """

    def __init__(self, classes: int, width: int = 1024):
        super().__init__()
        widths = (3, 64, 64, 64, 128, width)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(CloudNorm(channels) for channels in widths[1:])
        self.head = nn.Sequential(perceptron(width, 512, 256, norm=True), nn.Linear(256, classes))

    def forward(self, points: Tensor) -> Tensor:
        """points: (clouds, most points, 4); returns (clouds, classes)."""
        return self.head(self.features(points))

    def features(self, points: Tensor) -> Tensor:
        """What the head sees: (clouds, width)."""
        return self.point_features(points).amax(1)

    def point_features(self, points: Tensor) -> Tensor:
        """Of every point, 0 or more, and 0 where none is: (clouds, most points, width)."""
        features, present = points.split([3, 1], dim=-1)
        for layer, norm in zip(self.layers, self.norms):
            features = norm(layer(features), present).relu()
        # after ReLU no feature is below 0, so the 0 of padding is a maximum only where that of the points is 0 too
        return features * present

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights anew, as torch does by default."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)


class CloudNorm(nn.Module):
    """Each cloud's features set to mean 0 and variance 1, over its points and channels together, then scaled and shifted per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """features: (clouds, most points, channels); present: (clouds, most points, 1), 1 where a point is, else 0. Shape of `features`."""
        count = (present.sum((1, 2), keepdim=True) * features.shape[2]).clamp(min=1)
        centred = features - (features * present).sum((1, 2), keepdim=True) / count
        variance = (centred.square() * present).sum((1, 2), keepdim=True) / count
        return centred * (variance + 1e-5).rsqrt() * self.weight + self.bias


def perceptron(inputs: int, *widths: int, norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths, each followed by layer norm, if asked for, and ReLU, over the last axis."""
    layers = []
    for before, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), *([nn.LayerNorm(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)
