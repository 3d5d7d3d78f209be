"""Notebook 10, the ingredients: with tiny runs, and from the committed records."""

import html
import re

import pandas as pd
import pytest
from executed import SMOKE, Executed

from pcdd_core.experiments.records import COMMITTED, find_records
from pcdd_core.experiments.tables import experiment
from pcdd_core.experiments.variants import INGREDIENTS
from pcdd_core.geometry.storage import released_names

NAME = "10_from_33_9_to_the_best"
SEEDS = 1  # with its default parameters
pytestmark = pytest.mark.slow
OF_DIGITS = [name for name in released_names() if name.startswith("mnist")]


def table_of_ingredients(executed: Executed) -> pd.DataFrame:
    """Return the notebook's table of ingredients: group, ingredient, difference."""
    text = executed.table("difference", "ingredient")

    def column(place: str) -> pd.Series:
        """Return the texts of the cells of one class, by row."""
        cells = re.findall(rf'class="{place}"[^>]*>([^<]*)<', text)
        return pd.Series({int(row): html.unescape(words).strip() for row, words in cells})

    table = pd.DataFrame({"ingredient": column(r"row_heading level1 row(\d+)")})
    # a group has its name in its first row only
    table["group"] = column(r"row_heading level0 row(\d+)").reindex(table.index).ffill()
    table["difference"] = column(r"data row(\d+) col1")
    return table


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return Executed(NAME, tmp_path_factory.mktemp("ingredients"), SMOKE)


def test_every_change_of_the_groups_asked_for_is_held_against_the_base(tiny_run):
    table = table_of_ingredients(tiny_run)
    of_points = table[table.group == "points"]
    assert len(of_points) == len(INGREDIENTS["points"])
    for changed in INGREDIENTS["points"]:
        named = f"{changed['clouds.points_per_cloud']} points per cloud"
        assert of_points.ingredient.str.endswith(named).any(), named
    (base,) = table[table.group == "base"].to_dict("records")
    assert base["ingredient"] == "base" and base["difference"] == "0.0"
    assert "random, 1 per class" in set(table[table.group == "real clouds"].ingredient)
    assert set(table.group) == {"base", "points", "real clouds"}
    assert tiny_run.pictures == 2 + len(OF_DIGITS)


def test_released_sets_are_listed_with_what_they_cost(tiny_run):
    rows = tiny_run.rows("distilled in s")
    assert all(any(f"<th>{name}</th>" in row for row in rows) for name in OF_DIGITS)


def test_with_default_parameters_records_are_read_and_nothing_is_run(tmp_path, monkeypatch):
    committed = find_records([COMMITTED])
    lacking = [
        plan.label
        for plan in experiment("ingredients", seeds=SEEDS)
        if plan.identity not in committed
    ]
    assert not lacking, f"figures/records lacks {len(lacking)} records: {'; '.join(lacking[:5])}"
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "no_data"))  # any run would fail
    executed = Executed(NAME, tmp_path, {})
    assert not (tmp_path / "runs").exists() and executed.pictures == 2 + len(OF_DIGITS)
    table = table_of_ingredients(executed)
    for group, changes in INGREDIENTS.items():  # every change has its own line, in words
        named = table[table.group == group].ingredient
        assert named.nunique() == len(changes)
        assert not named.str.contains(r"\w\.[a-z]|_|=").any(), list(named)
