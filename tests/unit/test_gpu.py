"""On a CUDA device the engine, the evaluation and the sparse layers give what the CPU gives.

PCDD_TEST_DEVICE=cpu tries these tests without a GPU: the CPU then computes a second time without
its library of convolutions, so that sums have another order.
"""

import os
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

import pcdd_core as pcdd
from pcdd_core.data.datasets import Solids
from pcdd_core.experiments.config import override
from pcdd_core.experiments.presets import preset
from pcdd_core.experiments.progress import Progress
from pcdd_core.experiments.records import read_record, read_trajectory
from pcdd_core.nn import minkowski, sparse
from pcdd_core.nn.cells import SparseTensor
from pcdd_core.nn.classifiers import ConvNet, Ensemble, PointNetClassifier
from pcdd_core.scoring.baselines import random
from pcdd_core.scoring.evaluate import SADM, Soft, evaluate
from pcdd_core.seeds import generator

DEVICE = os.environ.get("PCDD_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device is visible"
    ),
]
POINTS = {"lift__name": "points", "network__name": "pointnet"}
SPARSE = {"lift__name": "coordinates", "network__name": "sparse"}
METHODS = {
    "coordinates as features": SPARSE,
    "coordinates on a dense grid": {"lift__name": "coordinates", "network__name": "torch"},
    "gaussian occupancy": {"lift__name": "gaussian", "network__name": "torch"},
    "straight-through occupancy": {
        "lift__name": "gaussian",
        "lift__hard_from": 0.0,
        "network__name": "sparse",
    },
    "points": POINTS,
    "sorted features of points": {**POINTS, "objective__name": "sorted_feature_matching"},
    "points that rotate": {**POINTS, "optimiser__turn_step_size": 0.02},
    "pool of real gradients": {
        **SPARSE,
        "objective__real_gradients": 2,
        "schedule__iterations_per_network": 0,
    },
    "origin shift": {
        "lift__name": "coordinates",
        "network__origin_shift": True,
        "network__norm": "none",
        "objective__distance": "sum_of_squares",
    },
    "augmentation": {"objective__augmentation": True},
    "distribution matching": {"objective__name": "distribution_matching"},
    "maximum mean discrepancy": {
        "objective__name": "maximum_mean_discrepancy",
        "clouds__clouds_per_class": 2,
    },
    "feature regression": {"objective__name": "feature_regression"},
    "unrolled training with learned labels": {
        "objective__name": "unrolled_training",
        "objective__unrolled_steps": 3,
        "objective__learned_labels": True,
    },
    "a trained network": {
        "schedule__iterations_per_network": 0,
        "schedule__training_steps": 1,
    },
}


@pytest.fixture(autouse=True)
def full_precision():
    """Compute float32 convolutions in float32, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def twice(compute):
    """Return what `compute(device)` gives on the CPU and on the device."""
    on_cpu = compute("cpu")
    if DEVICE != "cpu":
        return on_cpu, compute(DEVICE)
    with torch.backends.mkldnn.flags(enabled=False):
        return on_cpu, compute("cpu")


def steps_of(config, real, device: str) -> list:
    """Return the first 3 steps of a distillation."""
    return list(islice(config.distill(real, device), 3))


@pytest.mark.parametrize("method", METHODS)
def test_distillation_on_the_device_equals_that_on_the_cpu(method):
    # SGD: Adam would turn rounding errors of gradients that are zero into whole steps
    config = tiny.config(**METHODS[method], optimiser__name="sgd")
    real = tiny.three_solids() if "points" in method else tiny.three_digits()
    on_cpu, on_device = twice(partial(steps_of, config, real))
    for expected, step in zip(on_cpu, on_device, strict=True):
        assert step.clouds.coordinates.device.type == DEVICE
        assert step.matching_loss == pytest.approx(expected.matching_loss, rel=1e-3, abs=1e-6)
        difference = (step.gradient.cpu() - expected.gradient).norm()
        assert difference < 1e-2 * expected.gradient.norm()
        torch.testing.assert_close(
            step.clouds.coordinates.cpu(), expected.clouds.coordinates, rtol=0, atol=1e-3
        )
        if expected.clouds.label_probabilities is not None:
            torch.testing.assert_close(
                step.clouds.label_probabilities.cpu(),
                expected.clouds.label_probabilities,
                rtol=1e-3,
                atol=1e-4,
            )
    assert on_cpu[-1].gradient.norm() > 0


def test_bfloat16_of_real_clouds_on_the_device_is_near_float32_on_the_cpu():
    def first(device, precision):
        config = tiny.config(objective__real_precision=precision, network__width=16)
        return next(config.distill(tiny.three_digits(), device))

    expected, step = first("cpu", "float32"), first(DEVICE, "bfloat16")
    assert step.matching_loss == pytest.approx(expected.matching_loss, rel=0.05)


def test_a_run_on_the_device_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    class Stop(Progress):
        def __call__(self, fraction, stage, note=""):
            if stage == "distilling" and fraction > 0.5:
                raise KeyboardInterrupt

    few = {"schedule__iterations": 6, "evaluation__protocols": ["standard"]}
    config = tiny.config(**few, optimiser__name="sgd")
    quiet = {"device": DEVICE, "checkpoint_every": 2}
    silent, unbroken, stopped = Progress(quiet=True), tmp_path / "unbroken", tmp_path / "stopped"
    pcdd.run(config, "tiny", unbroken, progress=silent, **quiet)
    with pytest.raises(KeyboardInterrupt):
        pcdd.run(config, "tiny", stopped, progress=Stop(quiet=True), **quiet)
    assert (stopped / "checkpoint.pt").exists()
    pcdd.run(config, "tiny", stopped, resume=True, progress=silent, **quiet)
    expected, resumed = (read_trajectory(folder)["coordinates"] for folder in (unbroken, stopped))
    assert np.abs(expected[-1] - expected[0]).max() > 0
    np.testing.assert_allclose(resumed, expected, rtol=0, atol=1e-3)
    assert read_record(stopped)["health"]["state"] != "failed"


def test_a_checkpoint_of_the_device_continues_on_the_cpu(tmp_path):
    config = tiny.config(optimiser__name="sgd", schedule__iterations_per_network=0)
    real = tiny.three_digits()
    *_, last = islice(config.distill(real, DEVICE), 2)
    path = tmp_path / "state.pt"
    torch.save(last.state(), path)
    state = torch.load(path, map_location="cpu")
    resumed = next(config.distill(real, "cpu", state))
    *_, expected = islice(config.distill(real, "cpu"), 3)
    torch.testing.assert_close(
        resumed.clouds.coordinates, expected.clouds.coordinates, rtol=0, atol=1e-3
    )


def test_scores_on_the_device_equal_those_on_the_cpu():
    training, test = random(tiny.digits().train, 2, 0), tiny.digits().test
    config = tiny.config(evaluation__networks=2)
    on_cpu, on_device = twice(partial(config.evaluate, training, test))
    assert set(on_cpu) == {"standard", "paper"}
    for protocol, score in on_cpu.items():
        # percent; rounding may turn a few of the test clouds
        assert on_device[protocol].accuracies == pytest.approx(score.accuracies, abs=2)


def test_scores_of_pointnets_on_the_device_are_near_those_on_the_cpu():
    splits = Solids(points=64).load(None)
    training, test = splits.train.select(torch.arange(0, len(splits.train), 4)), splits.test
    protocol = replace(SADM, networks=2, epochs=3)
    on_cpu, on_device = twice(
        lambda device: (
            evaluate(training, test, protocol=protocol, projection=Soft(), device=device)[
                "sadm"
            ].accuracies
        )
    )
    # the classifiers are hardly trained, and batch norm amplifies rounding
    assert on_device == pytest.approx(on_cpu, abs=10)


CLASSIFIERS = {"convnet": (ConvNet(width=8), (1, 28, 28)), "pointnet": (PointNetClassifier(), None)}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_as_one_equal_classifiers_one_by_one(name):
    classifier, shape = CLASSIFIERS[name]
    draws = generator(0, "inputs")
    inputs = torch.rand(3, 5, *(shape or (40, 3)), generator=draws).to(DEVICE)

    def results(one_by_one: bool) -> list[torch.Tensor]:
        networks = [classifier.new((1, 28, 28), 4, generator(0, number)) for number in range(3)]
        ensemble = Ensemble(networks, one_by_one).to(DEVICE)
        logits = ensemble(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.arange(15, device=DEVICE) % 4)
        return [logits, *torch.autograd.grad(loss, list(ensemble.parameters()))]

    for as_one, separate in zip(results(False), results(True), strict=True):
        torch.testing.assert_close(as_one, separate, rtol=1e-3, atol=1e-4)


LAYERS = {
    "convolution": lambda own, weight: sparse.convolution(own, weight),
    "strided convolution": lambda own, weight: sparse.convolution(own, weight[:8], None, 2, 2),
    "max pooling": lambda own, weight: sparse.pool(own, "max"),
    "average pooling": lambda own, weight: sparse.pool(own, "average"),
    "instance norm": lambda own, weight: sparse.instance_norm(own, *weight[0]),
    "batch norm": lambda own, weight: sparse.batch_norm(own, *weight[0]),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_sparse_layers_and_both_derivatives_on_the_device_equal_those_on_the_cpu(layer):
    draws = torch.Generator().manual_seed(0)
    cells = (torch.rand(2, 6, 6, 6, generator=draws) < 0.4).nonzero()
    features = torch.randn(len(cells), 2, generator=draws, dtype=torch.float64)
    weight = torch.randn(27, 2, 2, generator=draws, dtype=torch.float64)

    def derivatives(device):
        """Return the layer's output, first derivatives and second derivatives, on the CPU."""
        inputs = [tensor.to(device).requires_grad_() for tensor in (features, weight)]
        own = SparseTensor(cells.to(device), inputs[0], 2, (6, 6, 6))
        result = LAYERS[layer](own, inputs[1])
        options = {"create_graph": True, "materialize_grads": True}
        first = torch.autograd.grad(result.features.pow(3).sum(), inputs, **options)
        second = torch.autograd.grad(
            sum(gradient.pow(2).sum() for gradient in first), inputs, **options
        )
        assert result.features.device.type == device
        assert second[0].abs().max() > 0
        tensors = (result.cells, result.features, *first, *second)
        return [tensor.detach().cpu() for tensor in tensors]

    for on_device, on_cpu in zip(derivatives(DEVICE), derivatives("cpu"), strict=True):
        torch.testing.assert_close(on_device, on_cpu, rtol=1e-9, atol=1e-9)


@tiny.needs_minkowski
def test_a_minkowski_network_on_the_device_equals_the_sparse_network():
    if DEVICE == "cuda" and not minkowski.engine().is_cuda_available():
        pytest.skip("MinkowskiEngine is built without CUDA")
    real = tiny.three_digits().to(DEVICE)
    own, other = (
        tiny.network_of(name, layers=2, width=4).new(3, real.grid, 3, generator(0)).to(DEVICE)
        for name in ("minkowski", "sparse")
    )
    other.load_state_dict(own.state_dict())
    points = real.coordinates.clone().requires_grad_()
    tensor = sparse.from_points(points, points, real.cloud_index, len(real), real.grid)

    def derivatives(network):
        logits = network(tensor)
        loss = F.cross_entropy(logits, real.labels)
        inputs = [points, *network.parameters()]
        return [logits, *torch.autograd.grad(loss, inputs, retain_graph=True)]

    for mine, theirs in zip(derivatives(own), derivatives(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_the_pool_of_the_paper_s_preset_fills_on_the_device():
    changes = {
        "network.width": 4,
        "objective.real_batch": 4,
        "clouds.points_per_cloud": 20,
        "objective.real_gradients": 2,
        "schedule.iterations": 8,
    }
    config = override(preset("paper-torch-2-sum-of-squares").config, changes)
    on_cpu, on_device = twice(
        lambda device: [step.matching_loss for step in config.distill(tiny.three_digits(), device)]
    )
    assert on_device == [pytest.approx(losses, rel=1e-2) for losses in on_cpu]
