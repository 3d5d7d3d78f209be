"""Notebook 10, the ingredients: with tiny runs, and from the committed records."""

import pytest
from executed import SMOKE, Executed

from pcdd_core.experiments.records import COMMITTED, find_records
from pcdd_core.experiments.tables import INGREDIENTS, experiment
from pcdd_core.geometry.storage import released_names

NAME = "10_from_33_9_to_the_best"
SEEDS = 1  # with its default parameters
pytestmark = pytest.mark.slow
OF_DIGITS = [name for name in released_names() if name.startswith("mnist")]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return Executed(NAME, tmp_path_factory.mktemp("ingredients"), SMOKE)


def test_every_change_of_the_groups_asked_for_is_held_against_the_base(tiny_run):
    rows = tiny_run.rows("to the base", "ingredient")
    for changed in INGREDIENTS["points"]:
        named = ", ".join(f"{key} = {value}" for key, value in changed.items())
        assert any(f"<th>{named}</th>" in row for row in rows), named
    base = next(row for row in rows if "<th>base</th>\n      <th>base</th>" in row)
    assert "<td>0.0</td>" in base
    assert any("random-1" in row for row in rows) and not any(
        "objective.distance" in row for row in rows
    )
    assert tiny_run.pictures == 2 + len(OF_DIGITS)


def test_released_sets_are_listed_with_what_they_cost(tiny_run):
    rows = tiny_run.rows("distilled in s")
    assert all(any(f"<th>{name}</th>" in row for row in rows) for name in OF_DIGITS)


def test_with_default_parameters_records_are_read_and_nothing_is_run(tmp_path, monkeypatch):
    committed = find_records([COMMITTED])
    lacking = [
        cell.label
        for cell in experiment("ingredients", seeds=SEEDS)
        if cell.identity not in committed
    ]
    assert not lacking, f"figures/records lacks {len(lacking)} records: {'; '.join(lacking[:5])}"
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "no_data"))  # any run would fail
    executed = Executed(NAME, tmp_path, {})
    assert not (tmp_path / "runs").exists() and executed.pictures == 2 + len(OF_DIGITS)
