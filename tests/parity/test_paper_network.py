"""The paper's two networks against literal ones: layers, origin shift, loss, updates."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import digits, needs_minkowski

from pcdd_core.data import datasets
from pcdd_core.engine.distances import DISTANCES
from pcdd_core.engine.distill import distill
from pcdd_core.engine.lifts import coordinates_as_features
from pcdd_core.engine.losses import gradient_matching
from pcdd_core.engine.method import Method
from pcdd_core.errors import InputError
from pcdd_core.experiments.config import Config, override
from pcdd_core.experiments.presets import preset
from pcdd_core.geometry.clouds import PointClouds, clouds_from_list, members_per_class
from pcdd_core.geometry.grid import at_lower_corners, boundary_check
from pcdd_core.nn import minkowski, sparse
from pcdd_core.nn.cells import SparseTensor
from pcdd_core.seeds import generator

# a warning of torch: MinkowskiEngine makes instances of autograd functions
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
GRID, WIDTH = (1, 28, 28), 8


def paper_config(backend: str, layers: int, distance: str = "sum-of-squares", **settings) -> Config:
    return override(preset(f"paper-{backend}-{layers}-{distance}").config, settings)


def inner_clouds(
    seed: int, clouds: int = 3, points: int = 40, row: int = 3, column: int = 5
) -> PointClouds:
    """Return float64 clouds whose smallest cell is (row, column): row 0 and column 0 are free."""
    low, room = torch.tensor([0, row, column]), torch.tensor([1, 28 - row, 28 - column])
    draws = generator(seed, "inner clouds")
    coordinates = torch.rand(clouds, points, 3, generator=draws, dtype=torch.float64) * room + low
    coordinates[..., 0] = 0
    coordinates[0, 0, 1] = row + 0.5
    coordinates[0, 1, 2] = column + 0.5
    labels = [cloud % 10 for cloud in range(clouds)]
    made = clouds_from_list(list(coordinates), labels, GRID, "0123456789")
    return made.with_coordinates(coordinates.flatten(0, 1))


def literal_cells(clouds: PointClouds) -> list[dict[tuple[int, int], torch.Tensor]]:
    """Return the mean coordinates of the points in each occupied cell, per cloud, with a graph."""
    averaged = []
    for cloud in range(len(clouds)):
        points: dict[tuple[int, int], list[torch.Tensor]] = {}
        for point in clouds[cloud]:
            points.setdefault((int(point[1]), int(point[2])), []).append(point)
        averaged.append({cell: torch.stack(inside).mean(0) for cell, inside in points.items()})
    return averaged


def literal_dense(cells, shift: bool) -> torch.Tensor:
    """Return (clouds, 3, 1, 28, 28), shifted by the smallest row and column of all clouds."""
    rows = min(row for cloud in cells for row, _ in cloud) if shift else 0
    columns = min(column for cloud in cells for _, column in cloud) if shift else 0
    grid = torch.zeros(len(cells), 3, *GRID, dtype=torch.float64)
    for number, cloud in enumerate(cells):
        for (row, column), features in cloud.items():
            grid[number, :, 0, row - rows, column - columns] = features
    return grid


def literal_torch(network, clouds: PointClouds, shift: bool) -> torch.Tensor:
    """Return the logits of the paper's PyTorch network.

    Its layers are Conv3d (1, 3, 3) with padding 1 on all axes, ReLU, and MaxPool3d 2.
    """
    features = literal_dense(literal_cells(clouds), shift)
    for weight, bias in zip(network.convolution_weights, network.convolution_biases, strict=True):
        features = F.max_pool3d(F.conv3d(features, weight, bias, padding=1).relu(), 2)
    return network.head(features.flatten(1))


def literal_sparse(network, clouds: PointClouds, shift: bool) -> torch.Tensor:
    """Return the logits of the paper's MinkowskiEngine network, computed by dense layers.

    Cells that are not occupied stay empty.
    """
    cells = literal_cells(clouds)
    features = literal_dense(cells, shift=False)[:, :, 0]
    occupied = (literal_dense(cells, shift=False) != 0).any(1).to(features)
    for weight in network.convolution_weights:
        # the axes are width, height and depth
        kernel = weight.view(3, 3, 3, *weight.shape[1:])[:, :, 1].permute(3, 2, 1, 0)
        features = F.conv2d(features, kernel, padding=1).relu() * occupied
        features, occupied = (
            F.max_pool2d(grid, 2, ceil_mode=True) for grid in (features, occupied)
        )
    if shift:
        rows, columns = (occupied.amax((0, 1, axis)).nonzero().min() for axis in (3, 2))
        height, width = features.shape[2:]
        features = F.pad(features[:, :, rows:, columns:], (0, int(columns), 0, int(rows)))
        assert features.shape[2:] == (height, width)
    corner = torch.zeros(len(clouds), features.shape[1], *GRID, dtype=torch.float64)
    corner[:, :, 0, : features.shape[2], : features.shape[3]] = features
    return network.head(corner.flatten(1))


def literal_minkowski(network, clouds: PointClouds, shift: bool) -> torch.Tensor:
    """Return the logits of the paper's MinkowskiEngine network, by MinkowskiEngine's layers."""
    me = minkowski.engine()
    position = torch.cat([clouds.cloud_index[:, None], clouds.coordinates.detach().floor()], 1)
    mode = me.SparseTensorQuantizationMode.UNWEIGHTED_AVERAGE
    field = me.TensorField(clouds.coordinates, coordinates=position.float(), quantization_mode=mode)
    tensor = field.sparse()
    for weight in network.convolution_weights:
        layer = me.MinkowskiConvolution(*weight.shape[1:], kernel_size=3, bias=False, dimension=3)
        tensor = torch.func.functional_call(layer, {"kernel": weight}, (tensor,))
        tensor = me.MinkowskiMaxPooling(2, 2, dimension=3)(me.MinkowskiReLU()(tensor))
    smallest = tensor.C[:, 1:].amin(0).int() if shift else torch.zeros(3, dtype=torch.int32)
    shape = torch.Size([len(clouds), tensor.F.shape[1], *GRID])
    return network.head(tensor.dense(shape, min_coordinate=smallest)[0].flatten(1))


LITERAL = {"torch": literal_torch, "sparse": literal_sparse, "minkowski": literal_minkowski}
BACKENDS = ["torch", "sparse", pytest.param("minkowski", marks=needs_minkowski)]


def network_and_lift(backend: str, layers: int, **settings):
    config = paper_config(backend, layers, **{"network.width": WIDTH, **settings})
    points = minkowski.from_points if backend == "minkowski" else sparse.from_points
    return config.method.draw_network(
        inner_clouds(0), 0
    ).double(), lambda clouds: coordinates_as_features(clouds, points)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_paper_networks_equal_the_literal_ones(backend, layers, shift):
    network, lift = network_and_lift(backend, layers, **{"network.origin_shift": shift})
    clouds = inner_clouds(1)
    actual, expected = network(lift(clouds)), LITERAL[backend](network, clouds, shift)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    weights = list(network.parameters())
    for gradient, literal in zip(
        torch.autograd.grad(actual.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(gradient, literal, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_origin_shift_changes_logits_and_follows_the_whole_batch(backend):
    network, lift = network_and_lift(backend, 2)
    still, _ = network_and_lift(backend, 2, **{"network.origin_shift": False})
    still.load_state_dict(network.state_dict())
    clouds = inner_clouds(2)
    assert (network(lift(clouds)) - still(lift(clouds))).abs().max() > 1e-3
    # with another cloud of the batch at the origin of the grid the shift is 0
    origin = clouds_from_list([torch.tensor([[0.0, 0.5, 0.5]])], [0], GRID, clouds.class_names)
    both = clouds_from_list([*clouds, *origin], [*clouds.labels, 0], GRID, clouds.class_names)
    both = both.with_coordinates(torch.cat([clouds.coordinates, origin.coordinates.double()]))
    torch.testing.assert_close(network(lift(both)), still(lift(both)))


@pytest.mark.parametrize("shape", [(1, 7, 10), (5, 6, 7)])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("corner", [False, True])
def test_shifted_dense_equals_the_dense_form_of_shifted_cells(shape, stride, corner):
    draws = generator(7, "cells", stride)
    low = torch.tensor([0, 1, 2])
    extent = torch.tensor([-(-size // stride) for size in shape])
    drawn = (torch.rand(12, 3, generator=draws) * (extent - low).clamp(min=1)).long() + low
    drawn = torch.minimum(drawn, extent - 1)
    cells = torch.cat([torch.arange(12)[:, None] % 2, drawn * stride], 1).unique(dim=0)
    features = torch.randn(len(cells), 2, generator=draws)
    moved = cells.clone()
    moved[:, 1:] -= cells[:, 1:].amin(0)
    assert moved.ne(cells).any() or (cells[:, 1:].amin(0) == 0).all()
    tensors = [SparseTensor(place, features, 2, shape, stride) for place in (cells, moved)]
    assert torch.equal(tensors[0].dense(corner, shift=True), tensors[1].dense(corner))


@pytest.mark.parametrize("distance", ["sum_of_squares", "layerwise_cosine"])
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_matching_loss_and_its_gradient_equal_the_literal_ones(backend, layers, distance):
    network, lift = network_and_lift(backend, layers)
    real, drawn = inner_clouds(3, clouds=4), inner_clouds(4, clouds=1, row=0, column=0)
    real = real.select(members_per_class(real)[0])
    results = {}
    for name, logits in (("library", None), ("literal", LITERAL[backend])):
        coordinates = drawn.coordinates.clone().requires_grad_()
        synthetic = drawn.with_coordinates(coordinates)
        if logits is None:
            parts = lift(real), real.labels, lift(synthetic), synthetic.labels
            loss = gradient_matching(network, *parts, DISTANCES[distance])
        else:
            gradients = []
            for clouds, graph in ((real, False), (synthetic, True)):
                error = F.cross_entropy(logits(network, clouds, True), clouds.labels)
                gradients.append(
                    torch.autograd.grad(error, list(network.parameters()), create_graph=graph)
                )
            loss = literal_distance(*gradients, distance)
        results[name] = loss, torch.autograd.grad(loss, coordinates)[0]
    for actual, literal in zip(results["library"], results["literal"], strict=True):
        # the library adds 1e-12 in the root of the cosine, to keep second derivatives finite
        torch.testing.assert_close(
            actual, literal, rtol=1e-4 if "cosine" in distance else 1e-6, atol=1e-6
        )
    assert results["library"][1].abs().max() > 0


def literal_distance(real, synthetic, distance: str) -> torch.Tensor:
    """Return one of the paper's two distances, row by row.

    Sparse kernels (volume, in, out) have their rows on the last axis.
    """
    total = 0.0
    for target, gradient in zip(real, synthetic, strict=True):
        target = target.detach()
        if distance == "sum_of_squares":
            total = total + (gradient - target).square().sum()
            continue
        if target.dim() == 1:
            target, gradient = target[None], gradient[None]
        if target.dim() == 3:
            target, gradient = target.permute(2, 0, 1), gradient.permute(2, 0, 1)
        for row, other in zip(target.flatten(1), gradient.flatten(1), strict=True):
            norms = row.norm() * other.norm() + 1e-12
            total = total + 1 - ((row * other).sum() / norms if norms > 1e-9 else 0)
    return total


@pytest.fixture
def float64():
    """Compute in float64 from here on."""
    digits()  # cached: other tests share it in float32
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


UPDATES = 6


@pytest.mark.parametrize(
    ("backend", "layers", "distance"),
    [
        ("torch", 3, "sum_of_squares"),
        ("sparse", 2, "layerwise_cosine"),
        pytest.param("torch", 3, "layerwise_cosine", marks=pytest.mark.slow),
        pytest.param("sparse", 2, "sum_of_squares", marks=pytest.mark.slow),
    ],
)
def test_run_of_several_updates_equals_the_literal_one(backend, layers, distance, float64):
    """Compare losses and coordinates after each update with the paper's loop, written out.

    The loop shares with the engine only random draws: weights, start and real batches.
    """
    # Measured: 7e-15 with sums of squares (rounding), 4e-9 cells and 7e-9 of the loss with cosines:
    # the library adds 1e-12 in their root, to keep second derivatives finite. Without momentum the
    # coordinates would differ by 1e-3 from the second update on.
    tolerance = 1e-7 if "cosine" in distance else 1e-12
    train = in_float64(digits().train)
    settings = {"network.width": WIDTH, "objective.distance": distance, "objective.real_batch": 8}
    settings |= {"objective.real_gradients": 1, "schedule.iterations": UPDATES}
    config = paper_config(backend, layers, **settings)
    start, method = in_float64(config.start(train)), config.method
    literal = literal_run(method, LITERAL[backend], train, start, distance)
    pieces = method.lift, method.network, method.objective, method.optimiser, method.schedule
    steps = distill(train, start, *pieces, config.seed)
    for step, (losses, coordinates) in zip(steps, literal, strict=True):
        torch.testing.assert_close(torch.tensor(step.matching_loss), losses, rtol=tolerance, atol=0)
        torch.testing.assert_close(
            step.clouds.coordinates, clamped(coordinates), rtol=0, atol=tolerance
        )
    # the run went far beyond the tolerance: points changed cells, and some would leave the grid
    last = literal[-1][1]
    assert (last - start.coordinates)[:, 1:].abs().median() > 1000 * tolerance
    assert (last.floor() != start.coordinates.floor()).any(1).sum() > 100
    assert (last != clamped(last))[:, 1:].any()


def in_float64(clouds: PointClouds) -> PointClouds:
    """Return the same clouds in float64."""
    return clouds.with_coordinates(clouds.coordinates.double())


def literal_run(
    method: Method, logits, real: PointClouds, start: PointClouds, distance: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each update the losses of the classes before it, and the coordinates after it.

    The coordinates are those before the clamp.
    """
    network = method.draw_network(real, 0)
    weights = list(network.parameters())

    def gradients(clouds: PointClouds, graph: bool) -> list[torch.Tensor]:
        error = F.cross_entropy(logits(network, clouds, True), clouds.labels)
        return list(torch.autograd.grad(error, weights, create_graph=graph))

    batches = method.batch_at(real, members_per_class(real), 0).view(10, -1)
    targets = [gradients(at_lower_corners(real.select(batch)), graph=False) for batch in batches]
    coordinates, velocity, updates = start.coordinates, 0.0, []
    for _ in range(UPDATES):
        coordinates = clamped(coordinates).requires_grad_()
        clouds = start.with_coordinates(coordinates)
        losses = torch.stack(
            [
                literal_distance(
                    target, gradients(clouds.select(torch.tensor([label])), True), distance
                )
                for label, target in enumerate(targets)
            ]
        )
        velocity = 0.5 * velocity + torch.autograd.grad(losses.sum(), coordinates)[0]
        coordinates = coordinates.detach() - 0.1 * velocity
        updates.append((losses.detach(), coordinates))
    return updates


def clamped(coordinates: torch.Tensor) -> torch.Tensor:
    """Return coordinates in [0, 27], with depth 0."""
    return coordinates.clamp(0, 27) * torch.tensor([0.0, 1.0, 1.0])


@needs_minkowski
def test_first_update_of_the_full_width_equals_minkowski_layers_called_literally():
    """Repeat the PyTorch oracle below for MinkowskiEngine, on real digits at width 128."""
    config = paper_config("minkowski", 2)
    network, train = config.method.draw_network(digits().train, 0), digits().train
    start = torch.rand(250, 3, generator=generator(0)) * 28
    for label in (0, 4):
        real = at_lower_corners(train.select(members_per_class(train)[label][:32]))
        results = []
        for logits in (None, literal_minkowski):
            coordinates = boundary_check(start, GRID).requires_grad_()
            synthetic = clouds_from_list(
                [start], [label], GRID, train.class_names
            ).with_coordinates(coordinates)
            if logits is None:
                lifted = [
                    coordinates_as_features(clouds, minkowski.from_points)
                    for clouds in (real, synthetic)
                ]
                parts = lifted[0], real.labels, lifted[1], synthetic.labels
                loss = gradient_matching(network, *parts, DISTANCES["sum_of_squares"])
            else:
                gradients = []
                for clouds, graph in ((real, False), (synthetic, True)):
                    error = F.cross_entropy(logits(network, clouds, True), clouds.labels)
                    gradients.append(
                        torch.autograd.grad(error, list(network.parameters()), create_graph=graph)
                    )
                loss = literal_distance(*gradients, "sum_of_squares")
            results.append((loss, torch.autograd.grad(loss, coordinates)[0]))
        (loss, gradient), (expected_loss, expected) = results
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)
        assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def oracle_path() -> Path:
    return Path(os.environ.get("PCDD_DATA") or ".") / "paper_oracle" / "torch3_first_update.npz"


@pytest.mark.slow
@pytest.mark.skipif(
    not oracle_path().is_file(), reason="PCDD_DATA has no paper_oracle/torch3_first_update.npz"
)
def test_first_update_equals_that_of_the_paper_s_own_code():
    """Compare losses and coordinate gradients of three PyTorch layers with recorded ones.

    They were recorded from the paper's code of 2023-09-04.
    """
    config = paper_config("torch", 3)
    train = datasets.load_data(config.data).train
    assert len(train) == 60_000
    network = config.method.draw_network(train, 0)
    with np.load(oracle_path()) as oracle:
        weights = [torch.from_numpy(oracle[f"weight.pyt.{place}.weight"]) for place in (0, 3, 6)]
        biases = [torch.from_numpy(oracle[f"weight.pyt.{place}.bias"]) for place in (0, 3, 6)]
        head = [
            torch.from_numpy(oracle[f"weight.classifier.{name}"]) for name in ("weight", "bias")
        ]
        start, losses = torch.from_numpy(oracle["initial_coordinates"]), oracle["matching_losses"]
        chosen, gradients = (
            torch.from_numpy(oracle["real_indices"]).long(),
            oracle["coordinate_gradient"],
        )
    for own, given in zip(
        [*network.convolution_weights, *network.convolution_biases, *network.head.parameters()],
        [*weights, *biases, *head],
        strict=True,
    ):
        own.data.copy_(given)
    for label in range(10):
        real = at_lower_corners(train.select(chosen[label]))
        assert (real.labels == label).all()
        coordinates = boundary_check(start[label], GRID).requires_grad_()
        synthetic = clouds_from_list(
            [start[label]], [label], GRID, train.class_names
        ).with_coordinates(coordinates)
        lifted = [coordinates_as_features(clouds) for clouds in (real, synthetic)]
        parts = lifted[0], real.labels, lifted[1], synthetic.labels
        loss = gradient_matching(network, *parts, DISTANCES["sum_of_squares"])
        (gradient,) = torch.autograd.grad(loss, coordinates)
        expected = torch.from_numpy(gradients[label])
        assert loss.item() == pytest.approx(losses[label], rel=1e-4)
        assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def test_presets_have_no_norm_and_shift_as_the_paper_s_code():
    for backend in ("torch", "sparse", "minkowski"):
        config = paper_config(backend, 2)
        assert (config.network.norm, config.network.origin_shift) == ("none", True)
        assert (config.network.paper_layout, config.network.width) == (True, 128)


def test_origin_shift_without_cells_is_refused():
    config = paper_config(
        "torch", 2, **{"lift.name": "gaussian", "objective.real_gradients": "fresh"}
    )
    with pytest.raises(InputError, match="network.origin_shift = true: .*lift.name=gaussian"):
        config.distill(digits().train)


def test_max_points_cuts_training_clouds_only():
    config = override(Config(), {"data.name": "digits", "data.max_points": 30}).data
    cut, whole = datasets.load_data(config), digits()
    assert cut.train.sizes.max() == 30 < whole.train.sizes.max()
    for split in ("validation", "test"):
        assert torch.equal(getattr(cut, split).coordinates, getattr(whole, split).coordinates)
