"""Distillation networks on a grid, in three backends, and PointNet."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..experiments.config import NetworkConfig
from ..geometry.clouds import Grid
from . import minkowski, sparse
from .initialise import draw_convolution, draw_linear
from .minkowski import MinkowskiTensor
from .points import PointNet
from .sparse import SparseTensor

Lifted = SparseTensor | MinkowskiTensor | Tensor


def build_network(
    description: NetworkConfig, channels: int, grid: Grid, classes: int, generator: torch.Generator
) -> nn.Module:
    """Build a distillation network with freshly initialised weights.

    channels: number of input channels
    The network maps lifted clouds to logits (clouds, classes). Every backend on a grid takes the
    output of every lift onto the grid. The lift determines the values, the network their layout.
    PointNet takes the output of the lift `points`. Raises InputError if settings contradict each
    other or the grid.
    """
    if description.kernel_maps != "torch" and description.backend != "sparse":
        raise InputError(
            f"setting network.kernel_maps = {description.kernel_maps!r}: "
            f"needs network.backend=sparse, not {description.backend}"
        )
    if description.padding != 1 and (description.backend != "torch" or description.paper_layout):
        raise InputError(
            f"setting network.padding = {description.padding}: "
            "needs network.backend=torch without network.paper_layout; expected 1"
        )
    if description.backend == "pointnet":
        network = PointNet(classes, description.width)
        network.draw(generator)
        return network
    kind = DenseNetwork if description.backend == "torch" else SparseNetwork
    network = kind(description, channels, grid, classes)
    network.draw(generator)
    return network


class DenseNetwork(nn.Module):
    """L x [Conv3d, norm, ReLU, pooling], linear: the paper's pure PyTorch network.

    Along an axis of one cell, the kernel and the pooling window are one cell wide. The paper's code
    pads and pools that axis too: depth 1 becomes 3, the two new planes contain only the bias, and
    pooling by 2 keeps the first of them and the data. `paper_layout` has the same effect on the
    data without computing the constant planes. `origin_shift` first moves sparse input to the
    corner of the grid.
    """

    def __init__(self, description: NetworkConfig, channels: int, grid: Grid, classes: int):
        super().__init__()
        if description.paper_layout and (grid[0] != 1 or description.norm != "none"):
            raise InputError(
                "setting network.paper_layout = true: with network.backend=torch it needs depth 1 "
                f"and network.norm=none, not the grid {grid} and norm {description.norm}"
            )
        self.description = description
        self.kernel = tuple(3 if cells > 1 else 1 for cells in grid)
        self.padding = tuple(size // 2 for size in self.kernel)
        self.first_padding = tuple(description.padding if cells > 1 else 0 for cells in grid)
        grid = tuple(
            cells + 2 * (first - usual)
            for cells, first, usual in zip(grid, self.first_padding, self.padding)
        )
        self.window = tuple(2 if cells > 1 else 1 for cells in grid)
        width = description.width
        self.convolution_weights, self.convolution_biases = nn.ParameterList(), nn.ParameterList()
        self.norm_weights, self.norm_biases = nn.ParameterList(), nn.ParameterList()
        for layer in range(description.layers):
            self.convolution_weights.append(
                torch.empty(width, width if layer else channels, *self.kernel)
            )
            self.convolution_biases.append(torch.empty(width))
            if description.norm != "none":
                self.norm_weights.append(torch.ones(width))
                self.norm_biases.append(torch.zeros(width))
        sizes = [cells // window**description.layers for cells, window in zip(grid, self.window)]
        if min(sizes) < 1:
            raise _too_deep(description, grid, shortest=min(cells for cells in grid if cells > 1))
        self.head = nn.Linear(width * math.prod(sizes), classes)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Initialise all weights."""
        for weight, bias in zip(self.convolution_weights, self.convolution_biases):
            outputs, inputs, *kernel = weight.shape
            draw_convolution(
                weight, self.description.weights, inputs, outputs, math.prod(kernel), generator
            )
            bound = (inputs * math.prod(kernel)) ** -0.5
            bias.uniform_(-bound, bound, generator=generator)
        draw_linear(self.head, generator)

    def forward(self, lifted: Lifted) -> Tensor:
        """Return logits: (clouds, classes).

        lifted: a sparse tensor, or (clouds, channels, depth, height, width)
        """
        return self.head(self.features(lifted))

    def features(self, lifted: Lifted) -> Tensor:
        """Return the input of the head: (clouds, channels x remaining cells)."""
        if isinstance(lifted, Tensor):
            features = lifted
        else:
            features = lifted.dense(shift=self.description.origin_shift)
        for layer, (weight, bias) in enumerate(
            zip(self.convolution_weights, self.convolution_biases)
        ):
            features = F.conv3d(
                features, weight, bias, padding=self.padding if layer else self.first_padding
            )
            if self.description.norm == "instance":
                features = F.group_norm(
                    features, len(weight), self.norm_weights[layer], self.norm_biases[layer]
                )
            if self.description.norm == "batch":
                norm = self.norm_weights[layer], self.norm_biases[layer]
                features = F.batch_norm(features, None, None, *norm, training=True)
            features = self._pool(features.relu(), bias.relu()[:, None, None, None])
        return features.flatten(1)

    def _pool(self, features: Tensor, constant_plane: Tensor) -> Tensor:
        if self.description.pooling == "max":
            pooled = F.max_pool3d(features, self.window)
            # as in MaxPool3d: the constant plane is first and wins ties, NaN wins over everything
            return (
                torch.where(pooled <= constant_plane, constant_plane, pooled)
                if self.description.paper_layout
                else pooled
            )
        pooled = average_pool(features, self.window)
        return (pooled + constant_plane) / 2 if self.description.paper_layout else pooled


class SparseNetwork(nn.Module):
    """The same network on occupied cells only: the paper's MinkowskiEngine network.

    Backend sparse computes it with the twice differentiable layers of `sparse.py`, backend
    minkowski with MinkowskiEngine's own. Both have the same parameters, so `load_state_dict` moves
    weights between them. Convolution weights have MinkowskiEngine's layout, (27, in, out), without
    a bias. The head is dense: `SparseTensor.dense` puts the cells of the last layer on their grid.
    `paper_layout` sets its option corner, `origin_shift` its option shift.
    """

    def __init__(self, description: NetworkConfig, channels: int, grid: Grid, classes: int):
        super().__init__()
        self.description = description
        if "minkowski" in (description.backend, description.kernel_maps):
            minkowski.engine()  # fail early if it is missing
        width = description.width
        self.convolution_weights = nn.ParameterList()
        self.norm_weights, self.norm_biases = nn.ParameterList(), nn.ParameterList()
        for layer in range(description.layers):
            self.convolution_weights.append(torch.empty(27, width if layer else channels, width))
            if description.norm != "none":
                self.norm_weights.append(torch.ones(width))
                self.norm_biases.append(torch.zeros(width))
        # shorter axes shrink to a single cell, which stays
        if max(grid) // 2**description.layers < 1:
            raise _too_deep(description, grid, shortest=max(grid))
        stride = 1 if description.paper_layout else 2**description.layers
        self.head = nn.Linear(width * math.prod(-(-cells // stride) for cells in grid), classes)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Initialise all weights."""
        for weight in self.convolution_weights:
            volume, inputs, outputs = weight.shape
            draw_convolution(weight, self.description.weights, inputs, outputs, volume, generator)
        draw_linear(self.head, generator)

    def forward(self, lifted: Lifted) -> Tensor:
        """Return logits: (clouds, classes).

        lifted: a sparse tensor, or (clouds, channels, depth, height, width)
        """
        return self.head(self.features(lifted))

    def features(self, lifted: Lifted) -> Tensor:
        """Return the input of the head: (clouds, channels x cells of its grid)."""
        layers = minkowski if self.description.backend == "minkowski" else sparse
        maps = {"find": minkowski.kernel_map} if self.description.kernel_maps == "minkowski" else {}
        if isinstance(lifted, Tensor):
            tensor = layers.from_dense(lifted)
        elif isinstance(lifted, SparseTensor):
            tensor = minkowski.from_sparse(lifted) if layers is minkowski else lifted
        else:
            tensor = lifted if layers is minkowski else lifted.to_sparse()
        norm = {"none": None, "instance": layers.instance_norm, "batch": layers.batch_norm}[
            self.description.norm
        ]
        for layer, weight in enumerate(self.convolution_weights):
            tensor = layers.convolution(tensor, weight, **maps)
            if norm:
                tensor = norm(tensor, self.norm_weights[layer], self.norm_biases[layer])
            tensor = layers.pool(layers.relu(tensor), self.description.pooling, **maps)
        layout = {"corner": self.description.paper_layout, "shift": self.description.origin_shift}
        return tensor.dense(**layout).flatten(1)


def average_pool(features: Tensor, window: Sequence[int]) -> Tensor:
    """Average over blocks of 1 or 2 cells per axis, like F.avg_pool2d and F.avg_pool3d.

    features: (..., *grid)
    Returns (..., *grid // window). The function sums slices, because torch's pooling is not
    vectorised on CPUs.
    """
    for axis, cells in enumerate(window, start=-len(window)):
        if cells == 2:
            end, after = features.shape[axis] // 2 * 2, [slice(None)] * (-axis - 1)
            features = (
                features[(..., slice(0, end, 2), *after)]
                + features[(..., slice(1, end, 2), *after)]
            )
    return features / math.prod(window)


def _too_deep(description: NetworkConfig, grid: Grid, shortest: int) -> InputError:
    most = int(math.log2(shortest))
    return InputError(
        f"setting network.layers = {description.layers}: "
        f"each layer halves the grid {grid}; expected at most {most}"
    )
