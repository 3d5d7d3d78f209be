"""The notebooks on data, Figure 3, second derivatives and limits.

They run from records as they stand, and from end to end with tiny runs.
"""

from functools import cache

import numpy as np
import pytest
from executed import SMOKE, Executed
from tiny import needs_minkowski

from pcdd_core.experiments.records import COMMITTED, find_records, read_record
from pcdd_core.experiments.tables import experiment

pytestmark = pytest.mark.slow

DATA, FIGURE_3, DERIVATIVES, LIMITS = (
    "02_data_preparation",
    "07_figure_3_qualitative",
    "08_second_derivatives",
    "09_limits",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where all tiny runs go: what one notebook has run, the others read."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def walk(tmp_path_factory, runs):
    """Runs a notebook with tiny settings, once."""
    shared = {"runs_folder": str(runs)}

    def execute(name):
        parameters = SMOKE if name == DATA else SMOKE | shared
        return Executed(name, tmp_path_factory.mktemp(name), parameters)

    return cache(execute)


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory):
    """Runs a notebook with its default parameters, once.

    Wherever MNIST is on this machine, it is not found: whatever is run instead of read fails.
    """

    def execute(name):
        folder = tmp_path_factory.mktemp("default")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PCDD_DATA", str(folder / "nowhere"))
            return Executed(name, folder, {})

    return cache(execute)


records_kept = cache(lambda: find_records([COMMITTED]))


def committed(name: str, seeds: int = 5) -> tuple[list, list]:
    """The cells of an experiment, and (cell, record) of those with a record in the repository."""
    cells, found = experiment(name, seeds=seeds), records_kept()
    kept = [cell for cell in cells if cell.identity in found]
    return cells, [(cell, found[cell.identity]) for cell in kept]


def counted(name: str, seeds: int = 5) -> str:
    """How a notebook states how many records of an experiment there are."""
    cells, kept = committed(name, seeds)
    return f"{name}: {len(kept)} of {len(cells)} records"


def results(executed: Executed) -> list[str]:
    """The sentences that a notebook shows at its end."""
    return [line[2:] for line in executed.printed.splitlines() if line.startswith("- ")]


def test_data_preparation_runs_and_what_it_asserts_holds(walk):
    executed = walk(DATA)
    assert executed.pictures == 9
    assert "points of 1084 clouds came back exactly" in executed.printed
    assert "occupied cells" in executed.table("Jacksboro")


def test_data_preparation_takes_other_shapes_and_limits(tmp_path):
    points = np.random.default_rng(0).normal(size=(500, 3))
    np.savez(tmp_path / "ball.npz", points=points)
    shapes = {"shapes": str(tmp_path / "ball.npz"), "cells_per_axis": 12}
    executed = Executed(DATA, tmp_path, shapes | {"max_points": 300, "seed": 3})
    assert executed.pictures == 9
    assert "500 points on (12, 12, 12) cells" in executed.printed


def test_figure_3_draws_a_row_per_set_and_measures_its_three_features(walk):
    executed = walk(FIGURE_3)
    assert executed.pictures == 3  # the figure, predicted displacement, where points are
    rows = ("PyTorch, 3 layers", "sparse, 2 layers", "ours", "real")
    for about in ("rows</th>", "occupied cells per cloud", "isolated cells", "paper's figure"):
        assert all(f"<th>{row}</th>" in executed.table(about, "ours") for row in rows)
    said = results(executed)
    assert [line for line in said if line.startswith("Corner, PyTorch, 3 layers")]
    assert [line for line in said if line.startswith("Origin shift: real batches begin at")]
    assert not [line for line in said if line.startswith("Scores")], (
        "digits beside the paper's MNIST"
    )


def test_figure_3_finds_no_displacement_of_real_digits(walk):
    (line,) = [line for line in results(walk(FIGURE_3)) if line.startswith("Displacement, real")]
    moved = [float(word) for word in line.replace(":", " ").split() if word[0] in "+-"]
    assert len(moved) == 2 and max(map(abs, moved)) < 1


@needs_minkowski
def test_figure_3_has_minkowskiengine_and_its_control(walk):
    measured = walk(FIGURE_3).table("occupied cells per cloud")
    assert "<th>MinkowskiEngine, 2 layers</th>" in measured
    assert "<th>MinkowskiEngine, no shift</th>" in measured


def test_second_derivatives_shows_what_is_lost_and_how_much(walk):
    executed = walk(DERIVATIVES)
    assert executed.pictures == 2  # layer by layer, pairs of runs
    rows = executed.rows("forgetful layer")
    lost = [row.split("<td>")[1:] for row in rows if "convolution" in row]
    assert ["648.0" in row[-1] for row in lost] == [True, False]
    assert ["True" in row[1] for row in lost] == [True, False]
    assert "missed_gradient.py, 32 real clouds" in executed.table("missing, %", "seeds")
    assert "no pair" not in executed.table("difference, paper") or "left out" in executed.printed


@needs_minkowski
def test_second_derivatives_measures_on_the_spot_and_pairs_runs_by_seed(walk):
    executed = walk(DERIVATIVES)
    assert "convolution_weights.0" in executed.table("gradients without a graph")
    assert "these runs, 2 real clouds" in executed.table("missing, %", "seeds")
    assert "6 of them on MinkowskiEngine" in executed.printed
    assert sum("(1)" in row for row in executed.rows("difference, paper")) == 6
    assert sum(row.count("<td>") for row in executed.rows("twins apart")) == 6 * 3
    said = results(executed)
    assert sum(line.startswith("All terms, ") for line in said) == 6
    missing = [line for line in said if line.startswith("Missing under ")]
    assert sum(", at the start: " in line for line in missing) == 2


def test_limits_shows_starts_depths_and_steps(walk, runs):
    executed = walk(LIMITS)
    assert executed.pictures == 3
    starts = executed.table("by classifiers alone")
    assert "real, at random" in starts and "ours" in starts
    assert "torch" in executed.table("layers", "health")
    assert "50</th>" in executed.table("step size", "health")
    records = [read_record(folder) for folder in runs.iterdir()]
    assert {record["config"]["seed"] for record in records} == {0, 1}
    said = results(executed)
    torch = ("Starts, PyTorch", "Depth, torch", "Way, paper-torch", "Step size, paper-torch")
    for about in torch:
        assert [line for line in said if line.startswith(about)], about
    assert not [line for line in said if "The paper's" in line], "digits beside the paper's MNIST"


@pytest.mark.parametrize("name", [FIGURE_3, DERIVATIVES, LIMITS])
def test_with_default_parameters_nothing_is_run(name, as_it_is):
    executed = as_it_is(name)
    assert not executed.runs.exists()
    assert "left out" not in executed.printed and "run 1 of" not in executed.printed
    assert results(executed) or "no record yet: nothing to say" in executed.printed


def test_figure_3_shows_the_sets_that_are_committed(as_it_is):
    executed = as_it_is(FIGURE_3)
    rows = {"paper-torch-3-sum-of-squares": "PyTorch, 3 layers", "random-1": "real"}
    with_clouds = {cell.name for cell, record in committed("table1")[1] if record["clouds_file"]}
    counted = executed.table("occupied cells per cloud")
    for name, text in rows.items():
        assert (f"<th>{text}</th>" in counted) == (name in with_clouds)
    assert "MNIST is not here" in executed.printed


def test_second_derivatives_reads_the_committed_measurement(as_it_is):
    executed = as_it_is(DERIVATIVES)
    assert executed.pictures == 2
    rows = [row for row in executed.rows("missing, %", "seeds") if "missed_gradient.py" in row]
    assert len(rows) == 6 and all("<td>3</td>" in row for row in rows)
    names = [f"paper-{backend}-2-sum-of-squares" for backend in ("minkowski", "sparse")]
    scored = [[c for c, record in committed(n)[1] if "paper" in record["scores"]] for n in names]
    kept = [{cell.config.seed for cell in cells} for cells in scored]
    pairs = len(kept[0] & kept[1])
    row = next(row for row in executed.rows("difference, paper") if "33.9" in row)
    assert (f"({pairs})" if pairs else "no pair") in row


def test_limits_counts_the_committed_runs(as_it_is):
    executed = as_it_is(LIMITS)
    assert counted("initialisation", 10) in executed.printed
    assert counted("table1") in executed.printed
    cells, kept = committed("initialisation", 10)
    named = "`pcdd sweep initialisation --seeds 10 " in executed.printed
    assert named == (len(kept) < len(cells))
    steps = {cell.config.optimiser.step_size for cell, _ in committed("step-size", 3)[1]}
    assert ("no record of another step size" in executed.printed) == (len(steps) < 2)


def test_your_own_pieces_work_in_every_place(tmp_path):
    executed = Executed("12_your_own", tmp_path, {"iterations": 3})
    assert executed.pictures == 5
    assert "record of objective mean_and_spread: " in executed.printed
    assert "training shapes: {'ball': " in executed.printed
