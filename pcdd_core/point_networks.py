"""Networks that see points themselves, as `lifts.centred_points` makes them: no grid, no order.

That is (clouds, points, 3), or with a fourth column, 1 where a point is, else 0, if clouds have unequal numbers of points.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drawing import draw_linear


class PointNet(nn.Module):
    """PointNet (Qi et al. 2017), the version without transformation networks, and without dropout.

    The same layers 64-64-64-128-`width` for every point, the maximum over the points, layers 512-256. Instead of batch norms,
    which would mix the clouds and the padding: instance norms, each channel over a cloud's points, and behind the maximum a
    layer norm. There, because then the widest layer, with most of the work, is differentiated at the largest points only.
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
        """points: (clouds, most points, 3 or 4); returns (clouds, classes)."""
        return self.head(self.features(points))

    def features(self, points: Tensor) -> Tensor:
        """What the head sees, of every channel the largest value of any point: (clouds, width)."""
        hidden, present = self._hidden(points)
        with torch.no_grad():
            precision = _search_precision(hidden)
            values = self.last.weight.to(precision) @ hidden.to(precision)
            if present is not None:
                values = values.masked_fill(present == 0, -torch.inf)
            largest = values.max(2).indices
        rows = hidden.transpose(1, 2).contiguous().flatten(0, 1)
        first = torch.arange(len(points), device=points.device)[:, None] * points.shape[1]
        chosen = rows.index_select(0, (first + largest).flatten()).view(*largest.shape, -1)
        return (chosen * self.last.weight).sum(2) + self.last.bias

    def point_features(self, points: Tensor) -> Tensor:
        """Of every point the values of which `features` are the largest, as far as above 0; 0 where no point is: (clouds, most points, width)."""
        hidden, present = self._hidden(points)
        features = self.last(hidden.transpose(1, 2)).relu()
        return features if present is None else features * present.transpose(1, 2)

    def _hidden(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of the layers before the last (clouds, channels, most points), and where points are (clouds, 1, most points); None: everywhere."""
        seen = points.transpose(1, 2).contiguous()
        hidden, present = seen[:, :3], seen[:, 3:] if seen.shape[1] == 4 else None
        for layer, norm in zip(self.layers, self.norms):
            hidden = norm(F.conv1d(hidden, layer.weight[..., None], layer.bias), present).relu()
        return hidden, present

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights anew, as torch does by default."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)


class PointNorm(nn.Module):
    """Each channel of a cloud set to mean 0 and variance 1 over its points, then scaled and shifted (instance norm)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, features: Tensor, present: Tensor | None) -> Tensor:
        """features: (clouds, channels, most points); present: (clouds, 1, most points), 0 where no point is. Shape of `features`."""
        if (
            present is None
        ):  # torch's own is several times faster; not by `functional`, which refuses a cloud of one point
            return torch.group_norm(features, len(self.weight), self.weight, self.bias)
        count = present.sum(2, keepdim=True).clamp(min=1)
        centred = features - (features * present).sum(2, keepdim=True) / count
        variance = (centred.square() * present).sum(2, keepdim=True) / count
        return centred * (variance + 1e-5).rsqrt() * self.weight[:, None] + self.bias[:, None]


class PointNetPlusPlus(nn.Module):
    """PointNet++ (Qi et al. 2017) with single-scale grouping: small PointNets around ever fewer of the points.

    Half of the points are centres, then an eighth; each sees its up to 32 (64) nearest neighbours within 0.2 (0.4) of half the grid's
    side, and as much farther as points of a surface lie farther apart in a cloud that has not the 1,024 this is meant for: at 128
    points most centres would be alone, and the norms would blow up what is left. Where neighbours are is told in these radii. Norms
    are instance norms, over a cloud's groups, and behind the last maximum, as in `PointNet`, a layer norm; no dropout.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.groupings = (
            (2, 0.2, 32),
            (4, 0.4, 64),
        )  # of the points before: one centre for so many, radius, neighbours
        self.stages = nn.ModuleList(
            SharedPerceptron(widths)
            for widths in ((3, 64, 64, 128), (3 + 128, 128, 128, 256), (3 + 256, 256, 512))
        )
        self.last = nn.Linear(
            512, 1024
        )  # a norm over a cloud's points here would leave the same maximum to all clouds
        self.head = nn.Sequential(
            nn.LayerNorm(1024),
            nn.ReLU(),
            perceptron(1024, 512, 256, norm=True),
            nn.Linear(256, classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """points: (clouds, most points, 3 or 4); returns (clouds, classes)."""
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
        features = self.last(self.stages[-1](torch.cat([places, features], -1), present))
        return self.head(features.masked_fill(~present[..., None], -torch.inf).amax(1))


class DGCNN(nn.Module):
    """The dynamic graph network of Wang et al. 2019: every layer looks at each point's neighbours among the features of the last one.

    Four layers of width 64-64-128-256 with 20 neighbours, of all of them together one of 1024, its maximum and mean over the
    points, layers 512-256. Norms are behind the maxima: over neighbours instance norms, over points a layer norm; no dropout. What a layer
    makes of a neighbour, a weight times its difference and a weight times the point itself, is linear, so it is computed per point.
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
        """points: (clouds, most points, 3 or 4); returns (clouds, classes)."""
        features, present, all_features = points[..., :3], _present(points), []
        for of_neighbours, of_points, norm in zip(self.of_neighbours, self.of_points, self.norms):
            with torch.no_grad():
                neighbours, distances = nearest(features, features, present, self.neighbours)
                itself = torch.arange(features.shape[1], device=points.device)[:, None]
                neighbours = torch.where(
                    distances.isfinite(), neighbours, itself
                )  # of clouds with fewer points
            theirs = of_neighbours(features)
            edges = _rows(theirs, neighbours).amax(2) - theirs + of_points(features)
            features = F.leaky_relu(
                norm(edges.transpose(1, 2), present[:, None].to(edges)), 0.2
            ).transpose(1, 2)
            all_features.append(features)
        features, absent = self.together(torch.cat(all_features, -1)), ~present[..., None]
        mean = features.masked_fill(absent, 0).sum(1) / present.sum(1, keepdim=True)
        return self.head(torch.cat([features.masked_fill(absent, -torch.inf).amax(1), mean], -1))


class SharedPerceptron(nn.Module):
    """The same linear layers, instance norm and ReLU for every point of a cloud."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(PointNorm(channels) for channels in widths[1:])

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """features: (clouds, points, channels); present: (clouds, points), False where no point is. (clouds, points, widths[-1])."""
        present = None if bool(present.all()) else present[:, None].to(features)
        hidden = features.transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms):
            hidden = norm(F.conv1d(hidden, layer.weight[..., None], layer.bias), present).relu()
        return hidden.transpose(1, 2)


def nearest(centres: Tensor, points: Tensor, present: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of every centre the nearest points that are there, and their squared distances, nearest first: (clouds, centres, count) each.

    centres: (clouds, centres, channels); points: (clouds, points, channels); present: (clouds, points). Where a cloud has fewer
    points the distance is infinite; with fewer places for points than `count` there are as many as places.
    """
    lengths = centres.square().sum(2)[:, :, None] + points.square().sum(2)[:, None]
    distances = torch.baddbmm(lengths, centres, points.transpose(1, 2), alpha=-2).masked_fill(
        ~present[:, None], torch.inf
    )
    found = distances.topk(min(count, points.shape[1]), largest=False)
    return found.indices, found.values


@torch.no_grad()
def farthest_points(places: Tensor, present: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many points of each cloud, each the farthest from all before it, the first from the middle (farthest point sampling).

    places: (clouds, points, 3); present: (clouds, points). Returns indices (clouds, count), and False where a cloud has no point
    left: (clouds, count).
    """
    distance = places.square().sum(2).masked_fill(~present, -1)
    chosen = [distance.argmax(1)]
    distance = distance.fill_(torch.inf).masked_fill(~present, -1)
    every = torch.arange(len(places), device=places.device)
    for _ in range(count - 1):
        last = places[every, chosen[-1]][:, None]
        distance = distance.minimum((places - last).square().sum(2))
        distance[every, chosen[-1]] = -1
        chosen.append(distance.argmax(1))
    left = torch.arange(count, device=places.device) < present.sum(1, keepdim=True)
    return torch.stack(chosen, 1), left


def _present(points: Tensor) -> Tensor:
    """Where a point is: (clouds, most points), of points (clouds, most points, 3 or 4)."""
    return (
        points[..., 3] > 0
        if points.shape[2] == 4
        else torch.ones_like(points[..., 0], dtype=torch.bool)
    )


def _rows(features: Tensor, indices: Tensor) -> Tensor:
    """Of each cloud the rows with these indices: (clouds, points, channels), (clouds, ...) to (clouds, ..., channels)."""
    first = (
        torch.arange(len(features), device=features.device).view(-1, *[1] * (indices.ndim - 1))
        * features.shape[1]
    )
    return features.flatten(0, 1)[first + indices]


def perceptron(inputs: int, *widths: int, norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths, each followed by layer norm, if asked for, and ReLU, over the last axis."""
    layers = []
    for before, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), *([nn.LayerNorm(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def _search_precision(hidden: Tensor) -> torch.dtype:
    """In what to look for the largest value, which is then computed as exactly as all others: bfloat16 where that is fast.

    What is found may be a few hundredths of the values' spread below the largest.
    """
    fast = (
        hidden.is_cuda
        or torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.bfloat16 if hidden.dtype == torch.float32 and fast else hidden.dtype
