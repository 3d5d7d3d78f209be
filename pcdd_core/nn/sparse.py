"""Generalised sparse convolution and pooling in plain PyTorch, twice differentiable.

The semantics are those of MinkowskiEngine 0.5 (Choy et al. 2019). MinkowskiEngine's own layers lose
the second derivative, which gradient matching needs (NVIDIA/MinkowskiEngine#242). The layers here
consist of gather, matrix product and scatter, which PyTorch differentiates any number of times.

Each operation first builds its kernel map, see `cells`. The arithmetic is dense: gather the
features of the neighbours, with a row of zeros for "none", then multiply or reduce. Only a
convolution most of whose neighbours are "none" runs offset by offset.

`minkowski.py` has the same functions on MinkowskiEngine's own layers, and its kernel maps for the
layers here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.clouds import Grid
from .cells import KernelMap, SparseTensor, kernel_map, refuse_no_cells, strided_cells, unique_cells


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
    cells, owner, count = unique_cells(position)
    total = features.new_zeros(len(cells), features.shape[1]).index_add(0, owner, features)
    return SparseTensor(cells, total / count[:, None], clouds, grid)


def refuse_lost_points(coordinates: Tensor) -> None:
    """Raise ValueError if there is no point, or if a coordinate is NaN or beyond +-2^31."""
    refuse_no_cells(coordinates)
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
    refuse_no_cells(cells)
    clouds, depth, height, width, _ = dense.shape
    return SparseTensor(cells, dense[cells.unbind(1)], clouds, (depth, height, width))


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
