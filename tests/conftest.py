"""Hypothesis profile, markers, scheduling of `make test`, and shared fixtures."""

import hypothesis
import pytest
import tiny
import torch
from torch.autograd import gradcheck, gradgradcheck

from pcdd_core.geometry.clouds import clouds_from_list

hypothesis.settings.register_profile("pcdd", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("pcdd")


def _group(nodeid):
    """Keep the tests of a module together, all tests that start Jupyter kernels, and all sweeps.

    Kernels that start at the same time can race for ports. A sweep can join the Ray cluster of
    another test.
    """
    module = nodeid.split("::")[0]
    if "test_gpu_day" in module:
        return _group("tests/sweeps/test_sweeps.py")
    return "kernels" if "test_notebooks" in module or "test_live" in module else module


def pytest_collection_modifyitems(items):
    """Skip tests whose engine is missing, and run the tests that start kernels first.

    The tests with kernels take about half of the time.
    """
    for item in items:
        if item.get_closest_marker("minkowski"):
            item.add_marker(tiny.without_minkowski)
    items.sort(key=lambda item: _group(item.nodeid) != "kernels")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let `_group` choose the process that runs a test under `make test`.

    `--dist loadgroup` has no effect with pytest 9.2 (pytest-xdist issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return Groups(config, log)


@pytest.fixture(autouse=True)
def runs_here(monkeypatch):
    """Put the run folders of each test below its own working directory."""
    monkeypatch.setenv("PCDD_RUNS", "runs")


@pytest.fixture(scope="session")
def random_clouds():
    """Return make(sizes, grid, seed), which makes float64 clouds of random points.

    Every point is at least 0.1 away from the borders of its cell.
    """

    def make(sizes, grid=(1, 8, 8), seed=0):
        draws = torch.Generator().manual_seed(seed)
        shape = (sum(sizes), 3)
        cells = (torch.rand(shape, generator=draws) * torch.tensor(grid)).floor().double()
        coordinates = cells + 0.1 + 0.8 * torch.rand(shape, generator=draws, dtype=torch.float64)
        labels = [cloud % 3 for cloud in range(len(sizes))]
        return clouds_from_list(
            coordinates.split(list(sizes)), labels, grid, "abc"
        ).with_coordinates(coordinates)

    return make


@pytest.fixture(scope="session")
def check_two_derivatives():
    """Return check(function, *inputs), which compares both derivatives with finite differences.

    It also requires a graph of the first derivative, because gradgradcheck alone passes falsely if
    a gradient has no graph. It differentiates a non-linear function of the output, because the
    gradient of a linear layer is a constant.
    """

    def check(function, *inputs):
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
        assert all(gradient.grad_fn is not None for gradient in first), (
            "a gradient has lost its graph"
        )
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)

    return check
