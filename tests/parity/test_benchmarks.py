"""The benchmarks' reference implementations do the work of the engine; the floor counts it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from pcdd_core.engine.distill import matching_losses
from pcdd_core.experiments.config import override
from pcdd_core.experiments.presets import preset
from pcdd_core.geometry.clouds import PointClouds, members_per_class
from pcdd_core.geometry.grid import at_lower_corners
from pcdd_core.nn import classifiers
from pcdd_core.scoring.evaluate import augment
from pcdd_core.seeds import generator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def published_style(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published_style

    return published_style


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import limits

    return limits


def plane(clouds):
    """Return height and width of the points, one tensor per cloud."""
    return [cloud[:, 1:] for cloud in clouds.coordinates.split(clouds.sizes.tolist())]


@dataclass(frozen=True)
class Iteration:
    """The first iteration of a run: what it compares, its loss and the gradient of the points."""

    batch: PointClouds
    synthetic: PointClouds
    network: torch.nn.Module
    loss: float
    gradient: torch.Tensor

    @classmethod
    def of(cls, config):
        real = tiny.three_digits()
        batch = real.select(config.method.batch_at(real, members_per_class(real), 0))
        network, start = config.method.draw_network(real, 0), config.start(real)
        bounded = config.lift.bounded(start.coordinates, start.grid)
        synthetic = start.with_coordinates(bounded)
        own = synthetic.coordinates.clone().requires_grad_()
        parts = matching_losses(config.method, network, batch, synthetic.with_coordinates(own), 0)
        loss = torch.cat([part() for part in parts]).sum()
        loss.backward()
        return cls(batch, synthetic, network, loss.item(), own.grad)

    def copy_weights(self, parameters):
        """Copy the weights of the network to these parameters, which are in the same order."""
        for mine, parameter in zip(self.network.state_dict().values(), parameters, strict=True):
            parameter.data.copy_(mine.view(parameter.shape))

    def assert_equal(self, loss, gradient):
        """gradient: of all points, along the last axes of the grid"""
        assert loss.item() == pytest.approx(self.loss, rel=1e-4)
        tolerance = 1e-4 * gradient.abs().max().item()
        own = self.gradient[:, -gradient.shape[1] :]
        torch.testing.assert_close(own, gradient, rtol=1e-3, atol=tolerance)


def test_the_published_way_gives_the_engine_s_loss_and_gradient(published_style):
    config = override(
        tiny.config(lift__bandwidth_start=0.7, lift__bandwidth_end=0.7),
        {"network.layers": 2, "network.width": 5},
    )
    engine = Iteration.of(config)
    size = engine.batch.grid[1]
    published = published_style.ConvNet(size, 3, width=5, layers=2)
    engine.copy_weights(_in_the_engine_s_order(published))
    points = [cloud.clone().requires_grad_() for cloud in plane(engine.synthetic)]
    real_planes = [
        plane(engine.batch.select(members)) for members in members_per_class(engine.batch)
    ]
    show = partial(
        published_style.occupancy_images,
        size=size,
        bandwidth=0.7,
        saturation=config.lift.saturation,
    )
    loss = published_style.matching_loss(
        published, real_planes, points, show, published_style.cosine_of_weights
    )
    loss.backward()
    engine.assert_equal(loss, torch.cat([point.grad for point in points]))


def _in_the_engine_s_order(network):
    convolutions, norms = network.features[::4], network.features[1::4]
    yield from (layer.weight for layer in convolutions)
    yield from (layer.bias for layer in convolutions)
    yield from (layer.weight for layer in norms)
    yield from (layer.bias for layer in norms)
    yield from network.classifier.parameters()


@pytest.mark.parametrize("name", ["torch", pytest.param("minkowski", marks=tiny.needs_minkowski)])
def test_the_paper_s_way_gives_the_engine_s_loss_and_gradient(published_style, name):
    changes = {
        f"network.{setting}": value
        for setting, value in preset(f"paper-{name}-2-sum-of-squares")
        .config.network.to_dict()
        .items()
    }
    changes |= {
        "network.width": 4,
        "lift.name": "coordinates",
        "objective.distance": "sum_of_squares",
    }
    engine = Iteration.of(override(tiny.config(), changes))
    batch, synthetic, size = engine.batch, engine.synthetic, engine.batch.grid[1]
    make, show = {
        "torch": (
            published_style.PaperConvNet,
            partial(published_style.coordinate_images, size=size),
        ),
        "minkowski": (published_style.PaperMinkowskiNet, published_style.minkowski_tensor),
    }[name]
    published = make(size, 3, width=4, layers=2)
    by_kind = {"kernel": [], "weight": [], "bias": []}
    for parameter_name, parameter in published.features.named_parameters():
        by_kind[parameter_name.rpartition(".")[2]].append(parameter)
    in_order = [
        *by_kind["kernel"],
        *by_kind["weight"],
        *by_kind["bias"],
        *published.classifier.parameters(),
    ]
    engine.copy_weights(in_order)
    points = [
        cloud.clone().requires_grad_()
        for cloud in synthetic.coordinates.split(synthetic.sizes.tolist())
    ]
    real_points = [
        list(own.coordinates.split(own.sizes.tolist()))
        for own in map(at_lower_corners(batch).select, members_per_class(batch))
    ]
    loss = published_style.matching_loss(
        published, real_points, points, show, published_style.sum_of_squares
    )
    loss.backward()
    engine.assert_equal(loss, torch.cat([point.grad for point in points]))


def test_the_published_classifier_is_the_engine_s(published_style):
    engine, images = classifiers.ConvNetModule(28, 28, 10, channels=4), torch.rand(3, 1, 28, 28)
    published = published_style.ConvNet(28, 10, width=4, first_padding=3)
    by_kind = [
        p
        for kind in zip(engine.convolutions, engine.norms)
        for part in kind
        for p in part.parameters()
    ]
    for mine, parameter in zip(
        [*by_kind, *engine.head.parameters()], published.parameters(), strict=True
    ):
        parameter.data.copy_(mine.data)
    torch.testing.assert_close(published(images), engine(images), rtol=1e-4, atol=1e-5)


def test_both_ways_move_images_alike_on_average(published_style):
    """Compare mean and standard deviation over many images: the draws differ."""
    image = torch.zeros(1, 1, 28, 28)
    image[..., 6:20, 12:15] = 1
    many = image.expand(3000, 1, 28, 28)
    engine, published = augment(many, generator(0)), published_style.augmented(many)
    torch.testing.assert_close(published.mean(0), engine.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(published.std(0), engine.std(0), rtol=0, atol=0.05)


@pytest.mark.parametrize(("size", "first_padding"), [(28, 1), (28, 3), (9, 1)])
def test_the_floor_counts_the_operations_of_the_convolutions(
    published_style, limits, size, first_padding
):
    network = published_style.ConvNet(size, 10, width=4, first_padding=first_padding)
    network.classifier = torch.nn.Flatten()  # the floor does not count the head
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(2, 1, size, size)).sum().backward()
    assert counter.get_total_flops() == 2 * limits.training_operations(size, 4, 3, first_padding)


def test_the_plain_pointnet_is_the_same_network(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from pointnet import Plain, PointNet

    torch.manual_seed(0)
    network = PointNet(5, width=32)
    for norm in network.norms:
        torch.nn.init.uniform_(norm.weight), torch.nn.init.uniform_(norm.bias)
    plain, points = Plain(network).double(), torch.rand(3, 20, 3, dtype=torch.float64)
    torch.testing.assert_close(plain(points), network.double()(points))


def test_the_shapes_of_the_sparse_benchmark_are_the_same_cells_in_both_ways(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from sparse_shapes import markdown, shown

    clouds = tiny.three_solids()
    torch.testing.assert_close(shown(clouds, "sparse").dense(), shown(clouds, "torch"))
    row = {
        "way": "sparse",
        "cells": 32,
        "seed": 0,
        "accuracy": 50.0,
        "seconds_of_a_step": 0.1,
        "peak_memory_bytes": 2**20,
    }
    trained = [row, row | {"seed": 1, "accuracy": 52.0}]
    row = {
        "way": "dense",
        "lift": "gaussian",
        "cells": 32,
        "seconds_of_an_iteration": 3.0,
        "peak_memory_bytes": 2**21,
    }
    distilled = [
        row,
        row | {"way": "sparse", "seconds_of_an_iteration": 1.5, "peak_memory_bytes": 2**20},
    ]
    table = markdown({"training": trained, "distillation": distilled})
    assert "| 32^3 | sparse | 51.0 ± 1.4 | 100 ms | 1 MiB | 2 |\n\n" in table
    assert table.endswith("| 32^3 | Gaussian occupancy | 3.0 s | 1.5 s | 2.0 | 2 MiB | 1 MiB |")
