"""ConvNet's layer [3 x 3 convolution, instance norm, ReLU, 2 x 2 average pooling] as one function.

Scoring takes most of its time in this layer. Two things make it fast on CPUs:

- The convolution is Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016). It computes tiles of 4 x 4
  outputs from tiles of 6 x 6 inputs, with a quarter of the multiplications. The float32 result
  differs from that of a direct convolution by about 3e-6 of its norm.
- Images pass through norm, ReLU and pooling a few at a time, so that they stay in the cache. The
  gradient is written out. It computes these steps again, because that is faster than to read their
  results from memory.

Outputs are in a tile layout, (16, images, tiles, channels), in which pooling adds contiguous rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, INPUT_TILE = 4, 6  # outputs and inputs per side of a tile
PIXELS = TILE**2  # outputs of a tile
EPSILON = 1e-5  # of the norm, as in torch's layers
IN_CACHE = 2**17  # outputs that pass through norm, ReLU and pooling together: 0.5 MiB of float32

# The one-dimensional transforms of inputs, weights and outputs (Lavin and Gray 2016, section 4.3).
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def convolution_layer(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    padding: int = 1,
) -> Tensor:
    """Convolve, normalise per image and channel, apply ReLU, and average blocks of 2 x 2 pixels.

    images: (images, height, width, inputs), channels last
    weight: (outputs, inputs, 3, 3)
    bias: (outputs,), of the convolution. The norm cancels it, so its gradient is 0.
    norm_weight, norm_bias: (outputs,)
    padding: zeros around the images, in pixels
    Returns (images, rows / 2, columns / 2, outputs), where the convolution gives rows x columns
    pixels, both multiples of `TILE`. Differentiable once.
    """
    return _ConvolutionLayer.apply(images, weight, bias, norm_weight, norm_bias, padding)


class _ConvolutionLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        padding: int,
    ) -> Tensor:
        kind = _Direct if weight.shape[1] == 1 else _Winograd  # a single input has small patches
        convolution = kind(images, weight, padding)
        count, (down, across), outputs = len(images), convolution.tiles, len(weight)
        mean, scale = images.new_empty(2, count, 1, outputs)
        result = images.new_empty(count, down, 2, across, 2, outputs)
        first, second = convolution.buffers(2)
        for part in convolution.parts:
            values = convolution.outputs(part, first)
            mean[part] = _mean(values)
            values -= mean[part]
            other = second[: values.numel()].view_as(values)
            variance = _mean(torch.mul(values, values, out=other))
            # An infinite variance gives NaN, as in torch's norm, so that divergence is noticed.
            scale[part] = (variance + EPSILON).rsqrt_() + 0 * variance
            torch.addcmul(norm_bias, values, scale[part] * norm_weight, out=other).relu_()
            blocks = other.view(2, 2, 2, 2, -1)
            blocks = blocks[:, 0] + blocks[:, 1]
            blocks = (blocks[:, :, 0] + blocks[:, :, 1]).mul_(0.25)
            blocks = blocks.view(2, 2, -1, down, across, outputs).permute(2, 3, 0, 4, 1, 5)
            result[part] = blocks
        context.convolution = convolution
        context.save_for_backward(weight, norm_weight, norm_bias, mean, scale)
        return result.view(count, 2 * down, 2 * across, outputs)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, norm_weight, norm_bias, mean, scale = context.saved_tensors
        convolution, outputs = context.convolution, len(weight)
        down, across = convolution.tiles
        on_norm_weight, on_norm_bias = torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)
        gradient = gradient.reshape(-1, down, 2, across, 2, outputs).permute(2, 4, 0, 1, 3, 5)
        convolution.start_backward()
        first, second, third = convolution.buffers(3)
        for part in convolution.parts:
            values = convolution.outputs(part, first)
            values -= mean[part]
            factor = scale[part] * norm_weight
            activated = second[: values.numel()].view(2, 2, 2, 2, -1)
            torch.addcmul(norm_bias, values, factor, out=activated.view_as(values))
            pooled = (gradient[:, :, part] / 4).reshape(2, 1, 2, 1, -1).expand_as(activated)
            active = third[: values.numel()].view_as(activated)
            torch.ops.aten.threshold_backward(pooled, activated, 0, grad_input=active)
            active = active.view_as(values)
            average = _mean(active)
            product = torch.mul(active, values, out=activated.view_as(values))
            along = _mean(product) * scale[part]
            pixels = values.shape[0] * values.shape[2]
            on_norm_weight += pixels * along.sum((0, 1))
            on_norm_bias += pixels * average.sum((0, 1))
            # The gradient of an instance norm: without its mean and its part along the output.
            active -= average
            active.addcmul_(values, along * -scale[part])
            convolution.take_gradient(part, active.mul_(factor))
        on_images, on_weight = convolution.gradients(context.needs_input_grad[0])
        on_bias = torch.zeros_like(norm_bias)
        return on_images, on_weight, on_bias, on_norm_weight, on_norm_bias, None


def _mean(values: Tensor) -> Tensor:
    """Return the mean over the pixels: (16, images, tiles, channels) to (images, 1, channels)."""
    return values.sum(0).sum(1, keepdim=True) / (values.shape[0] * values.shape[2])


class _Convolution:
    """A convolution with 3 x 3 weights, from images to outputs in tiles, and its gradient.

    tiles: number of tiles along both axes
    parts: the images, a few at a time
    """

    def __init__(self, images: Tensor, weight: Tensor, padding: int):
        self.shape, self.weight, self.padding = images.shape, weight, padding
        self.tiles = tuple((side + 2 * padding - 2) // TILE for side in images.shape[1:3])
        outputs = PIXELS * self.tiles[0] * self.tiles[1] * len(weight)
        size = max(1, IN_CACHE // outputs)
        self.parts = [slice(first, first + size) for first in range(0, len(images), size)]

    def buffers(self, count: int) -> Tensor:
        """Return memory for the outputs of one part, `count` times: (count, numbers)."""
        size = (self.parts[0].stop - self.parts[0].start) * self.tiles[0] * self.tiles[1]
        return self.weight.new_empty(count, PIXELS * size * len(self.weight))

    def input_tiles(self, images: Tensor) -> Tensor:
        """Return overlapping views of input tiles: (images, down, across, inputs, 6, 6)."""
        padded = F.pad(images, (0, 0) + (self.padding,) * 4)
        return padded.unfold(1, INPUT_TILE, TILE).unfold(2, INPUT_TILE, TILE)

    def add_tiles(self, tiles: Tensor) -> Tensor:
        """Add input tiles where they overlap: the transpose of `input_tiles`.

        tiles: (6, 6, images, down, across, inputs). Returns (images, height, width, inputs).
        """
        (down, across), (height, width) = self.tiles, self.shape[1:3]
        count, inputs = tiles.shape[2], tiles.shape[5]
        padded = tiles.new_zeros(count, down + 1, TILE, across + 1, TILE, inputs)
        # A tile reaches two rows and two columns into the next one.
        for row, rows in enumerate((slice(0, TILE), slice(TILE, INPUT_TILE))):
            for column, columns in enumerate((slice(0, TILE), slice(TILE, INPUT_TILE))):
                part = tiles[rows, columns].permute(2, 3, 0, 4, 1, 5)
                place = padded[:, row : row + down, : part.shape[2]]
                place[:, :, :, column : column + across, : part.shape[4]] += part
        padded = padded.view(count, TILE * (down + 1), TILE * (across + 1), inputs)
        top = left = self.padding
        return padded[:, top : top + height, left : left + width]


class _Winograd(_Convolution):
    def __init__(self, images: Tensor, weight: Tensor, padding: int):
        super().__init__(images, weight, padding)
        lines = (weight.new_tensor(matrix) for matrix in (_INPUT, _WEIGHT, _OUTPUT))
        # (36, 36), (36, 9) and (16, 36)
        self.of_input, self.of_weight, self.of_output = (torch.kron(line, line) for line in lines)
        kernel = self.of_weight @ weight.permute(2, 3, 1, 0).reshape(9, -1)
        self.kernel = kernel.view(INPUT_TILE**2, *weight.shape[1::-1])
        count = len(images), self.tiles[0] * self.tiles[1]
        self.transformed = weight.new_empty(INPUT_TILE**2, *count, weight.shape[1])
        for part in self.parts:
            tiles = self.input_tiles(images[part]).permute(4, 5, 0, 1, 2, 3)
            tiles, place = tiles.reshape(INPUT_TILE**2, -1), self.transformed[:, part]
            torch.mm(self.of_input, tiles, out=place.flatten(1))
        products = torch.bmm(self.transformed.flatten(1, 2), self.kernel)
        self.products = products.view(INPUT_TILE**2, *count, -1)

    def outputs(self, part: slice, buffer: Tensor) -> Tensor:
        """Compute the outputs of some images in a buffer: (16, images, tiles, outputs)."""
        products = self.products[:, part]
        values = buffer[: PIXELS * products[0].numel()].view(PIXELS, -1)
        torch.mm(self.of_output, products.flatten(1), out=values)
        return values.view(PIXELS, *products.shape[1:])

    def start_backward(self) -> None:
        """Make room for the gradient."""
        self.on_products = torch.empty_like(self.products)

    def take_gradient(self, part: slice, gradient: Tensor) -> None:
        """Take the gradient of `outputs`."""
        torch.mm(self.of_output.T, gradient.flatten(1), out=self.on_products[:, part].flatten(1))

    def gradients(self, of_images: bool) -> tuple[Tensor | None, Tensor]:
        """Return the gradients of the images, None if not asked for, and of the weight."""
        products, (outputs, inputs) = self.on_products.flatten(1, 2), self.weight.shape[:2]
        of_kernel = torch.bmm(self.transformed.flatten(1, 2).transpose(1, 2), products)
        on_weight = self.of_weight.T @ of_kernel.view(INPUT_TILE**2, -1)
        on_weight = on_weight.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
        if not of_images:
            return None, on_weight
        tiles = torch.bmm(products, self.kernel.transpose(1, 2)).view_as(self.transformed)
        on_images = products.new_empty(self.shape)
        for part in self.parts:
            of_part = self.of_input.T @ tiles[:, part].flatten(1)
            of_part = of_part.view(INPUT_TILE, INPUT_TILE, -1, *self.tiles, inputs)
            on_images[part] = self.add_tiles(of_part)
        return on_images, on_weight


class _Direct(_Convolution):
    """For one input channel: products of patches of 3 x 3 pixels with the weights."""

    def __init__(self, images: Tensor, weight: Tensor, padding: int):
        super().__init__(images, weight, padding)
        windows = self.input_tiles(images)[:, :, :, 0].unfold(3, 3, 1).unfold(4, 3, 1)
        windows = windows.permute(3, 4, 0, 1, 2, 5, 6)
        self.patches = [windows[:, :, part].reshape(-1, 9) for part in self.parts]

    def _place(self, part: slice) -> int:
        return self.parts.index(part)

    def outputs(self, part: slice, buffer: Tensor) -> Tensor:
        """Compute the outputs of some images in a buffer: (16, images, tiles, outputs)."""
        patches = self.patches[self._place(part)]
        values = buffer[: len(patches) * len(self.weight)].view(len(patches), -1)
        torch.mm(patches, self.weight.view(-1, 9).T, out=values)
        return values.view(PIXELS, -1, self.tiles[0] * self.tiles[1], len(self.weight))

    def start_backward(self) -> None:
        """Make room for the gradient."""
        self.on_weight = torch.zeros_like(self.weight).view(-1, 9)
        self.on_patches: list[Tensor] = []

    def take_gradient(self, part: slice, gradient: Tensor) -> None:
        """Take the gradient of `outputs`."""
        gradient = gradient.flatten(0, 2)
        self.on_weight += gradient.T @ self.patches[self._place(part)]
        self.on_patches.append(gradient @ self.weight.view(-1, 9))

    def gradients(self, of_images: bool) -> tuple[Tensor | None, Tensor]:
        """Return the gradients of the images, None if not asked for, and of the weight."""
        on_weight = self.on_weight.view_as(self.weight)
        if not of_images:
            return None, on_weight
        on_images = []
        for on_patches in self.on_patches:
            windows = on_patches.view(TILE, TILE, -1, *self.tiles, 3, 3)
            tiles = windows.new_zeros(INPUT_TILE, INPUT_TILE, *windows.shape[2:5])
            for row in range(3):
                for column in range(3):
                    place = tiles[row : row + TILE, column : column + TILE]
                    place += windows[..., row, column]
            on_images.append(self.add_tiles(tiles[..., None]))
        return torch.cat(on_images), on_weight
