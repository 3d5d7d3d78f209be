"""The notebooks on data, Figure 3, second derivatives and limits run: from records as they stand, and with tiny runs."""

from functools import cache

import numpy as np
import pytest
from executed import SMOKE, Executed
from tiny import needs_minkowski

from pcdd_core.records import read_record

DATA, FIGURE_3, DERIVATIVES, LIMITS = (
    "02_data_preparation",
    "07_figure_3_qualitative",
    "08_second_derivatives",
    "09_limits",
)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Runs a notebook with tiny settings, once."""
    return cache(lambda name: Executed(name, tmp_path_factory.mktemp(name), SMOKE))


@pytest.fixture
def without_data(monkeypatch, tmp_path):
    """Wherever MNIST is on this machine, it is not found: whatever is run instead of read fails."""
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "nowhere"))
    return tmp_path


def test_data_preparation_runs_and_what_it_asserts_holds(walk):
    executed = walk(DATA)
    assert executed.pictures == 9
    assert "points of 1084 clouds came back exactly" in executed.printed
    assert "occupied cells" in executed.table("Jacksboro")


def test_data_preparation_takes_other_shapes_and_limits(tmp_path):
    points = np.random.default_rng(0).normal(size=(500, 3))
    np.savez(tmp_path / "ball.npz", points=points)
    shapes = {"shapes": str(tmp_path / "ball.npz"), "cells_per_axis": 12, "max_points": 300, "seed": 3}
    executed = Executed(DATA, tmp_path, shapes)
    assert executed.pictures == 9
    assert "500 points on (12, 12, 12) cells" in executed.printed


def test_figure_3_draws_a_row_per_set(walk):
    executed = walk(FIGURE_3)
    assert executed.pictures == 3
    for row in ("PyTorch, 3 layers", "sparse, 2 layers", "ours", "real, at random"):
        assert row in executed.table("the paper's figure") and row in executed.table("occupied cells per cloud")
    assert "of MNIST" in executed.printed, "figures of another data set stand beside the paper's without a word"


def test_second_derivatives_compares_runs_with_and_without_minkowski(walk):
    executed = walk(DERIVATIVES)
    assert executed.pictures == 3
    forgetful = executed.table("forgetful layer")
    assert "648" in forgetful and "False" in forgetful
    assert "sparse" in executed.table("seeds", "as the paper scored")
    assert "sparse" in executed.table("ratio") and "82.5" in executed.table("ratio")


@needs_minkowski
def test_second_derivatives_measures_on_the_spot(walk):
    executed = walk(DERIVATIVES)
    assert "convolution_weights.0" in executed.table("gradients without a graph")
    assert "6 of them on MinkowskiEngine" in executed.printed
    assert "twins apart" in executed.table("moved, minkowski")


def test_limits_shows_starts_depths_and_steps(walk):
    executed = walk(LIMITS)
    assert executed.pictures == 3
    assert "real, at random" in executed.table("between classifiers of one start")
    assert "torch" in executed.table("backend", "health")
    assert "50.00" in executed.table("step size", "health")
    records = [read_record(folder) for folder in executed.runs.iterdir()]
    assert {record["config"]["seed"] for record in records} == {0, 1}


@pytest.mark.parametrize("name", [FIGURE_3, DERIVATIVES, LIMITS])
def test_with_default_parameters_records_are_read_and_nothing_is_run(name, without_data):
    executed = Executed(name, without_data, {})
    assert executed.pictures == 3
    assert not executed.runs.exists()
    assert "left out" not in executed.printed and "run 1 of" not in executed.printed
