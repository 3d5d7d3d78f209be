"""Notebook 11, shapes in three dimensions: tiny runs on solids, tables from records."""

import os
from pathlib import Path

import nbclient
import numpy as np
import pytest
from executed import FOLDER, SMOKE, Executed
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pcdd_core.experiments.config import to_dict
from pcdd_core.experiments.records import COMMITTED, SCHEMA, as_json, find_records
from pcdd_core.experiments.tables import experiment
from pcdd_core.sealed import sealed

NAME = "11_shapes_in_three_dimensions"
NOT_RUN = "no records of this part yet"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The notebook without data files, with the committed records only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCDD_RUNS", str(tmp_path_factory.mktemp("no_runs")))
        patch.setenv("PCDD_DATA", str(tmp_path_factory.mktemp("no_data")))
        return Executed(NAME, tmp_path_factory.mktemp("shapes"), SMOKE)


def chosen(label, seeds=1, planned=tuple(experiment("modelnet10", "paper", seeds=3))):
    """Return the cells with a label, for the first seeds."""
    return [plan for plan in planned if plan.label == label and plan.config.seed < seeds]


def write_record(plan, folder, **scores):
    """Write a record of a cell with these mean accuracies."""
    config = to_dict(plan.config)
    if plan.baseline:
        config = {key: config[key] for key in ("data", "evaluation", "seed")}
        config["baseline"] = plan.baseline.to_dict()
    record = {
        "schema": SCHEMA,
        "kind": "baseline" if plan.baseline else "distilled",
        "name": plan.name,
        "row": plan.label,
        "config": config,
        "scores": {
            name: {"mean": mean, "standard_deviation": 1.0, "networks": 3}
            for name, mean in scores.items()
        },
        "scored_on": "modelnet10, test split, 908 clouds",
        "seconds": {"evaluation": 60.0} | ({} if plan.baseline else {"distillation": 120.0}),
    }
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(as_json(sealed(record)))


def in_main_table(plan):
    if plan.config.evaluation.classifier.name != "pointnet" or plan.name == "whole-1":
        return False
    return bool(plan.baseline) or plan.label.split()[1:] in ([], ['clouds.name="real"'])


def committed(plans):
    found = find_records([COMMITTED])
    return [found[plan.identity] for plan in plans if plan.identity in found]


def test_a_mesh_becomes_a_cloud_and_scatter_a_set_that_is_scored(tiny_run):
    assert "stool.off: 40 vertices, 60 triangles" in tiny_run.printed
    assert "largest difference after shuffling: " in tiny_run.printed
    for name in ("distilled (update 3 of 3)", "random real"):
        assert f"{name}: " in tiny_run.printed
    assert "solids, test split, 400 clouds" in tiny_run.printed
    assert "no picture of real chairs: " in tiny_run.printed
    assert tiny_run.pictures >= 5
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


def test_the_tables_are_of_the_committed_records_or_say_that_there_are_none(tiny_run):
    plans = experiment("modelnet10", "paper", seeds=3)
    main = [plan for plan in plans if in_main_table(plan)]
    other = [plan for plan in plans if plan.config.evaluation.classifier.name != "pointnet"]
    first = [
        plan
        for plan in plans
        if plan.preset == "shapes-1" and not plan.baseline and plan.config.clouds.name == "scatter"
    ]
    # the main part has a table and a figure
    missing = 2 * (not committed(main)) + (not committed(first)) + (not committed(other))
    assert tiny_run.printed.count(NOT_RUN) == missing
    if committed(main):
        assert f"{len(committed(main))} records, scored on modelnet10" in tiny_run.printed


def test_tables_of_some_rows(tmp_path, monkeypatch):
    """With committed records the rows have more seeds, so expected numbers count these too."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("PCDD_RUNS", str(runs))
    for label, seeds, means in (
        ("shapes-1", 2, (40.0, 70.0)),
        ('shapes-10-split clouds.name="real"', 1, (88.0, 90.0)),
        ("random-80-of-128-points evaluation.classifier=pointnet", 1, (86.0, 87.0)),
        ("herding-3 evaluation.classifier=pointnet", 1, (77.0, 78.0)),
        ('shapes-1 objective.name="gradient_matching"', 1, (15.0, 14.0)),
    ):
        for plan in chosen(label, seeds):
            sadm, standard = (mean + 2 * plan.config.seed for mean in means)
            write_record(plan, runs / plan.folder, sadm=sadm, standard=standard)
    other = "random-8-of-128-points evaluation.classifier=dgcnn"
    for plan in chosen(other):
        write_record(plan, runs / plan.folder, standard=71.5)
    (whole,) = chosen("whole-1 evaluation.classifier=pointnet")
    write_record(whole, runs / whole.folder, standard=90.5)
    found = find_records([COMMITTED, runs])
    executed = Executed(NAME, tmp_path / "shapes", SMOKE)

    def expected(label):
        """Return the texts of both protocols, over all seeds that have records."""
        records = [found[plan.identity] for plan in chosen(label, 3) if plan.identity in found]
        for protocol in ("sadm", "standard"):
            means = [record["scores"][protocol]["mean"] for record in records]
            spread = f" ± {np.std(means):.1f}" if len(means) > 1 else ""
            yield f"<td>{np.mean(means):.1f}{spread}</td>"

    table = executed.rows("from scatter")
    for row, label in (
        ("from scatter", "shapes-1"),
        ("split, from real ones", 'shapes-10-split clouds.name="real"'),
        ("split, random real ones", "random-80-of-128-points evaluation.classifier=pointnet"),
        ("herding", "herding-3 evaluation.classifier=pointnet"),
    ):
        (line,) = [line for line in table if f"<th>{row}</th>" in line]
        assert all(text in line for text in expected(label))
    assert NOT_RUN not in executed.printed
    modelnet10 = Path(os.environ.get("PCDD_DATA", "")) / "ModelNet10"
    assert ("no picture of real chairs" in executed.printed) != modelnet10.is_dir()
    compared = " ".join(executed.rows("compared", "minutes"))
    assert "gradients (DC)" in compared and "distribution of features" in compared
    assert "gradient_matching" not in compared and "maximum_mean" not in compared
    assert "<th>dgcnn</th>" in executed.table("random real", "classifier")
