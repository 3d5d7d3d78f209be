"""Generalised sparse convolution and pooling in plain PyTorch, twice differentiable.

The semantics are MinkowskiEngine 0.5's (Choy et al. 2019), whose own layers lose the second derivative that gradient
matching stands on (NVIDIA/MinkowskiEngine#242). Everything here is gather, matrix product and scatter, all of which
PyTorch differentiates as often as asked.

How it works. A sparse tensor is a list of occupied cells with a feature row each. Each operation first finds its
*kernel map*: for every output cell and every kernel offset, the row of the input cell that lies there, or none. Cells
are ravelled into one integer key each and looked up in a table of their bounding box, or by binary search where the box
is too large. The arithmetic is then dense: gather the neighbours' features, with a row of zeros standing for "none", and
multiply or reduce; only a convolution most of whose neighbours are "none" goes offset by offset. `minkowski.py` has the same functions on MinkowskiEngine's own layers, and its kernel maps for these.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .clouds import Grid


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on occupied cells.

    cells:      int64 (cells, 4), columns cloud, depth, height, width; unique rows in lexicographic order
    features:   float (cells, channels)
    clouds:     how many clouds the batch has, those without any cell included
    grid:       cells along depth, height, width at stride 1
    stride:     tensor stride: coordinates are multiples of it
    """

    cells: Tensor
    features: Tensor
    clouds: int
    grid: Grid
    stride: int = 1

    def with_features(self, features: Tensor) -> "SparseTensor":
        """The same cells with other features."""
        return replace(self, features=features)

    @cached_property
    def cells_per_cloud(self) -> Tensor:
        """Occupied cells per cloud: int64 (clouds,)."""
        return torch.bincount(self.cells[:, 0], minlength=self.clouds)

    def dense(self, corner: bool = False, shift: bool = False) -> Tensor:
        """Features on the dense grid, zero elsewhere: (clouds, channels, depth, height, width).

        The dense grid has ceil(size / stride) cells per axis. Two options copy what the paper's
        code does. corner: the grid keeps the size that it had at stride 1, and coordinates are
        divided by the stride all the same, so only a corner is filled. shift: the smallest
        coordinates of all cells of the batch, `first_cell`, are subtracted first.
        Raises ValueError if a cell is not on the grid.
        """
        first = first_cell(self.cells, shift)
        sizes = dense_sizes(self.cells, self.grid, self.stride, corner)
        position = self.cells.clone()
        position[:, 1:] = (position[:, 1:] - first).div(self.stride, rounding_mode="floor")
        dense = self.features.new_zeros(self.clouds, *sizes, self.features.shape[1])
        return dense.index_put(position.unbind(1), self.features).movedim(-1, 1)


def first_cell(cells: Tensor, shift: bool) -> Tensor:
    """What `dense` subtracts from coordinates, int64 (3,): the smallest along each axis, or zeros.

    The smallest are those of the whole batch, as `min_coordinate` in the paper's code.
    """
    return cells[:, 1:].amin(0) if shift else cells.new_zeros(3)


def dense_sizes(cells: Tensor, grid: Grid, stride: int, corner: bool) -> Grid:
    """Sizes of the dense grid that `SparseTensor.dense` puts the cells on. Raises ValueError if one is not on it."""
    sizes = grid if corner else tuple(-(-size // stride) for size in grid)
    position = cells[:, 1:].div(stride, rounding_mode="floor")
    if (position < 0).any() or (position >= position.new_tensor(sizes)).any():
        raise ValueError(f"a cell lies outside the grid {grid}, which a dense tensor cannot show")
    return sizes


def from_points(
    coordinates: Tensor, features: Tensor, cloud_index: Tensor, clouds: int, grid: Grid
) -> SparseTensor:
    """Points to cells: the cell is the floor of the coordinates; the features of points in one cell are averaged.

    coordinates (points, 3), features (points, channels), cloud_index (points,). The same as MinkowskiEngine's
    `TensorField.sparse()`. Differentiable in the features, not in the coordinates.
    """
    refuse_lost_points(coordinates)
    position = torch.cat([cloud_index[:, None], coordinates.detach().floor().long()], dim=1)
    cells, owner, count = _unique_cells(position)
    total = features.new_zeros(len(cells), features.shape[1]).index_add(0, owner, features)
    return SparseTensor(cells, total / count[:, None], clouds, grid)


def refuse_lost_points(coordinates: Tensor) -> None:
    """ValueError if there is no point, or if one is not finite or beyond what 32 bits can count."""
    refuse_nothing(coordinates)
    lost = ~(coordinates.detach().abs() < 2.0**31).all(1)
    if lost.any():
        place = coordinates[lost][0].tolist()
        raise ValueError(
            f"a point lies at {place}: expected finite coordinates within 2^31 cells of 0, not points too far apart"
        )


def from_dense(dense: Tensor) -> SparseTensor:
    """The cells of a dense grid (clouds, channels, depth, height, width) where any channel is not zero."""
    dense = dense.movedim(1, -1)
    cells = (dense.detach() != 0).any(-1).nonzero().contiguous()
    refuse_nothing(cells)
    return SparseTensor(cells, dense[cells.unbind(1)], len(dense), tuple(dense.shape[1:4]))


KernelMap = Callable[
    [SparseTensor, Tensor, int, int, bool], tuple[Tensor, Tensor]
]  # as `kernel_map` below


def convolution(
    tensor: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    find: KernelMap | None = None,
) -> SparseTensor:
    """Generalised sparse convolution. weight: (kernel_size^3, in, out), offsets in the order of `kernel_offsets`.

    At stride 1 the output cells are the input cells; at stride s they are the input cells floored to multiples of the
    new tensor stride. Only occupied cells are summed over. find: what makes the kernel map (default: `kernel_map`).
    """
    cells = tensor.cells if stride == 1 else strided_cells(tensor, stride)
    neighbours, used = (find or kernel_map)(tensor, cells, kernel_size, dilation, True)
    features = _weighted_sum(tensor.features, neighbours, weight.index_select(0, used))
    if bias is not None:
        features = features + bias
    return SparseTensor(cells, features, tensor.clouds, tensor.grid, tensor.stride * stride)


def pool(
    tensor: SparseTensor,
    mode: str,
    kernel_size: int = 2,
    stride: int = 2,
    find: KernelMap | None = None,
) -> SparseTensor:
    """Pooling, `mode` max, average or sum, over the occupied cells only; the average divides by their number.

    Where kernel and stride are equal, a cell pools the block that it is the floor corner of; elsewhere the centred
    kernel. In a tie of maxima one cell takes the whole gradient: the one with the lowest kernel offset (as in
    MinkowskiEngine, except that its winner in blocks depends on the order of its hash table).
    Raises ValueError for kernels that leave gaps between strides.
    """
    refuse_gaps(kernel_size, stride)
    cells = strided_cells(tensor, stride)
    neighbours, _ = (find or kernel_map)(tensor, cells, kernel_size, 1, kernel_size != stride)
    if mode == "max":
        features = _gather(tensor.features, neighbours, empty=-torch.inf).max(dim=1).values
    elif mode in ("average", "sum"):
        features = _gather(tensor.features, neighbours, empty=0.0).sum(1)
        if mode == "average":
            features = features / (neighbours < len(tensor.cells)).sum(1, keepdim=True)
    else:
        raise ValueError(f"pooling mode is {mode!r}; expected 'max', 'average' or 'sum'")
    return SparseTensor(cells, features, tensor.clouds, tensor.grid, tensor.stride * stride)


def refuse_gaps(kernel_size: int, stride: int) -> None:
    """ValueError if pooling kernels do not cover all cells between them."""
    reach = kernel_size // 2 if kernel_size % 2 else kernel_size - 1
    if kernel_size != stride and reach < stride - 1:
        raise ValueError(
            f"pooling with kernel {kernel_size} and stride {stride} leaves cells out; take a larger kernel"
        )


def global_pool(tensor: SparseTensor, mode: str) -> Tensor:
    """Each cloud's features pooled over all its cells, `mode` max, average or sum: (clouds, channels), in batch order.

    A cloud without any cell has the sum 0; its maximum or average does not exist, which is a ValueError.
    """
    if mode not in ("max", "average", "sum"):
        raise ValueError(f"pooling mode is {mode!r}; expected 'max', 'average' or 'sum'")
    count = tensor.cells_per_cloud
    if mode in ("sum", "average"):
        total = tensor.features.new_zeros(tensor.clouds, tensor.features.shape[1])
        total = total.index_add(0, tensor.cells[:, 0], tensor.features)
        if mode == "sum":
            return total
    refuse_empty_clouds(count, mode)
    if mode == "average":
        return total / count[:, None]
    rank = (
        torch.arange(len(tensor.cells), device=count.device)
        - (count.cumsum(0) - count)[tensor.cells[:, 0]]
    )
    rows = count.new_full((tensor.clouds, int(count.max())), len(tensor.cells))
    rows[tensor.cells[:, 0], rank] = torch.arange(len(tensor.cells), device=count.device)
    return _gather(tensor.features, rows, empty=-torch.inf).max(dim=1).values


def refuse_empty_clouds(cells_per_cloud: Tensor, mode: str) -> None:
    """ValueError naming the first cloud without any cell."""
    if len(empty := (cells_per_cloud == 0).nonzero()):
        raise ValueError(
            f"cloud {int(empty[0])} has no occupied cell, so it has no {mode}; pool by sum, or leave it out"
        )


def relu(tensor: SparseTensor) -> SparseTensor:
    """max(feature, 0)."""
    return tensor.with_features(tensor.features.relu())


def linear(tensor: SparseTensor, weight: Tensor, bias: Tensor | None = None) -> SparseTensor:
    """The same linear map in every cell. weight: (out, in), bias: (out,)."""
    return tensor.with_features(F.linear(tensor.features, weight, bias))


def batch_norm(tensor: SparseTensor, weight: Tensor, bias: Tensor) -> SparseTensor:
    """Features set to mean 0 and variance 1 per channel over all cells of all clouds, then scaled and shifted.

    weight and bias: (channels,). The statistics are the batch's own; 1e-5 stands beside the variance, torch's default.
    """
    refuse_single_cell(len(tensor.cells))
    return tensor.with_features(
        F.batch_norm(tensor.features, None, None, weight, bias, training=True)
    )


def refuse_single_cell(cells: int) -> None:
    """ValueError if a batch has one cell only."""
    if cells == 1:
        raise ValueError(
            "batch norm needs more than one occupied cell in the batch: a single one has no variance"
        )


def instance_norm(tensor: SparseTensor, weight: Tensor, bias: Tensor) -> SparseTensor:
    """Each cloud's features set to mean 0 and variance 1 per channel over its occupied cells, then scaled and shifted.

    weight and bias: (channels,). The 1e-8 beside the variance is MinkowskiEngine's.
    """
    cloud = tensor.cells[:, 0]
    count = tensor.cells_per_cloud.clamp(min=1)[:, None]

    def mean_per_cloud(features: Tensor) -> Tensor:
        total = features.new_zeros(tensor.clouds, features.shape[1]).index_add(0, cloud, features)
        return (total / count).index_select(0, cloud)

    centred = tensor.features - mean_per_cloud(tensor.features)
    return tensor.with_features(
        centred * (mean_per_cloud(centred**2) + 1e-8).rsqrt() * weight + bias
    )


# --- kernel maps --------------------------------------------------------------------------------------------------


def kernel_offsets(kernel_size: int, centred: bool) -> Tensor:
    """Offsets of a cubic kernel, int64 (kernel_size^3, 3), the first axis running fastest as in MinkowskiEngine.

    Odd kernels run from -(k // 2) to k // 2 if centred; even ones, and kernels that are not, from 0 to k - 1.
    """
    start = -(kernel_size // 2) if centred and kernel_size % 2 else 0
    line = torch.arange(start, start + kernel_size)
    return torch.cartesian_prod(line, line, line).flip(1)


def strided_cells(tensor: SparseTensor, stride: int) -> Tensor:
    """The cells of `tensor` floored to multiples of its tensor stride times `stride`: int64 (outputs, 4)."""
    step = tensor.stride * stride
    position = tensor.cells.clone()
    position[:, 1:] = position[:, 1:].div(step, rounding_mode="floor") * step
    return _unique_cells(position)[0]


def kernel_map(
    tensor: SparseTensor, cells: Tensor, kernel_size: int, dilation: int = 1, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """Which input cell lies at which kernel offset of which output cell.

    cells: int64 (outputs, 4); kernel_size, dilation: in units of the input's tensor stride; centred: see `kernel_offsets`.
    Returns `neighbours` int64 (outputs, used), rows of `tensor` or len(tensor.cells) for "none", and `used`, the indices of
    the offsets kept: those out of reach of every cell are left out (in a flat grid two thirds of a cubic kernel).
    """
    offsets = kernel_offsets(kernel_size, centred).to(cells.device) * (dilation * tensor.stride)
    offsets = F.pad(offsets, (1, 0))  # the cloud column never shifts
    low, high = tensor.cells.amin(0), tensor.cells.amax(0)
    first, last = cells.amin(0), cells.amax(0)
    used = ((first + offsets <= high) & (last + offsets >= low)).all(1).nonzero().flatten()
    if len(used) == 0:
        return cells.new_empty(len(cells), 0), used
    offsets = offsets[used]

    # A box that holds the input and everything asked for: then looking up needs no bounds, and keys shift by constants.
    low = torch.minimum(low, first + offsets.amin(0))
    high = torch.maximum(high, last + offsets.amax(0))
    steps = _key_steps(low, high)
    keys = ((tensor.cells - low) * steps).sum(1)
    # Seen from the other side, a cell's neighbour at an offset has it at minus that offset: half need not be looked up.
    mirrored = cells is tensor.cells and centred and kernel_size % 2 == 1
    asked = offsets[: len(offsets) // 2] if mirrored else offsets
    wanted = ((cells - low) * steps).sum(1)[:, None] + (asked * steps).sum(1)
    volume = int((high - low + 1).prod())
    if volume <= max(TABLE_CELLS, TABLE_SHARE * wanted.numel()):
        rows = torch.full((volume,), len(keys), device=keys.device)
        rows[keys] = torch.arange(len(keys), device=keys.device)
        found = rows[wanted]
    else:
        rows = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        found = torch.where(keys[rows] == wanted, rows, len(keys))
    if not mirrored:
        return found, used
    neighbours = found.new_full((len(cells), len(offsets)), len(keys))
    neighbours[:, : len(asked)] = found
    neighbours[:, len(asked)] = torch.arange(len(keys), device=keys.device)
    output, offset = (found < len(keys)).nonzero().unbind(1)
    neighbours[found[output, offset], len(offsets) - 1 - offset] = output
    return neighbours, used


# A table of the bounding box is the faster way to look up, if it is not much larger than what is looked up in it.
TABLE_CELLS, TABLE_SHARE = 1 << 16, 4


def _weighted_sum(features: Tensor, neighbours: Tensor, weight: Tensor) -> Tensor:
    """Each output's neighbours, by the weights of their offsets: (cells, in), (outputs, used), (used, in, out) to (outputs, out).

    Where most neighbours are there, one matrix product of all, zeros for those that are not. Where few are, as on surfaces and
    scattered points in space, a product for each offset of the neighbours there are: cost grows with them alone.
    """
    there = neighbours.T < len(features)
    missing = there.numel() - int(there.sum())
    if missing <= MISSING_SHARE * there.numel() or missing * weight[
        0
    ].numel() <= MISSING_PRODUCTS * len(weight):
        return _gather(features, neighbours, empty=0.0).flatten(1) @ weight.flatten(0, 1)
    offset, output = there.nonzero().unbind(1)  # in order of offset
    found = features.index_select(0, neighbours.T[offset, output]).split(
        torch.bincount(offset, minlength=len(weight)).tolist()
    )
    products = torch.cat([rows @ matrix for rows, matrix in zip(found, weight)])
    return products.new_zeros(len(neighbours), weight.shape[2]).index_add(0, output, products)


# Up to which one product of all is faster: the share of the neighbours that are missing, and multiplications by their zeros per
# offset (measured; benchmarks/sparse_layers.py and bench.py show the result).
MISSING_SHARE, MISSING_PRODUCTS = 0.5, 8e6


def _gather(features: Tensor, rows: Tensor, empty: float) -> Tensor:
    """(outputs, kernel, channels): the rows asked for, and `empty` where the row is one past the end."""
    padded = torch.cat([features, features.new_full((1, features.shape[1]), empty)])
    return padded.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def refuse_nothing(cells: Tensor) -> None:
    """ValueError if there is no cell at all."""
    if len(cells) == 0:
        raise ValueError(
            "there is no occupied cell in any cloud; a sparse tensor needs at least one"
        )


def _unique_cells(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct rows in lexicographic order, the distinct row that each row is, and how many rows each one stands for."""
    refuse_nothing(position)
    low, high = position.amin(0), position.amax(0)
    keys = ((position - low) * _key_steps(low, high)).sum(1)
    keys, owner, count = keys.unique(return_inverse=True, return_counts=True)
    return _unravel(keys, low, high), owner, count


def lexicographic_order(cells: Tensor) -> Tensor:
    """Indices that sort cells (cells, 4)."""
    low, high = cells.amin(0), cells.amax(0)
    return ((cells - low) * _key_steps(low, high)).sum(1).argsort()


def _key_steps(low: Tensor, high: Tensor) -> Tensor:
    """What one step along each axis adds to the key of a cell in the box [low, high]: int64 (4,).

    The order of keys is the lexicographic order of cells. Raises ValueError if keys would not fit into 64 bits.
    """
    extent = high - low + 1
    exact = high.double() - low.double() + 1  # the integers themselves may have overflowed
    if exact.prod() > 2.0**62:
        sizes = [int(size) for size in exact[1:].tolist()]
        raise ValueError(f"the points span {sizes} cells along depth, height, width: too far apart")
    return torch.cat([extent[1:].flip(0).cumprod(0).flip(0), extent.new_ones(1)])


def _unravel(keys: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The cells (keys, 4) that have these keys in the box."""
    steps, extent = _key_steps(low, high), high - low + 1
    return keys[:, None].div(steps, rounding_mode="floor") % extent + low
