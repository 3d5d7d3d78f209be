"""MinkowskiEngine's layers against those of backend sparse.

The tests compare values, first derivatives and kernel maps, show the pitfalls of MinkowskiEngine,
and check the messages where it is not installed.
"""

import itertools
import math
import sys
from functools import partial
from unittest import mock

import pytest
import tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import distill, needs_minkowski

from pcdd_core.engine.lifts import coordinates_as_features
from pcdd_core.engine.losses import gradients_without_graph, parameter_gradients
from pcdd_core.errors import InputError
from pcdd_core.geometry.clouds import clouds_from_list
from pcdd_core.nn import minkowski, sparse
from pcdd_core.nn.cells import SparseTensor, kernel_map, strided_cells
from pcdd_core.nn.minkowski import MinkowskiTensor
from pcdd_core.seeds import generator

# a warning of torch: MinkowskiEngine makes instances of autograd functions
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

FLAT, SOLID = (1, 16, 16), (16, 16, 16)
MODES = ["max", "average", "sum"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def assert_close(actual, expected, tolerance=None):
    tolerance = tolerance or TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=generator(seed))


def tensor_of(cells, stride=1, clouds=3, grid=SOLID, dtype=torch.float64, seed=0):
    """Return a tensor of sorted cells, counted in tensor strides.

    Each cell has two random features, so there are no ties.
    """
    cells = torch.tensor(cells) * torch.tensor([1, stride, stride, stride])
    return SparseTensor(cells, normal(len(cells), 2, dtype=dtype, seed=seed), clouds, grid, stride)


def random_tensor(seed, clouds=3, flat=False, stride=1, dtype=torch.float64, low=-4):
    """Return a tensor with up to 13 cells in every cloud; some clouds may be empty.

    `low` < 0 gives negative coordinates, too.
    """
    draws = generator(seed)
    counts = torch.randint(0, 13, (clouds,), generator=draws)
    counts[int(torch.randint(clouds, (), generator=draws))] += 1
    cells = torch.randint(low, 5, (int(counts.sum()), 4), generator=draws)
    cells[:, 0] = torch.arange(clouds).repeat_interleave(counts)
    cells[:, 1] *= not flat
    return tensor_of(cells.unique(dim=0).tolist(), stride, clouds, dtype=dtype, seed=seed)


def tensors(**settings):
    kinds = dict(
        seed=st.integers(0, 10_000),
        clouds=st.integers(1, 4),
        flat=st.booleans(),
        stride=st.integers(1, 3),
    )
    return st.builds(random_tensor, **kinds, dtype=st.sampled_from(list(TOLERANCE)), **settings)


def without_empty_clouds(tensor):
    """Return the tensor with its clouds renumbered, without empty ones."""
    clouds, cloud = tensor.cells[:, 0].unique(return_inverse=True)
    cells = torch.cat([cloud[:, None], tensor.cells[:, 1:]], dim=1)
    return SparseTensor(cells, tensor.features, len(clouds), tensor.grid, tensor.stride)


def outcome(function, inputs):
    """Return the result of function(*inputs), its values, and its derivatives.

    The derivatives are by all inputs, along a random direction of the values.
    """
    leaves = [leaf.detach().clone().requires_grad_() for leaf in inputs]
    result = function(*leaves)
    if isinstance(result, MinkowskiTensor):
        result = result.to_sparse()
    values = result if isinstance(result, torch.Tensor) else result.features
    return (
        result,
        values,
        torch.autograd.grad(values, leaves, normal(*values.shape, dtype=values.dtype, seed=1)),
    )


def assert_same(actual, expected, *inputs, tolerance=None):
    """Assert that two functions have the same values, first derivatives, and cells, if any."""
    result, values, slopes = outcome(actual, inputs)
    wanted, wanted_values, wanted_slopes = outcome(expected, inputs)
    if isinstance(wanted, SparseTensor):
        assert torch.equal(result.cells, wanted.cells)
        assert (result.clouds, result.grid, result.stride) == (
            wanted.clouds,
            wanted.grid,
            wanted.stride,
        )
    assert_close(values, wanted_values, tolerance)
    for slope, wanted_slope in zip(slopes, wanted_slopes, strict=True):
        assert_close(slope, wanted_slope, tolerance)


def assert_engine_agrees(layer, tensor, *weights):
    """Assert that layer(layers, tensor, *weights) agrees for MinkowskiEngine's layers and ours."""

    def by_engine(features, *weights):
        return layer(minkowski, minkowski.from_sparse(tensor.with_features(features)), *weights)

    def by_us(features, *weights):
        return layer(sparse, tensor.with_features(features), *weights)

    assert_same(
        by_engine, by_us, tensor.features, *(weight.to(tensor.features.dtype) for weight in weights)
    )


def refusal(function, *inputs):
    """Return the message of the ValueError that the function raises; None if it raises none."""
    try:
        function(*inputs)
    except ValueError as error:
        return str(error)
    return None


# --- layers ---------------------------------------------------------------------------------------

KERNELS = dict(kernel_size=st.integers(1, 5), stride=st.integers(1, 3), dilation=st.integers(1, 2))
ALL_WINDOWS = list(itertools.product(range(1, 6), range(1, 4)))
WINDOWS = [window for window in ALL_WINDOWS if refusal(sparse.refuse_gaps, *window) is None]


@needs_minkowski
@given(tensor=tensors())
def test_minkowski_tensors_keep_the_cells_and_features_of_sparse_ones(tensor):
    there = minkowski.from_sparse(tensor)
    assert (there.clouds, there.grid, there.stride) == (tensor.clouds, tensor.grid, tensor.stride)
    assert torch.equal(there.cells_per_cloud, tensor.cells_per_cloud)
    rows = [
        sorted(
            (*cell, *feature) for cell, feature in zip(own.cells.tolist(), own.features.tolist())
        )
        for own in (there, tensor)
    ]
    assert rows[0] == rows[1]
    assert_engine_agrees(lambda layers, own: own, tensor)


@needs_minkowski
@given(tensor=tensors(), with_bias=st.booleans(), **KERNELS)
def test_minkowski_convolution_equals_sparse(tensor, with_bias, kernel_size, stride, dilation):
    def convolve(layers, own, weight, bias=None):
        return layers.convolution(own, weight, bias, kernel_size, stride, dilation)

    assert_engine_agrees(
        convolve, tensor, normal(kernel_size**3, 2, 3, seed=2), *[normal(3, seed=3)] * with_bias
    )


@needs_minkowski
@pytest.mark.parametrize("mode", MODES)
@given(tensor=tensors(), window=st.sampled_from(WINDOWS))
def test_minkowski_pooling_equals_sparse(mode, tensor, window):
    assert_engine_agrees(lambda layers, own: layers.pool(own, mode, *window), tensor)


@needs_minkowski
@given(tensor=tensors())
def test_minkowski_layers_in_a_row_equal_sparse(tensor):
    def stack(layers, own, first, second):
        own = layers.pool(layers.relu(layers.convolution(own, first)), "average")
        return layers.pool(layers.convolution(own, second, None, 2, 2), "max", 3, 2)

    assert_engine_agrees(stack, tensor, normal(27, 2, 3, seed=2), normal(8, 3, 2, seed=3))


@needs_minkowski
@given(tensor=tensors())
def test_minkowski_global_sum_equals_sparse(tensor):
    assert_engine_agrees(lambda layers, own: layers.global_pool(own, "sum"), tensor)


@needs_minkowski
@pytest.mark.parametrize("mode", ["max", "average"])
@given(tensor=tensors())
def test_minkowski_global_pooling_equals_sparse(mode, tensor):
    assert_engine_agrees(
        lambda layers, own: layers.global_pool(own, mode), without_empty_clouds(tensor)
    )


@needs_minkowski
@given(tensor=tensors(), with_bias=st.booleans())
def test_minkowski_relu_and_linear_equal_sparse(tensor, with_bias):
    def linear(layers, own, weight, bias=None):
        return layers.relu(layers.linear(own, weight, bias))

    assert_engine_agrees(linear, tensor, normal(3, 2, seed=2), *[normal(3, seed=3)] * with_bias)


@needs_minkowski
@pytest.mark.parametrize("norm", ["instance_norm", "batch_norm"])
@given(tensor=tensors())
def test_minkowski_norms_equal_sparse(norm, tensor):
    assume(norm != "batch_norm" or len(tensor.cells) > 1)
    # at least 1 apart: the norm of nearly equal features needs more than single precision
    tensor = tensor.with_features(tensor.features.argsort(0).to(tensor.features.dtype))

    def normalise(layers, own, *weights):
        return getattr(layers, norm)(own, *weights)

    assert_engine_agrees(normalise, tensor, normal(2, seed=2), normal(2, seed=3))


@needs_minkowski
@pytest.mark.parametrize("corner", [False, True])
@given(tensor=tensors(low=st.just(0)))
def test_minkowski_dense_equals_sparse(corner, tensor):
    assert_engine_agrees(lambda layers, own: own.dense(corner), tensor)


@needs_minkowski
def test_minkowski_layers_leave_torch_s_random_numbers_alone():
    minkowski._convolution.cache_clear()  # new layers draw weights; cached ones do not
    before = torch.random.get_rng_state()
    for function, shapes in LAYERS.values():
        function(
            minkowski,
            minkowski.from_sparse(random_tensor(seed=0, clouds=1, low=0)),
            *map(normal_of, shapes),
        )
    assert torch.equal(torch.random.get_rng_state(), before)


# --- what is refused ------------------------------------------------------------------------------

OUTSIDE = [(0, 16, 0, 0), (0, 0, 16, 0), (0, 0, 0, 16), (0, -1, 0, 0), (0, 0, -1, 0), (0, 0, 0, -1)]


@needs_minkowski
@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("cell", OUTSIDE)
def test_minkowski_dense_refuses_cells_outside_the_grid_as_sparse_does(cell, corner):
    tensor = tensor_of([cell])
    message = refusal(tensor.dense, corner)
    assert "a cell lies outside the grid (16, 16, 16)" in message
    assert refusal(minkowski.from_sparse(tensor).dense, corner) == message


@needs_minkowski
@pytest.mark.parametrize(
    "place, corner, fits", [(7, False, True), (8, False, False), (8, True, True), (-1, True, False)]
)
def test_minkowski_dense_counts_cells_in_strides_as_sparse_does(place, corner, fits):
    tensor = tensor_of([(0, 0, 0, place)], stride=2)
    for own in (tensor, minkowski.from_sparse(tensor)):
        assert (refusal(own.dense, corner) is None) == fits


@needs_minkowski
@pytest.mark.parametrize("window", sorted(set(ALL_WINDOWS) - set(WINDOWS)))
def test_minkowski_pooling_refuses_gaps_as_sparse_does(window):
    tensor = tensor_of([(0, 0, 0, 0)])
    message = refusal(sparse.pool, tensor, "max", *window)
    assert "leaves cells out" in message
    assert refusal(minkowski.pool, minkowski.from_sparse(tensor), "max", *window) == message


@needs_minkowski
@pytest.mark.parametrize("pooling", ["pool", "global_pool"])
def test_minkowski_pooling_refuses_unknown_modes_as_sparse_does(pooling):
    tensor = tensor_of([(0, 0, 0, 0)])
    message = refusal(getattr(sparse, pooling), tensor, "mean")
    assert "'mean'; expected 'max', 'average' or 'sum'" in message
    assert refusal(getattr(minkowski, pooling), minkowski.from_sparse(tensor), "mean") == message


@needs_minkowski
def test_minkowski_tensors_without_any_cell_are_refused_as_sparse_ones_are():
    nothing = torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 2, FLAT
    for name, inputs in (("from_points", nothing), ("from_dense", [torch.zeros(2, 3, *FLAT)])):
        message = refusal(getattr(sparse, name), *inputs)
        assert "no occupied cell in any cloud" in message
        assert refusal(getattr(minkowski, name), *inputs) == message


# --- unusual batches ------------------------------------------------------------------------------


def normal_of(shape):
    return normal(*shape, seed=len(shape))


# every operation, with the shapes of its weights
LAYERS = {
    "convolution": (
        lambda layers, own, *weights: layers.convolution(own, *weights),
        [(27, 2, 3), (3,)],
    ),
    "strided convolution": (
        lambda layers, own, weight: layers.convolution(own, weight, None, 2, 2),
        [(8, 2, 3)],
    ),
    "convolution of one cell": (
        lambda layers, own, weight: layers.convolution(own, weight, None, 1),
        [(1, 2, 3)],
    ),
    "max pooling": (lambda layers, own: layers.pool(own, "max"), []),
    "average pooling": (lambda layers, own: layers.pool(own, "average"), []),
    "sum pooling": (lambda layers, own: layers.pool(own, "sum"), []),
    "centred max pooling": (lambda layers, own: layers.pool(own, "max", 3, 2), []),
    "centred average pooling": (lambda layers, own: layers.pool(own, "average", 3, 2), []),
    "global max": (lambda layers, own: layers.global_pool(own, "max"), []),
    "global average": (lambda layers, own: layers.global_pool(own, "average"), []),
    "global sum": (lambda layers, own: layers.global_pool(own, "sum"), []),
    "relu": (lambda layers, own: layers.relu(own), []),
    "linear": (lambda layers, own, *weights: layers.linear(own, *weights), [(3, 2), (3,)]),
    "instance norm": (
        lambda layers, own, *weights: layers.instance_norm(own, *weights),
        [(2,), (2,)],
    ),
    "batch norm": (lambda layers, own, *weights: layers.batch_norm(own, *weights), [(2,), (2,)]),
    "dense": (lambda layers, own: own.dense(), []),
    "dense corner": (lambda layers, own: own.dense(corner=True), []),
}
FEW = [(0, 0, 1), (0, 1, 1), (1, 0, 0)]
BATCHES = {  # cells, and how many clouds
    "clouds of one cell": ([(0, 0, 1, 1), (1, 0, 2, 3), (2, 5, 5, 5)], 3),
    "clouds of the same cell": ([(0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 1)], 3),
    "clouds of one cell and an empty one": ([(0, 0, 1, 1), (2, 5, 5, 5)], 3),
    "first cloud empty": ([(cloud, *place) for cloud in (1, 2) for place in FEW], 3),
    "middle cloud empty": ([(cloud, *place) for cloud in (0, 2) for place in FEW], 3),
    "last cloud empty": ([(cloud, *place) for cloud in (0, 1) for place in FEW], 3),
    "all but the last empty": ([(3, *place) for place in FEW], 4),
    "a cloud of one cell among others": ([(0, *FEW[0]), *((1, *place) for place in FEW)], 2),
    "one cloud": ([(0, *place) for place in FEW], 1),
    "one cloud of one cell": ([(0, 0, 3, 2)], 1),
}


@needs_minkowski
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", LAYERS)
def test_minkowski_layers_equal_sparse_on_unusual_batches(layer, batch):
    (function, shapes), (cells, clouds) = LAYERS[layer], BATCHES[batch]
    tensor, weights = tensor_of(cells, clouds=clouds), list(map(normal_of, shapes))
    message = refusal(function, sparse, tensor, *weights)
    assert refusal(function, minkowski, minkowski.from_sparse(tensor), *weights) == message
    if message is None:
        assert_engine_agrees(function, tensor, *weights)
    else:
        assert layer in ("global max", "global average", "batch norm")


def transposed_in_memory(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@needs_minkowski
@pytest.mark.parametrize("layer", LAYERS)
def test_minkowski_layers_take_features_and_weights_of_any_memory_layout(layer):
    function, shapes = LAYERS[layer]
    tensor = without_empty_clouds(random_tensor(seed=0, low=0))
    assert_engine_agrees(
        function,
        tensor.with_features(transposed_in_memory(tensor.features)),
        *(transposed_in_memory(normal_of(shape)) for shape in shapes),
    )


@needs_minkowski
@pytest.mark.parametrize("mode", ["max", "average"])
def test_minkowski_global_pooling_of_an_empty_cloud_is_refused_by_name(mode):
    tensor = minkowski.from_sparse(tensor_of([(0, 0, 0, 0), (2, 0, 0, 0)]))
    with pytest.raises(ValueError, match=f"cloud 1 has no occupied cell, so it has no {mode}"):
        minkowski.global_pool(tensor, mode)


# --- points to cells ------------------------------------------------------------------------------


def assert_points_agree(
    coordinates, cloud, clouds, dtype=torch.float32, layer=lambda layers, own: own, weights=()
):
    """Assert that a layer on the cells of points agrees.

    MinkowskiEngine computes 1/n in single precision, for double features, too.
    """

    def made(layers, features, *weights):
        return layer(
            layers, layers.from_points(coordinates, features, cloud, clouds, SOLID), *weights
        )

    features = normal(len(coordinates), 2, dtype=dtype)
    assert_same(partial(made, minkowski), partial(made, sparse), features, *weights, tolerance=1e-6)


@needs_minkowski
@given(
    seed=st.integers(0, 10_000),
    points=st.integers(1, 40),
    clouds=st.integers(1, 4),
    flat=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_minkowski_averages_points_in_a_cell_as_sparse_does(seed, points, clouds, flat, dtype):
    draws = generator(seed)
    coordinates = (
        torch.rand(points, 3, generator=draws) * torch.tensor([0 if flat else 4, 4, 4]) - 2
    )
    assert_points_agree(
        coordinates, torch.randint(clouds, (points,), generator=draws), clouds, dtype
    )


@needs_minkowski
@pytest.mark.parametrize(
    "cloud, clouds",
    [([0], 1), ([0, 0, 0], 1), ([0, 1, 2], 3), ([1, 1, 2], 3), ([0, 2, 2], 3), ([0, 0, 1], 3)],
)
def test_minkowski_averages_points_together_alone_or_missing_as_sparse_does(cloud, clouds):
    coordinates = torch.tensor([[0.5, 1.1, 1.2], [0.2, 1.9, 1.0], [0.0, 1.0, 1.9]])
    assert_points_agree(coordinates[: len(cloud)], torch.tensor(cloud), clouds)


@needs_minkowski
@pytest.mark.parametrize("layer", LAYERS)
def test_minkowski_layers_equal_sparse_where_points_of_several_clouds_share_cells(layer):
    (function, shapes), draws = LAYERS[layer], generator(0)
    coordinates, cloud = (
        3 * torch.rand(60, 3, generator=draws),
        torch.randint(3, (60,), generator=draws),
    )
    assert len(torch.cat([cloud[:, None], coordinates.floor()], dim=1).unique(dim=0)) < 55
    assert_points_agree(
        coordinates, cloud, 3, torch.float64, function, list(map(normal_of, shapes))
    )


@needs_minkowski
@pytest.mark.parametrize("below", [1e-3, 1e-9])
def test_minkowski_finds_the_cell_of_double_coordinates_just_below_a_border(below):
    coordinates = torch.tensor([[0, 3 - below, 0]], dtype=torch.float64)
    made = minkowski.from_points(coordinates, coordinates, torch.tensor([0]), 1, SOLID)
    assert made.cells.tolist() == [[0, 0, 2, 0]]


@needs_minkowski
@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf, 2.0**31, -(2.0**40)])
def test_minkowski_refuses_points_that_lie_nowhere_as_sparse_does(lost):
    coordinates = torch.tensor([[0.0, 1.0, 2.0], [0.0, lost, 2.0]])
    inputs = coordinates, coordinates, torch.tensor([0, 1]), 2, SOLID
    message = refusal(sparse.from_points, *inputs)
    assert message is not None
    assert refusal(minkowski.from_points, *inputs) == message


@needs_minkowski
def test_minkowski_from_dense_equals_sparse():
    dense = normal(3, 2, *FLAT) * (torch.rand(3, 1, *FLAT, generator=generator(1)) < 0.2)
    dense[1] = 0
    assert_same(minkowski.from_dense, sparse.from_dense, dense)


# --- kernel maps ----------------------------------------------------------------------------------


def pairs(find, tensor, cells, *kernel):
    """Return the set of (row of the output cell, kernel offset, row of the input cell)."""
    neighbours, used = find(tensor, cells, *kernel)
    outputs, columns = (neighbours < len(tensor.cells)).nonzero().unbind(1)
    triples = list(
        zip(outputs.tolist(), used[columns].tolist(), neighbours[outputs, columns].tolist())
    )
    assert len(set(triples)) == len(triples)
    return set(triples)


def assert_maps_agree(tensor, cells, *kernel):
    expected = pairs(kernel_map, tensor, cells, *kernel)
    assert pairs(minkowski.kernel_map, tensor, cells, *kernel) == expected


@needs_minkowski
@given(tensor=tensors(), **KERNELS)
def test_minkowski_kernel_maps_of_convolutions_equal_ours(tensor, kernel_size, stride, dilation):
    cells = tensor.cells if stride == 1 else strided_cells(tensor, stride)
    assert_maps_agree(tensor, cells, kernel_size, dilation, True)


@needs_minkowski
@given(tensor=tensors(), size=st.integers(1, 4))
def test_minkowski_kernel_maps_of_blocks_equal_ours(tensor, size):
    assert_maps_agree(tensor, strided_cells(tensor, size), size, 1, False)


@needs_minkowski
@given(tensor=tensors(), **KERNELS)
def test_minkowski_kernel_maps_give_the_same_convolution(tensor, kernel_size, stride, dilation):
    def convolve(features, weight, bias, find):
        return sparse.convolution(
            tensor.with_features(features), weight, bias, kernel_size, stride, dilation, find
        )

    weights = normal(kernel_size**3, 2, 3, seed=2), normal(3, seed=3)
    inputs = [leaf.to(tensor.features.dtype) for leaf in (tensor.features, *weights)]
    assert_same(partial(convolve, find=minkowski.kernel_map), partial(convolve, find=None), *inputs)


@needs_minkowski
@pytest.mark.parametrize("mode", MODES)
@given(tensor=tensors(), window=st.sampled_from(WINDOWS))
def test_minkowski_kernel_maps_give_the_same_pooling(mode, tensor, window):
    def pool(features, find):
        return sparse.pool(tensor.with_features(features), mode, *window, find)

    assert_same(partial(pool, find=minkowski.kernel_map), partial(pool, find=None), tensor.features)


# --- MinkowskiEngine's pitfalls -------------------------------------------------------------------


def tensor_of_sizes(sizes):
    """Return a tensor in which cloud i has sizes[i] cells with the feature i + 1."""
    cells = torch.tensor(
        [(cloud, 0, 0, place) for cloud, size in enumerate(sizes) for place in range(size)]
    )
    return SparseTensor(cells, cells[:, :1] + 1.0, len(sizes), FLAT)


def raw_global_pool(name, tensor):
    """Return {cloud: feature} by MinkowskiEngine's own layer in its default mode."""
    pooled = getattr(minkowski.engine(), f"MinkowskiGlobal{name}Pooling")()(
        minkowski.from_sparse(tensor).tensor
    )
    return dict(zip(pooled.C[:, 0].tolist(), pooled.F[:, 0].tolist()))


@needs_minkowski
@pytest.mark.parametrize("mode, name", [("sum", "Sum"), ("average", "Avg")])
def test_minkowski_s_own_global_pooling_confuses_clouds_and_ours_does_not(mode, name):
    sizes = range(1, 11)
    tensor = tensor_of_sizes(sizes)
    expected = [(cloud + 1.0) * (size if mode == "sum" else 1) for cloud, size in enumerate(sizes)]
    raw = raw_global_pool(name, tensor)
    assert sorted(raw.values()) == expected and [raw[cloud] for cloud in range(10)] != expected
    assert minkowski.global_pool(minkowski.from_sparse(tensor), mode).flatten().tolist() == expected


@needs_minkowski
@pytest.mark.parametrize("mode, name", [("sum", "Sum"), ("average", "Avg"), ("max", "Max")])
def test_minkowski_s_own_global_pooling_fails_on_clouds_of_one_cell_ours_does_not(mode, name):
    tensor = tensor_of_sizes([1, 1, 1])
    with pytest.raises(RuntimeError, match="in_size > out_size"):
        raw_global_pool(name, tensor)
    assert minkowski.global_pool(minkowski.from_sparse(tensor), mode).tolist() == [[1], [2], [3]]


@needs_minkowski
@pytest.mark.parametrize("sizes", [[2, 3, 0], [0, 2, 3], [2, 0, 3], [1, 1, 0], [0, 0, 2]])
def test_minkowski_batches_keep_a_row_for_every_cloud_without_cells(sizes):
    tensor = minkowski.from_sparse(tensor_of_sizes(sizes))
    sums = [[(cloud + 1.0) * size] for cloud, size in enumerate(sizes)]
    assert minkowski.global_pool(tensor, "sum").tolist() == sums
    assert tensor.dense().shape == (3, 1, *FLAT)
    assert tensor.dense().sum((2, 3, 4)).tolist() == sums
    assert tensor.to_sparse().clouds == 3


# --- networks -------------------------------------------------------------------------------------


def built(backend, grid=FLAT, seed=0, **settings):
    description = tiny.network_of(backend=backend, **{"layers": 2, "width": 4} | settings)
    return description.new(3, grid, 5, generator(seed)).double()


def twins(grid=FLAT, **settings):
    """Return a network of backend minkowski, and one of backend sparse with the same weights."""
    network, twin = (
        built("minkowski", grid, seed=1, **settings),
        built("sparse", grid, seed=2, **settings),
    )
    twin.load_state_dict(network.state_dict())
    return network, twin


def scattered(sizes, grid=FLAT, seed=0, crowded=False):
    """Return float64 clouds with at most one point in a cell, or several if crowded.

    MinkowskiEngine computes the mean of several points in single precision.
    """
    draws = generator(seed)
    cells = [torch.randperm(math.prod(grid), generator=draws)[:size] for size in sizes]
    cells = torch.stack(torch.unravel_index(torch.cat(cells) // (4 if crowded else 1), grid), dim=1)
    coordinates = cells + 0.1 + 0.8 * torch.rand(cells.shape, dtype=torch.float64, generator=draws)
    labels = [cloud % 5 for cloud in range(len(sizes))]
    return clouds_from_list(coordinates.split(list(sizes)), labels, grid, "abcde").with_coordinates(
        coordinates
    )


def logits_of(network, clouds, layers):
    """Return the logits as a function of coordinates and parameters, on tensors of `layers`."""
    names = [name for name, _ in network.named_parameters()]

    def logits(coordinates, *parameters):
        lifted = coordinates_as_features(clouds.with_coordinates(coordinates), layers.from_points)
        return torch.func.functional_call(network, dict(zip(names, parameters)), (lifted,))

    return logits


def assert_networks_agree(network, twin, clouds, layers, tolerance=1e-8):
    """Assert that logits and their derivatives by coordinates and parameters agree.

    `network` takes tensors of `layers`, its twin takes sparse tensors.
    """
    inputs = clouds.coordinates, *network.parameters()
    functions = logits_of(network, clouds, layers), logits_of(twin, clouds, sparse)
    assert_same(*functions, *inputs, tolerance=tolerance)


@needs_minkowski
@pytest.mark.parametrize("paper_layout", [False, True])
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_minkowski_networks_equal_sparse_ones(layers, pooling, norm, paper_layout):
    settings = dict(layers=layers, pooling=pooling, norm=norm, paper_layout=paper_layout)
    assert_networks_agree(*twins(**settings), scattered([40, 1, 25, 60]), minkowski)


@needs_minkowski
@pytest.mark.parametrize(
    "layers, pooling, norm, paper_layout",
    [(2, "max", "none", False), (3, "average", "instance", True), (4, "max", "batch", False)],
)
def test_minkowski_networks_equal_sparse_ones_in_a_solid_grid(layers, pooling, norm, paper_layout):
    settings = dict(layers=layers, pooling=pooling, norm=norm, paper_layout=paper_layout)
    assert_networks_agree(*twins(SOLID, **settings), scattered([200, 1, 100], SOLID), minkowski)


@needs_minkowski
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_minkowski_networks_equal_sparse_ones_where_points_share_cells(pooling, norm):
    clouds = scattered([60, 1, 90], crowded=True)
    assert len(coordinates_as_features(clouds).cells) < len(clouds.coordinates)
    assert_networks_agree(*twins(pooling=pooling, norm=norm), clouds, minkowski, tolerance=1e-5)


@needs_minkowski
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("sizes", [[30, 0, 20], [0, 30, 20], [30, 20, 0], [1, 1, 1], [30]])
def test_minkowski_networks_equal_sparse_ones_on_unusual_batches(sizes, norm):
    assert_networks_agree(*twins(norm=norm), scattered(sizes), minkowski)


@needs_minkowski
@pytest.mark.parametrize("grid", [FLAT, SOLID])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_minkowski_kernel_maps_give_the_same_network(monkeypatch, pooling, grid):
    find = mock.Mock(wraps=minkowski.kernel_map)
    monkeypatch.setattr(minkowski, "kernel_map", find)
    network = built("sparse", grid, kernel_maps="minkowski", pooling=pooling)
    twin = built("sparse", grid, pooling=pooling)
    assert_networks_agree(network, twin, scattered([40, 1, 25], grid), sparse)
    assert find.call_count == 2 * 2  # for the convolution and the pooling of two layers


@needs_minkowski
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_minkowski_weights_are_those_of_sparse_and_move_both_ways(norm):
    networks = {backend: built(backend, norm=norm) for backend in ("minkowski", "sparse")}
    states = [network.state_dict() for network in networks.values()]
    assert list(states[0]) == list(states[1])
    # the seed is the same
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    lifted = coordinates_as_features(scattered([40, 25]))
    for source, target in (("minkowski", "sparse"), ("sparse", "minkowski")):
        other = built(target, norm=norm, seed=3)
        before = other(lifted)
        other.load_state_dict(networks[source].state_dict())
        assert_close(other(lifted), networks[source](lifted))
        assert (other(lifted) - before).abs().max() > 1e-3


@needs_minkowski
# the second grid is too large for a table of its cells
@pytest.mark.parametrize("grid", [FLAT, (64, 64, 64)])
@pytest.mark.parametrize("backend", ["torch", "sparse", "minkowski"])
def test_minkowski_tensors_sparse_tensors_and_dense_ones_give_the_same_logits(backend, grid):
    network, clouds = built(backend, grid), scattered([40, 1, 25], grid)
    lifted = coordinates_as_features(clouds)
    expected = network(lifted)
    for other in (
        lifted.dense(),
        minkowski.from_sparse(lifted),
        coordinates_as_features(clouds, minkowski.from_points),
    ):
        assert_close(network(other), expected)


@needs_minkowski
@pytest.mark.parametrize("grid", [FLAT, SOLID])
def test_minkowski_networks_equal_sparse_ones_on_dense_input(grid):
    assert_same(*twins(grid), coordinates_as_features(scattered([40, 1, 25], grid)).dense())


# --- second derivatives ---------------------------------------------------------------------------


def lifted_leaf(clouds, layers=sparse):
    """Return coordinates that require a gradient, and their lift."""
    coordinates = clouds.coordinates.clone().requires_grad_()
    return coordinates, coordinates_as_features(
        clouds.with_coordinates(coordinates), layers.from_points
    )


@needs_minkowski
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_minkowski_loses_the_graph_of_all_convolution_weights_and_only_theirs(
    layers, pooling, norm
):
    clouds, settings = scattered([40, 25]), dict(layers=layers, pooling=pooling, norm=norm)
    without = {
        (backend, maps): gradients_without_graph(
            built(backend, kernel_maps=maps, **settings),
            lifted_leaf(clouds, minkowski if backend == "minkowski" else sparse)[1],
            clouds.labels,
        )
        for backend, maps in [
            ("minkowski", "torch"),
            ("sparse", "torch"),
            ("sparse", "minkowski"),
            ("torch", "torch"),
        ]
    }
    assert without.pop(("minkowski", "torch")) == [
        f"convolution_weights.{layer}" for layer in range(layers)
    ]
    assert list(without.values()) == [[], [], []]


@needs_minkowski
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_minkowski_gradients_of_norm_biases_have_a_graph_that_leads_to_no_point(norm):
    network, twin = twins(norm=norm)
    clouds, reached = scattered([40, 25]), {}
    for own, layers in ((network, minkowski), (twin, sparse)):
        coordinates, lifted = lifted_leaf(clouds, layers)
        gradients = parameter_gradients(own, lifted, clouds.labels, create_graph=True)
        for (name, _), gradient in zip(own.named_parameters(), gradients, strict=True):
            if gradient.grad_fn is not None:
                weighted = (gradient * normal(*gradient.shape)).sum()
                options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
                (slope,) = torch.autograd.grad(weighted, coordinates, **options)
                reached[layers, name] = slope
    for layer in range(2):
        assert reached[minkowski, f"norm_biases.{layer}"].abs().sum() == 0
        assert reached[minkowski, f"norm_weights.{layer}"].abs().sum() > 0
    assert all(slope.abs().sum() > 0 for (layers, _), slope in reached.items() if layers is sparse)
    # after the last layer of MinkowskiEngine no derivative is lost
    for name in ("head.weight", "head.bias"):
        assert_close(reached[minkowski, name], reached[sparse, name], 1e-8)


# --- distillation ---------------------------------------------------------------------------------


@needs_minkowski
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_minkowski_distillation_runs_and_its_first_loss_is_that_of_sparse(norm):
    steps = {}
    for backend in ("minkowski", "sparse"):
        config = tiny.config(
            network__name=backend,
            network__norm=norm,
            lift__name="coordinates",
            schedule__iterations=2,
        )
        steps[backend] = list(config.distill(tiny.three_digits()))
    assert [step.iteration for step in steps["minkowski"]] == [0, 1]
    first, other = steps["minkowski"][0], steps["sparse"][0]
    assert first.matching_loss == pytest.approx(other.matching_loss, rel=1e-4)
    assert first.mean_absolute_gradient > 0
    # MinkowskiEngine loses much of the gradient
    assert first.mean_absolute_gradient != pytest.approx(other.mean_absolute_gradient, rel=0.01)


# --- without MinkowskiEngine ----------------------------------------------------------------------

ASKING_FOR_IT = {
    "backend": dict(backend="minkowski"),
    "kernel maps": dict(backend="sparse", kernel_maps="minkowski"),
}


@pytest.fixture
def forget_the_engine():
    """Look for MinkowskiEngine again in the test, and again after it."""
    minkowski.engine.cache_clear()
    yield
    minkowski.engine.cache_clear()


@pytest.fixture
def not_installed(forget_the_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)


@pytest.fixture
def installed_as(forget_the_engine, monkeypatch, tmp_path):
    """Return installed_as(code), after which `import MinkowskiEngine` runs that code."""

    def install(code):
        (tmp_path / "MinkowskiEngine.py").write_text(code)
        monkeypatch.delitem(sys.modules, "MinkowskiEngine", raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.parametrize("asking", ASKING_FOR_IT)
def test_without_minkowski_networks_that_need_it_say_how_to_get_it_or_go_without(
    not_installed, asking
):
    with pytest.raises(
        InputError,
        match="MinkowskiEngine is not installed.*`make minkowski`.*network.name=sparse",
    ):
        built(**ASKING_FOR_IT[asking])


def test_without_minkowski_distillation_with_it_is_refused_before_the_first_step(not_installed):
    with pytest.raises(InputError, match="MinkowskiEngine is not installed"):
        distill(tiny.config(network__name="minkowski"), tiny.three_digits())


@pytest.mark.parametrize(
    "make",
    [minkowski.from_points, minkowski.from_sparse, minkowski.from_dense, minkowski.kernel_map],
)
def test_without_minkowski_tensors_of_it_say_how_to_get_it(not_installed, make):
    tensor, clouds = tensor_of([(0, 0, 0, 0)], clouds=1), scattered([3])
    inputs = {
        minkowski.from_points: (
            clouds.coordinates,
            clouds.coordinates,
            clouds.cloud_index,
            1,
            FLAT,
        ),
        minkowski.from_sparse: (tensor,),
        minkowski.from_dense: (tensor.dense(),),
        minkowski.kernel_map: (tensor, tensor.cells, 3),
    }
    with pytest.raises(InputError, match="MinkowskiEngine is not installed.*`make minkowski`"):
        make(*inputs[make])


@pytest.mark.parametrize("backend", ["sparse", "torch"])
def test_without_minkowski_the_other_backends_work(not_installed, backend):
    config = tiny.config(network__name=backend, lift__name="coordinates", schedule__iterations=2)
    assert len(list(config.distill(tiny.three_digits()))) == 2


@pytest.mark.parametrize("asking", ASKING_FOR_IT)
def test_minkowski_that_does_not_load_was_built_for_another_torch(installed_as, asking):
    installed_as("raise ImportError('MinkowskiEngineBackend.so: undefined symbol: _ZN3c10')")
    with pytest.raises(
        InputError, match="undefined symbol: _ZN3c10.*built for another PyTorch.*`make minkowski`"
    ):
        built(**ASKING_FOR_IT[asking])


def test_minkowski_that_lacks_a_module_of_its_own_is_not_called_missing(installed_as):
    installed_as("import a_module_that_it_needs")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_it_needs"):
        built("minkowski")
