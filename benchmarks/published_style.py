"""The yardsticks: gradient matching and evaluation, written plainly in the manner of the published code.

After main.py, networks.py and utils.py of VICO-UoE/DatasetCondensation (Zhao et al. 2021): torch.nn's own layers, a data loader,
one class after another, `autograd.grad` with `create_graph`, one classifier after another, images augmented one by one. Only
what is matched differs: clouds of points, shown as Gaussian occupancy. Nothing of `pcdd_core` is used, so that this is
an independent reference as well (tests/test_benchmarks.py).
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
        """images: (images, 1, height, width); returns (images, classes)."""
        return self.classifier(self.features(images).flatten(1))


class PaperConvNet(nn.Module):
    """The paper's PyTorch network: `layers` x [convolution, ReLU, max pooling], all axes padded and pooled, linear."""

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

    def forward(self, shown: Tensor) -> Tensor:
        """shown: (clouds, 3, 1, height, width); returns (clouds, classes)."""
        return self.classifier(self.features(shown).flatten(1))


class PaperMinkowskiNet(nn.Module):
    """The paper's MinkowskiEngine network: `layers` x [convolution, ReLU, max pooling], put on the grid, linear."""

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

    def forward(self, shown) -> Tensor:
        """shown: a MinkowskiEngine tensor of clouds; returns (clouds, classes)."""
        seen = self.features(shown)
        clouds = int(seen.C[:, 0].max()) + 1
        shape = torch.Size([clouds, seen.F.shape[1], 1, self.size, self.size])
        dense, _, _ = seen.dense(shape, min_coordinate=seen.C[:, 1:].amin(0).int().cpu())
        return self.classifier(dense.flatten(1))


class Points(Dataset):
    """Clouds of one class, each a tensor (points, axes), in cells; axes: depth, height, width, or the last two."""

    def __init__(self, clouds: list[Tensor]):
        self.clouds = clouds

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> Tensor:
        return self.clouds[index]


def batches(clouds: list[Tensor], batch: int):
    """Batches of one class, shuffled, for ever: lists of clouds."""
    loader = DataLoader(Points(clouds), batch, shuffle=True, drop_last=True, collate_fn=list)
    while True:
        yield from loader


def occupancy_images(
    clouds: list[Tensor], size: int, bandwidth: float, saturation: float
) -> Tensor:
    """Gaussian occupancy of clouds of (points, 2), one after another: (clouds, 1, size, size)."""
    edges = torch.arange(size + 1.0, device=clouds[0].device)
    images = []
    for points in clouds:
        below = torch.special.ndtr(
            ((edges - points[:, :, None]) / bandwidth).clamp(-4, 4)
        )  # (points, 2, size + 1)
        rows, columns = (below[..., 1:] - below[..., :-1]).unbind(1)
        images.append(1 - torch.exp(-saturation * rows.T @ columns))
    return torch.stack(images)[:, None]


def coordinate_images(clouds: list[Tensor], size: int) -> Tensor:
    """The mean coordinates of the points in each cell, of clouds of (points, 3): (clouds, 3, 1, size, size).

    The smallest row and column of the batch become row and column 0, as in the paper's code.
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
    """Clouds of (points, 3) as MinkowskiEngine sees them, each cell with the mean coordinates of its points."""
    import MinkowskiEngine as ME

    mode = ME.SparseTensorQuantizationMode.UNWEIGHTED_AVERAGE
    cells = ME.utils.batched_coordinates(
        [points.detach().floor() for points in clouds], device=clouds[0].device
    )
    return ME.SparseTensor(torch.cat(clouds), coordinates=cells.int(), quantization_mode=mode)


def sum_of_squares(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """The paper's distance."""
    return sum(((ours - theirs) ** 2).sum() for theirs, ours in zip(real, synthetic))


def cosine_of_weights(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """1 - cosine for every output channel of every weight, summed."""
    distance = 0.0
    for theirs, ours in zip(real, synthetic):
        if theirs.dim() > 1:
            theirs, ours = theirs.flatten(1), ours.flatten(1)
            norms = theirs.norm(dim=1) * ours.norm(dim=1) + 1e-6
            distance = distance + (1 - (theirs * ours).sum(1) / norms).sum()
    return distance


def matching_loss(
    network: nn.Module,
    theirs: list[list[Tensor]],
    points: list[Tensor],
    show: Callable,
    distance: Callable,
) -> Tensor:
    """The sum over the classes. theirs: of each a batch of real clouds; points: of each the synthetic one; show: to network input."""
    parameters, loss, device = list(network.parameters()), 0.0, points[0].device
    for label, (real, own) in enumerate(zip(theirs, points)):
        seen = show([cloud.to(device) for cloud in real])
        labels = torch.full((len(real),), label, device=device)
        real_gradients = torch.autograd.grad(F.cross_entropy(network(seen), labels), parameters)
        real_gradients = [gradient.detach().clone() for gradient in real_gradients]
        synthetic_loss = F.cross_entropy(network(show([own])), torch.tensor([label], device=device))
        loss = loss + distance(
            real_gradients, torch.autograd.grad(synthetic_loss, parameters, create_graph=True)
        )
    return loss


def train_classifier(
    images: Tensor, labels: Tensor, width: int, epochs: int, first_padding: int = 3
) -> nn.Module:
    """A classifier trained from scratch with augmentation, on the device of `images`, (images, 1, size, size)."""
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
        for shown, own in loader:
            loss = F.cross_entropy(network(augmented(shown)), own)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network


def augmented(images: Tensor) -> Tensor:
    """Each image of a batch, one after another, cropped, scaled or rotated."""
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
