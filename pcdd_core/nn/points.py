"""Networks that take points instead of a grid. The order of the points has no effect.

The input comes from `lifts.centred_points`: (clouds, points, 3). If clouds have unequal numbers of
points, it is (clouds, most points, 4), padded to the size of the largest cloud. The fourth column
is 1 for points and 0 for padding.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.clouds import Grid
from ..pieces import Channels, setting
from .grid import Network
from .initialise import initialise_linear


class PointNetwork(Network, name="pointnet"):
    """A PointNet as distillation network. It takes points instead of a grid."""

    width: Channels = setting(
        default=1024, help="channels of the last layer before the maximum over the points"
    )
    takes = ("points",)
    mixed_precision = True

    def build(
        self, channels: int, grid: Grid, classes: int, generator: torch.Generator
    ) -> "PointNet":
        """Build the module, see `Network.build`."""
        network = PointNet(classes, self.width)
        network.initialise(generator)
        return network


class PointNet(nn.Module):
    """PointNet (Qi et al. 2017), without transformation networks and without dropout.

    Layers 64-64-64-128-`width` are shared by all points. The maximum over the points and layers
    512-256 follow. Batch norms would mix the clouds and the padding. Instead, instance norms
    normalise each channel over the points of a cloud, and a layer norm follows the maximum. So the
    widest layer, which does most of the work, has a gradient at the points of the maxima only.
    """

    def __init__(self, classes: int, width: int = 1024):
        super().__init__()
        widths = (3, 64, 64, 64, 128)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(PointNorm(channels) for channels in widths[1:])
        self.last = nn.Linear(widths[-1], width)
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.ReLU(),
            perceptron(width, 512, 256, norm=True),
            nn.Linear(256, classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return logits: (clouds, classes).

        points: (clouds, most points, 3 or 4)
        """
        return self.head(self.features(points))

    def features(self, points: Tensor) -> Tensor:
        """Return the input of the head: (clouds, width).

        Each channel is the maximum over the points of the cloud.
        """
        hidden, present = self._hidden(points)
        with torch.no_grad():
            precision = search_precision(hidden)
            values = self.last.weight.to(precision) @ hidden.to(precision)
            if present is not None:
                values = values.masked_fill(present == 0, -torch.inf)
            largest = values.max(2).indices
        rows = hidden.transpose(1, 2).contiguous().flatten(0, 1)
        first = torch.arange(len(points), device=points.device)[:, None] * points.shape[1]
        chosen = rows.index_select(0, (first + largest).flatten()).view(*largest.shape, -1)
        return (chosen * self.last.weight).sum(2) + self.last.bias

    def point_features(self, points: Tensor) -> Tensor:
        """Return the values per point whose maxima are `features`, after ReLU.

        Shape: (clouds, most points, width). Padding has the value 0.
        """
        hidden, present = self._hidden(points)
        features = self.last(hidden.transpose(1, 2)).relu()
        return features if present is None else features * present.transpose(1, 2)

    def _hidden(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output of the layers before the last, and the mask of the points.

        Shapes: (clouds, channels, most points) and (clouds, 1, most points). The mask is 1 for
        points and 0 for padding. It is None if there is no padding.
        """
        inputs = points.transpose(1, 2).contiguous()
        hidden, present = inputs[:, :3], inputs[:, 3:] if inputs.shape[1] == 4 else None
        for layer, norm in zip(self.layers, self.norms):
            hidden = norm(_of_each_point(layer, hidden), present).relu()
        return hidden, present

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights with the distributions of torch's default."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                initialise_linear(layer, generator)


class PointNorm(nn.Module):
    """Instance norm over the points of a cloud.

    Each channel is normalised to mean 0 and variance 1, then scaled and shifted.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, features: Tensor, present: Tensor | None) -> Tensor:
        """Return the normalised features, in the shape of `features`.

        features: (clouds, channels, most points)
        present: (clouds, 1, most points), 0 for padding; None: no padding
        """
        # torch's own norm is several times faster; `functional` refuses clouds of one point
        if present is None:
            return torch.group_norm(features, len(self.weight), self.weight, self.bias)
        count = present.sum(2, keepdim=True).clamp(min=1)
        centred = features - (features * present).sum(2, keepdim=True) / count
        variance = (centred.square() * present).sum(2, keepdim=True) / count
        return centred * (variance + 1e-5).rsqrt() * self.weight[:, None] + self.bias[:, None]


class PointNetPlusPlus(nn.Module):
    """PointNet++ (Qi et al. 2017) with single-scale grouping and without dropout.

    Small PointNets run on groups of points around centres. Half of the points are centres of the
    first stage, an eighth of the second. A group has up to 32 (64) nearest neighbours of its centre
    within 0.2 (0.4) of half the grid's side. These radii are meant for 1,024 points. In other
    clouds they scale with the distance between points on a surface, by sqrt(1024 / points).
    Otherwise most centres in a cloud of 128 points would have no neighbours, and the norms would
    amplify the other groups. Neighbour positions are relative to the centre, in units of the
    radius. Instance norms normalise over the groups of a cloud, and a layer norm follows the last
    maximum as in `PointNet`.
    """

    def __init__(self, classes: int):
        super().__init__()
        # points of the stage before per centre, radius, neighbours
        self.groupings = ((2, 0.2, 32), (4, 0.4, 64))
        self.stages = nn.ModuleList(
            SharedPerceptron(widths)
            for widths in ((3, 64, 64, 128), (3 + 128, 128, 128, 256), (3 + 256, 256, 512))
        )
        # with a norm over a cloud's points here, all clouds would have the same maximum
        self.last = nn.Linear(512, 1024)
        self.head = nn.Sequential(
            nn.LayerNorm(1024),
            nn.ReLU(),
            perceptron(1024, 512, 256, norm=True),
            nn.Linear(256, classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return logits: (clouds, classes).

        points: (clouds, most points, 3 or 4)
        """
        places, present, features = points[..., :3], _present(points), None
        wider = (1024 / present.sum(1)).sqrt()[:, None, None]
        for (share, radius, most), stage in zip(self.groupings, self.stages):
            centres, chosen = farthest_points(places, present, -(-places.shape[1] // share))
            around = _rows(places, centres)
            neighbours, distances = nearest(around, places, present, most)
            reach = radius * wider
            neighbours = torch.where(distances <= reach**2, neighbours, centres[..., None])
            grouped = (_rows(places, neighbours) - around[:, :, None]) / reach[..., None]
            if features is not None:
                grouped = torch.cat([grouped, _rows(features, neighbours)], -1)
            features = stage(
                grouped.flatten(1, 2), chosen.repeat_interleave(neighbours.shape[2], 1)
            )
            features = features.unflatten(1, neighbours.shape[1:]).amax(2)
            places, present = around, chosen
        grouped = torch.cat([places, cast(Tensor, features)], -1)
        features = self.last(self.stages[-1](grouped, present))
        return self.head(features.masked_fill(~present[..., None], -torch.inf).amax(1))


class DGCNN(nn.Module):
    """Dynamic graph network (Wang et al. 2019), without dropout.

    Each layer takes the neighbours of each point in the feature space of the layer before.

    Four layers of 64-64-128-256 channels use 20 neighbours. One layer of 1024 channels takes all
    their outputs. Its maximum and mean over the points and layers 512-256 follow. Norms come after
    the maxima: an instance norm after each maximum over neighbours, a layer norm after that over
    points. An edge feature is a weight times the difference to the neighbour plus a weight times
    the point itself. This is linear, so both products are computed per point.
    """

    def __init__(self, classes: int, neighbours: int = 20):
        super().__init__()
        self.neighbours, widths = neighbours, (3, 64, 64, 128, 256)
        self.of_neighbours = nn.ModuleList(
            nn.Linear(before, after, bias=False) for before, after in pairwise(widths)
        )
        self.of_points = nn.ModuleList(
            nn.Linear(before, after) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(PointNorm(channels) for channels in widths[1:])
        self.together = nn.Linear(sum(widths[1:]), 1024)
        self.head = nn.Sequential(
            nn.LayerNorm(2048),
            nn.LeakyReLU(0.2),
            perceptron(2048, 512, 256, norm=True),
            nn.Linear(256, classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return logits: (clouds, classes).

        points: (clouds, most points, 3 or 4)
        """
        features, present, all_features = points[..., :3], _present(points), []
        for of_neighbours, of_points, norm in zip(self.of_neighbours, self.of_points, self.norms):
            with torch.no_grad():
                neighbours, distances = nearest(features, features, present, self.neighbours)
                itself = torch.arange(features.shape[1], device=points.device)[:, None]
                # in clouds with too few points, the point itself fills up its neighbours
                neighbours = torch.where(distances.isfinite(), neighbours, itself)
            projected = of_neighbours(features)
            edges = _rows(projected, neighbours).amax(2) - projected + of_points(features)
            features = F.leaky_relu(
                norm(edges.transpose(1, 2), present[:, None].to(edges)), 0.2
            ).transpose(1, 2)
            all_features.append(features)
        features, absent = self.together(torch.cat(all_features, -1)), ~present[..., None]
        mean = features.masked_fill(absent, 0).sum(1) / present.sum(1, keepdim=True)
        return self.head(torch.cat([features.masked_fill(absent, -torch.inf).amax(1), mean], -1))


class SharedPerceptron(nn.Module):
    """Linear layers with instance norm and ReLU, shared by all points of a cloud."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(PointNorm(channels) for channels in widths[1:])

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Return features: (clouds, points, widths[-1]).

        features: (clouds, points, channels)
        present: (clouds, points), False for padding
        """
        mask = None if bool(present.all()) else present[:, None].to(features)
        hidden = features.transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms):
            hidden = norm(_of_each_point(layer, hidden), mask).relu()
        return hidden.transpose(1, 2)


def _of_each_point(linear: nn.Module, features: Tensor) -> Tensor:
    """Apply a linear layer to (clouds, channels, points)."""
    layer = cast(nn.Linear, linear)
    return F.conv1d(features, layer.weight[..., None], layer.bias)


def nearest(centres: Tensor, points: Tensor, present: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the nearest points of each centre and their squared distances, nearest first.

    centres: (clouds, centres, channels)
    points: (clouds, points, channels)
    present: (clouds, points), False for padding
    Both results are (clouds, centres, count), with fewer columns if `points`, including padding,
    has fewer than `count` rows per cloud. Where a cloud has fewer points, the distance is infinite.
    """
    lengths = centres.square().sum(2)[:, :, None] + points.square().sum(2)[:, None]
    distances = torch.baddbmm(lengths, centres, points.transpose(1, 2), alpha=-2).masked_fill(
        ~present[:, None], torch.inf
    )
    smallest = distances.topk(min(count, points.shape[1]), largest=False)
    return smallest.indices, smallest.values


@torch.no_grad()
def farthest_points(places: Tensor, present: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Farthest point sampling: each point is the farthest from all points before it.

    places: (clouds, points, 3)
    present: (clouds, points), False for padding
    The first point is the farthest from the middle. Returns indices (clouds, count) and a mask
    (clouds, count), which is False where a cloud has no point left.
    """
    distance = places.square().sum(2).masked_fill(~present, -1)
    chosen = [distance.argmax(1)]
    distance = distance.fill_(torch.inf).masked_fill(~present, -1)
    clouds = torch.arange(len(places), device=places.device)
    for _ in range(count - 1):
        last = places[clouds, chosen[-1]][:, None]
        distance = distance.minimum((places - last).square().sum(2))
        distance[clouds, chosen[-1]] = -1
        chosen.append(distance.argmax(1))
    left = torch.arange(count, device=places.device) < present.sum(1, keepdim=True)
    return torch.stack(chosen, 1), left


def _present(points: Tensor) -> Tensor:
    """Return the mask of the points: bool (clouds, most points), False for padding.

    points: (clouds, most points, 3 or 4)
    """
    return (
        points[..., 3] > 0
        if points.shape[2] == 4
        else torch.ones_like(points[..., 0], dtype=torch.bool)
    )


def _rows(features: Tensor, indices: Tensor) -> Tensor:
    """Gather rows of each cloud: (clouds, ..., channels).

    features: (clouds, points, channels)
    indices: (clouds, ...)
    """
    first = (
        torch.arange(len(features), device=features.device).view(-1, *[1] * (indices.ndim - 1))
        * features.shape[1]
    )
    return features.flatten(0, 1)[first + indices]


def perceptron(inputs: int, *widths: int, norm: bool = False) -> nn.Sequential:
    """Build linear layers of these widths over the last axis.

    Layer norm, if `norm`, and ReLU follow each of them.
    """
    layers = []
    for before, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), *([nn.LayerNorm(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def search_precision(hidden: Tensor) -> torch.dtype:
    """Return the type in which to search for the largest value: bfloat16 where it is fast.

    The value is then computed at full precision. The search may find a value that lies below the
    largest by a few hundredths of the spread of the values.
    """
    fast = (
        hidden.is_cuda
        or torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.bfloat16 if hidden.dtype == torch.float32 and fast else hidden.dtype
