"""The hypothesis profile, how `make test` shares the tests out, and the fixtures that several test modules share."""

import hypothesis
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pcdd_core.clouds import from_list

hypothesis.settings.register_profile("pcdd", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("pcdd")


def _group(nodeid):
    """Tests of one module stay together, and so do all that start Jupyter kernels, which can race for ports."""
    module = nodeid.split("::")[0]
    return "kernels" if "test_notebooks" in module or "test_live" in module else module


def pytest_collection_modifyitems(items):
    """What starts kernels first: it takes about half the time."""
    items.sort(key=lambda item: _group(item.nodeid) != "kernels")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Which process of `make test` runs what: by `_group`. (`--dist loadgroup` does nothing with pytest 9.2: pytest-xdist issue 1386.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return Groups(config, log)


@pytest.fixture(scope="session")
def random_clouds():
    """make(sizes, grid, seed): float64 clouds of random points, at least 0.1 away from every border of their cells."""

    def make(sizes, grid=(1, 8, 8), seed=0):
        draws = torch.Generator().manual_seed(seed)
        shape = (sum(sizes), 3)
        cells = (torch.rand(shape, generator=draws) * torch.tensor(grid)).floor().double()
        coordinates = cells + 0.1 + 0.8 * torch.rand(shape, generator=draws, dtype=torch.float64)
        labels = [cloud % 3 for cloud in range(len(sizes))]
        return from_list(coordinates.split(list(sizes)), labels, grid, "abc").with_coordinates(
            coordinates
        )

    return make


@pytest.fixture(scope="session")
def check_two_derivatives():
    """check(function, *inputs): both derivatives agree with finite differences, and the first one has a graph.

    gradgradcheck alone passes falsely where a gradient comes back without a graph. The gradient is taken of a
    non-linear function of the output, because that of a linear layer is rightly a constant.
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
