"""Sparse layers against loops over cells, and against torch's dense layers where both agree."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pcdd_core.nn import cells as cells_module
from pcdd_core.nn import sparse
from pcdd_core.nn.cells import SparseTensor, kernel_map, strided_cells

FLAT, SOLID = (1, 8, 8), (6, 6, 6)


def random_cells(seed, flat, stride=1, clouds=3, most=20, low=-3, high=4):
    """Return sorted distinct cells at multiples of the stride, negative ones included.

    Some clouds may be empty.
    """
    draws = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most, (clouds,), generator=draws).tolist()
    if sum(counts) == 0:
        counts[0] = 1
    cells = set()
    for cloud, count in enumerate(counts):
        for depth, height, width in torch.randint(low, high, (count, 3), generator=draws).tolist():
            cells.add((cloud, 0 if flat else depth * stride, height * stride, width * stride))
    return sorted(cells)


def integers(shape, seed, low=-5, high=6):
    """Return small integers as float64: their sums and products are exact."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def normal(*shape, seed=11):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensor_of(cells, features, stride=1, grid=SOLID, clouds=3):
    return SparseTensor(torch.tensor(cells), features, clouds, grid, stride)


def full_grid(grid, channels, seed, clouds=2):
    """Return a random dense grid (clouds, channels, *grid) and a mask of the kept cells.

    The mask is bool (clouds, *grid).
    """
    draws = torch.Generator().manual_seed(seed)
    dense = torch.rand(clouds, channels, *grid, generator=draws, dtype=torch.float64) + 0.01
    kept = torch.rand(clouds, *grid, generator=draws) < 0.4
    return dense * kept[:, None], kept


# --- references: plain loops ----------------------------------------------------------------------


def loop_offsets(kernel_size, centred):
    """Return kernel offsets with depth as the fastest axis."""
    start = -(kernel_size // 2) if centred and kernel_size % 2 == 1 else 0
    line = range(start, start + kernel_size)
    return [(depth, height, width) for width in line for height in line for depth in line]


def loop_strided(cells, step):
    return sorted(
        {(cloud, *(math.floor(c / step) * step for c in place)) for cloud, *place in cells}
    )


def loop_neighbours(cells, outputs, offsets, spacing):
    """Return for every output cell [(index of the kernel offset, row of the input cell there)]."""
    row_of = {cell: row for row, cell in enumerate(cells)}
    neighbours = []
    for cloud, *place in outputs:
        wanted = [(cloud, *(c + o * spacing for c, o in zip(place, offset))) for offset in offsets]
        neighbours.append(
            [(index, row_of[cell]) for index, cell in enumerate(wanted) if cell in row_of]
        )
    return neighbours


POOLING = {
    "max": lambda features: features.amax(0),
    "average": lambda features: features.sum(0) / len(features),
    "sum": lambda features: features.sum(0),
}


# --- convolution ----------------------------------------------------------------------------------


@pytest.fixture
def missing(request, monkeypatch):
    """Set the share of missing neighbours up to which a convolution is one product."""
    monkeypatch.setattr(sparse, "MISSING_SHARE", request.param)
    monkeypatch.setattr(sparse, "MISSING_PRODUCTS", -1)


both_ways = pytest.mark.parametrize(
    "missing", [1, -1], indirect=True, ids=["one product", "a product for each offset"]
)


@both_ways
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    tensor_stride=st.integers(1, 3),
    flat=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_convolution_equals_a_loop_over_cells(
    missing, kernel_size, stride, dilation, tensor_stride, flat, seed
):
    cells = random_cells(seed, flat, tensor_stride)
    features, bias = integers((len(cells), 2), seed), integers((3,), seed)
    weight = integers((kernel_size**3, 2, 3), seed + 1)
    outputs = loop_strided(cells, tensor_stride * stride) if stride > 1 else cells
    expected = []
    for neighbours in loop_neighbours(
        cells, outputs, loop_offsets(kernel_size, True), tensor_stride * dilation
    ):
        expected.append(sum((features[row] @ weight[index] for index, row in neighbours), bias))
    result = sparse.convolution(
        tensor_of(cells, features, tensor_stride), weight, bias, kernel_size, stride, dilation
    )
    assert result.cells.tolist() == [list(cell) for cell in outputs]
    assert torch.equal(result.features, torch.stack(expected))
    assert result.stride == tensor_stride * stride


@both_ways
@pytest.mark.parametrize("grid", [FLAT, SOLID])
@pytest.mark.parametrize("kernel_size, dilation", [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_convolution_equals_conv3d_at_the_occupied_cells(missing, grid, kernel_size, dilation):
    dense, kept = full_grid(grid, 2, seed=1)
    weight = torch.randn(
        kernel_size**3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    # (volume, in, out) with depth fastest -> (out, in, depth, height, width)
    dense_weight = weight.view(kernel_size, kernel_size, kernel_size, 2, 4).permute(4, 3, 2, 1, 0)
    padding = kernel_size // 2 * dilation
    expected = F.conv3d(dense, dense_weight, padding=padding, dilation=dilation).movedim(1, -1)[
        kept
    ]
    result = sparse.convolution(
        sparse.from_dense(dense), weight, None, kernel_size, dilation=dilation
    )
    torch.testing.assert_close(result.features, expected, rtol=1e-12, atol=1e-12)


def test_two_strided_convolutions_multiply_their_strides():
    cells = random_cells(3, flat=False)
    once = sparse.convolution(
        tensor_of(cells, integers((len(cells), 1), 0)), integers((8, 1, 1), 1), None, 2, 2
    )
    twice = sparse.convolution(once, integers((8, 1, 1), 2), None, 2, 2)
    assert twice.stride == 4
    assert twice.cells.tolist() == [list(cell) for cell in loop_strided(cells, 4)]


@both_ways
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_convolution_that_reaches_no_cell_gives_its_bias_and_no_gradient(missing, with_bias):
    # a kernel of 2 at stride 3: the output cell (0, 0, 0) reaches the coordinates 0 and 1, and the
    # only input cell is at 2
    features, weight = normal(1, 2).requires_grad_(), normal(8, 2, 3, seed=1).requires_grad_()
    bias = normal(3, seed=2) if with_bias else None
    result = sparse.convolution(
        tensor_of([(0, 2, 2, 2)], features), weight, bias, kernel_size=2, stride=3
    )
    assert result.cells.tolist() == [[0, 0, 0, 0]]
    assert torch.equal(
        result.features, bias[None] if with_bias else torch.zeros(1, 3, dtype=torch.float64)
    )
    for gradient in torch.autograd.grad(
        result.features.sum(), [features, weight], create_graph=True
    ):
        assert (gradient == 0).all() and gradient.grad_fn is not None


def test_cost_follows_the_neighbours_that_are_there(monkeypatch):
    """Cells that are far apart have no neighbours but themselves: one row per cell."""
    cells = [(0, 4 * depth, 4 * height, 0) for depth in range(5) for height in range(5)] + [
        (0, 17, 16, 0)
    ]
    monkeypatch.setattr(sparse, "MISSING_PRODUCTS", 0)
    rows, gathered = [], torch.Tensor.index_select

    def index_select(self, dimension, index):
        rows.append(len(index))
        return gathered(self, dimension, index)

    monkeypatch.setattr(torch.Tensor, "index_select", index_select)
    sparse.convolution(tensor_of(cells, normal(len(cells), 2)), normal(27, 2, 3))
    assert max(rows) == len(cells) + 2  # the last two are neighbours of each other


# --- pooling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", POOLING)
@given(
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    tensor_stride=st.integers(1, 3),
    flat=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_pooling_equals_a_loop_over_cells(mode, kernel_size, stride, tensor_stride, flat, seed):
    assume(kernel_size >= stride)  # a smaller kernel may miss every cell of its block
    cells = random_cells(seed, flat, tensor_stride)
    features = integers((len(cells), 3), seed)
    outputs = loop_strided(cells, tensor_stride * stride)
    expected = []
    for neighbours in loop_neighbours(
        cells, outputs, loop_offsets(kernel_size, kernel_size != stride), tensor_stride
    ):
        expected.append(POOLING[mode](torch.stack([features[row] for _, row in neighbours])))
    result = sparse.pool(tensor_of(cells, features, tensor_stride), mode, kernel_size, stride)
    assert result.cells.tolist() == [list(cell) for cell in outputs]
    assert torch.equal(result.features, torch.stack(expected))
    assert result.stride == tensor_stride * stride


@pytest.mark.parametrize("grid", [(2, 8, 8), SOLID])
def test_block_max_pooling_of_non_negative_features_equals_max_pool3d(grid):
    dense, _ = full_grid(grid, 3, seed=4)
    assert torch.equal(sparse.pool(sparse.from_dense(dense), "max").dense(), F.max_pool3d(dense, 2))


def test_centred_max_pooling_equals_max_pool3d_at_the_output_cells():
    dense, _ = full_grid(SOLID, 3, seed=5)
    result = sparse.pool(sparse.from_dense(dense), "max", kernel_size=3, stride=2)
    cloud, *place = (result.cells // torch.tensor([1, 2, 2, 2])).unbind(1)
    expected = F.max_pool3d(dense, 3, 2, padding=1)[cloud, :, place[0], place[1], place[2]]
    assert torch.equal(result.features, expected)


def test_average_pooling_divides_by_the_occupied_cells_of_the_block():
    cells = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 1, 1), (0, 2, 0, 0)]
    result = sparse.pool(tensor_of(cells, torch.tensor([[1.0], [2.0], [6.0], [5.0]])), "average")
    assert result.features.tolist() == [[3.0], [5.0]]


@pytest.mark.parametrize(
    "cells, winner",
    [
        (list(itertools.product([0], [0, 1], [0, 1], [0, 1])), 0),
        # depth is the fastest axis of kernel offsets, so a later cell has an earlier offset
        ([(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0)], 2),
        ([(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)], 2),
    ],
)
def test_a_tie_of_maxima_gives_the_whole_gradient_to_the_lowest_kernel_offset(cells, winner):
    features = torch.ones(len(cells), 2, requires_grad=True)
    sparse.pool(tensor_of(cells, features), "max").features.sum().backward()
    expected = torch.zeros(len(cells), 2)
    expected[winner] = 1
    assert torch.equal(features.grad, expected)


@given(kernel_size=st.integers(2, 4), stride=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_with_all_features_equal_every_output_gives_its_gradient_to_one_cell(
    kernel_size, stride, seed
):
    assume(kernel_size >= stride)
    cells = random_cells(seed, flat=False)
    features = torch.ones(len(cells), 2, requires_grad=True)
    sparse.pool(tensor_of(cells, features), "max", kernel_size, stride).features.sum().backward()
    expected = torch.zeros(len(cells), 2)
    offsets = loop_offsets(kernel_size, kernel_size != stride)
    for neighbours in loop_neighbours(cells, loop_strided(cells, stride), offsets, 1):
        expected[min(neighbours)[1]] += 1  # kernels may overlap, so a cell may win several times
    assert torch.equal(features.grad, expected)


def test_max_pooling_keeps_negative_features():
    result = sparse.pool(
        tensor_of([(0, 0, 0, 0), (0, 0, 0, 1)], torch.tensor([[-3.0], [-2.0]])), "max"
    )
    assert result.features.tolist() == [[-2.0]]


def test_an_unknown_pooling_mode_is_refused():
    with pytest.raises(ValueError, match="'mean'.*'max', 'average' or 'sum'"):
        sparse.pool(tensor_of([(0, 0, 0, 0)], torch.ones(1, 1)), "mean")


def leaves_gaps(kernel_size, stride):
    """Tell whether some coordinate is out of reach of every output cell."""
    offsets = {width for _, _, width in loop_offsets(kernel_size, kernel_size != stride)}
    return not set(range(stride)) <= offsets


@pytest.mark.parametrize("kernel_size, stride", list(itertools.product(range(1, 7), repeat=2)))
def test_kernels_that_leave_gaps_are_refused_and_no_others(kernel_size, stride):
    if not leaves_gaps(kernel_size, stride):
        return sparse.refuse_gaps(kernel_size, stride)
    with pytest.raises(
        ValueError, match=f"kernel {kernel_size} and stride {stride} leaves cells out"
    ):
        sparse.refuse_gaps(kernel_size, stride)
    with pytest.raises(ValueError, match="leaves cells out"):
        sparse.pool(tensor_of([(0, 0, 0, 0)], torch.ones(1, 1)), "sum", kernel_size, stride)


# --- global pooling -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", POOLING)
@given(seed=st.integers(0, 10_000), stride=st.integers(1, 2))
def test_global_pooling_equals_a_loop_over_clouds(mode, seed, stride):
    cells = random_cells(seed, flat=False, stride=stride, most=4)
    features = integers((len(cells), 2), seed)
    members = [[row for row, cell in enumerate(cells) if cell[0] == cloud] for cloud in range(3)]
    tensor = tensor_of(cells, features, stride)
    assert tensor.cells_per_cloud.tolist() == [len(rows) for rows in members]
    if mode != "sum" and [] in members:
        with pytest.raises(
            ValueError, match=f"cloud {members.index([])} has no occupied cell, so it has no {mode}"
        ):
            sparse.global_pool(tensor, mode)
    else:
        expected = [POOLING[mode](features[rows]) for rows in members]
        assert torch.equal(sparse.global_pool(tensor, mode), torch.stack(expected))


def test_the_global_sum_of_a_cloud_without_cells_is_zero_wherever_it_stands():
    tensor = tensor_of(
        [(1, 0, 0, 0), (1, 0, 0, 2), (3, 0, 0, 0)], torch.tensor([[1.0], [2.0], [-7.0]]), clouds=5
    )
    assert sparse.global_pool(tensor, "sum").tolist() == [[0.0], [3.0], [0.0], [-7.0], [0.0]]


def test_in_a_tie_the_global_maximum_has_one_winner_per_cloud_and_channel():
    features = torch.tensor(
        [[1.0, 0.0], [1.0, 2.0], [0.0, 2.0], [3.0, 3.0], [3.0, 3.0]], requires_grad=True
    )
    cells = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (1, 0, 0, 0), (1, 0, 0, 1)]
    sparse.global_pool(tensor_of(cells, features, clouds=2), "max").sum().backward()
    assert features.grad.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1], [0, 0]]


def test_an_unknown_mode_of_global_pooling_is_refused():
    with pytest.raises(ValueError, match="'mean'.*'max', 'average' or 'sum'"):
        sparse.global_pool(tensor_of([(0, 0, 0, 0)], torch.ones(1, 1), clouds=1), "mean")


# --- points to cells ------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), points=st.integers(1, 40))
def test_from_points_averages_the_points_of_each_cell(seed, points):
    draws = torch.Generator().manual_seed(seed)
    coordinates = torch.rand(points, 3, generator=draws) * 6 - 3
    cloud = torch.randint(0, 3, (points,), generator=draws)
    features = torch.randn(points, 2, dtype=torch.float64, generator=draws)
    members = {}
    for point in range(points):
        members.setdefault(
            (int(cloud[point]), *map(math.floor, coordinates[point].tolist())), []
        ).append(point)
    result = sparse.from_points(coordinates, features, cloud, 3, SOLID)
    assert result.cells.tolist() == [list(cell) for cell in sorted(members)]
    for row, cell in enumerate(sorted(members)):
        torch.testing.assert_close(
            result.features[row], features[members[cell]].mean(0), rtol=1e-12, atol=1e-12
        )


def test_from_points_gives_each_of_n_points_in_a_cell_one_nth_of_the_gradient():
    coordinates = torch.tensor([[0.0, 1.1, 1.2], [0, 2.5, 1.2], [0, 1.9, 1.0], [0, 1.0, 1.9]])
    features = torch.randn(4, 2, requires_grad=True)
    sparse.from_points(
        coordinates, features, torch.zeros(4, dtype=torch.int64), 1, FLAT
    ).features.sum().backward()
    assert torch.equal(features.grad, torch.tensor([1 / 3, 1, 1 / 3, 1 / 3])[:, None].expand(4, 2))


def test_all_points_in_one_cell_make_one_cell_with_their_average():
    coordinates = torch.tensor([[0.1, -1.9, 2.0], [0.9, -1.1, 2.9], [0.5, -2.0, 2.5]])
    result = sparse.from_points(
        coordinates, torch.tensor([[1.0], [2.0], [6.0]]), torch.ones(3).long(), 3, FLAT
    )
    assert (result.cells.tolist(), result.features.tolist()) == ([[1, 0, -2, 2]], [[3.0]])
    assert result.cells_per_cloud.tolist() == [0, 1, 0]


def test_one_point_makes_one_cell_with_its_features():
    coordinates, features = torch.tensor([[0.0, -0.5, 7.0]]), torch.tensor([[3.0, 4.0]])
    result = sparse.from_points(coordinates, features, torch.tensor([0]), 1, FLAT)
    assert (result.cells.tolist(), result.features.tolist()) == ([[0, 0, -1, 7]], [[3.0, 4.0]])
    assert (result.clouds, result.grid, result.stride) == (1, FLAT, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sparse.from_points(
            torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0).long(), 2, FLAT
        ),
        lambda: sparse.from_dense(torch.zeros(2, 1, *FLAT)),
    ],
    ids=["no points", "empty grid"],
)
def test_nothing_at_all_is_refused(make):
    with pytest.raises(ValueError, match="no occupied cell in any cloud"):
        make()


# --- sparse and dense grids -----------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), stride=st.sampled_from([1, 2, 4]), corner=st.booleans())
def test_dense_puts_every_cell_at_its_coordinate_divided_by_the_stride(seed, stride, corner):
    grid = (1, 7, 10)
    cells = random_cells(seed, flat=True, stride=stride, low=0, high=math.ceil(7 / stride))
    features = integers((len(cells), 2), seed)
    sizes = grid if corner else tuple(math.ceil(size / stride) for size in grid)
    expected = torch.zeros(3, 2, *sizes, dtype=torch.float64)
    for row, (cloud, depth, height, width) in enumerate(cells):
        expected[cloud, :, depth // stride, height // stride, width // stride] = features[row]
    assert torch.equal(tensor_of(cells, features, stride, grid).dense(corner), expected)


@pytest.mark.parametrize("grid", [FLAT, SOLID])
def test_from_dense_and_dense_are_inverse(grid):
    dense, kept = full_grid(grid, 2, seed=6)
    tensor = sparse.from_dense(dense)
    assert (tensor.clouds, tensor.grid, tensor.stride) == (2, grid, 1)
    assert torch.equal(tensor.cells, kept.nonzero())
    assert torch.equal(tensor.dense(), dense)


def test_from_dense_keeps_a_cell_where_any_channel_is_not_zero():
    dense = torch.zeros(1, 2, 1, 3, 3)
    dense[0, 1, 0, 2, 1] = -1
    assert sparse.from_dense(dense).cells.tolist() == [[0, 0, 2, 1]]


# --- instance norm --------------------------------------------------------------------------------


def test_instance_norm_equals_a_loop_over_clouds():
    cells = random_cells(7, flat=False, clouds=4)
    draws = torch.Generator().manual_seed(8)
    features = torch.randn(len(cells), 3, dtype=torch.float64, generator=draws) * 2 + 1
    weight, bias = torch.randn(2, 3, dtype=torch.float64, generator=draws)
    result = sparse.instance_norm(tensor_of(cells, features, clouds=4), weight, bias)
    for cloud in range(4):
        rows = [row for row, cell in enumerate(cells) if cell[0] == cloud]
        own = features[rows]
        expected = (own - own.mean(0)) / (own.var(0, correction=0) + 1e-8).sqrt() * weight + bias
        torch.testing.assert_close(result.features[rows], expected, rtol=1e-12, atol=1e-12)


def test_instance_norm_of_a_cloud_with_one_cell_is_the_bias():
    features = torch.tensor([[3.0, -7.0]], requires_grad=True)
    result = sparse.instance_norm(
        tensor_of([(0, 0, 0, 0)], features), torch.full((2,), 5.0), torch.tensor([1.0, 2.0])
    )
    assert result.features.tolist() == [[1.0, 2.0]]
    result.features.sum().backward()
    assert features.grad.tolist() == [[0.0, 0.0]]


# --- layers that act cell by cell, and batch norm -------------------------------------------------


def test_relu_and_linear_equal_a_loop_over_cells():
    cells, features = [(0, 0, 0, 0), (0, 0, 0, 1), (2, 0, 3, 3)], integers((3, 2), seed=4)
    weight, bias = integers((4, 2), seed=2), integers((4,), seed=3)
    tensor = tensor_of(cells, features, stride=2)
    expected = [[max(value, 0) for value in row] for row in features.tolist()]
    assert min(features.flatten()) < 0 < max(features.flatten())
    for result, values in (
        (sparse.relu(tensor), torch.tensor(expected).double()),
        (sparse.linear(tensor, weight), torch.stack([weight @ row for row in features])),
        (
            sparse.linear(tensor, weight, bias),
            torch.stack([weight @ row + bias for row in features]),
        ),
    ):
        assert torch.equal(result.features, values)
        assert result.cells is tensor.cells and (result.stride, result.clouds, result.grid) == (
            2,
            3,
            SOLID,
        )


def test_batch_norm_equals_a_loop_over_all_cells_of_all_clouds():
    cells = random_cells(7, flat=False, clouds=4)
    features, weight, bias = (
        normal(len(cells), 3, seed=8) * 2 + 1,
        normal(3, seed=9),
        normal(3, seed=10),
    )
    result = sparse.batch_norm(tensor_of(cells, features, clouds=4), weight, bias).features
    for channel in range(3):
        values = features[:, channel].tolist()
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
        expected = [
            (value - mean) / deviation * weight[channel].item() + bias[channel].item()
            for value in values
        ]
        torch.testing.assert_close(
            result[:, channel], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


def test_batch_norm_refuses_a_batch_of_a_single_cell():
    with pytest.raises(ValueError, match="more than one occupied cell"):
        sparse.batch_norm(
            tensor_of([(1, 0, 0, 0)], torch.ones(1, 2)), torch.ones(2), torch.zeros(2)
        )


# --- clouds with few cells ------------------------------------------------------------------------

LAYERS = {
    "convolution": lambda tensor: sparse.convolution(
        tensor, torch.ones(27, 2, 2, dtype=torch.float64)
    ),
    "strided convolution": lambda tensor: sparse.convolution(
        tensor, torch.ones(8, 2, 2).double(), None, 2, 2
    ),
    "dilated convolution": lambda tensor: sparse.convolution(
        tensor, torch.ones(27, 2, 2).double(), dilation=2
    ),
    "max pooling": lambda tensor: sparse.pool(tensor, "max"),
    "average pooling": lambda tensor: sparse.pool(tensor, "average"),
    "sum pooling": lambda tensor: sparse.pool(tensor, "sum"),
    "relu": sparse.relu,
    "linear": lambda tensor: sparse.linear(
        tensor, torch.ones(2, 2).double(), torch.ones(2).double()
    ),
    "instance norm": lambda tensor: sparse.instance_norm(
        tensor, *torch.ones(2, 2, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_an_empty_cloud_stays_empty_and_changes_no_other(layer):
    cells = [(0, 0, 1, 1), (0, 0, 1, 2), (2, 0, 4, 4), (2, 0, 5, 4)]
    features = integers((4, 2), seed=9, low=1)
    batch = LAYERS[layer](tensor_of(cells, features, grid=FLAT)).dense()
    first = LAYERS[layer](tensor_of(cells[:2], features[:2], grid=FLAT, clouds=1)).dense()
    assert torch.equal(batch[0], first[0])
    assert torch.equal(batch[1], torch.zeros_like(batch[1]))
    assert batch[2].abs().sum() > 0


@pytest.mark.parametrize("layer", LAYERS)
def test_clouds_never_see_each_other(layer):
    # the same or neighbouring cells of different clouds: the result of each must be as if alone
    cells, features = [(0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 2)], integers((3, 2), seed=10)
    batch = LAYERS[layer](tensor_of(cells, features, grid=FLAT)).dense()
    for cloud, (_, *place) in enumerate(cells):
        alone = tensor_of([(0, *place)], features[cloud, None], grid=FLAT, clouds=1)
        assert torch.equal(batch[cloud], LAYERS[layer](alone).dense()[0])


# --- kernel maps ----------------------------------------------------------------------------------


def both_kernel_maps(*arguments):
    """Return the kernel map by the table of the bounding box, and by binary search."""
    maps = []
    for limit in (1 << 62, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cells_module, "TABLE_CELLS", limit)
            patch.setattr(cells_module, "TABLE_SHARE", 0)
            maps.append(kernel_map(*arguments))
    return maps


@given(
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    tensor_stride=st.integers(1, 3),
    flat=st.booleans(),
    centred=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_kernel_map_equals_a_loop_by_table_and_by_search(
    kernel_size, stride, dilation, tensor_stride, flat, centred, seed
):
    cells = random_cells(seed, flat, tensor_stride)
    outputs = loop_strided(cells, tensor_stride * stride)
    expected = torch.full((len(outputs), kernel_size**3), len(cells))
    offsets = loop_offsets(kernel_size, centred)
    for output, pairs in enumerate(
        loop_neighbours(cells, outputs, offsets, tensor_stride * dilation)
    ):
        for index, row in pairs:
            expected[output, index] = row
    tensor = tensor_of(cells, torch.zeros(len(cells), 1), tensor_stride)
    by_table, by_search = both_kernel_maps(
        tensor, torch.tensor(outputs), kernel_size, dilation, centred
    )
    for neighbours, used in (by_table, by_search):
        assert used.tolist() == sorted(set(used.tolist()))
        actual = torch.full_like(expected, len(cells))
        actual[:, used] = neighbours
        assert torch.equal(actual, expected)
    assert torch.equal(by_table[0], by_search[0]) and torch.equal(by_table[1], by_search[1])


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("flat", [False, True])
def test_neighbours_found_from_the_other_side_are_those_looked_up(kernel_size, flat):
    cells = random_cells(5, flat, stride=2)
    tensor = tensor_of(cells, integers((len(cells), 1), 0), stride=2)
    for by_mirror, looked_up in zip(
        both_kernel_maps(tensor, tensor.cells, kernel_size, 1),
        both_kernel_maps(tensor, tensor.cells.clone(), kernel_size, 1),
    ):
        assert all(torch.equal(one, other) for one, other in zip(by_mirror, looked_up, strict=True))


def test_in_a_flat_grid_two_thirds_of_a_cubic_kernel_are_left_out_of_the_kernel_map():
    cells = torch.tensor(list(itertools.product([0], [0], range(4), range(4))))
    for neighbours, used in both_kernel_maps(
        tensor_of(cells.tolist(), torch.zeros(16, 1)), cells, 3
    ):
        assert used.tolist() == [
            index for index, offset in enumerate(loop_offsets(3, True)) if offset[0] == 0
        ]
        assert neighbours.shape == (16, 9)


def test_with_every_offset_out_of_reach_the_kernel_map_has_no_column():
    tensor = tensor_of([(0, 2, 2, 2)], torch.zeros(1, 1))
    for neighbours, used in both_kernel_maps(tensor, torch.tensor([(0, 0, 0, 0)]), 2):
        assert neighbours.shape == (1, 0) and used.tolist() == []


def test_cells_very_far_apart_need_no_table_of_the_space_between_them():
    far = 10**6
    cells = [(0, 0, 0, 0), (0, 0, 0, 1), (0, far, far, far)]
    tensor = tensor_of(cells, torch.tensor([[1.0], [2.0], [5.0]]))
    assert sparse.convolution(tensor, torch.ones(27, 1, 1)).features.tolist() == [
        [3.0],
        [3.0],
        [5.0],
    ]
    assert sparse.pool(tensor, "sum").features.tolist() == [[3.0], [5.0]]


def at_corners(*extent):
    """Return two cells that span a box of this many cells along depth, height and width."""
    return tensor_of(
        [(0, 0, 0, 0), (0, *(size - 1 for size in extent))], torch.ones(2, 1), clouds=1
    )


def test_a_box_of_two_to_the_62_cells_is_the_largest():
    tensor = at_corners(2**20, 2**21, 2**21)
    assert torch.equal(strided_cells(tensor, 1), tensor.cells)
    assert strided_cells(tensor, 2).tolist() == [
        [0, 0, 0, 0],
        [0, 2**20 - 2, 2**21 - 2, 2**21 - 2],
    ]
    for depth, height, width in [(2**20 + 1, 2**21, 2**21), (2**20, 2**21, 2**21 + 1)]:
        with pytest.raises(
            ValueError, match=rf"\[{depth}, {height}, {width}\] cells.*too far apart"
        ):
            strided_cells(at_corners(depth, height, width), 1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda tensor: sparse.pool(tensor, "max"),
        lambda tensor: sparse.convolution(tensor, torch.ones(27, 1, 1)),
        lambda tensor: sparse.from_points(
            tensor.cells[:, 1:].double(), tensor.features, tensor.cells[:, 0], 1, SOLID
        ),
    ],
    ids=["pool", "convolution", "from_points"],
)
@pytest.mark.parametrize("size", [2**21, 2**31, 2**40])
def test_cells_too_far_apart_are_refused_in_words(layer, size):
    with pytest.raises(ValueError, match="too far apart"):
        layer(at_corners(size, size, size))


@pytest.mark.parametrize("far", [2.0**62, 1e19])
def test_points_whose_distance_does_not_fit_64_bits_are_refused_in_words(far):
    coordinates = torch.tensor([[0, -far, 0], [0, far, 0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="too far apart"):
        sparse.from_points(coordinates, coordinates, torch.zeros(2).long(), 1, FLAT)


# --- derivatives ----------------------------------------------------------------------------------

# several cells in a block, neighbours, an empty cloud, and a cloud with a single cell
SMALL = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 2, 1), (0, 1, 1, 1), (2, 0, 3, 3)]


@both_ways
@pytest.mark.parametrize(
    "kernel_size, stride, dilation, tensor_stride",
    [
        (3, 1, 1, 1),
        (2, 2, 1, 1),
        (1, 2, 1, 1),
        (3, 1, 2, 1),
        (3, 1, 1, 2),
        (2, 2, 1, 2),
        (3, 2, 2, 2),
    ],
)
def test_both_derivatives_of_convolution(
    missing, check_two_derivatives, kernel_size, stride, dilation, tensor_stride
):
    spread = dilation * tensor_stride  # keeps the cells within reach of the kernel
    cells = [(cloud, *(spread * coordinate for coordinate in place)) for cloud, *place in SMALL]

    def convolve(features, weight, bias):
        tensor = tensor_of(cells, features, tensor_stride)
        return sparse.convolution(tensor, weight, bias, kernel_size, stride, dilation).features

    check_two_derivatives(
        convolve, normal(5, 2), normal(kernel_size**3, 2, 1, seed=12), normal(1, seed=13)
    )


@pytest.mark.parametrize("mode", POOLING)
@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (3, 2), (3, 3)])
def test_both_derivatives_of_pooling(check_two_derivatives, mode, kernel_size, stride):
    check_two_derivatives(
        lambda f: sparse.pool(tensor_of(SMALL, f), mode, kernel_size, stride).features, normal(5, 2)
    )


@pytest.mark.parametrize("mode", POOLING)
def test_both_derivatives_of_global_pooling(check_two_derivatives, mode):
    cells = SMALL if mode == "sum" else [(min(cloud, 1), *place) for cloud, *place in SMALL]
    clouds = 3 if mode == "sum" else 2
    check_two_derivatives(
        lambda f: sparse.global_pool(tensor_of(cells, f, clouds=clouds), mode), normal(5, 2)
    )


def test_both_derivatives_of_relu(check_two_derivatives):
    check_two_derivatives(lambda f: sparse.relu(tensor_of(SMALL, f)).features, normal(5, 2))


def test_both_derivatives_of_linear(check_two_derivatives):
    def apply(features, weight, bias):
        return sparse.linear(tensor_of(SMALL, features), weight, bias).features

    check_two_derivatives(apply, normal(5, 2), normal(3, 2, seed=12), normal(3, seed=13))


@pytest.mark.parametrize("norm", [sparse.instance_norm, sparse.batch_norm])
def test_both_derivatives_of_norms(check_two_derivatives, norm):
    def normalise(features, weight, bias):
        return norm(tensor_of(SMALL, features), weight, bias).features

    check_two_derivatives(normalise, normal(5, 2), normal(2, seed=12), normal(2, seed=13))


def test_both_derivatives_of_from_points(check_two_derivatives):
    coordinates = torch.tensor([[0.5, 1.1, 1.2], [0.5, 2.5, 1.2], [0.5, 1.9, 1.0]])
    cloud = torch.zeros(3, dtype=torch.int64)
    check_two_derivatives(
        lambda f: sparse.from_points(coordinates, f, cloud, 1, FLAT).features, normal(3, 2)
    )


@pytest.mark.parametrize("corner", [False, True])
def test_both_derivatives_of_dense(check_two_derivatives, corner):
    cells = [(0, 0, 0, 2), (0, 0, 2, 0), (1, 0, 2, 2)]
    check_two_derivatives(
        lambda f: tensor_of(cells, f, stride=2, grid=(1, 4, 4), clouds=2).dense(corner),
        normal(3, 2),
    )


def test_both_derivatives_of_from_dense(check_two_derivatives):
    check_two_derivatives(
        lambda dense: sparse.from_dense(dense).features, full_grid((1, 3, 3), 2, seed=14)[0] + 0.1
    )


def test_the_check_of_derivatives_rejects_a_gradient_without_a_graph(check_two_derivatives):
    class LosesItsGraph(torch.autograd.Function):
        @staticmethod
        def forward(context, features):
            context.save_for_backward(features)
            return features**2

        @staticmethod
        def backward(context, gradient):
            return 2 * context.saved_tensors[0].detach() * gradient.detach()

    with pytest.raises(AssertionError, match="lost its graph"):
        check_two_derivatives(LosesItsGraph.apply, normal(3))
