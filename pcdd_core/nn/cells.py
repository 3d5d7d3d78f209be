"""Occupied cells of a batch: sparse tensors, and the kernel maps between cells.

A sparse tensor is a list of occupied cells with one feature row each. A *kernel map* has, for every
output cell and every kernel offset, the row of the input cell at that position, or none. The
look-up ravels each cell into one integer key. It uses a table of the bounding box, or binary search
if the box is too large.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.clouds import Grid

# A table of the bounding box is the faster look-up if it has at most TABLE_CELLS cells, or at most
# TABLE_SHARE cells per position to look up.
TABLE_CELLS, TABLE_SHARE = 1 << 16, 4


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on occupied cells.

    cells:      int64 (cells, 4), columns cloud, depth, height, width; rows are unique and in
                lexicographic order
    features:   float (cells, channels)
    clouds:     number of clouds in the batch, including clouds without cells
    grid:       number of cells along depth, height, width at stride 1
    stride:     tensor stride; coordinates are multiples of it
    """

    cells: Tensor
    features: Tensor
    clouds: int
    grid: Grid
    stride: int = 1

    def with_features(self, features: Tensor) -> "SparseTensor":
        """Return the same cells with other features: (cells, channels)."""
        return replace(self, features=features)

    @cached_property
    def cells_per_cloud(self) -> Tensor:
        """Number of occupied cells per cloud: int64 (clouds,)."""
        return torch.bincount(self.cells[:, 0], minlength=self.clouds)

    def dense(self, corner: bool = False, shift: bool = False) -> Tensor:
        """Return the features on the dense grid, with zeros in empty cells.

        Shape: (clouds, channels, depth, height, width), with ceil(size / stride) cells per axis.
        Two options reproduce the paper's code:
        corner: the grid keeps its size at stride 1, but coordinates are divided by the stride, so
            that only a corner is filled
        shift: `first_cell`, the smallest coordinates in the batch, is subtracted first
        Raises ValueError if a cell lies outside the grid.
        """
        first = first_cell(self.cells, shift)
        sizes = dense_sizes(self.cells, self.grid, self.stride, corner)
        position = self.cells.clone()
        position[:, 1:] = (position[:, 1:] - first).div(self.stride, rounding_mode="floor")
        dense = self.features.new_zeros(self.clouds, *sizes, self.features.shape[1])
        return dense.index_put(position.unbind(1), self.features).movedim(-1, 1)


def first_cell(cells: Tensor, shift: bool) -> Tensor:
    """Return the coordinates that `SparseTensor.dense` subtracts: int64 (3,).

    With `shift` they are the smallest along each axis over the whole batch, like `min_coordinate`
    in the paper's code. Otherwise they are zeros.
    """
    return cells[:, 1:].amin(0) if shift else cells.new_zeros(3)


def dense_sizes(cells: Tensor, grid: Grid, stride: int, corner: bool) -> tuple[int, ...]:
    """Return the sizes of the dense grid that `SparseTensor.dense` fills, in cells.

    Raises ValueError if a cell lies outside the grid.
    """
    sizes = grid if corner else tuple(-(-size // stride) for size in grid)
    position = cells[:, 1:].div(stride, rounding_mode="floor")
    if (position < 0).any() or (position >= position.new_tensor(sizes)).any():
        raise ValueError(
            f"a cell lies outside the grid {grid}, so it has no place in a dense tensor"
        )
    return sizes


# the signature of `kernel_map`
KernelMap = Callable[[SparseTensor, Tensor, int, int, bool], tuple[Tensor, Tensor]]


def kernel_offsets(kernel_size: int, centred: bool) -> Tensor:
    """Return the offsets of a cubic kernel: int64 (kernel_size^3, 3).

    The first axis varies fastest, as in MinkowskiEngine. Centred odd kernels range from -(k // 2)
    to k // 2. Even kernels and kernels that are not centred range from 0 to k - 1.
    """
    start = -(kernel_size // 2) if centred and kernel_size % 2 else 0
    line = torch.arange(start, start + kernel_size)
    return torch.cartesian_prod(line, line, line).flip(1)


def strided_cells(tensor: SparseTensor, stride: int) -> Tensor:
    """Floor the cells of `tensor` to multiples of its tensor stride times `stride`.

    Returns unique rows: int64 (outputs, 4).
    """
    step = tensor.stride * stride
    position = tensor.cells.clone()
    position[:, 1:] = position[:, 1:].div(step, rounding_mode="floor") * step
    return unique_cells(position)[0]


def kernel_map(
    tensor: SparseTensor, cells: Tensor, kernel_size: int, dilation: int = 1, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """Find the input cell at each kernel offset of each output cell.

    cells: int64 (outputs, 4), the output cells
    kernel_size, dilation: in units of the input's tensor stride
    centred: see `kernel_offsets`
    Returns `neighbours`, int64 (outputs, used): rows of `tensor`, or len(tensor.cells) for "none";
    and `used`, the indices of the offsets that are kept. Offsets that reach no input cell from any
    output cell are left out (in a flat grid, two thirds of a cubic kernel).
    """
    offsets = kernel_offsets(kernel_size, centred).to(cells.device) * (dilation * tensor.stride)
    offsets = F.pad(offsets, (1, 0))  # no shift in the cloud column
    low, high = tensor.cells.amin(0), tensor.cells.amax(0)
    first, last = cells.amin(0), cells.amax(0)
    used = ((first + offsets <= high) & (last + offsets >= low)).all(1).nonzero().flatten()
    if len(used) == 0:
        return cells.new_empty(len(cells), 0), used
    offsets = offsets[used]

    # The box contains the input cells and all positions to look up. So the look-up needs no bounds
    # check, and an offset shifts keys by a constant.
    low = torch.minimum(low, first + offsets.amin(0))
    high = torch.maximum(high, last + offsets.amax(0))
    steps = _key_steps(low, high)
    keys = ((tensor.cells - low) * steps).sum(1)
    # If b is the neighbour of a at an offset, then a is the neighbour of b at minus that offset. So
    # half of the offsets need no look-up.
    mirrored = cells is tensor.cells and centred and kernel_size % 2 == 1
    searched = offsets[: len(offsets) // 2] if mirrored else offsets
    searched_keys = ((cells - low) * steps).sum(1)[:, None] + (searched * steps).sum(1)
    volume = int((high - low + 1).prod())
    if volume <= max(TABLE_CELLS, TABLE_SHARE * searched_keys.numel()):
        rows = torch.full((volume,), len(keys), device=keys.device)
        rows[keys] = torch.arange(len(keys), device=keys.device)
        matches = rows[searched_keys]
    else:
        rows = torch.searchsorted(keys, searched_keys).clamp(max=len(keys) - 1)
        matches = torch.where(keys[rows] == searched_keys, rows, len(keys))
    if not mirrored:
        return matches, used
    neighbours = matches.new_full((len(cells), len(offsets)), len(keys))
    neighbours[:, : len(searched)] = matches
    neighbours[:, len(searched)] = torch.arange(len(keys), device=keys.device)
    output, offset = (matches < len(keys)).nonzero().unbind(1)
    neighbours[matches[output, offset], len(offsets) - 1 - offset] = output
    return neighbours, used


def refuse_no_cells(cells: Tensor) -> None:
    """Raise ValueError if there is no cell at all."""
    if len(cells) == 0:
        raise ValueError(
            "there is no occupied cell in any cloud; a sparse tensor needs at least one"
        )


def unique_cells(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unique rows in lexicographic order, the unique row of each row, and the counts."""
    refuse_no_cells(position)
    low, high = position.amin(0), position.amax(0)
    keys = ((position - low) * _key_steps(low, high)).sum(1)
    keys, owner, count = keys.unique(return_inverse=True, return_counts=True)
    return _unravel(keys, low, high), owner, count


def lexicographic_order(cells: Tensor) -> Tensor:
    """Return the indices that sort the rows of cells (cells, 4)."""
    low, high = cells.amin(0), cells.amax(0)
    return ((cells - low) * _key_steps(low, high)).sum(1).argsort()


def _key_steps(low: Tensor, high: Tensor) -> Tensor:
    """Return the increase of a cell's key per step along each axis: int64 (4,).

    The keys are for cells in the box [low, high]. The order of keys is the lexicographic order of
    cells. Raises ValueError if keys need more than 64 bits.
    """
    extent = high - low + 1
    exact = high.double() - low.double() + 1  # the integer differences may overflow
    if exact.prod() > 2.0**62:
        sizes = [int(size) for size in exact[1:].tolist()]
        raise ValueError(f"the points span {sizes} cells along depth, height, width: too far apart")
    return torch.cat([extent[1:].flip(0).cumprod(0).flip(0), extent.new_ones(1)])


def _unravel(keys: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the cells with these keys in the box [low, high]: (keys, 4)."""
    steps, extent = _key_steps(low, high), high - low + 1
    return keys[:, None].div(steps, rounding_mode="floor") % extent + low
