"""Notebooks: the pairs agree and use only public names; the quickstart runs to its end."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
import shape_samples
from executed import Executed

import pcdd_core
from pcdd_core.experiments.records import read_record
from pcdd_core.experiments.runs import RUN_FILES

FOLDER = Path(__file__).parents[2] / "notebooks"
sys.path.insert(0, str(FOLDER.parent / "tools"))
import notebook_outputs  # noqa: E402

SCRIPTS = sorted(FOLDER.glob("*.py"))
PROJECT = FOLDER.parent / "pyproject.toml"
every_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def cells(path: Path) -> list[tuple]:
    return [
        (cell.cell_type, cell.source, cell.metadata.get("tags", []))
        for cell in jupytext.read(path).cells
    ]


def test_every_notebook_has_its_script_and_every_script_its_notebook():
    assert SCRIPTS
    assert [path.stem for path in SCRIPTS] == [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]


@every_notebook
def test_notebook_and_script_have_the_same_cells(script):
    assert cells(script) == cells(script.with_suffix(".ipynb"))


@every_notebook
def test_kept_outputs_are_small_and_of_the_present_code(script):
    path = script.with_suffix(".ipynb")
    assert not notebook_outputs.problems(path), "make notebooks-outputs"
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.execution_count for cell in code)
    assert not re.search(r"/(tmp|home|work|Users)/", "".join(str(cell.outputs) for cell in code))


@every_notebook
def test_exactly_one_cell_holds_the_parameters(script):
    assert sum("parameters" in tags for _, _, tags in cells(script)) == 1


@every_notebook
def test_no_line_is_longer_than_100_columns(script):
    lines = script.read_text().splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > 100]
    assert not long, f"lines {long}"


@every_notebook
def test_notebook_asks_questions_with_folded_answers(script):
    texts = [source for kind, source, _ in cells(script) if kind == "markdown"]
    # HTML needs blank lines around the Markdown in it
    folded = re.compile(r"<details><summary>Answer</summary>\n\n.+?\n\n</details>", re.DOTALL)
    answers = sum(len(folded.findall(text)) for text in texts)
    assert answers >= 2
    assert answers == sum(text.count("<details>") for text in texts)
    assert answers == sum(text.count("**Predict, then run.**") for text in texts) + sum(
        text.count("**Exercise.**") for text in texts
    )


@every_notebook
def test_long_cells_of_figures_and_tables_are_folded(script):
    for cell in jupytext.read(script).cells:
        of_results = "plt." in cell.source or "pd." in cell.source
        long = cell.cell_type == "code" and len(cell.source.splitlines()) > 25
        folded_in_jupyterlab = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        folded_on_the_site = "hide-input" in cell.metadata.get("tags", [])
        assert folded_in_jupyterlab == folded_on_the_site
        assert folded_on_the_site or not (long and of_results), cell.source[:100]


def test_scripts_are_valid_in_the_oldest_python_and_their_names_are_defined():
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', PROJECT.read_text())
    version = "py" + oldest.replace(".", "")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--target-version", version]
    done = subprocess.run(
        [*command, "--select", "F", *map(str, SCRIPTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@every_notebook
def test_notebook_checks_its_parameters_before_anything_else(script):
    code = [source for kind, source, _ in cells(script) if kind == "code"]
    assert "pcdd.check_parameters()" in code[1]


@every_notebook
def test_notebook_uses_public_names_only(script):
    tree, public = ast.parse(script.read_text()), set(pcdd_core.__all__)
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for imported in node.names:
                assert not imported.name.startswith("pcdd_core."), (
                    f"line {node.lineno} imports {imported.name}"
                )
                aliases |= (
                    {imported.asname or imported.name} if imported.name == "pcdd_core" else set()
                )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pcdd_core"):
            assert node.module == "pcdd_core", f"line {node.lineno} imports from {node.module}"
            assert {imported.name for imported in node.names} <= public
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases
        ):
            assert node.attr in public, f"line {node.lineno} uses {node.attr}"


def test_public_names_are_there():
    assert all(getattr(pcdd_core, name) is not None for name in pcdd_core.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        pcdd_core.nothing_of_the_kind


SEEDS = 2
REAL_SETS = ("random", "herding", "class_mean")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart, run with tiny settings, and its run folder."""
    place = tmp_path_factory.mktemp("quickstart")
    settings = {
        "schedule.iterations": 3,
        "network.width": 4,
        "objective.real_batch": 2,
        "evaluation.epochs": 2,
        "evaluation.networks": 1,
        "evaluation.classifier.width": 4,
    }
    folder = place / "run"
    parameters = {"settings": settings, "output": str(folder), "device": "cpu", "seeds": SEEDS}
    return Executed("01_quickstart", place, parameters), folder


@pytest.mark.slow
def test_quickstart_runs_from_end_to_end(quickstart):
    executed, folder = quickstart
    files = {path.name for path in folder.iterdir()}
    kept = {*RUN_FILES} - {"checkpoint-previous.pt"}  # a short run has one checkpoint
    assert files == kept | {"migration.html", "summary.json", "seed-1"}
    assert {path.name for path in (folder / "seed-1").iterdir()} == kept
    assert "mount(" in (folder / "migration.html").read_text()
    records = [read_record(folder), read_record(folder / "seed-1")]
    assert [record["config"]["seed"] for record in records] == [0, 1]
    assert all(record["iterations"] == 3 for record in records)
    assert executed.pictures >= 5


@pytest.mark.slow
def test_quickstart_s_summary_agrees_with_the_records_and_the_set(quickstart):
    executed, folder = quickstart
    summary = json.loads((folder / "summary.json").read_text())
    scores = [
        read_record(place)["scores"]["standard"]["mean"] for place in (folder, folder / "seed-1")
    ]
    assert summary["distilled"] == pytest.approx(np.mean(scores), abs=0.01)
    assert summary["distilled_sd"] == pytest.approx(np.std(scores), abs=0.01)
    distilled = pcdd_core.load_clouds(folder / "clouds.npz")
    assert summary["points"] == len(distilled.coordinates)
    assert summary["bytes"] == int(pcdd_core.packed_bytes(distilled).sum())
    assert summary["seeds"] == SEEDS and summary["seconds"] > 0
    for name in (real + kind for real in REAL_SETS for kind in ("", "_whole")):
        assert 0 <= summary[name] <= 100 and summary[f"{name}_sd"] >= 0
    for name in ("random_whole", "herding_whole"):  # rounded up in their favour
        assert summary[f"{name}_bytes"] >= summary["bytes"]
    points = f"<td>{summary['points']}</td>"
    for name in ("distilled", *REAL_SETS):
        (row,) = [row for row in executed.rows("seeds") if f"<th>{name}</th>" in row]
        assert points in row


@pytest.mark.slow
def test_quickstart_takes_glands_in_3d_and_scores_them_by_balanced_accuracy(tmp_path):
    shape_samples.write_adrenal(tmp_path, shape_samples.adrenal_arrays())
    settings = {
        "clouds.points_per_cloud": 30,
        "schedule.iterations": 3,
        "network.width": 4,
        "objective.real_batch": 2,
        "evaluation.epochs": 2,
        "evaluation.classifier.width": 4,
    }
    given = {"dataset": "adrenal", "data_folder": str(tmp_path), "settings": settings, "seeds": 1}
    folder = tmp_path / "run"
    executed = Executed(
        "01_quickstart", tmp_path / "notebook", {**given, "output": str(folder), "device": "cpu"}
    )
    record = read_record(folder)
    assert record["name"] == "adrenal-demo" and len(record["scores"]["standard"]["recalls"]) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scored_on"] == "adrenal, test split, 7 clouds, balanced accuracy"
    assert summary["points"] == 2 * 2 * 30
    assert "balanced accuracy, 1 seeds" in executed.printed and executed.pictures >= 5
    assert pcdd_core.load_clouds(folder / "clouds.npz").class_names == ("normal", "hyperplasia")


@pytest.mark.slow
def test_quickstart_s_verdict_says_what_its_numbers_say(quickstart):
    executed, folder = quickstart
    summary = json.loads((folder / "summary.json").read_text())
    verdict = executed.printed.splitlines()[-5:]
    assert f"{summary['distilled']:.1f} ± {summary['distilled_sd']:.1f} %" in verdict[0]
    assert verdict[3].endswith(str(folder / "migration.html"))
    assert str(folder / "summary.json") in verdict[4]
    rows = executed.rows("distilled is higher in")
    for line, kind in zip(verdict[1:3], ("", "_whole")):
        said = re.findall(r"(above|below|undecided) [a-z ]+ \(([+-][\d.]+)\)", line)
        assert len(said) == len(REAL_SETS)
        for (word, gain), name in zip(said, REAL_SETS):
            difference = summary["distilled"] - summary[name + kind]
            assert float(gain) == pytest.approx(difference, abs=0.1)
            (row,) = [row for row in rows if f"<th>{name}{kind}</th>" in row]
            higher = int(re.search(rf"(\d) of {SEEDS} seeds", row)[1])
            assert {"above": higher == SEEDS, "below": higher == 0}.get(word, True)
            assert word != "above" or difference > 0
            assert word != "below" or difference < 0
