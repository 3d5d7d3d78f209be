"""Augmentation of classifier inputs, as in the published code of DC (Zhao et al. 2021)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..geometry.clouds import Grid
from ..geometry.moves import draw_moves

CROP, SCALE, ROTATION = range(3)  # kinds of augmentation
PADDING = 4  # crop: pixels around the image
SCALE_RANGE = 0.2  # scale: largest relative change of size
MAX_ANGLE = 45  # rotation: degrees


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Crop, scale or rotate each image at random, as `augment` in DC's code (Zhao et al. 2021).

    images: float32 (..., batch, 1, height, width); leading axes are networks, each with its batch.
    Returns the same shape. Random numbers come from `draws` only.
    """
    count, height = images.shape[:-3].numel(), images.shape[-2]
    return apply_augmentation(images, draw_augmentation(count, height, draws))


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
    rotations = (drawn.kind == ROTATION).nonzero().flatten()
    if len(rotations):
        angles, chosen = drawn.angle[rotations].tolist(), rotations.to(flat.device)
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
    top, left = ((full - part) // 2 for part, full in zip(image.shape, rotated.shape))
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


def augment_grids(grids: Tensor, draws: torch.Generator) -> Tensor:
    """Move each grid at random, see `moves.draw_moves`, by trilinear resampling.

    The background is 0.
    grids: float32 (..., 1, depth, height, width). Returns the same shape.
    """
    flat = grids.flatten(0, -5)
    depth, height, width = flat.shape[-3:]
    moves = draw_moves(len(flat), (depth, height, width), draws)
    # An output cell at x - middle has the value at inverse (x - middle - shift).
    inverse = torch.linalg.inv(moves.matrix)
    shift = -inverse @ moves.shift[..., None]
    # F.affine_grid has the axes in the order width, height, depth, each from -1 to 1.
    size = torch.tensor([width, height, depth])
    matrix = inverse.flip(1, 2) * (size / size[:, None])
    affine = torch.cat([matrix, 2 * shift.flip(1) / size[:, None]], dim=2).to(flat)
    places = F.affine_grid(affine, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, places, align_corners=False).view(grids.shape)


def augment_points(points: Tensor, grid: Grid, draws: torch.Generator) -> Tensor:
    """Move each cloud at random, see `moves.draw_moves`.

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
