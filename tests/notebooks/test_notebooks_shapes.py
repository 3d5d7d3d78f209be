"""Notebook 11, shapes in three dimensions: tiny runs on solids, tables from committed records."""

import nbclient
import pytest
from executed import FOLDER, SMOKE, Executed
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pcdd_core.experiments.records import COMMITTED, find_records
from pcdd_core.experiments.tables import experiment

NAME = "11_shapes_in_three_dimensions"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return Executed(NAME, tmp_path_factory.mktemp("shapes"), SMOKE)


def test_a_mesh_becomes_a_cloud_and_scatter_a_set_that_is_scored(tiny_run):
    assert "stool.off: 40 vertices, 60 triangles" in tiny_run.printed
    assert "largest difference after shuffling: " in tiny_run.printed
    for name in ("distilled (update 3 of 3)", "random real"):
        assert f"{name}: " in tiny_run.printed
    assert "solids, test split, 400 clouds" in tiny_run.printed
    assert tiny_run.pictures == 6
    assert "88.5 % on solids, test split, 400 clouds, distilled in" in tiny_run.printed


class WithFrontEnd(nbclient.NotebookClient):
    """Executes cells as JupyterLab's "Run All Cells" does: a live view waits for its start."""

    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        client.allow_stdin = True
        return client


def test_run_all_scores_no_points_that_have_not_moved(tmp_path):
    notebook = load_notebook_node(str(FOLDER / f"{NAME}.ipynb"))
    tiny = {"shape_settings": SMOKE["shape_settings"], "output": str(tmp_path / "runs")}
    notebook = parameterize_notebook(notebook, tiny)
    WithFrontEnd(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "no distilled set yet: press Start in section 4" in printed
    assert "distilled (" not in printed and "random real:" not in printed
    assert "88.5 % on solids" in printed  # it ran to its end


def test_the_table_is_of_the_committed_records(tiny_run):
    committed = find_records([COMMITTED])
    there = {
        cell.preset for cell in experiment("shapes", "paper", seeds=3) if cell.identity in committed
    }
    rows = " ".join(tiny_run.rows("from scatter"))
    assert "shapes-1" in there
    for kind in ("from scatter", "from real ones", "split, from scatter", "random", "herding"):
        assert f"<th>{kind}</th>" in rows
    compared = " ".join(tiny_run.rows("compared", "minutes"))
    assert "distribution of features" in compared and "maximum_mean" not in compared
    assert "distribution of features, on a grid, sparse network" in compared  # not cut off
