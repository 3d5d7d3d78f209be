"""Generalised sparse convolution and pooling in plain PyTorch, twice differentiable.

The semantics are MinkowskiEngine 0.5's (Choy et al. 2019), whose own layers lose the second derivative that gradient
matching stands on (NVIDIA/MinkowskiEngine#242). Everything here is gather, matrix product and scatter, all of which
PyTorch differentiates as often as asked.

How it works. A sparse tensor is a list of occupied cells with a feature row each. Each operation first finds its
*kernel map*: for every output cell and every kernel offset, the row of the input cell that lies there, or none. Cells
are ravelled into one integer key each, kept sorted, and looked up by binary search. The arithmetic is then dense: gather
the neighbours' features, with a row of zeros standing for "none", and multiply or reduce.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
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

    def dense(self, corner: bool = False) -> Tensor:
        """Features on the dense grid, zero where no cell is: (clouds, channels, depth, height, width).

        The dense grid has ceil(size / stride) cells per axis. With `corner` it keeps the size it had at stride 1 while
        coordinates are divided by the stride all the same, so that only a corner is filled: what the paper's
        MinkowskiEngine network does in front of its linear layer. Raises ValueError if a cell is not on the grid.
        """
        sizes = self.grid if corner else tuple(-(-size // self.stride) for size in self.grid)
        position = self.cells.clone()
        position[:, 1:] //= self.stride
        if (position < 0).any() or (position[:, 1:] >= position.new_tensor(sizes)).any():
            raise ValueError(f"a cell lies outside the grid {self.grid}, which a dense tensor cannot show")
        dense = self.features.new_zeros(self.clouds, *sizes, self.features.shape[1])
        return dense.index_put(position.unbind(1), self.features).movedim(-1, 1)


def from_points(coordinates: Tensor, features: Tensor, cloud_index: Tensor, clouds: int, grid: Grid) -> SparseTensor:
    """Points to cells: the cell is the floor of the coordinates; the features of points in one cell are averaged.

    coordinates (points, 3), features (points, channels), cloud_index (points,). The same as MinkowskiEngine's
    `TensorField.sparse()`. Differentiable in the features, not in the coordinates.
    """
    position = torch.cat([cloud_index[:, None], coordinates.detach().floor().long()], dim=1)
    cells, owner, count = _unique_cells(position)
    total = features.new_zeros(len(cells), features.shape[1]).index_add(0, owner, features)
    return SparseTensor(cells, total / count[:, None], clouds, grid)


def from_dense(dense: Tensor) -> SparseTensor:
    """The cells of a dense grid (clouds, channels, depth, height, width) where any channel is not zero."""
    dense = dense.movedim(1, -1)
    cells = (dense.detach() != 0).any(-1).nonzero().contiguous()
    _refuse_nothing(cells)
    return SparseTensor(cells, dense[cells.unbind(1)], len(dense), tuple(dense.shape[1:4]))


def convolution(
    tensor: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> SparseTensor:
    """Generalised sparse convolution. weight: (kernel_size^3, in, out), offsets in the order of `kernel_offsets`.

    At stride 1 the output cells are the input cells; at stride s they are the input cells floored to multiples of the
    new tensor stride. Only occupied cells are summed over.
    """
    cells = tensor.cells if stride == 1 else strided_cells(tensor, stride)
    neighbours, used = kernel_map(tensor, cells, kernel_offsets(kernel_size, centred=True) * dilation)
    gathered = _gather(tensor.features, neighbours, empty=0.0).flatten(1)  # (outputs, used offsets x in)
    features = gathered @ weight.index_select(0, used).flatten(0, 1)
    if bias is not None:
        features = features + bias
    return SparseTensor(cells, features, tensor.clouds, tensor.grid, tensor.stride * stride)


def pool(tensor: SparseTensor, mode: str, kernel_size: int = 2, stride: int = 2) -> SparseTensor:
    """Max or average pooling over the occupied cells only; the average divides by their number.

    Where kernel and stride are equal, a cell pools the block that it is the floor corner of; elsewhere the centred
    kernel. In a tie of maxima one cell takes the whole gradient: the one with the lowest kernel offset.
    Raises ValueError for kernels that leave gaps between strides.
    """
    reach = kernel_size // 2 if kernel_size % 2 else kernel_size - 1
    if kernel_size != stride and reach < stride - 1:
        raise ValueError(f"pooling with kernel {kernel_size} and stride {stride} leaves cells out; take a larger kernel")
    cells = strided_cells(tensor, stride)
    neighbours, _ = kernel_map(tensor, cells, kernel_offsets(kernel_size, centred=kernel_size != stride))
    if mode == "max":
        features = _gather(tensor.features, neighbours, empty=-torch.inf).max(dim=1).values
    elif mode == "average":
        count = (neighbours < len(tensor.cells)).sum(1, keepdim=True)
        features = _gather(tensor.features, neighbours, empty=0.0).sum(1) / count
    else:
        raise ValueError(f"pooling mode is {mode!r}; expected 'max' or 'average'")
    return SparseTensor(cells, features, tensor.clouds, tensor.grid, tensor.stride * stride)


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
    return tensor.with_features(centred * (mean_per_cloud(centred**2) + 1e-8).rsqrt() * weight + bias)


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


def kernel_map(tensor: SparseTensor, cells: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Which input cell lies at which kernel offset of which output cell.

    cells: int64 (outputs, 4); offsets: (kernel volume, 3), in units of the input's tensor stride.
    Returns `neighbours` int64 (outputs, used), rows of `tensor` or len(tensor.cells) for "none", and `used`, the offsets
    kept: those out of reach of every cell are left out (in a flat grid two thirds of a cubic kernel).
    """
    offsets = torch.nn.functional.pad(offsets * tensor.stride, (1, 0)).to(cells.device)  # the cloud column never shifts
    low, high = tensor.cells.amin(0), tensor.cells.amax(0)
    in_reach = ((cells.amin(0) + offsets <= high) & (cells.amax(0) + offsets >= low)).all(1)
    used = in_reach.nonzero().flatten()
    wanted = cells[:, None, :] + offsets[used]
    inside = ((wanted >= low) & (wanted <= high)).all(-1)
    keys = _ravel(tensor.cells, low, high)
    wanted_keys = _ravel(wanted.clamp(low, high), low, high)
    rows = torch.searchsorted(keys, wanted_keys.contiguous()).clamp(max=len(keys) - 1)
    found = inside & (keys[rows] == wanted_keys)
    return torch.where(found, rows, len(keys)), used


def _gather(features: Tensor, rows: Tensor, empty: float) -> Tensor:
    """(outputs, kernel, channels): the rows asked for, and `empty` where the row is one past the end."""
    padded = torch.cat([features, features.new_full((1, features.shape[1]), empty)])
    return padded.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _refuse_nothing(cells: Tensor) -> None:
    if len(cells) == 0:
        raise ValueError("there is no occupied cell in any cloud; a sparse tensor needs at least one")


def _unique_cells(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct rows in lexicographic order, the distinct row that each row is, and how many rows each one stands for."""
    _refuse_nothing(position)
    low, high = position.amin(0), position.amax(0)
    keys, owner, count = _ravel(position, low, high).unique(return_inverse=True, return_counts=True)
    return _unravel(keys, low, high), owner, count


def _ravel(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """One int64 per row of (..., 4) within the box [low, high]; the order of keys is the lexicographic order of rows."""
    extent = high - low + 1
    key = torch.zeros_like(position[..., 0])
    for axis in range(position.shape[-1]):
        key = key * extent[axis] + (position[..., axis] - low[axis])
    return key


def _unravel(keys: Tensor, low: Tensor, high: Tensor) -> Tensor:
    extent = (high - low + 1).tolist()
    columns = []
    for size in reversed(extent):
        columns.append(keys % size)
        keys = keys.div(size, rounding_mode="floor")
    return torch.stack(columns[::-1], dim=1) + low
