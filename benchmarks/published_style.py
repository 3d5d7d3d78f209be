"""Yardsticks: gradient matching and evaluation in the style of the published code.

The style is that of main.py, networks.py and utils.py of VICO-UoE/DatasetCondensation (Zhao et al.
2021): layers of torch.nn, a data loader, one class after another, `autograd.grad` with
`create_graph`, one classifier after another, images augmented one by one. Only the data differ:
clouds of points as network input. The code uses nothing of `pcdd_core`, so it is also an
independent reference (tests/parity/test_benchmarks.py).
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class ConvNet(nn.Module):
    """`layers` x [3x3 convolution, instance norm, ReLU, 2x2 average pool], linear."""

    def __init__(
        self, size: int, classes: int, width: int, layers: int = 3, first_padding: int = 1
    ):
        super().__init__()
        blocks, channels = [], 1
        for layer in range(layers):
            padding = 1 if layer else first_padding
            blocks += [
                nn.Conv2d(channels, width, 3, padding=padding),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            channels, size = width, (size + 2 * padding - 2) // 2
        self.features, self.classifier = (
            nn.Sequential(*blocks),
            nn.Linear(width * size * size, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: (images, 1, height, width). Returns logits (images, classes)."""
        return self.classifier(self.features(images).flatten(1))


class PaperConvNet(nn.Module):
    """The paper's PyTorch network: `layers` x [convolution, ReLU, max pooling], linear.

    Padding and pooling apply to all axes.
    """

    def __init__(self, size: int, classes: int, width: int, layers: int):
        super().__init__()
        blocks, channels = [], 3
        for _ in range(layers):
            blocks += [nn.Conv3d(channels, width, (1, 3, 3), padding=1), nn.ReLU(), nn.MaxPool3d(2)]
            channels, size = width, size // 2
        self.features, self.classifier = (
            nn.Sequential(*blocks),
            nn.Linear(width * size * size, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (clouds, 3, 1, height, width). Returns logits (clouds, classes)."""
        return self.classifier(self.features(inputs).flatten(1))


class PaperMinkowskiNet(nn.Module):
    """The paper's MinkowskiEngine network: `layers` x [convolution, ReLU, max pooling], linear.

    The linear layer has the dense grid as input.
    """

    def __init__(self, size: int, classes: int, width: int, layers: int):
        super().__init__()
        import MinkowskiEngine as ME

        blocks, channels = [], 3
        for _ in range(layers):
            blocks += [
                ME.MinkowskiConvolution(channels, width, kernel_size=3, dimension=3),
                ME.MinkowskiReLU(),
                ME.MinkowskiMaxPooling(2, stride=2, dimension=3),
            ]
            channels = width
        self.features, self.classifier, self.size = (
            nn.Sequential(*blocks),
            nn.Linear(width * size * size, classes),
            size,
        )

    def forward(self, inputs) -> Tensor:
        """inputs: MinkowskiEngine tensor of clouds. Returns logits (clouds, classes)."""
        features = self.features(inputs)
        clouds = int(features.C[:, 0].max()) + 1
        shape = torch.Size([clouds, features.F.shape[1], 1, self.size, self.size])
        dense, _, _ = features.dense(shape, min_coordinate=features.C[:, 1:].amin(0).int().cpu())
        return self.classifier(dense.flatten(1))


class Points(Dataset):
    """Clouds of one class, each a tensor (points, axes) in cells.

    The axes are depth, height and width, or the last two of them.
    """

    def __init__(self, clouds: list[Tensor]):
        self.clouds = clouds

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> Tensor:
        return self.clouds[index]


def batches(clouds: list[Tensor], batch: int):
    """Yield shuffled batches of one class without end. A batch is a list of clouds."""
    loader = DataLoader(Points(clouds), batch, shuffle=True, drop_last=True, collate_fn=list)
    while True:
        yield from loader


def occupancy_images(
    clouds: list[Tensor], size: int, bandwidth: float, saturation: float
) -> Tensor:
    """Return the Gaussian occupancy (clouds, 1, size, size) of clouds (points, 2), one by one.

    bandwidth: standard deviation in cells
    """
    edges = torch.arange(size + 1.0, device=clouds[0].device)
    images = []
    for points in clouds:
        # (points, 2, size + 1): the part of each Gaussian below each edge
        below = torch.special.ndtr(((edges - points[:, :, None]) / bandwidth).clamp(-4, 4))
        rows, columns = (below[..., 1:] - below[..., :-1]).unbind(1)
        images.append(1 - torch.exp(-saturation * rows.T @ columns))
    return torch.stack(images)[:, None]


def coordinate_images(clouds: list[Tensor], size: int) -> Tensor:
    """Return the mean coordinates of the points in each cell: (clouds, 3, 1, size, size).

    clouds: tensors (points, 3). The smallest row and column of the batch become row and column 0,
    as in the paper's code.
    """
    first = torch.stack([points.detach().long().amin(0) for points in clouds]).amin(0)
    images = []
    for points in clouds:
        _, row, column = (points.detach().long() - first).unbind(1)
        cell, cells = row * size + column, size * size
        total = points.new_zeros(cells, 3).index_add(0, cell, points)
        count = torch.bincount(cell, minlength=cells).clamp(min=1)
        images.append((total / count[:, None]).T.reshape(3, 1, size, size))
    return torch.stack(images)


def minkowski_tensor(clouds: list[Tensor]):
    """Convert clouds (points, 3) to a MinkowskiEngine tensor.

    The features of a cell are the mean coordinates of its points.
    """
    import MinkowskiEngine as ME

    mode = ME.SparseTensorQuantizationMode.UNWEIGHTED_AVERAGE
    cells = ME.utils.batched_coordinates(
        [points.detach().floor() for points in clouds], device=clouds[0].device
    )
    return ME.SparseTensor(torch.cat(clouds), coordinates=cells.int(), quantization_mode=mode)


def sum_of_squares(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Return the paper's distance of gradients: the sum of squared differences."""
    return sum(
        ((synthetic_gradient - real_gradient) ** 2).sum()
        for real_gradient, synthetic_gradient in zip(real, synthetic)
    )


def cosine_of_weights(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Return 1 - cosine of gradients, summed over all output channels of all weights."""
    distance = 0.0
    for target, gradient in zip(real, synthetic):
        if target.dim() > 1:
            target, gradient = target.flatten(1), gradient.flatten(1)
            norms = target.norm(dim=1) * gradient.norm(dim=1) + 1e-6
            distance = distance + (1 - (target * gradient).sum(1) / norms).sum()
    return distance


def matching_loss(
    network: nn.Module,
    batches_of_classes: list[list[Tensor]],
    points: list[Tensor],
    show: Callable,
    distance: Callable,
) -> Tensor:
    """Return the matching loss, summed over classes.

    batches_of_classes: a batch of real clouds for each class
    points: the synthetic cloud of each class
    show: converts a list of clouds to network input
    distance: distance of gradients
    """
    parameters, loss, device = list(network.parameters()), 0.0, points[0].device
    for label, (real, own) in enumerate(zip(batches_of_classes, points)):
        inputs = show([cloud.to(device) for cloud in real])
        labels = torch.full((len(real),), label, device=device)
        real_gradients = torch.autograd.grad(F.cross_entropy(network(inputs), labels), parameters)
        real_gradients = [gradient.detach().clone() for gradient in real_gradients]
        synthetic_loss = F.cross_entropy(network(show([own])), torch.tensor([label], device=device))
        loss = loss + distance(
            real_gradients, torch.autograd.grad(synthetic_loss, parameters, create_graph=True)
        )
    return loss


def train_classifier(
    images: Tensor, labels: Tensor, width: int, epochs: int, first_padding: int = 3
) -> nn.Module:
    """Train a classifier from scratch, with augmentation.

    images: (images, 1, size, size); the classifier is on their device. labels: (images,).
    """
    network = ConvNet(
        images.shape[-1], int(labels.max()) + 1, width, first_padding=first_padding
    ).to(images.device)
    loader = DataLoader(TensorDataset(images, labels), batch_size=256, shuffle=True)
    step_size = 0.01
    optimiser = torch.optim.SGD(network.parameters(), step_size, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        if epoch == (epochs - 1) // 2 + 2:
            step_size *= 0.1
            optimiser = torch.optim.SGD(
                network.parameters(), step_size, momentum=0.9, weight_decay=5e-4
            )
        for batch, batch_labels in loader:
            loss = F.cross_entropy(network(augmented(batch)), batch_labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network


def augmented(images: Tensor) -> Tensor:
    """Crop, scale or rotate each image of a batch at random, one by one.

    images: (images, 1, size, size). Returns the same shape.
    """
    size, mean, changed = images.shape[-1], images.mean().item(), []
    for image in images:
        kind = random.choice(["crop", "scale", "rotate"])
        if kind == "crop":
            frame = F.pad(image, (4, 4, 4, 4), value=mean)
            top, left = random.randrange(8), random.randrange(8)
            changed.append(frame[:, top : top + size, left : left + size])
        elif kind == "scale":
            height, width = (int(random.uniform(0.8, 1.2) * size) for _ in range(2))
            scaled = F.interpolate(image[None], [height, width])[0]
            side = max(height, width, size)
            frame = image.new_zeros(1, side, side)
            top, left = (side - height) // 2, (side - width) // 2
            frame[:, top : top + height, left : left + width] = scaled
            changed.append(_middle(frame, size))
        else:
            angle = random.randrange(-45, 45)
            rotated = ndimage.rotate(image.cpu().numpy(), angle, axes=(-2, -1), cval=mean)
            changed.append(_middle(torch.from_numpy(rotated).to(image), size))
    return torch.stack(changed)


def _middle(image: Tensor, size: int) -> Tensor:
    top, left = (image.shape[-2] - size) // 2, (image.shape[-1] - size) // 2
    return image[:, top : top + size, left : left + size]
