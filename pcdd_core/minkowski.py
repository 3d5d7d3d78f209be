"""MinkowskiEngine's own layers under the names of `sparse.py`, and its kernel maps for the layers there.

The one file that imports MinkowskiEngine, which is optional: `make minkowski` builds it. Every layer is MinkowskiEngine's,
called with weights of ours, so that one network runs on either. What stands in front of them guards against its traps:
rows in the order of a hash table, clouds without cells that vanish from the batch, an assertion about single cells.

Its layers are differentiable once. Convolution, pooling and normalisation hand back gradients without a graph
(NVIDIA/MinkowskiEngine#242), silently: see `second_order.py` for what that costs.
"""

import functools
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import sparse
from .clouds import Grid
from .errors import EngineMissing, InputError
from .sparse import SparseTensor

HOW_TO_GET_IT = (
    "build it with `make minkowski` (Linux, a C++ compiler, about 4 minutes), or take network.backend=sparse, which computes "
    "the same and has the second derivatives that MinkowskiEngine lacks"
)


@functools.cache
def engine():
    """The module MinkowskiEngine. Raises EngineMissing saying how to get it where it is missing or does not load."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*CPU_ONLY"
            )  # said when CUDA is asked for, by `_engine_on`
            import MinkowskiEngine
    except ModuleNotFoundError as missing:
        if missing.name != "MinkowskiEngine":
            raise
        raise EngineMissing(f"MinkowskiEngine is not installed; {HOW_TO_GET_IT}") from None
    except ImportError as problem:
        raise EngineMissing(
            f"MinkowskiEngine is installed but does not load ({problem}): it was built for another PyTorch; {HOW_TO_GET_IT}"
        ) from None
    return MinkowskiEngine


@dataclass(frozen=True, eq=False)
class MinkowskiTensor:
    """A `MinkowskiEngine.SparseTensor` with what it does not know itself: how many clouds there are, and their grid.

    tensor: its rows are in MinkowskiEngine's order; clouds: those without any cell included; grid: as in `SparseTensor`.
    """

    tensor: "MinkowskiEngine.SparseTensor"  # noqa: F821
    clouds: int
    grid: Grid

    @property
    def cells(self) -> Tensor:
        """int64 (cells, 4): cloud, depth, height, width; in the order of the rows."""
        return self.tensor.C.long()

    @property
    def features(self) -> Tensor:
        """(cells, channels)."""
        return self.tensor.F

    @property
    def stride(self) -> int:
        """The tensor stride."""
        return self.tensor.tensor_stride[0]

    @functools.cached_property
    def cells_per_cloud(self) -> Tensor:
        """Occupied cells per cloud: int64 (clouds,)."""
        return torch.bincount(self.cells[:, 0], minlength=self.clouds)

    def dense(self, corner: bool = False, shift: bool = False) -> Tensor:
        """As `SparseTensor.dense`, computed by MinkowskiEngine's own `dense`."""
        sizes = sparse.dense_sizes(self.cells, self.grid, self.stride, corner)
        # MinkowskiEngine takes this one from the CPU only
        first = sparse.first_cell(self.cells, shift).int().cpu() if shift else None
        shape = torch.Size([self.clouds, self.features.shape[1], *sizes])
        return self.tensor.dense(shape, min_coordinate=first)[0]

    def to_sparse(self) -> SparseTensor:
        """The same cells and features as a `SparseTensor`, with a graph back to this one."""
        cells = self.cells
        order = sparse.lexicographic_order(cells)
        return SparseTensor(cells[order], self.features[order], self.clouds, self.grid, self.stride)


def from_points(
    coordinates: Tensor, features: Tensor, cloud_index: Tensor, clouds: int, grid: Grid
) -> MinkowskiTensor:
    """As `sparse.from_points`, by MinkowskiEngine's `TensorField(...).sparse()`, which is what the paper's code does.

    What comes from there is copied into a tensor of its own: where points share a cell and the batch has several clouds, its
    global pooling and instance norm would read the field's rows for those of the cells, and return nonsense.
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
    """The same cells and features, with a graph back to them."""
    me = _engine_on(tensor.cells.device)
    made = me.SparseTensor(
        tensor.features.contiguous(),
        coordinates=tensor.cells.int().contiguous(),
        tensor_stride=tensor.stride,
    )
    return MinkowskiTensor(made, tensor.clouds, tensor.grid)


def from_dense(dense: Tensor) -> MinkowskiTensor:
    """As `sparse.from_dense`."""
    return from_sparse(sparse.from_dense(dense))


def convolution(
    tensor: MinkowskiTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> MinkowskiTensor:
    """As `sparse.convolution`, by MinkowskiConvolution."""
    layer = _convolution(kernel_size, stride, dilation, bias is not None)
    # a kernel of one cell without a stride is a plain matrix there, (in, out)
    weights = {"kernel": (weight[0] if layer.use_mm else weight).contiguous()}
    if bias is not None:
        weights["bias"] = bias[None]
    return _apply(layer, tensor, weights)


def pool(
    tensor: MinkowskiTensor, mode: str, kernel_size: int = 2, stride: int = 2
) -> MinkowskiTensor:
    """As `sparse.pool`, by MinkowskiMaxPooling, MinkowskiAvgPooling or MinkowskiSumPooling."""
    sparse.refuse_gaps(kernel_size, stride)
    return _apply(_pooling(mode, kernel_size, stride), tensor, {})


def global_pool(tensor: MinkowskiTensor, mode: str) -> Tensor:
    """As `sparse.global_pool`, by MinkowskiEngine's global pooling, put into batch order.

    Its rows come in the order of a hash table, and a cloud without cells has none. In its default mode, sums and averages
    even come in another order than the coordinates that name their clouds; in the mode taken here they do not.
    """
    me, name = engine(), _name_of(mode)
    if mode != "sum":
        sparse.refuse_empty_clouds(tensor.cells_per_cloud, mode)
    if _one_cell_per_cloud(tensor):
        cloud, pooled = tensor.cells[:, 0], tensor.features
    elif mode == "max" and int((tensor.cells_per_cloud > 0).sum()) == 1:
        # of a single cloud its gradient goes to wrong cells; this is what its forward pass does there
        cloud, pooled = tensor.cells[:1, 0], tensor.features.max(dim=0, keepdim=True).values
    else:
        kind = getattr(me.PoolingMode, f"GLOBAL_{name.upper()}_POOLING_KERNEL")
        result = getattr(me, f"MinkowskiGlobal{name}Pooling")(kind)(tensor.tensor)
        cloud, pooled = result.C[:, 0].long(), result.F
    return pooled.new_zeros(tensor.clouds, pooled.shape[1]).index_add(0, cloud, pooled)


def relu(tensor: MinkowskiTensor) -> MinkowskiTensor:
    """As `sparse.relu`, by MinkowskiReLU."""
    return _apply(engine().MinkowskiReLU(), tensor, {})


def linear(tensor: MinkowskiTensor, weight: Tensor, bias: Tensor | None = None) -> MinkowskiTensor:
    """As `sparse.linear`, by MinkowskiLinear."""
    layer = _without_drawing(engine().MinkowskiLinear, 1, 1, bias=bias is not None)
    return _apply(
        layer, tensor, {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    )


def instance_norm(tensor: MinkowskiTensor, weight: Tensor, bias: Tensor) -> MinkowskiTensor:
    """As `sparse.instance_norm`, by MinkowskiInstanceNorm."""
    layer = engine().MinkowskiInstanceNorm(1)
    if _one_cell_per_cloud(tensor):  # its global pooling asserts that there is something to pool
        zero = tensor.features - tensor.features
        return _with_features(tensor, zero * weight + bias)
    return _apply(layer, tensor, {"weight": weight[None], "bias": bias[None]})


def batch_norm(tensor: MinkowskiTensor, weight: Tensor, bias: Tensor) -> MinkowskiTensor:
    """As `sparse.batch_norm`, by MinkowskiBatchNorm."""
    sparse.refuse_single_cell(len(tensor.features))
    layer = engine().MinkowskiBatchNorm(len(weight), track_running_stats=False)
    return _apply(layer, tensor, {"bn.weight": weight, "bn.bias": bias})


def kernel_map(
    tensor: SparseTensor, cells: Tensor, kernel_size: int, dilation: int = 1, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """The table of `sparse.kernel_map`, without columns that are empty, from MinkowskiEngine's coordinate manager."""
    me = _engine_on(cells.device)
    kind = me.CoordinateMapType.CUDA if cells.is_cuda else me.CoordinateMapType.CPU
    manager = me.CoordinateManager(D=3, coordinate_map_type=kind)
    inputs, input_rows = _insert(manager, tensor.cells, tensor.stride, "input")
    outputs, output_rows = (inputs, input_rows)
    stride = 1
    if cells is not tensor.cells:
        # the block of a pooling is found through the cells' floor, whatever the stride between the two is
        stride = kernel_size if not centred else 1
        outputs, output_rows = _insert(manager, cells, tensor.stride * stride, "output")
    maps = manager.kernel_map(inputs, outputs, stride, kernel_size, dilation, is_pool=not centred)
    pairs = torch.cat([cells.new_empty(2, 0), *(pair.long() for pair in maps.values())], dim=1)
    source, target = input_rows[pairs[0]], output_rows[pairs[1]]

    if centred:
        sizes = cells.new_tensor([pair.shape[1] for pair in maps.values()])
        offset = cells.new_tensor(list(maps)).repeat_interleave(sizes)
    else:  # one map for the whole block: which offset it is follows from the cells
        shift = (tensor.cells[source, 1:] - cells[target, 1:]) // tensor.stride
        offset = (shift * shift.new_tensor([1, kernel_size, kernel_size**2])).sum(1)
    used, column = offset.unique(return_inverse=True)
    neighbours = cells.new_full((len(cells), len(used)), len(tensor.cells))
    neighbours[target, column] = source
    return neighbours, used


# --- how a layer is called ----------------------------------------------------------------------------------------


def _engine_on(device: torch.device):
    if device.type == "cuda" and not engine().is_cuda_available():
        raise InputError(
            "the installed MinkowskiEngine was built without CUDA; run `make minkowski CUDA=yes` on this machine, or take --device cpu"
        )
    return engine()


def _apply(
    layer: nn.Module, tensor: MinkowskiTensor, weights: dict[str, Tensor]
) -> MinkowskiTensor:
    """Call a layer of MinkowskiEngine with weights of ours in the place of its own."""
    result = torch.func.functional_call(layer, weights, (tensor.tensor,))
    return MinkowskiTensor(result, tensor.clouds, tensor.grid)


def _with_features(tensor: MinkowskiTensor, features: Tensor) -> MinkowskiTensor:
    place = {
        "coordinate_map_key": tensor.tensor.coordinate_map_key,
        "coordinate_manager": tensor.tensor.coordinate_manager,
    }
    return MinkowskiTensor(engine().SparseTensor(features, **place), tensor.clouds, tensor.grid)


def _without_drawing(make, *sizes, **settings) -> nn.Module:
    """A layer whose own weights are never used: made without touching torch's global random numbers."""
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
    """The key of these cells in the manager, and for each of its rows the row of `cells` that it is."""
    key, (rows, _) = manager.insert_and_map(cells.int().contiguous(), stride, name)
    return key, rows.long()
