"""Generalised sparse convolution and pooling in plain PyTorch, twice differentiable.

The semantics are those of MinkowskiEngine 0.5 (Choy et al. 2019). MinkowskiEngine's own layers lose
the second derivative, which gradient matching needs (NVIDIA/MinkowskiEngine#242). The layers here
consist of gather, matrix product and scatter, which PyTorch differentiates any number of times.

A sparse tensor is a list of occupied cells with one feature row each. Each operation first builds
its *kernel map*: for every output cell and every kernel offset, the row of the input cell at that
position, or none. The look-up ravels each cell into one integer key. It uses a table of the
bounding box, or binary search if the box is too large.

The arithmetic is dense: gather the features of the neighbours, with a row of zeros for "none", then
multiply or reduce. Only a convolution most of whose neighbours are "none" runs offset by offset.

`minkowski.py` has the same functions on MinkowskiEngine's own layers, and its kernel maps for the
layers here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.clouds import Grid


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


def from_points(
    coordinates: Tensor, features: Tensor, cloud_index: Tensor, clouds: int, grid: Grid
) -> SparseTensor:
    """Turn points into cells. The features of points in one cell are averaged.

    coordinates: (points, 3), in cells; the cell of a point is the floor of its coordinates
    features: (points, channels)
    cloud_index: (points,)
    The result equals that of MinkowskiEngine's `TensorField.sparse()`. It is differentiable in the
    features, not in the coordinates. Raises ValueError as `refuse_lost_points` does.
    """
    refuse_lost_points(coordinates)
    position = torch.cat([cloud_index[:, None], coordinates.detach().floor().long()], dim=1)
    cells, owner, count = _unique_cells(position)
    total = features.new_zeros(len(cells), features.shape[1]).index_add(0, owner, features)
    return SparseTensor(cells, total / count[:, None], clouds, grid)


def refuse_lost_points(coordinates: Tensor) -> None:
    """Raise ValueError if there is no point, or if a coordinate is NaN or beyond +-2^31."""
    refuse_nothing(coordinates)
    lost = ~(coordinates.detach().abs() < 2.0**31).all(1)
    if lost.any():
        place = coordinates[lost][0].tolist()
        raise ValueError(
            f"a point lies at {place}, which is not finite, or the points are too far apart: "
            "expected finite coordinates within 2^31 cells of 0"
        )


def from_dense(dense: Tensor) -> SparseTensor:
    """Return the cells of a dense grid in which any channel is not zero.

    dense: (clouds, channels, depth, height, width). Raises ValueError if all cells are empty.
    """
    dense = dense.movedim(1, -1)
    cells = (dense.detach() != 0).any(-1).nonzero().contiguous()
    refuse_nothing(cells)
    clouds, depth, height, width, _ = dense.shape
    return SparseTensor(cells, dense[cells.unbind(1)], clouds, (depth, height, width))


# the signature of `kernel_map`
KernelMap = Callable[[SparseTensor, Tensor, int, int, bool], tuple[Tensor, Tensor]]


def convolution(
    tensor: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    find: KernelMap | None = None,
) -> SparseTensor:
    """Generalised sparse convolution over the occupied cells.

    weight: (kernel_size^3, in, out), offsets in the order of `kernel_offsets`
    bias: (out,)
    find: function that builds the kernel map; default: `kernel_map`
    At stride 1 the output cells are the input cells. At a larger stride they are the input cells,
    floored to multiples of the new tensor stride.
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
    """Pool over occupied cells.

    mode: max, average (over the occupied cells only) or sum
    If kernel size and stride are equal, an output cell pools the block whose floor corner it is.
    Otherwise it pools the centred kernel. If maxima tie, one cell gets the whole gradient: the one
    with the lowest kernel offset. MinkowskiEngine does the same, except that its choice in blocks
    depends on the order of its hash table.
    Raises ValueError if the kernels leave gaps between strides, or for another mode.
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
    """Raise ValueError if the pooling kernels together do not cover all cells."""
    reach = kernel_size // 2 if kernel_size % 2 else kernel_size - 1
    if kernel_size != stride and reach < stride - 1:
        raise ValueError(
            f"pooling with kernel {kernel_size} and stride {stride} leaves cells out; "
            "take a larger kernel"
        )


def global_pool(tensor: SparseTensor, mode: str) -> Tensor:
    """Pool each cloud's features over all its cells: (clouds, channels), in batch order.

    mode: max, average or sum
    The sum of a cloud without cells is 0. Its maximum and its average do not exist: both raise
    ValueError.
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
    """Raise ValueError that names the first cloud without cells."""
    if len(empty := (cells_per_cloud == 0).nonzero()):
        raise ValueError(
            f"cloud {int(empty[0])} has no occupied cell, so it has no {mode}; "
            "pool by sum, or leave the cloud out"
        )


def relu(tensor: SparseTensor) -> SparseTensor:
    """Apply max(feature, 0)."""
    return tensor.with_features(tensor.features.relu())


def linear(tensor: SparseTensor, weight: Tensor, bias: Tensor | None = None) -> SparseTensor:
    """Apply the same linear map in every cell.

    weight: (out, in), bias: (out,)
    """
    return tensor.with_features(F.linear(tensor.features, weight, bias))


def batch_norm(tensor: SparseTensor, weight: Tensor, bias: Tensor) -> SparseTensor:
    """Normalise each channel to mean 0 and variance 1, then scale and shift.

    weight, bias: (channels,)
    The statistics are those of the batch, over all cells of all clouds. The variance gets an
    epsilon of 1e-5, torch's default. Raises ValueError if the batch has only one cell.
    """
    refuse_single_cell(len(tensor.cells))
    return tensor.with_features(
        F.batch_norm(tensor.features, None, None, weight, bias, training=True)
    )


def refuse_single_cell(cells: int) -> None:
    """Raise ValueError if a batch has only one cell."""
    if cells == 1:
        raise ValueError(
            "batch norm needs more than one occupied cell in the batch: "
            "a single cell has no variance"
        )


def instance_norm(tensor: SparseTensor, weight: Tensor, bias: Tensor) -> SparseTensor:
    """Normalise each channel of each cloud to mean 0 and variance 1, then scale and shift.

    The statistics are taken over the cloud's occupied cells.
    weight, bias: (channels,)
    The variance gets an epsilon of 1e-8, as in MinkowskiEngine.
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


# --- kernel maps ----------------------------------------------------------------------------------


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
    return _unique_cells(position)[0]


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
    asked = offsets[: len(offsets) // 2] if mirrored else offsets
    wanted = ((cells - low) * steps).sum(1)[:, None] + (asked * steps).sum(1)
    volume = int((high - low + 1).prod())
    if volume <= max(TABLE_CELLS, TABLE_SHARE * wanted.numel()):
        rows = torch.full((volume,), len(keys), device=keys.device)
        rows[keys] = torch.arange(len(keys), device=keys.device)
        matches = rows[wanted]
    else:
        rows = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        matches = torch.where(keys[rows] == wanted, rows, len(keys))
    if not mirrored:
        return matches, used
    neighbours = matches.new_full((len(cells), len(offsets)), len(keys))
    neighbours[:, : len(asked)] = matches
    neighbours[:, len(asked)] = torch.arange(len(keys), device=keys.device)
    output, offset = (matches < len(keys)).nonzero().unbind(1)
    neighbours[matches[output, offset], len(offsets) - 1 - offset] = output
    return neighbours, used


# A table of the bounding box is the faster look-up if it has at most TABLE_CELLS cells, or at most
# TABLE_SHARE cells per position to look up.
TABLE_CELLS, TABLE_SHARE = 1 << 16, 4


def _weighted_sum(features: Tensor, neighbours: Tensor, weight: Tensor) -> Tensor:
    """Multiply each output's neighbours by the weights of their offsets, and sum.

    Shapes: features (cells, in), neighbours (outputs, used), weight (used, in, out). Returns
    (outputs, out).

    If most neighbours exist, one matrix product covers all of them, with zeros for missing ones. If
    few exist, as on surfaces and for scattered points in space, each offset has its own product of
    existing neighbours, so that the cost grows with their number only.
    """
    present = neighbours.T < len(features)
    missing = present.numel() - int(present.sum())
    if missing <= MISSING_SHARE * present.numel() or missing * weight[
        0
    ].numel() <= MISSING_PRODUCTS * len(weight):
        return _gather(features, neighbours, empty=0.0).flatten(1) @ weight.flatten(0, 1)
    offset, output = present.nonzero().unbind(1)  # sorted by offset
    inputs = features.index_select(0, neighbours.T[offset, output]).split(
        torch.bincount(offset, minlength=len(weight)).tolist()
    )
    products = torch.cat([rows @ matrix for rows, matrix in zip(inputs, weight)])
    return products.new_zeros(len(neighbours), weight.shape[2]).index_add(0, output, products)


# One product of all neighbours is faster up to this share of missing neighbours, or up to this
# number of multiplications by their zeros per offset. Both are measured: see
# benchmarks/sparse_layers.py and bench.py.
MISSING_SHARE, MISSING_PRODUCTS = 0.5, 8e6


def _gather(features: Tensor, rows: Tensor, empty: float) -> Tensor:
    """Return the given rows, and `empty` for the row past the end: (outputs, kernel, channels)."""
    padded = torch.cat([features, features.new_full((1, features.shape[1]), empty)])
    return padded.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def refuse_nothing(cells: Tensor) -> None:
    """Raise ValueError if there is no cell at all."""
    if len(cells) == 0:
        raise ValueError(
            "there is no occupied cell in any cloud; a sparse tensor needs at least one"
        )


def _unique_cells(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unique rows in lexicographic order, the unique row of each row, and the counts."""
    refuse_nothing(position)
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
