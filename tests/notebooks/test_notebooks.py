"""Notebooks: the pairs agree and use only public names; the quickstart runs to its end."""

import ast
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest

import pcdd_core
from pcdd_core.experiments.records import read_record
from pcdd_core.experiments.runs import RUN_FILES

FOLDER = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
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
def test_notebook_is_kept_without_outputs(script):
    code = [
        cell
        for cell in nbformat.read(script.with_suffix(".ipynb"), as_version=4).cells
        if cell.cell_type == "code"
    ]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@every_notebook
def test_exactly_one_cell_holds_the_parameters(script):
    assert sum("parameters" in tags for _, _, tags in cells(script)) == 1


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


@pytest.mark.slow
def test_quickstart_runs_from_end_to_end(tmp_path):
    settings = {
        "schedule.iterations": 3,
        "network.width": 4,
        "objective.real_batch": 2,
        "evaluation.epochs": 2,
        "evaluation.networks": 1,
        "evaluation.classifier.width": 4,
    }
    papermill.execute_notebook(
        FOLDER / "01_quickstart.ipynb",
        tmp_path / "executed.ipynb",
        parameters={"settings": settings, "output": str(tmp_path / "run"), "device": "cpu"},
        kernel_name="python3",
        cwd=str(tmp_path),
        progress_bar=False,
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(RUN_FILES)
    record = read_record(tmp_path / "run")
    assert record["iterations"] == 3 and set(record["scores"]) == {"standard", "paper"}
    outputs = [
        output
        for cell in nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
        for output in cell.get("outputs", [])
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    printed = "".join(
        output["text"]
        for output in outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    assert str(tmp_path / "run") in printed and "random" in printed and "herding" in printed
