"""Classifiers for evaluation, and ensembles that train many copies of one together.

The protocols of images use ConvNet-3. The other architectures show whether a set teaches networks
of other kinds too. Except in `PublishedPointNetClassifier`, no layer draws random numbers or keeps
statistics of its input, so training and testing compute the same function.
"""

import copy
import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..geometry.clouds import Grid
from ..pieces import Channels, Piece, setting
from . import winograd
from .grid import GridNetwork, SparseModule, SparseNetwork, average_pool, initialised
from .initialise import global_generator_of, initialise_convolution, initialise_linear
from .points import DGCNN, PointNet, PointNetPlusPlus, perceptron
from .published_pointnet import PublishedPointNet


class Classifier(Piece):
    """A kind of classifier for evaluation.

    A choice defines `build`, which makes a module from inputs to logits, (clouds, classes). Inputs
    are images (clouds, 1, height, width), unless one of the first two attributes is True.

    of_points:    takes points, from `lifts.centred_points`
    of_grids:     takes occupied cells, (clouds, 1, depth, height, width)
    neighbours:   uses the neighbours of points, so the density of a cloud changes its features
    one_by_one:   finds other cells or neighbours in each cloud, which torch.vmap does not support
    own_state:    draws random numbers or keeps statistics of its input. Its modules run one after
                  another, and a training step needs two clouds or more.
    smallest:     smallest side of its images or grids, in cells; a grid may be flat
    """

    of_points: ClassVar[bool] = False
    of_grids: ClassVar[bool] = False
    neighbours: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = False
    own_state: ClassVar[bool] = False
    smallest: ClassVar[int] = 1

    @abstractmethod
    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build a classifier with freshly initialised weights.

        grid: cells of the clouds along depth, height, width. Images have height x width pixels.
        generator: source of the weights
        """

    def new(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Call `build`, with torch's global generator in the state of `generator`.

        Raises InputError if the images or grids are too small.
        """
        solid = self.of_grids and grid[0] > 1
        sides = grid if solid else grid[1:]
        if min(sides) < self.smallest:
            kind = "grids of {} cells" if solid else "images of {} pixels"
            raise InputError(
                f"setting evaluation.classifier.name = {self.name!r}: needs "
                f"{kind.format(self.smallest)} or more along each side, not "
                f"{' x '.join(map(str, sides))}"
            )
        with global_generator_of(generator):
            return self.build(grid, classes, generator)


class ConvNet(Classifier, name="convnet"):
    """ConvNet-3, the classifier of images in the protocols."""

    width: Channels = setting(default=128, help="channels of each layer")
    smallest = 4  # one pixel must remain after the last pooling

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        return initialised(ConvNetModule(*grid[1:], classes, self.width), generator)


class ConvNet3D(Classifier, name="convnet3d"):
    """ConvNet-3 with three-dimensional kernels and pooling, on all cells of the grid.

    On a flat grid it is ConvNet-3.
    """

    width: Channels = setting(default=32, help="channels of each layer")
    of_grids = True
    smallest = 4

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        return GridNetwork(width=self.width, padding=3).build(1, grid, classes, generator)


class MLP(Classifier, name="mlp"):
    """Two hidden layers of 128 channels, as in the code of Zhao et al. 2021."""

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        hidden = perceptron(grid[1] * grid[2], 128, 128)
        return nn.Sequential(nn.Flatten(), hidden, nn.Linear(128, classes))


class LeNet(Classifier, name="lenet"):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as in the code of Zhao et al. 2021."""

    smallest = 12

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        _, height, width = grid
        cells = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
        return nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), perceptron(16 * cells, 120, 84), nn.Linear(84, classes),
        )  # fmt: skip


class ResNet18(Classifier, name="resnet18"):
    """ResNet-18 (He et al. 2016) for small images, as in the code of Zhao et al. 2021.

    It is torchvision's network with instance norm. The first convolution is 3x3 with stride 1
    without pooling, and weights have torch's default initialisation.
    """

    smallest = 9  # two pixels must remain before the last instance norms, which set a single to 0

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        from torchvision import models  # imported here, because it takes long

        network = models.resnet18(
            num_classes=classes, norm_layer=lambda channels: nn.GroupNorm(channels, channels)
        )
        network.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        network.add_module("maxpool", nn.Identity())
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        return network


class SparseConvNet(Classifier, name="sparse"):
    """Three layers of sparse convolution on the pixels that are not 0."""

    width: Channels = setting(default=128, help="channels of each layer")
    smallest = 8
    one_by_one = True

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        return initialised(SparseConvNetModule(*grid[1:], classes, self.width), generator)


class PointNetClassifier(Classifier, name="pointnet"):
    """PointNet (Qi et al. 2017), see `points.PointNet`."""

    of_points = True

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        return PointNet(classes)


class PointNetPlusPlusClassifier(Classifier, name="pointnet++"):
    """PointNet++ (Qi et al. 2017), see `points.PointNetPlusPlus`."""

    of_points = neighbours = one_by_one = True

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        return PointNetPlusPlus(classes)


class DGCNNClassifier(Classifier, name="dgcnn"):
    """DGCNN (Wang et al. 2019), see `points.DGCNN`."""

    of_points = neighbours = one_by_one = True

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        return DGCNN(classes)


class PublishedPointNetClassifier(Classifier, name="pointnet-sadm"):
    """PointNet of SADM's evaluation, with batch norm, see `published_pointnet`."""

    of_points = own_state = True

    def build(self, grid: Grid, classes: int, generator: torch.Generator) -> nn.Module:
        """Build the module, see `Classifier.build`."""
        dropout = int(torch.randint(2**62, (), generator=generator))
        return PublishedPointNet(classes, torch.Generator().manual_seed(dropout))


class ConvNetModule(nn.Module):
    """ConvNet-3, the image classifier of the protocols (Zhao et al. 2021).

    3 x [3x3 convolution, instance norm, ReLU, 2x2 average pooling] and a linear layer. The first
    convolution has a padding of 3 (28 x 28 becomes 32 x 32), the others of 1.

    by_tiles: use the layer of `winograd` on CPUs, which torch.vmap does not support
    """

    by_tiles: ClassVar[bool] = True

    def __init__(self, height: int, width: int, classes: int, channels: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels if layer else 1, channels, 3, padding=1 if layer else 3)
            for layer in range(3)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(channels, channels) for _ in range(3))
        self.head = nn.Linear(channels * ((height + 4) // 8) * ((width + 4) // 8), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (images, classes).

        images: (images, 1, height, width)
        """
        # Sides after the first two convolutions are 4 and 2 times those after the third.
        whole = all((side + 4) % (4 * winograd.TILE) == 0 for side in images.shape[2:])
        if self.by_tiles and whole and not images.is_cuda:
            return self.head(self._features_by_tiles(images))
        features = images
        for convolution, norm in zip(self.convolutions, self.norms):
            features = average_pool(norm(convolution(features)).relu(), (2, 2))
        return self.head(features.flatten(1))

    def _features_by_tiles(self, images: Tensor) -> Tensor:
        """Return the input of the head, faster on CPUs: (images, channels x pixels)."""
        features = images.permute(0, 2, 3, 1)
        for number, layers in enumerate(zip(self.convolutions, self.norms)):
            weight, bias, *norm = (values for layer in layers for values in layer.parameters())
            padding = 1 if number else 3
            features = winograd.convolution_layer(features, weight, bias, norm[0], norm[1], padding)
        return features.permute(0, 3, 1, 2).flatten(1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights with the distributions of torch's default."""
        for convolution in self.convolutions:
            weight, bias = convolution.parameters()
            outputs, inputs, *kernel = weight.shape
            initialise_convolution(weight, "default", inputs, outputs, math.prod(kernel), generator)
            bound = (inputs * math.prod(kernel)) ** -0.5
            bias.uniform_(-bound, bound, generator=generator)
        initialise_linear(self.head, generator)


class SparseConvNetModule(nn.Module):
    """The sparse distillation network on the pixels that are not 0.

    It has 3 layers with instance norm and average pooling.
    """

    def __init__(self, height: int, width: int, classes: int, channels: int):
        super().__init__()
        self.network = SparseModule(SparseNetwork(width=channels), 1, (1, height, width), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (images, classes).

        images: (images, 1, height, width)
        """
        return self.network(images[:, :, None])

    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights."""
        self.network.initialise(generator)


class Ensemble(nn.Module):
    """Independent copies of one network architecture, evaluated and trained together.

    Every parameter gains a leading axis: (networks, ...). On a GPU the copies run as one
    (`torch.vmap`). On a CPU they run one after another, because the grouped convolution of vmap
    runs at half the speed there; `split` gives shares of them that can run side by side.
    one_by_one: run the copies one after another on a GPU too, see `Classifier.one_by_one`
    """

    template: nn.Module

    def __init__(self, networks: list[nn.Module], one_by_one: bool = False):
        super().__init__()
        self.one_by_one = one_by_one
        # The template only provides the computation. Assignment through __dict__ does not register
        # it as a submodule, so its parameters are not trained.
        self.__dict__["template"] = networks[0]
        self.names = [name for name, _ in networks[0].named_parameters()]
        stacked = zip(*(network.parameters() for network in networks))
        self.stacked = nn.ParameterList(
            torch.stack([p.detach() for p in parameters]) for parameters in stacked
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits: (networks, clouds, classes).

        inputs: (networks, clouds, ...), separate inputs for each network
        If there are fewer inputs than networks, the first networks are evaluated.
        """

        def one(parameters, batch):
            return torch.func.functional_call(
                self.template, dict(zip(self.names, parameters)), (batch,)
            )

        if inputs.is_cuda and not self.one_by_one:
            return torch.vmap(one)([parameter[: len(inputs)] for parameter in self.stacked], inputs)
        copies = zip(*(parameter.unbind() for parameter in self.stacked))
        return torch.stack([one(parameters, batch) for parameters, batch in zip(copies, inputs)])

    def __len__(self) -> int:
        return len(self.stacked[0])

    def split(self, most: int) -> list["Ensemble"]:
        """Split the ensemble, in order, into at most `most` ensembles, for one thread each.

        All have the same number of networks, except that the last may have fewer. They share their
        weights with this ensemble.
        """
        shares = []
        for chunks in zip(
            *(parameter.split(-(-len(parameter) // most)) for parameter in self.stacked)
        ):
            # a template holds the weights of a network during its computation, so each share
            # needs a template of its own
            share = Ensemble([copy.deepcopy(self.template)], self.one_by_one)
            # through `data`, autograd does not count a share's steps as changes of another share
            share.stacked = nn.ParameterList(chunk.data for chunk in chunks)
            shares.append(share)
        return shares


class Separate(nn.Module):
    """Independent networks with a state of their own, with the interface of `Ensemble`."""

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits: (networks, clouds, classes).

        inputs: (networks, clouds, ...), separate inputs for each network
        If there are fewer inputs than networks, the first networks are evaluated.
        """
        return torch.stack([network(batch) for network, batch in zip(self.networks, inputs)])

    def __len__(self) -> int:
        return len(self.networks)

    def split(self, most: int) -> list["Separate"]:
        """Split the networks, in order, into at most `most` parts of equal sizes."""
        size, networks = -(-len(self) // most), list(self.networks)
        return [Separate(networks[start : start + size]) for start in range(0, len(self), size)]
