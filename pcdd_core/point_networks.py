"""Networks that see points themselves, (clouds, most points, 4) as `lifts.centred_points` makes them: no grid, no order."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .drawing import draw_linear


class PointNet(nn.Module):
    """PointNet (Qi et al. 2017), the version without transformation networks, and without dropout.

    The same layers 64-64-64-128-`width` for every point, the maximum over the points, layers 512-256. Norms are layer norms
    over the channels of one point instead of batch norms, which would mix the padding, the points and the clouds.
    """

    def __init__(self, classes: int, width: int = 1024):
        super().__init__()
        self.points = perceptron(3, 64, 64, 64, 128, width, norm=True)
        self.head = nn.Sequential(perceptron(width, 512, 256, norm=True), nn.Linear(256, classes))

    def forward(self, points: Tensor) -> Tensor:
        """points: (clouds, most points, 4); returns (clouds, classes)."""
        return self.head(self.features(points))

    def features(self, points: Tensor) -> Tensor:
        """What the head sees: (clouds, width)."""
        return self.point_features(points).amax(1)

    def point_features(self, points: Tensor) -> Tensor:
        """Of every point, 0 or more, and 0 where none is: (clouds, most points, width)."""
        coordinates, present = points.split([3, 1], dim=-1)
        # after ReLU no feature is below 0, so the 0 of padding is a maximum only where that of the points is 0 too
        return self.points(coordinates) * present

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights anew, as torch does by default."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)


def perceptron(inputs: int, *widths: int, norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths, each followed by layer norm, if asked for, and ReLU, over the last axis."""
    layers = []
    for before, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), *([nn.LayerNorm(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)
