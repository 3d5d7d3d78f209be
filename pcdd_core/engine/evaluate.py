"""Score a set of clouds: train classifiers on it from scratch and test them on real clouds.

Images are augmented as in the published code of DC (Zhao et al. 2021), and classifiers are trained
with its step sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..errors import EvaluationFailed, InputError
from ..experiments.config import EvaluationConfig
from ..geometry.clouds import Grid, PointClouds, resampled
from ..geometry.grid import cell_centres, known_positions
from ..geometry.moves import draw_moves
from ..nn.classifiers import OF_NEIGHBOURHOODS, OF_POINTS, Ensemble, build_classifier
from . import lifts
from .seeds import generator
from .threads import side_by_side, threads_for


@dataclass(frozen=True)
class Protocol:
    """Scoring protocol. Both protocols augment the training inputs and score after the last epoch.

    networks:     number of independent classifiers, whose accuracies are averaged
    augment_test: whether the test inputs are augmented as well
    """

    networks: int
    augment_test: bool


PROTOCOLS = {
    "standard": Protocol(networks=20, augment_test=False),  # Zhao et al. 2021, and later work
    "paper": Protocol(networks=5, augment_test=True),  # the paper's code
}
# Test inputs per network in one forward pass. A larger chunk does not fit the caches of a CPU.
CPU_CHUNK, GPU_CHUNK = 32, 128

CROP, SCALE, ROTATION = range(3)  # kinds of augmentation
PADDING = 4  # crop: pixels around the image
SCALE_RANGE = 0.2  # scale: largest relative change of size
MAX_ANGLE = 45  # rotation: degrees


@dataclass(frozen=True)
class View:
    """Conversion of clouds to the inputs of a classifier.

    training: converts clouds to training inputs, float32 (clouds, ...)
    test:     converts clouds to test inputs, float32 (clouds, ...)
    augment:  augments inputs (networks, clouds, ...), with one draw per input; same shape
    """

    training: Callable[[PointClouds], Tensor]
    test: Callable[[PointClouds], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class AugmentationDraws:
    """The random draws that `apply_augmentation` needs, one row per image.

    kind:   int64 (images,), CROP, SCALE or ROTATION
    offset: int64 (images, 2), first row and column of the crop in the padded image, pixels
    size:   int64 (images, 2), height and width of the scaled image, pixels
    angle:  int64 (images,), degrees
    """

    kind: Tensor
    offset: Tensor
    size: Tensor
    angle: Tensor


@dataclass(frozen=True)
class Score:
    """Accuracies in percent, one per classifier."""

    protocol: str
    accuracies: tuple[float, ...]
    epochs: int
    width: int

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation over the classifiers, divided by their number as in DC's code."""
        return torch.tensor(self.accuracies, dtype=torch.float64).std(correction=0).item()


def evaluate(
    training: PointClouds,
    test: PointClouds,
    settings: EvaluationConfig,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> dict[str, Score]:
    """Score `training` on `test` under each protocol of `settings`: {protocol: Score}.

    Training is the same for all protocols, so they share the classifiers: each protocol uses the
    first ones. Classifiers of neighbourhoods cover a smaller distance where points are dense. Their
    test clouds are random subsamples with at most as many points as the largest training cloud.
    progress: called with the fraction done and the name of the stage
    Raises InputError if `check_settings` does, and EvaluationFailed if training diverges.
    """
    check_settings(settings)
    wanted = {name: settings.networks or PROTOCOLS[name].networks for name in settings.protocols}
    view = _view(settings, training.grid)
    if settings.classifier in OF_NEIGHBOURHOODS:
        sizes = test.sizes.clamp(max=int(training.sizes.max())).tolist()
        test = resampled(test, sizes, generator(seed, "points of test clouds"))
    inputs, labels = view.training(training).to(device), training.targets.to(device)
    test_inputs, test_labels = view.test(test), test.labels
    ensemble = _new_ensemble(max(wanted.values()), training, settings, seed).to(device)
    shares = ensemble.split(threads_for(inputs.device))
    _train(
        shares, inputs, labels, view.augment, settings, seed,
        lambda fraction: progress(fraction, "training classifiers"),
    )  # fmt: skip
    chunk = GPU_CHUNK if inputs.is_cuda else CPU_CHUNK
    scores = {}
    for name, networks in wanted.items():
        augmented = PROTOCOLS[name].augment_test
        correct = torch.zeros(networks, device=device)
        batches = torch.arange(len(test)).split(settings.batch if augmented else chunk)
        for number, chosen in enumerate(batches):
            batch = test_inputs[chosen].to(device)
            copies = batch.expand(networks, *batch.shape)
            if augmented:
                copies = view.augment(copies, generator(seed, "test augmentation", number))
            with torch.no_grad():
                logits = torch.cat([ensemble(part) for part in copies.split(chunk, dim=1)], dim=1)
            _refuse_non_finite(logits, "scoring", settings)  # argmax would return the first class
            predicted = logits.argmax(-1)
            correct += (predicted == test_labels[chosen].to(device)).sum(1)
            progress((int(chosen[-1]) + 1) / len(test), f"testing ({name} protocol)")
        accuracies = (100 * correct / len(test)).tolist()
        scores[name] = Score(name, tuple(accuracies), settings.epochs, settings.width)
    return scores


def check_settings(settings: EvaluationConfig) -> None:
    """Raise InputError if `settings` ask for fast augmentation of images on the test split."""
    of_images = settings.classifier not in OF_POINTS
    if of_images and settings.augmentation == "fast" and settings.split == "test":
        raise InputError(
            "setting evaluation.augmentation = 'fast': allowed for evaluation.split = 'validation' "
            "only; use 'published' to score on the test split"
        )


def project(clouds: PointClouds) -> Tensor:
    """Project clouds along the depth axis to binary images: float32 (clouds, 1, height, width).

    This is the paper's projection. It truncates coordinates to integers and sets these cells to 1.
    """
    return lifts.occupancy(clouds).amax(dim=2)


def soft_project(clouds: PointClouds, bandwidth: float, saturation: float) -> Tensor:
    """Project clouds along the depth axis to grey images: float32 (clouds, 1, height, width).

    Values lie in [0, 1]. Each point is a Gaussian spot, as in `lifts.gaussian_occupancy`. The spot
    depends on the position of the point in its cell and may cover parts of several cells.
    bandwidth: standard deviation, cells
    saturation: a cell with mass m has the value 1 - exp(-saturation m)
    """
    return lifts.gaussian_occupancy(clouds, bandwidth, saturation).amax(dim=2)


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Crop, scale or rotate each image at random, as `augment` in DC's code (Zhao et al. 2021).

    images: float32 (..., batch, 1, height, width); leading axes are networks, each with its batch.
    Returns the same shape. Random numbers come from `draws` only.
    """
    count, height = images.shape[:-3].numel(), images.shape[-2]
    return apply_augmentation(images, draw_augmentation(count, height, draws))


def draw_augmentation(count: int, height: int, draws: torch.Generator) -> AugmentationDraws:
    """Draw the augmentation of `count` images of that height in pixels, from DC's distributions.

    Each kind has probability 1/3, each offset is one of 0 to 7, and each angle one of -45 to 44
    degrees. Each scaled size is int(u height) with u uniform in [0.8, 1.2).
    """
    kind = torch.randint(3, (count,), generator=draws)
    offset = torch.randint(2 * PADDING, (count, 2), generator=draws)
    uniform = torch.rand(count, 2, generator=draws, dtype=torch.float64)
    size = ((1 - SCALE_RANGE + 2 * SCALE_RANGE * uniform) * height).long()
    angle = torch.randint(-MAX_ANGLE, MAX_ANGLE, (count,), generator=draws)
    return AugmentationDraws(kind, offset, size, angle)


def apply_augmentation(images: Tensor, drawn: AugmentationDraws) -> Tensor:
    """Augment each image by its own draws, as `augment` in DC's code.

    crop:     pad by 4 pixels of the batch mean and cut a window at `offset`
    scale:    resize to `size` (nearest) and put the result in the middle of a frame of zeros
    rotation: rotate by `angle` (cubic spline, batch mean around it) and cut the middle window

    images: float32 (..., batch, 1, height, width); leading axes are networks, each with its batch
    and batch mean. `drawn` has a row for each image of the flattened leading axes.
    Returns the same shape. Rotated values may leave the range of the input by a little.
    """
    flat = images.flatten(0, -4)
    height, width = flat.shape[-2:]
    batch_mean = images.mean(dim=(-4, -3, -2, -1), keepdim=True)
    mean = batch_mean.expand(*images.shape[:-3], 1, 1, 1).flatten(0, -4)  # (images, 1, 1, 1)
    cropped = drawn.kind == CROP
    rows = _source_pixels(drawn, 0, height, width).to(flat.device)[:, None, :, None]
    columns = _source_pixels(drawn, 1, height, width).to(flat.device)[:, None, None, :]
    number = torch.arange(len(flat), device=flat.device)[:, None, None, None]
    augmented = flat[number, 0, rows.clamp(min=0), columns.clamp(min=0)]
    background = mean * cropped.to(flat)[:, None, None, None]
    augmented = torch.where((rows >= 0) & (columns >= 0), augmented, background)
    turned = (drawn.kind == ROTATION).nonzero().flatten()
    if len(turned):
        angles, chosen = drawn.angle[turned].tolist(), turned.to(flat.device)
        pictures, means = flat[chosen, 0].cpu().numpy(), mean[chosen].flatten().tolist()
        rotated = np.stack(list(map(_rotated, pictures, angles, means)))
        augmented[chosen, 0] = torch.from_numpy(rotated).to(flat)
    return augmented.view(images.shape)


def _source_pixels(drawn: AugmentationDraws, axis: int, *shape: int) -> Tensor:
    """Return the source pixel of each output pixel of a crop or scale along `axis`, -1 for none.

    axis: 0 or 1; shape: height and width of the images. Returns int64 (images, shape[axis]).
    """
    cells, place = shape[axis], torch.arange(shape[axis])
    cropped, size = (drawn.kind == CROP)[:, None], drawn.size[:, axis, None]
    frame = drawn.size.amax(1, keepdim=True).clamp(min=max(shape))
    in_image = place + drawn.offset[:, axis, None] - PADDING
    in_scaled = place + (frame - cells) // 2 - (frame - size) // 2
    ratio = torch.full_like(size, cells).float() / size  # F.interpolate rounds in float32
    nearest = (in_scaled * ratio).long()
    position, end = torch.where(cropped, in_image, in_scaled), torch.where(cropped, cells, size)
    source = torch.where(cropped, in_image, nearest)
    return torch.where((position >= 0) & (position < end), source, -1)


def _rotated(image: np.ndarray, angle: int, mean: float) -> np.ndarray:
    """Rotate an image (height, width) by `angle` degrees and fill around it with `mean`.

    Returns the middle window of the same shape.
    """
    height, width = image.shape
    rotated = ndimage.rotate(image, angle, axes=(-2, -1), cval=mean)
    narrower = [max(part - full, 0) for part, full in zip(image.shape, rotated.shape, strict=True)]
    if any(narrower):  # only if the image is not square
        around = [(missing // 2, missing - missing // 2) for missing in narrower]
        rotated = np.pad(rotated, around, constant_values=mean)
    top, left = (rotated.shape[0] - height) // 2, (rotated.shape[1] - width) // 2
    return rotated[top : top + height, left : left + width]


def augment_fast(images: Tensor, draws: torch.Generator) -> Tensor:
    """Crop, scale or rotate each image at random in one bilinear affine resampling.

    An approximation of `augment` for validation: the background is 0.
    crop: shift by -4 to 3 pixels along each axis; scale: by 0.8 to 1.2 along each axis;
    rotation: by -45 to 45 degrees.
    images: float32 (..., 1, height, width). Returns the same shape.
    """
    flat = images.flatten(0, -4)
    count, (height, width) = len(flat), flat.shape[-2:]
    choice = torch.randint(3, (count,), generator=draws)
    shift = torch.randint(-4, 4, (count, 2), generator=draws) * (choice == 0)[:, None]
    scale = torch.rand(count, 2, generator=draws) * 0.4 + 0.8
    scale = torch.where((choice == 1)[:, None], scale, 1.0)
    angle = (torch.rand(count, generator=draws) * 2 - 1) * torch.pi / 4
    angle = torch.where(choice == 2, angle, 0.0)
    size = torch.tensor([width, height])
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1)
    # grid coordinates run from -1 to 1 along each axis
    matrix = matrix.view(count, 2, 2) * (size / size[:, None]) / scale[:, None, :]
    affine = torch.cat([matrix, (2 * shift / size)[:, :, None]], dim=2).to(flat)
    grid = F.affine_grid(affine, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view(images.shape)


def augment_points(points: Tensor, grid: Grid, draws: torch.Generator) -> Tensor:
    """Move each cloud at random (`augmentation.draw_moves`).

    points: from `lifts.centred_points`, float32 (..., clouds, most points, 3 or 4).
    Returns the same shape. Points may leave the grid.
    """
    flat = points.flatten(0, -3)
    moves = draw_moves(len(flat), grid, draws)
    matrix, shift = moves.matrix.to(flat), moves.shift.to(flat) / (max(grid) / 2)
    coordinates, present = flat[..., :3], flat[..., 3:]
    moved = coordinates @ matrix.transpose(1, 2) + shift[:, None]
    if present.shape[-1]:
        moved = torch.cat([moved * present, present], dim=-1)
    return moved.view(points.shape)


def _view(settings: EvaluationConfig, grid: Grid) -> View:
    if settings.classifier in OF_POINTS:
        # Half a cell of difference between training and test points would cost accuracy.
        def as_known(clouds: PointClouds) -> Tensor:
            return lifts.centred_points(known_positions(clouds))

        def at_cells(clouds: PointClouds) -> Tensor:
            return lifts.centred_points(cell_centres(clouds))

        training = as_known if settings.projection == "soft" else at_cells
        return View(training, as_known, lambda points, draws: augment_points(points, grid, draws))
    chosen = {"published": augment, "fast": augment_fast}[settings.augmentation]
    if settings.projection == "soft":
        spots = settings.projection_bandwidth, settings.projection_saturation
        return View(lambda clouds: soft_project(clouds, *spots), project, chosen)
    return View(project, project, chosen)


def _new_ensemble(
    count: int, clouds: PointClouds, settings: EvaluationConfig, seed: int
) -> Ensemble:
    height, width = clouds.grid[1:]
    kind = (settings.classifier, height, width, len(clouds.class_names), settings.width)
    return Ensemble(
        [build_classifier(*kind, generator(seed, "classifier", number)) for number in range(count)]
    )


def _train(
    shares: list[Ensemble],
    inputs: Tensor,
    labels: Tensor,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    settings: EvaluationConfig,
    seed: int,
    progress: Callable[[float], None],
) -> None:
    """Train by SGD with step size 0.01, then 0.001; momentum 0.9 and weight decay 5e-4.

    The second stage starts with fresh momentum. DC's code trains epochs 0 to n and starts the
    second stage after epoch n // 2 + 1. Of 1,001 epochs the first stage has 502.
    """
    sizes = [len(share.stacked[0]) for share in shares]
    first_stage = (settings.epochs - 1) // 2 + 2

    def step(number: int, batch: Tensor, targets: Tensor) -> Tensor:
        logits = shares[number](batch).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(0, 1), reduction="sum") / batch.shape[1]
        optimisers[number].zero_grad()
        loss.backward()
        optimisers[number].step()
        return loss.detach()

    with side_by_side(len(shares)) as calls:
        for epoch in range(settings.epochs):
            if epoch in (0, first_stage):
                step_size = 0.01 if epoch == 0 else 0.001
                descent = {"lr": step_size, "momentum": 0.9, "weight_decay": 5e-4}
                optimisers = [torch.optim.SGD(share.parameters(), **descent) for share in shares]
            draws = generator(seed, "evaluation epoch", epoch)
            order = torch.rand(sum(sizes), len(inputs), generator=draws).argsort(1)
            for chosen in order.to(inputs.device).split(settings.batch, dim=1):
                batch, targets = augment(inputs[chosen], draws), labels[chosen]
                losses = calls(step, range(len(shares)), batch.split(sizes), targets.split(sizes))
            when = f"epoch {epoch} of training classifiers"
            _refuse_non_finite(torch.stack(losses), when, settings)
            progress((epoch + 1) / settings.epochs)


def _refuse_non_finite(values: Tensor, when: str, settings: EvaluationConfig) -> None:
    if not values.isfinite().all():
        raise EvaluationFailed(
            f"{when}: what the classifier '{settings.classifier}' computes is "
            f"{values[~values.isfinite()][0]}; likely cause: its training diverged on these clouds "
            "(try another evaluation.classifier)"
        )
