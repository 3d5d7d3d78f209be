"""On a CUDA device the engine, the evaluation and the sparse layers give what the CPU gives."""

from itertools import islice

import pytest
import tiny
import torch

from pcdd_core.nn import sparse
from pcdd_core.nn.cells import SparseTensor
from pcdd_core.scoring.baselines import random

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
DEVICE = "cuda"
LIFTS = {
    "coordinates as features": {"lift__name": "coordinates", "network__name": "sparse"},
    "coordinates on a dense grid": {"lift__name": "coordinates", "network__name": "torch"},
    "gaussian occupancy": {"lift__name": "gaussian", "network__name": "torch"},
    "straight-through occupancy": {
        "lift__name": "gaussian",
        "lift__hard_from": 0.0,
        "network__name": "sparse",
    },
    "points": {"lift__name": "points", "network__name": "pointnet"},
}


@pytest.fixture(autouse=True)
def full_precision():
    """Compute float32 convolutions in float32, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def steps_of(device: str, real, **changes) -> list:
    """Return the first 3 steps of a tiny distillation."""
    return list(islice(tiny.config(**changes).distill(real, device), 3))


@pytest.mark.parametrize("lift", LIFTS)
def test_distillation_on_the_device_equals_that_on_the_cpu(lift):
    real = tiny.three_solids() if lift == "points" else tiny.three_digits()
    on_cpu, on_device = (steps_of(device, real, **LIFTS[lift]) for device in ("cpu", DEVICE))
    for expected, step in zip(on_cpu, on_device, strict=True):
        assert step.clouds.coordinates.device.type == DEVICE
        assert step.matching_loss == pytest.approx(expected.matching_loss, rel=1e-3)
        torch.testing.assert_close(
            step.clouds.coordinates.cpu(), expected.clouds.coordinates, rtol=0, atol=1e-3
        )
    moved = on_cpu[-1].clouds.coordinates - on_cpu[0].clouds.coordinates
    assert moved.abs().max() > 1e-2  # the tolerance is small against the moves


def test_scores_on_the_device_equal_those_on_the_cpu():
    training, test = random(tiny.digits().train, 2, 0), tiny.digits().test
    config = tiny.config(evaluation__networks=2, evaluation__protocols=["standard"])
    on_cpu, on_device = (
        config.evaluate(training, test, device)["standard"] for device in ("cpu", DEVICE)
    )
    # percent; rounding may turn a few of the test clouds
    assert on_device.accuracies == pytest.approx(on_cpu.accuracies, abs=2)


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
