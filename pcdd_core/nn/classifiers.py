"""Classifiers for evaluation, and ensembles that train many copies of one together.

The protocols use ConvNet-3. The other architectures show whether a set teaches networks of other
kinds too. The input is images of the clouds, (images, 1, height, width); the classifiers in
`OF_POINTS` take points. The output is logits, (clouds, classes). No layer draws random numbers or
keeps statistics of its input, so training and testing compute the same function.
"""

import copy
import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..experiments.config import NetworkConfig
from .grid import SparseNetwork, average_pool
from .initialise import draw_convolution, draw_linear
from .points import DGCNN, PointNet, PointNetPlusPlus, perceptron


def build_classifier(
    name: str, height: int, width: int, classes: int, channels: int, generator: torch.Generator
) -> nn.Module:
    """Build a classifier from `CLASSIFIERS`. All initial weights come from `generator`.

    height, width: size of the clouds' images, in pixels
    channels: channels of ConvNet and SparseConvNet; the others have fixed numbers
    Raises InputError if the images are too small.
    """
    if min(height, width) < SMALLEST.get(name, 1):
        raise InputError(
            f"setting evaluation.classifier = {name!r}: needs images of {SMALLEST[name]} pixels "
            f"or more along each side, not {height} x {width}"
        )
    with torch.random.fork_rng(devices=[]):
        # layers initialise their weights from torch's global generator
        torch.set_rng_state(generator.get_state())
        network = CLASSIFIERS[name](height, width, classes, channels)
    if isinstance(network, (ConvNet, SparseConvNet)):
        network.draw(generator)
    return network


class ConvNet(nn.Module):
    """ConvNet-3, the image classifier of the protocols (Zhao et al. 2021).

    3 x [3x3 convolution, instance norm, ReLU, 2x2 average pooling] and a linear layer. The first
    convolution has a padding of 3 (28 x 28 becomes 32 x 32), the others of 1.
    """

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
        features = images
        for convolution, norm in zip(self.convolutions, self.norms):
            features = average_pool(norm(convolution(features)).relu(), (2, 2))
        return self.head(features.flatten(1))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Initialise all weights with the distributions of torch's default."""
        for convolution in self.convolutions:
            outputs, inputs, *kernel = convolution.weight.shape
            draw_convolution(
                convolution.weight, "default", inputs, outputs, math.prod(kernel), generator
            )
            bound = (inputs * math.prod(kernel)) ** -0.5
            convolution.bias.uniform_(-bound, bound, generator=generator)
        draw_linear(self.head, generator)


class MLP(nn.Sequential):
    """Two hidden layers of 128 channels, as in the code of Zhao et al. 2021."""

    def __init__(self, height: int, width: int, classes: int):
        super().__init__(
            nn.Flatten(), perceptron(height * width, 128, 128), nn.Linear(128, classes)
        )


class LeNet(nn.Sequential):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as in the code of Zhao et al. 2021."""

    def __init__(self, height: int, width: int, classes: int):
        cells = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), perceptron(16 * cells, 120, 84), nn.Linear(84, classes),
        )  # fmt: skip


def resnet18(classes: int) -> nn.Module:
    """Build ResNet-18 (He et al. 2016) for small images, as in the code of Zhao et al. 2021.

    It is torchvision's network with instance norm. The first convolution is 3x3 with stride 1, no
    pooling follows it, and weights have torch's default initialisation.
    """
    from torchvision import models  # imported here, because it takes long

    network = models.resnet18(
        num_classes=classes, norm_layer=lambda channels: nn.GroupNorm(channels, channels)
    )
    network.conv1, network.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return network


class SparseConvNet(nn.Module):
    """The sparse distillation network on the pixels that are not 0.

    It has 3 layers with instance norm and average pooling.
    """

    def __init__(self, height: int, width: int, classes: int, channels: int):
        super().__init__()
        description = NetworkConfig(
            backend="sparse", layers=3, width=channels, norm="instance", pooling="average"
        )
        self.network = SparseNetwork(description, 1, (1, height, width), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (images, classes).

        images: (images, 1, height, width)
        """
        return self.network(images[:, :, None])

    def draw(self, generator: torch.Generator) -> None:
        """Initialise all weights."""
        self.network.draw(generator)


CLASSIFIERS = {  # name: (height, width, classes, channels) -> network
    "convnet": ConvNet,
    "mlp": lambda height, width, classes, channels: MLP(height, width, classes),
    "lenet": lambda height, width, classes, channels: LeNet(height, width, classes),
    "resnet18": lambda height, width, classes, channels: resnet18(classes),
    "sparse": SparseConvNet,
    "pointnet": lambda height, width, classes, channels: PointNet(classes),
    "pointnet++": lambda height, width, classes, channels: PointNetPlusPlus(classes),
    "dgcnn": lambda height, width, classes, channels: DGCNN(classes),
}
# These use the neighbours of points, so the density of a cloud changes their features.
OF_NEIGHBOURHOODS = ("pointnet++", "dgcnn")
OF_POINTS = ("pointnet", *OF_NEIGHBOURHOODS)
# Smallest image side in pixels. One pixel must remain after the last pooling. For ResNet, two must
# remain before the last instance norms, which would set a single pixel to 0.
SMALLEST = {"convnet": 4, "lenet": 12, "resnet18": 9, "sparse": 8}


class Ensemble(nn.Module):
    """Independent copies of one network architecture, evaluated and trained together.

    Every parameter gains a leading axis: (networks, ...). On a GPU the copies run as one
    (`torch.vmap`). On a CPU they run one after another, because the grouped convolution of vmap
    runs at half the speed there; `split` gives shares of them that can run side by side. Some
    architectures always run one after another, because each copy has its own cells or neighbours,
    which vmap cannot follow.
    """

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
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

        if inputs.is_cuda and not isinstance(
            self.template, (SparseConvNet, PointNetPlusPlus, DGCNN)
        ):
            return torch.vmap(one)([parameter[: len(inputs)] for parameter in self.stacked], inputs)
        copies = zip(*(parameter.unbind() for parameter in self.stacked))
        return torch.stack([one(parameters, batch) for parameters, batch in zip(copies, inputs)])

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
            share = Ensemble([copy.deepcopy(self.template)])
            # through `data`, autograd does not count a share's steps as changes of another share
            share.stacked = nn.ParameterList(chunk.data for chunk in chunks)
            shares.append(share)
        return shares
