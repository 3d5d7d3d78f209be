"""MinkowskiEngine's own layers under the names of `sparse.py`, and its kernel maps.

Only this file imports MinkowskiEngine, which is optional: `make minkowski` builds it. Every layer
is MinkowskiEngine's own and is called with the caller's weights, so that one network runs on either
library. The code around the layers guards against three problems of MinkowskiEngine: rows in the
order of a hash table, clouds without cells that vanish from the batch, and an assertion that fails
for single cells.

The layers are differentiable once. Convolution, pooling and normalisation silently return gradients
without a graph (NVIDIA/MinkowskiEngine#242). `second_order.py` measures the effect.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import EngineMissing, InputError
from ..geometry.clouds import Grid
from . import sparse
from .cells import SparseTensor, dense_sizes, first_cell, lexicographic_order

if TYPE_CHECKING:
    import MinkowskiEngine  # pyright: ignore[reportMissingImports] optional

HOW_TO_GET_IT = (
    "build it with `make minkowski` (Linux, a C++ compiler, about 4 minutes), or take "
    "network.name=sparse, which computes the same and has the second derivatives that "
    "MinkowskiEngine lacks"
)


@functools.cache
def engine():
    """Return the module MinkowskiEngine.

    Raises EngineMissing with instructions if it is missing or does not load.
    """
    try:
        with warnings.catch_warnings():
            # `_engine_on` reports this when CUDA is needed
            warnings.filterwarnings("ignore", message=".*CPU_ONLY")
            import MinkowskiEngine  # pyright: ignore[reportMissingImports] optional
    except ModuleNotFoundError as missing:
        if missing.name != "MinkowskiEngine":
            raise
        raise EngineMissing(f"MinkowskiEngine is not installed; {HOW_TO_GET_IT}") from None
    except ImportError as problem:
        raise EngineMissing(
            f"MinkowskiEngine is installed but does not load ({problem}): "
            f"it was built for another PyTorch; {HOW_TO_GET_IT}"
        ) from None
    return MinkowskiEngine


@dataclass(frozen=True, eq=False)
class MinkowskiTensor:
    """A `MinkowskiEngine.SparseTensor` together with the number of clouds and the grid.

    tensor: its rows are in MinkowskiEngine's order
    clouds: number of clouds in the batch, including clouds without cells
    grid: as in `SparseTensor`
    """

    tensor: "MinkowskiEngine.SparseTensor"
    clouds: int
    grid: Grid

    @property
    def cells(self) -> Tensor:
        """Cells in the order of the rows: int64 (cells, 4), columns cloud, depth, height, width."""
        return self.tensor.C.long()

    @property
    def features(self) -> Tensor:
        """Features: (cells, channels)."""
        return self.tensor.F

    @property
    def stride(self) -> int:
        """Tensor stride."""
        return self.tensor.tensor_stride[0]

    @functools.cached_property
    def cells_per_cloud(self) -> Tensor:
        """Number of occupied cells per cloud: int64 (clouds,)."""
        return torch.bincount(self.cells[:, 0], minlength=self.clouds)

    def dense(self, corner: bool = False, shift: bool = False) -> Tensor:
        """Do the same as `SparseTensor.dense`, with MinkowskiEngine's own `dense`."""
        sizes = dense_sizes(self.cells, self.grid, self.stride, corner)
        # MinkowskiEngine accepts min_coordinate on the CPU only
        first = first_cell(self.cells, shift).int().cpu() if shift else None
        shape = torch.Size([self.clouds, self.features.shape[1], *sizes])
        return self.tensor.dense(shape, min_coordinate=first)[0]

    def to_sparse(self) -> SparseTensor:
        """Return the same cells and features as a `SparseTensor`. The graph is kept."""
        cells = self.cells
        order = lexicographic_order(cells)
        return SparseTensor(cells[order], self.features[order], self.clouds, self.grid, self.stride)


def from_points(
    coordinates: Tensor, features: Tensor, cloud_index: Tensor, clouds: int, grid: Grid
) -> MinkowskiTensor:
    """Do the same as `sparse.from_points`, with MinkowskiEngine's `TensorField(...).sparse()`.

    The paper's code does the same. The result is copied into a new tensor: if points share a cell
    and the batch has several clouds, MinkowskiEngine's global pooling and instance norm would
    otherwise take the field's rows for those of the cells and return wrong values.
    """
    me = _engine_on(coordinates.device)
    sparse.refuse_lost_points(coordinates)
    position = torch.cat([cloud_index[:, None], coordinates.detach().floor()], dim=1).float()
    field = me.TensorField(
        features.contiguous(),
        coordinates=position,
        quantization_mode=me.SparseTensorQuantizationMode.UNWEIGHTED_AVERAGE,
    )
    averaged = field.sparse()
    return MinkowskiTensor(me.SparseTensor(averaged.F, coordinates=averaged.C), clouds, grid)


def from_sparse(tensor: SparseTensor) -> MinkowskiTensor:
    """Return the same cells and features as a `MinkowskiTensor`. The graph is kept."""
    me = _engine_on(tensor.cells.device)
    converted = me.SparseTensor(
        tensor.features.contiguous(),
        coordinates=tensor.cells.int().contiguous(),
        tensor_stride=tensor.stride,
    )
    return MinkowskiTensor(converted, tensor.clouds, tensor.grid)


def from_dense(dense: Tensor) -> MinkowskiTensor:
    """Do the same as `sparse.from_dense`."""
    return from_sparse(sparse.from_dense(dense))


def convolution(
    tensor: MinkowskiTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> MinkowskiTensor:
    """Do the same as `sparse.convolution`, with MinkowskiConvolution."""
    layer = _convolution(kernel_size, stride, dilation, bias is not None)
    # MinkowskiEngine stores a kernel of one cell without stride as a matrix (in, out)
    weights = {"kernel": (weight[0] if layer.use_mm else weight).contiguous()}
    if bias is not None:
        weights["bias"] = bias[None]
    return _apply(layer, tensor, weights)


def pool(
    tensor: MinkowskiTensor, mode: str, kernel_size: int = 2, stride: int = 2
) -> MinkowskiTensor:
    """Do the same as `sparse.pool`, with MinkowskiEngine's layer of that mode.

    These are MinkowskiMaxPooling, MinkowskiAvgPooling and MinkowskiSumPooling.
    """
    sparse.refuse_gaps(kernel_size, stride)
    return _apply(_pooling(mode, kernel_size, stride), tensor, {})


def global_pool(tensor: MinkowskiTensor, mode: str) -> Tensor:
    """Do the same as `sparse.global_pool`, with MinkowskiEngine's global pooling, in batch order.

    MinkowskiEngine returns the rows in the order of a hash table, without rows for empty clouds. In
    its default mode, the order of sums and averages even differs from that of the coordinates that
    name their clouds. In the mode used here the two orders agree.
    """
    me, name = engine(), _name_of(mode)
    if mode != "sum":
        sparse.refuse_empty_clouds(tensor.cells_per_cloud, mode)
    if _one_cell_per_cloud(tensor):
        cloud, pooled = tensor.cells[:, 0], tensor.features
    elif mode == "max" and int((tensor.cells_per_cloud > 0).sum()) == 1:
        # for a single cloud, MinkowskiEngine sends the gradient to wrong cells; this expression
        # equals its forward pass
        cloud, pooled = tensor.cells[:1, 0], tensor.features.max(dim=0, keepdim=True).values
    else:
        kind = getattr(me.PoolingMode, f"GLOBAL_{name.upper()}_POOLING_KERNEL")
        result = getattr(me, f"MinkowskiGlobal{name}Pooling")(kind)(tensor.tensor)
        cloud, pooled = result.C[:, 0].long(), result.F
    return pooled.new_zeros(tensor.clouds, pooled.shape[1]).index_add(0, cloud, pooled)


def relu(tensor: MinkowskiTensor) -> MinkowskiTensor:
    """Do the same as `sparse.relu`, with MinkowskiReLU."""
    return _apply(engine().MinkowskiReLU(), tensor, {})


def linear(tensor: MinkowskiTensor, weight: Tensor, bias: Tensor | None = None) -> MinkowskiTensor:
    """Do the same as `sparse.linear`, with MinkowskiLinear."""
    layer = _without_drawing(engine().MinkowskiLinear, 1, 1, bias=bias is not None)
    return _apply(
        layer, tensor, {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    )


def instance_norm(tensor: MinkowskiTensor, weight: Tensor, bias: Tensor) -> MinkowskiTensor:
    """Do the same as `sparse.instance_norm`, with MinkowskiInstanceNorm."""
    layer = engine().MinkowskiInstanceNorm(1)
    if _one_cell_per_cloud(tensor):  # MinkowskiEngine's global pooling fails an assertion here
        zero = tensor.features - tensor.features
        return _with_features(tensor, zero * weight + bias)
    return _apply(layer, tensor, {"weight": weight[None], "bias": bias[None]})


def batch_norm(tensor: MinkowskiTensor, weight: Tensor, bias: Tensor) -> MinkowskiTensor:
    """Do the same as `sparse.batch_norm`, with MinkowskiBatchNorm."""
    sparse.refuse_single_cell(len(tensor.features))
    layer = engine().MinkowskiBatchNorm(len(weight), track_running_stats=False)
    return _apply(layer, tensor, {"bn.weight": weight, "bn.bias": bias})


def kernel_map(
    tensor: SparseTensor, cells: Tensor, kernel_size: int, dilation: int = 1, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """Build the table of `cells.kernel_map` with MinkowskiEngine's coordinate manager.

    Columns that are empty are left out.
    """
    me = _engine_on(cells.device)
    kind = me.CoordinateMapType.CUDA if cells.is_cuda else me.CoordinateMapType.CPU
    manager = me.CoordinateManager(D=3, coordinate_map_type=kind)
    inputs, input_rows = _insert(manager, tensor.cells, tensor.stride, "input")
    outputs, output_rows = (inputs, input_rows)
    stride = 1
    if cells is not tensor.cells:
        # pooling finds blocks by the floor of the cells, whatever the stride between the maps is
        stride = kernel_size if not centred else 1
        outputs, output_rows = _insert(manager, cells, tensor.stride * stride, "output")
    maps = manager.kernel_map(inputs, outputs, stride, kernel_size, dilation, is_pool=not centred)
    pairs = torch.cat([cells.new_empty(2, 0), *(pair.long() for pair in maps.values())], dim=1)
    source, target = input_rows[pairs[0]], output_rows[pairs[1]]

    if centred:
        sizes = cells.new_tensor([pair.shape[1] for pair in maps.values()])
        offset = cells.new_tensor(list(maps)).repeat_interleave(sizes)
    else:  # the whole block has one map, so the offset is computed from the cells
        shift = (tensor.cells[source, 1:] - cells[target, 1:]) // tensor.stride
        offset = (shift * shift.new_tensor([1, kernel_size, kernel_size**2])).sum(1)
    used, column = offset.unique(return_inverse=True)
    neighbours = cells.new_full((len(cells), len(used)), len(tensor.cells))
    neighbours[target, column] = source
    return neighbours, used


# --- calls of MinkowskiEngine's layers ------------------------------------------------------------


def _engine_on(device: torch.device):
    if device.type == "cuda" and not engine().is_cuda_available():
        raise InputError(
            "the installed MinkowskiEngine was built without CUDA; "
            "run `make minkowski CUDA=yes` on this machine, or take --device cpu"
        )
    return engine()


def _apply(
    layer: nn.Module, tensor: MinkowskiTensor, weights: dict[str, Tensor]
) -> MinkowskiTensor:
    """Call a layer of MinkowskiEngine with the given weights in place of its own."""
    result = torch.func.functional_call(layer, weights, (tensor.tensor,))
    return MinkowskiTensor(result, tensor.clouds, tensor.grid)


def _with_features(tensor: MinkowskiTensor, features: Tensor) -> MinkowskiTensor:
    place = {
        "coordinate_map_key": tensor.tensor.coordinate_map_key,
        "coordinate_manager": tensor.tensor.coordinate_manager,
    }
    return MinkowskiTensor(engine().SparseTensor(features, **place), tensor.clouds, tensor.grid)


def _without_drawing(make, *sizes, **settings) -> nn.Module:
    """Create a layer whose own weights are never used.

    This leaves torch's global random state unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        return make(*sizes, **settings)


@functools.cache
def _convolution(kernel_size: int, stride: int, dilation: int, bias: bool) -> nn.Module:
    sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    return _without_drawing(engine().MinkowskiConvolution, 1, 1, **sizes, bias=bias, dimension=3)


@functools.cache
def _pooling(mode: str, kernel_size: int, stride: int) -> nn.Module:
    return getattr(engine(), f"Minkowski{_name_of(mode)}Pooling")(
        kernel_size=kernel_size, stride=stride, dimension=3
    )


def _name_of(mode: str) -> str:
    names = {"max": "Max", "average": "Avg", "sum": "Sum"}
    if mode not in names:
        raise ValueError(f"pooling mode is {mode!r}; expected 'max', 'average' or 'sum'")
    return names[mode]


def _one_cell_per_cloud(tensor: MinkowskiTensor) -> bool:
    return bool(tensor.cells_per_cloud.max() == 1)


def _insert(manager, cells: Tensor, stride: int, name: str) -> tuple[object, Tensor]:
    """Insert cells. Returns their key, and the row of `cells` for each row of the manager."""
    key, (rows, _) = manager.insert_and_map(cells.int().contiguous(), stride, name)
    return key, rows.long()
