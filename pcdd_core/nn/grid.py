"""Distillation networks on a grid: dense layers, and layers on occupied cells only."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..geometry.clouds import Grid
from ..pieces import Channels, Count, Layers, Piece, setting
from . import minkowski, sparse
from .cells import SparseTensor
from .initialise import global_generator_of, initialise_convolution, initialise_linear
from .minkowski import MinkowskiTensor

Lifted = SparseTensor | MinkowskiTensor | Tensor
POOLING = "pooling over blocks of 2 cells per axis"
NORM = "normalisation after each convolution"
WEIGHTS = (
    "initial weights: default: as in the layer library; kaiming_normal: Kaiming normal with fan "
    "out for convolutions"
)


class Initialisable(Protocol):
    """A module with a method `initialise`."""

    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights."""


Initialised = TypeVar("Initialised", bound=Initialisable)


class Network(Piece):
    """A kind of distillation network.

    A choice defines `build`, which makes a module. The module maps lifted clouds to logits,
    `module(inputs)`, and to the input of its head, `module.features(inputs)`.

    takes:           the outputs of lifts that it accepts, see `Lift.gives`
    mixed_precision: whether a pass without gradients may run in bfloat16
    own_threads:     whether its layers use all cores by themselves
    second_order:    whether its gradients have second derivatives
    """

    takes: ClassVar[tuple[str, ...]] = ("grid", "cells")
    mixed_precision: ClassVar[bool] = False
    own_threads: ClassVar[bool] = False
    second_order: ClassVar[bool] = True

    @abstractmethod
    def build(
        self, channels: int, grid: Grid, classes: int, generator: torch.Generator
    ) -> nn.Module:
        """Build a network with freshly initialised weights.

        channels: number of input channels
        grid: cells of the clouds along depth, height, width
        generator: source of the weights
        Raises InputError if settings contradict each other or the grid.
        """

    def new(self, channels: int, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Call `build`, with torch's global generator in the state of `generator`.

        So layers that initialise themselves are reproducible too.
        """
        with global_generator_of(generator):
            return self.build(channels, grid, classes, generator)


class GridNetwork(Network, name="torch"):
    """Dense convolutions: layers of [Conv3d, norm, ReLU, pooling] and a linear head."""

    layers: Layers = setting(default=3, help="number of layers; each halves the grid")
    width: Channels = setting(default=32, help="channels of each layer")
    pooling: Literal["max", "average"] = setting(default="average", help=POOLING)
    norm: Literal["none", "instance", "batch"] = setting(default="instance", help=NORM)
    padding: Count = setting(
        default=1,
        help="padding of the first convolution, in cells; 3 turns 28 x 28 cells into 32 x 32, "
        "which halve evenly, as in the classifiers",
    )
    weights: Literal["default", "kaiming_normal"] = setting(default="default", help=WEIGHTS)
    paper_layout: bool = setting(
        default=False,
        help="pad and pool the depth axis of a flat grid too, as the paper's code does",
    )
    origin_shift: bool = setting(
        default=False,
        help="subtract the smallest occupied cell of the whole batch before the first convolution, "
        "as the paper's code does; needs lift.name=coordinates",
    )
    mixed_precision = True

    def build(
        self, channels: int, grid: Grid, classes: int, generator: torch.Generator
    ) -> "DenseModule":
        """Build the module, see `Network.build`."""
        return initialised(DenseModule(self, channels, grid, classes), generator)


class OnCells(Network):
    """Settings of networks on occupied cells."""

    layers: Layers = setting(default=3, help="number of layers; each halves the grid")
    width: Channels = setting(default=32, help="channels of each layer")
    pooling: Literal["max", "average"] = setting(default="average", help=POOLING)
    norm: Literal["none", "instance", "batch"] = setting(default="instance", help=NORM)
    weights: Literal["default", "kaiming_normal"] = setting(default="default", help=WEIGHTS)
    paper_layout: bool = setting(
        default=False,
        help="pass the full grid to the linear head with only a corner filled, as the paper's code "
        "does",
    )
    origin_shift: bool = setting(
        default=False,
        help="subtract the smallest occupied cell of the whole batch before the linear head, as "
        "the paper's code does; needs lift.name=coordinates",
    )
    layer_library: ClassVar[Any] = sparse

    def build(
        self, channels: int, grid: Grid, classes: int, generator: torch.Generator
    ) -> "SparseModule":
        """Build the module, see `Network.build`."""
        return initialised(SparseModule(self, channels, grid, classes), generator)

    def layer_options(self) -> dict[str, Any]:
        """Return options of the convolutions and poolings."""
        return {}


class SparseNetwork(OnCells, name="sparse"):
    """Generalised sparse convolutions, twice differentiable."""

    kernel_maps: Literal["torch", "minkowski"] = setting(
        default="torch", help="library that finds neighbouring cells: torch (faster) or minkowski"
    )

    def layer_options(self) -> dict[str, Any]:
        """Return options of the convolutions and poolings."""
        return {"find": minkowski.kernel_map} if self.kernel_maps == "minkowski" else {}


class MinkowskiNetwork(OnCells, name="minkowski"):
    """The same with MinkowskiEngine's layers, which lose second derivatives.

    Needs `make minkowski`.
    """

    layer_library = minkowski
    own_threads = True
    second_order = False


def initialised(network: Initialised, generator: torch.Generator) -> Initialised:
    """Initialise the weights of a module that has a method `initialise`, and return it."""
    network.initialise(generator)
    return network


def features_of(network: nn.Module, inputs: Any) -> Tensor:
    """Return `network.features(inputs)`, the input of the head of a distillation network."""
    return cast(Callable[[Any], Tensor], network.features)(inputs)


class DenseModule(nn.Module):
    """L x [Conv3d, norm, ReLU, pooling], linear: the paper's pure PyTorch network.

    Along an axis of one cell, the kernel and the pooling window are one cell wide. The paper's code
    pads and pools that axis too: depth 1 becomes 3, the two new planes contain only the bias, and
    pooling by 2 keeps the first of them and the data. `paper_layout` has the same effect on the
    data without computing the constant planes. `origin_shift` first moves sparse input to the
    corner of the grid.
    """

    def __init__(self, description: GridNetwork, channels: int, grid: Grid, classes: int):
        super().__init__()
        if description.paper_layout and (grid[0] != 1 or description.norm != "none"):
            raise InputError(
                "setting network.paper_layout = true: with network.name=torch it needs depth 1 "
                f"and network.norm=none, not the grid {grid} and norm {description.norm}"
            )
        if description.paper_layout and description.padding != 1:
            raise InputError(
                f"setting network.padding = {description.padding}: network.paper_layout needs 1"
            )
        self.description = description
        self.kernel = tuple(3 if cells > 1 else 1 for cells in grid)
        self.padding = tuple(size // 2 for size in self.kernel)
        self.first_padding = tuple(description.padding if cells > 1 else 0 for cells in grid)
        padded = tuple(
            cells + 2 * (first - usual)
            for cells, first, usual in zip(grid, self.first_padding, self.padding)
        )
        self.window = tuple(2 if cells > 1 else 1 for cells in padded)
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
        sizes = [cells // window**description.layers for cells, window in zip(padded, self.window)]
        if min(sizes) < 1:
            shortest = min(cells for cells in padded if cells > 1)
            raise _too_deep(description, padded, shortest)
        self.head = nn.Linear(width * math.prod(sizes), classes)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights."""
        for weight, bias in zip(self.convolution_weights, self.convolution_biases):
            outputs, inputs, *kernel = weight.shape
            initialise_convolution(
                weight, self.description.weights, inputs, outputs, math.prod(kernel), generator
            )
            bound = (inputs * math.prod(kernel)) ** -0.5
            bias.uniform_(-bound, bound, generator=generator)
        initialise_linear(self.head, generator)

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


class SparseModule(nn.Module):
    """The same network on occupied cells only: the paper's MinkowskiEngine network.

    `SparseNetwork` computes it with the twice differentiable layers of `sparse.py`,
    `MinkowskiNetwork` with MinkowskiEngine's own. Both have the same parameters, so
    `load_state_dict` moves weights between them. Convolution weights have MinkowskiEngine's layout,
    (27, in, out), without a bias. The head is dense: `SparseTensor.dense` puts the cells of the
    last layer on their grid. `paper_layout` sets its option corner, `origin_shift` its option
    shift.
    """

    def __init__(self, description: OnCells, channels: int, grid: Grid, classes: int):
        super().__init__()
        self.description = description
        if description.layer_library is minkowski or description.layer_options():
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
    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights."""
        for weight in self.convolution_weights:
            volume, inputs, outputs = weight.shape
            initialise_convolution(
                weight, self.description.weights, inputs, outputs, volume, generator
            )
        initialise_linear(self.head, generator)

    def forward(self, lifted: Lifted) -> Tensor:
        """Return logits: (clouds, classes).

        lifted: a sparse tensor, or (clouds, channels, depth, height, width)
        """
        return self.head(self.features(lifted))

    def features(self, lifted: Lifted) -> Tensor:
        """Return the input of the head: (clouds, channels x cells of its grid)."""
        layers, maps = self.description.layer_library, self.description.layer_options()
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


def _too_deep(description: GridNetwork | OnCells, grid: Sequence[int], shortest: int) -> InputError:
    most = int(math.log2(shortest))
    return InputError(
        f"setting network.layers = {description.layers}: "
        f"each layer halves the grid {grid}; expected at most {most}"
    )
