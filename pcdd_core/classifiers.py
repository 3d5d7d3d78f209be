"""What scores a set: classifiers of several architectures, and many copies of one trained together.

The protocols' own is ConvNet-3; the others tell whether a set teaches networks of another kind too. All see images of the
clouds, (images, 1, height, width), except those of `OF_POINTS`, which see points; all return logits (clouds, classes). No layer draws
random numbers or keeps statistics of what it has seen, so training and testing compute the same.
"""

import copy
import math

import torch
from torch import Tensor, nn

from .config import NetworkConfig
from .drawing import draw_convolution, draw_linear
from .errors import InputError
from .networks import SparseNetwork, average_pool
from .point_networks import DGCNN, PointNet, PointNetPlusPlus, perceptron


def build_classifier(
    name: str, height: int, width: int, classes: int, channels: int, generator: torch.Generator
) -> nn.Module:
    """A classifier of `CLASSIFIERS` with freshly drawn weights, all from `generator`, for clouds seen as height x width.

    channels: of ConvNet and sparse; the others have their own numbers. Raises InputError if the images are too small.
    """
    if min(height, width) < SMALLEST.get(name, 1):
        raise InputError(
            f"setting evaluation.classifier = {name!r}: needs images of {SMALLEST[name]} pixels or more along each side, "
            f"not {height} x {width}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(
            generator.get_state()
        )  # layers draw from torch's own generator when they are made
        network = CLASSIFIERS[name](height, width, classes, channels)
    if isinstance(network, (ConvNet, SparseConvNet)):
        network.draw(generator)
    return network


class ConvNet(nn.Module):
    """ConvNet-3, the image classifier of the protocols (Zhao et al. 2021).

    3 x [3x3 convolution, instance norm, ReLU, 2x2 average pool] and a linear layer; the first convolution pads by 3
    (28 x 28 becomes 32 x 32), the others by 1.
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
        """images: (images, 1, height, width); returns (images, classes)."""
        features = images
        for convolution, norm in zip(self.convolutions, self.norms):
            features = average_pool(norm(convolution(features)).relu(), (2, 2))
        return self.head(features.flatten(1))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights anew, as torch does by default."""
        for convolution in self.convolutions:
            outputs, inputs, *kernel = convolution.weight.shape
            draw_convolution(
                convolution.weight, "default", inputs, outputs, math.prod(kernel), generator
            )
            bound = (inputs * math.prod(kernel)) ** -0.5
            convolution.bias.uniform_(-bound, bound, generator=generator)
        draw_linear(self.head, generator)


class MLP(nn.Sequential):
    """Two hidden layers of 128, as in the code of Zhao et al. 2021."""

    def __init__(self, height: int, width: int, classes: int):
        super().__init__(
            nn.Flatten(), perceptron(height * width, 128, 128), nn.Linear(128, classes)
        )


class LeNet(nn.Sequential):
    """LeNet-5 (LeCun et al. 1998) with ReLU and maximum pooling, as in the code of Zhao et al. 2021."""

    def __init__(self, height: int, width: int, classes: int):
        cells = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), perceptron(16 * cells, 120, 84), nn.Linear(84, classes),
        )  # fmt: skip


def resnet18(classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2016) for small images with instance norm, as in the code of Zhao et al. 2021.

    torchvision's, but the first convolution is 3x3 with stride 1, no pooling follows it, and weights are torch's default.
    """
    from torchvision import models  # here, because it takes long to import

    network = models.resnet18(
        num_classes=classes, norm_layer=lambda channels: nn.GroupNorm(channels, channels)
    )
    network.conv1, network.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return network


class SparseConvNet(nn.Module):
    """The distillation's sparse network, 3 layers with instance norm and average pooling, on the pixels that are not 0."""

    def __init__(self, height: int, width: int, classes: int, channels: int):
        super().__init__()
        description = NetworkConfig(
            backend="sparse", layers=3, width=channels, norm="instance", pooling="average"
        )
        self.network = SparseNetwork(description, 1, (1, height, width), classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (images, 1, height, width); returns (images, classes)."""
        return self.network(images[:, :, None])

    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights anew."""
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
OF_NEIGHBOURHOODS = (
    "pointnet++",
    "dgcnn",
)  # of points, so how dense a cloud is changes what they see
OF_POINTS = ("pointnet", *OF_NEIGHBOURHOODS)
# Pixels along each side, so that after the last pooling one is left, and two in front of ResNet's last instance norms, which
# would make a single one 0.
SMALLEST = {"convnet": 4, "lenet": 12, "resnet18": 9, "sparse": 8}


class Ensemble(nn.Module):
    """Independent copies of one network architecture, evaluated and trained together; they share nothing but the call.

    Every parameter gains a leading axis: (networks, ...). On a GPU the copies run as one (`torch.vmap`); on a CPU one
    after another, because there the grouped convolution that vmap makes runs at half the speed, and shares of them side by
    side (`split`). Some always run one after another, because each has cells or neighbours of its own, which vmap cannot follow.
    """

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.__dict__["template"] = networks[
            0
        ]  # the computation only: its own parameters must not be trained
        self.names = [name for name, _ in networks[0].named_parameters()]
        stacked = zip(*(network.parameters() for network in networks))
        self.stacked = nn.ParameterList(
            torch.stack([p.detach() for p in parameters]) for parameters in stacked
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (networks, clouds, ...), to each network its own; returns (networks, clouds, classes).

        With fewer inputs than networks the first networks answer.
        """

        def one(parameters, seen):
            return torch.func.functional_call(
                self.template, dict(zip(self.names, parameters)), (seen,)
            )

        if inputs.is_cuda and not isinstance(
            self.template, (SparseConvNet, PointNetPlusPlus, DGCNN)
        ):
            return torch.vmap(one)([parameter[: len(inputs)] for parameter in self.stacked], inputs)
        copies = zip(*(parameter.unbind() for parameter in self.stacked))
        return torch.stack([one(parameters, seen) for parameters, seen in zip(copies, inputs)])

    def split(self, most: int) -> list["Ensemble"]:
        """At most so many ensembles of equally many of these networks, in order, for a thread each; their weights stay these."""
        shares = []
        for chunks in zip(
            *(parameter.split(-(-len(parameter) // most)) for parameter in self.stacked)
        ):
            share = Ensemble(
                [copy.deepcopy(self.template)]
            )  # a template holds a network's weights while that is computed
            share.stacked = nn.ParameterList(
                chunk.data for chunk in chunks
            )  # by `data`, one's steps are no change of another's
            shares.append(share)
        return shares
