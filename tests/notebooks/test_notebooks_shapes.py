"""Notebook 11, shapes in three dimensions: tiny runs on solids, tables from committed records."""

import pytest
from executed import SMOKE, Executed

from pcdd_core.experiments.records import COMMITTED, find_records
from pcdd_core.experiments.tables import experiment

NAME = "11_shapes_in_three_dimensions"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return Executed(NAME, tmp_path_factory.mktemp("shapes"), SMOKE)


def test_a_mesh_becomes_a_cloud_and_scatter_a_set_that_is_scored(tiny_run):
    assert "stool.off: 40 vertices, 60 triangles" in tiny_run.printed
    assert "shuffled, it says something else by at most" in tiny_run.printed
    for name in ("distilled", "random real"):
        assert f"{name}: " in tiny_run.printed
    assert "solids, test split, 400 clouds" in tiny_run.printed
    assert tiny_run.pictures == 6
    assert "88.5 % on solids, test split, 400 clouds, distilled in" in tiny_run.printed


def test_the_table_is_of_the_committed_records(tiny_run):
    committed = find_records([COMMITTED])
    there = {
        cell.preset for cell in experiment("shapes", "paper", seeds=3) if cell.identity in committed
    }
    rows = " ".join(tiny_run.rows("from scatter"))
    assert "shapes-1" in there
    for kind in ("from scatter", "from real ones", "split, from scatter", "random", "herding"):
        assert f"<th>{kind}</th>" in rows
    assert "maximum" not in tiny_run.rows("compared", "minutes")[1] and "features" in " ".join(
        tiny_run.rows("compared", "minutes")
    )
