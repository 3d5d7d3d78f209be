"""Sparse layers against loops over cells, and against torch's dense layers where both are defined alike."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from pcdd_core import sparse
from pcdd_core.sparse import SparseTensor

FLAT, SOLID = (1, 8, 8), (6, 6, 6)


def random_cells(seed, flat, stride=1, clouds=3, most=20, low=-3, high=4):
    """Sorted distinct cells, negative ones too, at multiples of the stride; some clouds may be empty."""
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
    """Small integers as float64: sums and products of them are exact, so comparisons can be."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def tensor_of(cells, features, stride=1, grid=SOLID, clouds=3):
    return SparseTensor(torch.tensor(cells), features, clouds, grid, stride)


def full_grid(grid, channels, seed, clouds=2):
    """A random dense grid, and which of its cells are kept: (clouds, channels, *grid) and bool (clouds, *grid)."""
    draws = torch.Generator().manual_seed(seed)
    dense = torch.rand(clouds, channels, *grid, generator=draws, dtype=torch.float64) + 0.01
    kept = torch.rand(clouds, *grid, generator=draws) < 0.4
    return dense * kept[:, None], kept


# --- references: plain loops --------------------------------------------------------------------------------------


def loop_offsets(kernel_size, centred):
    """Kernel offsets with depth running fastest."""
    start = -(kernel_size // 2) if centred and kernel_size % 2 == 1 else 0
    line = range(start, start + kernel_size)
    return [(depth, height, width) for width in line for height in line for depth in line]


def loop_strided(cells, step):
    return sorted({(cloud, *(math.floor(c / step) * step for c in place)) for cloud, *place in cells})


def loop_neighbours(cells, outputs, offsets, spacing):
    """For every output cell: [(index of the kernel offset, row of the input cell there)]."""
    row_of = {cell: row for row, cell in enumerate(cells)}
    found = []
    for cloud, *place in outputs:
        wanted = [(cloud, *(c + o * spacing for c, o in zip(place, offset))) for offset in offsets]
        found.append([(index, row_of[cell]) for index, cell in enumerate(wanted) if cell in row_of])
    return found


# --- convolution --------------------------------------------------------------------------------------------------


@given(
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    tensor_stride=st.integers(1, 3),
    flat=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_convolution_equals_a_loop_over_cells(kernel_size, stride, dilation, tensor_stride, flat, seed):
    cells = random_cells(seed, flat, tensor_stride)
    features, bias = integers((len(cells), 2), seed), integers((3,), seed)
    weight = integers((kernel_size**3, 2, 3), seed + 1)
    outputs = loop_strided(cells, tensor_stride * stride) if stride > 1 else cells
    expected = []
    for found in loop_neighbours(cells, outputs, loop_offsets(kernel_size, True), tensor_stride * dilation):
        expected.append(sum((features[row] @ weight[index] for index, row in found), bias))
    result = sparse.convolution(tensor_of(cells, features, tensor_stride), weight, bias, kernel_size, stride, dilation)
    assert result.cells.tolist() == [list(cell) for cell in outputs]
    assert torch.equal(result.features, torch.stack(expected))
    assert result.stride == tensor_stride * stride


@pytest.mark.parametrize("grid", [FLAT, SOLID])
@pytest.mark.parametrize("kernel_size, dilation", [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_convolution_equals_conv3d_at_the_occupied_cells(grid, kernel_size, dilation):
    dense, kept = full_grid(grid, 2, seed=1)
    weight = torch.randn(kernel_size**3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # (volume, in, out) with depth fastest -> (out, in, depth, height, width)
    dense_weight = weight.view(kernel_size, kernel_size, kernel_size, 2, 4).permute(4, 3, 2, 1, 0)
    padding = kernel_size // 2 * dilation
    expected = F.conv3d(dense, dense_weight, padding=padding, dilation=dilation).movedim(1, -1)[kept]
    result = sparse.convolution(sparse.from_dense(dense), weight, None, kernel_size, dilation=dilation)
    torch.testing.assert_close(result.features, expected, rtol=1e-12, atol=1e-12)


def test_two_strided_convolutions_multiply_their_strides():
    cells = random_cells(3, flat=False)
    once = sparse.convolution(tensor_of(cells, integers((len(cells), 1), 0)), integers((8, 1, 1), 1), None, 2, 2)
    twice = sparse.convolution(once, integers((8, 1, 1), 2), None, 2, 2)
    assert twice.stride == 4
    assert twice.cells.tolist() == [list(cell) for cell in loop_strided(cells, 4)]


# --- pooling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["max", "average"])
@given(
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    tensor_stride=st.integers(1, 3),
    flat=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_pooling_equals_a_loop_over_cells(mode, kernel_size, stride, tensor_stride, flat, seed):
    assume(kernel_size >= stride)  # else a kernel may miss every cell of its block
    cells = random_cells(seed, flat, tensor_stride)
    features = integers((len(cells), 3), seed)
    outputs = loop_strided(cells, tensor_stride * stride)
    expected = []
    for found in loop_neighbours(cells, outputs, loop_offsets(kernel_size, kernel_size != stride), tensor_stride):
        seen = torch.stack([features[row] for _, row in found])
        expected.append(seen.amax(0) if mode == "max" else seen.sum(0) / len(found))
    result = sparse.pool(tensor_of(cells, features, tensor_stride), mode, kernel_size, stride)
    assert result.cells.tolist() == [list(cell) for cell in outputs]
    assert torch.equal(result.features, torch.stack(expected))
    assert result.stride == tensor_stride * stride


@pytest.mark.parametrize("grid", [(2, 8, 8), SOLID])
def test_block_max_pooling_of_non_negative_features_equals_max_pool3d(grid):
    dense, _ = full_grid(grid, 3, seed=4)
    assert torch.equal(sparse.pool(sparse.from_dense(dense), "max").dense(), F.max_pool3d(dense, 2))


def test_centred_max_pooling_of_non_negative_features_equals_max_pool3d_at_the_output_cells():
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
        # depth runs fastest among kernel offsets, so the cell that is later in the list of cells comes first there
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


def test_max_pooling_keeps_negative_features():
    result = sparse.pool(tensor_of([(0, 0, 0, 0), (0, 0, 0, 1)], torch.tensor([[-3.0], [-2.0]])), "max")
    assert result.features.tolist() == [[-2.0]]


def test_an_unknown_pooling_mode_is_refused():
    with pytest.raises(ValueError, match="'mean'.*'max', 'average' or 'sum'"):
        sparse.pool(tensor_of([(0, 0, 0, 0)], torch.ones(1, 1)), "mean")


# --- points to cells ----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), points=st.integers(1, 40))
def test_from_points_averages_the_points_of_each_cell(seed, points):
    draws = torch.Generator().manual_seed(seed)
    coordinates = torch.rand(points, 3, generator=draws) * 6 - 3
    cloud = torch.randint(0, 3, (points,), generator=draws)
    features = torch.randn(points, 2, dtype=torch.float64, generator=draws)
    members = {}
    for point in range(points):
        members.setdefault((int(cloud[point]), *map(math.floor, coordinates[point].tolist())), []).append(point)
    result = sparse.from_points(coordinates, features, cloud, 3, SOLID)
    assert result.cells.tolist() == [list(cell) for cell in sorted(members)]
    for row, cell in enumerate(sorted(members)):
        torch.testing.assert_close(result.features[row], features[members[cell]].mean(0), rtol=1e-12, atol=1e-12)


def test_from_points_gives_each_of_n_points_in_a_cell_one_nth_of_the_gradient():
    coordinates = torch.tensor([[0.0, 1.1, 1.2], [0, 2.5, 1.2], [0, 1.9, 1.0], [0, 1.0, 1.9]])
    features = torch.randn(4, 2, requires_grad=True)
    sparse.from_points(coordinates, features, torch.zeros(4, dtype=torch.int64), 1, FLAT).features.sum().backward()
    assert torch.equal(features.grad, torch.tensor([1 / 3, 1, 1 / 3, 1 / 3])[:, None].expand(4, 2))


# --- sparse and dense grids ---------------------------------------------------------------------------------------


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


# --- instance norm ------------------------------------------------------------------------------------------------


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
    result = sparse.instance_norm(tensor_of([(0, 0, 0, 0)], features), torch.full((2,), 5.0), torch.tensor([1.0, 2.0]))
    assert result.features.tolist() == [[1.0, 2.0]]
    result.features.sum().backward()
    assert features.grad.tolist() == [[0.0, 0.0]]


# --- clouds with few cells ----------------------------------------------------------------------------------------

LAYERS = {
    "convolution": lambda tensor: sparse.convolution(tensor, torch.ones(27, 2, 2, dtype=torch.float64)),
    "strided convolution": lambda tensor: sparse.convolution(tensor, torch.ones(8, 2, 2).double(), None, 2, 2),
    "max pooling": lambda tensor: sparse.pool(tensor, "max"),
    "average pooling": lambda tensor: sparse.pool(tensor, "average"),
    "instance norm": lambda tensor: sparse.instance_norm(tensor, *torch.ones(2, 2, dtype=torch.float64)),
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
    # the same or neighbouring cells, but of different clouds: each must be treated as if it were alone
    cells, features = [(0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 2)], integers((3, 2), seed=10)
    batch = LAYERS[layer](tensor_of(cells, features, grid=FLAT)).dense()
    for cloud, (_, *place) in enumerate(cells):
        alone = tensor_of([(0, *place)], features[cloud, None], grid=FLAT, clouds=1)
        assert torch.equal(batch[cloud], LAYERS[layer](alone).dense()[0])


# --- derivatives --------------------------------------------------------------------------------------------------

# Several cells in a block, neighbours, an empty cloud, and a cloud with a single cell.
SMALL = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 2, 1), (0, 1, 1, 1), (2, 0, 3, 3)]


def normal(*shape, seed=11):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel_size, stride", [(3, 1), (2, 2), (1, 2)])
def test_both_derivatives_of_convolution(check_two_derivatives, kernel_size, stride):
    def convolve(features, weight, bias):
        return sparse.convolution(tensor_of(SMALL, features), weight, bias, kernel_size, stride).features

    check_two_derivatives(convolve, normal(5, 2), normal(kernel_size**3, 2, 1, seed=12), normal(1, seed=13))


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (3, 2)])
def test_both_derivatives_of_pooling(check_two_derivatives, mode, kernel_size, stride):
    check_two_derivatives(lambda f: sparse.pool(tensor_of(SMALL, f), mode, kernel_size, stride).features, normal(5, 2))


def test_both_derivatives_of_instance_norm(check_two_derivatives):
    def normalise(features, weight, bias):
        return sparse.instance_norm(tensor_of(SMALL, features), weight, bias).features

    check_two_derivatives(normalise, normal(5, 2), normal(2, seed=12), normal(2, seed=13))


def test_both_derivatives_of_from_points(check_two_derivatives):
    coordinates = torch.tensor([[0.5, 1.1, 1.2], [0.5, 2.5, 1.2], [0.5, 1.9, 1.0]])
    cloud = torch.zeros(3, dtype=torch.int64)
    check_two_derivatives(lambda f: sparse.from_points(coordinates, f, cloud, 1, FLAT).features, normal(3, 2))


@pytest.mark.parametrize("corner", [False, True])
def test_both_derivatives_of_dense(check_two_derivatives, corner):
    cells = [(0, 0, 0, 2), (0, 0, 2, 0), (1, 0, 2, 2)]
    check_two_derivatives(lambda f: tensor_of(cells, f, stride=2, grid=(1, 4, 4), clouds=2).dense(corner), normal(3, 2))


def test_both_derivatives_of_from_dense(check_two_derivatives):
    check_two_derivatives(lambda dense: sparse.from_dense(dense).features, full_grid((1, 3, 3), 2, seed=14)[0] + 0.1)


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
