"""The notebooks on Table 1, Table 2 and average pooling.

Executed with tiny runs, with the committed records as they are, and with made-up records whose
tables and sentences are known.
"""

import json
import re
import shlex
import shutil
from functools import cache

import numpy as np
import pytest
from executed import SMOKE, Executed
from matplotlib.figure import Figure
from tiny import needs_minkowski

from pcdd_core.cli.main import main
from pcdd_core.experiments import figures
from pcdd_core.experiments.config import override, to_dict
from pcdd_core.experiments.presets import PRESETS
from pcdd_core.experiments.records import (
    COMMITTED,
    SCHEMA,
    find_records,
    identity,
    read_record,
)
from pcdd_core.experiments.sweeps import obtain
from pcdd_core.experiments.tables import PlannedRun, experiment
from pcdd_core.experiments.variants import UNTIL_TABLE
from pcdd_core.geometry.grid import boundary_check
from pcdd_core.geometry.storage import released, save_clouds
from pcdd_core.sealed import unsealed

TABLE_1, TABLE_2, POOLING = (
    "04_table_1_backends_and_layers",
    "05_table_2_distances",
    "06_average_pooling",
)
EXPERIMENTS = {TABLE_1: ("table1", "why"), TABLE_2: ("table2", "step-size"), POOLING: ("ablation",)}
ALWAYS = {TABLE_1: 2, TABLE_2: 0, POOLING: 4}  # pictures that need no record
WITH_RECORDS = {TABLE_1: 4, TABLE_2: 2, POOLING: 4}
NOTEBOOKS = pytest.mark.parametrize("name", EXPERIMENTS)
pytestmark = pytest.mark.slow
NAMES = {"minkowski": "MinkowskiEngine", "torch": "PyTorch", "sparse": "sparse"}
PROTOCOLS = ("standard", "paper")


def tiny_plans(name: str) -> list[PlannedRun]:
    changed = {"data.name": SMOKE["dataset"], **SMOKE["settings"]}
    return experiment(name, "small", SMOKE["seeds"], changed, beside=name != "step-size")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where all tiny runs go: what one notebook has run, the others read.

    All but the first of each experiment are made here, without their pictures, which take most of
    the time; the notebooks make the rest.
    """
    folder, tables = tmp_path_factory.mktemp("runs"), sum(EXPERIMENTS.values(), ())
    left = {tiny_plans(table)[0].identity for table in tables}
    plans = {plan.identity: plan for table in tables for plan in tiny_plans(table)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "migration", lambda trajectory, clouds: Figure(figsize=(1, 1)))
        obtain([plans[key] for key in plans if key not in left], folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, runs):
    """Runs a notebook with tiny settings, once."""
    folder = {"runs_folder": str(runs)}
    return cache(lambda name: Executed(name, tmp_path_factory.mktemp(name), SMOKE | folder))


def body(table: str) -> list[list[str]]:
    """A table's rows as text, the head left out; what spans several rows is in the first only."""
    rows = re.findall(r"<tr.*?</tr>", table.split("<tbody>")[1], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(cell.split()) for cell in row] for row in cells]


def results(executed: Executed) -> list[str]:
    """The sentences that a notebook shows at its end."""
    return [line[2:] for line in executed.printed.splitlines() if line.startswith("- ")]


def records_in(place, plans: list[PlannedRun]) -> list[dict]:
    found = find_records([place])
    return [found[plan.identity] for plan in plans if plan.identity in found]


def tiny_records(runs, name: str) -> list[dict]:
    return records_in(runs, tiny_plans(name))


def scores_of(records: list[dict], protocol: str, **network) -> list[float]:
    """Of the paper's networks with these settings, one mean per seed."""
    return [
        record["scores"][protocol]["mean"]
        for record in records
        if record["name"].startswith("paper-")
        and all(record["config"]["network"][key] == value for key, value in network.items())
    ]


def in_words(scores: list[float]) -> str:
    """How the notebooks write a cell of a table."""
    if not scores:
        return "no record"
    spread = f" ± {np.std(scores):.1f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread} ({len(scores)})"


def table_1_rows(records: list[dict]) -> list[list[str]]:
    """What a row of Table 1 shows of the records: the layers and both scores."""
    return [
        [
            str(layers),
            *(in_words(scores_of(records, p, name=b, layers=layers)) for p in PROTOCOLS),
        ]
        for b in NAMES
        for layers in (2, 3, 4)
    ]


# With tiny runs


@NOTEBOOKS
@needs_minkowski
def test_notebook_runs_from_end_to_end(name, tiny_run, runs):
    executed = tiny_run(name)
    made = [read_record(folder) for folder in runs.iterdir()]
    assert {record["config"]["data"]["name"] for record in made} == {"digits"}
    networks = [record["config"]["network"] for record in made if "network" in record["config"]]
    assert {network["name"] for network in networks} == set(NAMES)
    for table in EXPERIMENTS[name]:
        records = tiny_records(runs, table)
        if table == "step-size":  # without the rows beside it
            records = [record for record in records if record["name"].startswith("paper-")]
        assert f"{table}: {len(records)} of {len(records)} records\n" in executed.printed
        assert f"scored on: {records[0]['scored_on']}" in executed.printed
    assert executed.pictures >= WITH_RECORDS[name]
    assert results(executed)


@needs_minkowski
def test_table_1_shows_every_cell_and_no_figure_of_another_data_set(tiny_run, runs):
    table = tiny_run(TABLE_1).table("verdict")
    rows = [row[-5:] for row in body(table)]
    assert [row[:3] for row in rows] == table_1_rows(tiny_records(runs, "table1"))
    assert all(row[3:] == ["", ""] for row in rows)  # the paper's figures are of MNIST


@needs_minkowski
def test_sparse_is_compared_with_minkowskiengine_seed_by_seed(tiny_run, runs):
    records = tiny_records(runs, "table1")
    rows = body(tiny_run(TABLE_1).table("sparse - MinkowskiEngine"))
    for layers, row in zip((2, 3, 4), rows, strict=True):
        pairs = [
            [scores_of(records, p, name=b, layers=layers)[0] for b in ("sparse", "minkowski")]
            for p in PROTOCOLS
        ]
        expected = [f"{ours - theirs:+.1f} (1)" for ours, theirs in pairs]
        assert row == [f"{layers} layers", *expected]


@needs_minkowski
def test_why_has_all_combinations_and_a_sentence_per_cause(tiny_run, runs):
    executed, records = tiny_run(TABLE_1), tiny_records(runs, "why")
    assert len(body(executed.table("origin shift", "redrawn"))) == len(records) == 16
    pairs = []
    for record in records:
        config = json.loads(json.dumps(record["config"]))
        if config["network"]["norm"] == "instance":
            config["network"]["norm"] = "none"
            other = identity({"name": record["name"], "config": config})
            (twin,) = [found for found in records if identity(found) == other]
            pairs.append([found["scores"]["paper"]["mean"] for found in (twin, record)])
    own = next(
        pair
        for pair, record in zip(
            pairs, [r for r in records if r["config"]["network"]["norm"] == "instance"]
        )
        if record["config"]["network"]["origin_shift"]
        and record["config"]["network"]["name"] == "minkowski"
        and not record["config"]["schedule"]["iterations_per_network"]
    )
    gain = np.mean([after - before for before, after in pairs])
    assert results(executed).count(
        f"norm, none -> instance: else as in the paper {own[0]:.1f} -> {own[1]:.1f} % (1 pairs); "
        f"all 8 pairs {gain:+.1f} points."
    )
    for cause in ("origin shift, yes -> no", "second derivatives, some lost -> all", "network, "):
        assert sum(line.startswith(cause) for line in results(executed)) == 1


def test_runs_without_scores_along_the_run_have_no_curve(tiny_run):
    executed = tiny_run(TABLE_1)
    assert "no record here has scores along the run" in executed.printed
    assert not [table for table in executed.tables if "<th>iteration</th>" in table]


@needs_minkowski
def test_table_2_sets_both_distances_side_by_side_and_varies_the_step_size(tiny_run, runs):
    executed = tiny_run(TABLE_2)
    rows = body(executed.table("the paper's gradient"))
    records = tiny_records(runs, "table2")
    expected = [
        scores_of(
            [r for r in records if r["config"].get("objective", {}).get("distance") == distance],
            "paper",
            name=backend,
        )
        for backend in NAMES
        for distance in ("layerwise_cosine", "sum_of_squares")
    ]
    assert [row[-2] for row in rows] == list(map(in_words, expected))
    assert all(row[-4] == row[-1] == "" for row in rows)  # the paper's figures are of MNIST
    sizes = body(executed.table("step size", "diverged"))
    assert len(sizes) == 12 and {row[-5] for row in sizes} == {"0.05", "0.50", "5.00", "50.00"}
    lost = {row[0]: row[1:] for row in body(executed.table("convolution 1", "missed"))}
    assert sum(cell == "100.0%" for cell in lost["convolution 1"]) == 2  # under either distance


@needs_minkowski
def test_average_pooling_is_held_against_maximum_and_the_paper_s_words(tiny_run, runs):
    records = tiny_records(runs, "ablation")
    rows = [row[-5:] for row in body(tiny_run(POOLING).table("average - max"))]
    expected = []
    for backend in NAMES:
        for layers in (2, 3):
            for protocol in PROTOCOLS:
                pooled = [
                    scores_of(records, protocol, name=backend, layers=layers, pooling=pooling)
                    for pooling in ("max", "average")
                ]
                gain = f"{pooled[1][0] - pooled[0][0]:+.1f} (1)"
                words = {"minkowski": "relatively similar", "torch": "significantly hurting"}
                shown = [*map(in_words, pooled), gain, words.get(backend, "")]
                expected.append([protocol, *shown])
    assert rows == expected


# Without MinkowskiEngine, and with scores along the run put into the tiny records


@pytest.fixture(scope="module")
def curved(tiny_run, runs, tmp_path_factory):
    """The tiny records but MinkowskiEngine's, scored before iterations 0 and 2; their settings."""
    for name in EXPERIMENTS:
        tiny_run(name)
    folder = tmp_path_factory.mktemp("curved")
    for path in runs.glob("*/record.json"):
        record = unsealed(json.loads(path.read_text()))
        network = record["config"].get("network", {})
        if network.get("name") == "minkowski":
            continue
        record["config"]["evaluation"]["curve"] = [0, 2]
        if network:
            record["scores_at"] = {
                "0": {"paper": score_of(10.0 + network["layers"])},
                "2": {"paper": score_of(20.0 + network["layers"])},
            }
        shutil.copytree(path.parent, folder / path.parent.name)
        (folder / path.parent.name / "record.json").write_text(json.dumps(record))
    return folder, SMOKE["settings"] | {"evaluation.curve": [0, 2]}


@pytest.mark.parametrize("name", [TABLE_1, TABLE_2])
def test_without_minkowskiengine_its_rows_are_left_out(name, curved, tmp_path, monkeypatch, capsys):
    folder, settings = curved
    missing = "No module named 'MinkowskiEngine'"
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "MinkowskiEngine.py").write_text(
        f"raise ModuleNotFoundError({missing!r}, name='MinkowskiEngine')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    shutil.copytree(folder, tmp_path / "runs")
    changed = {"runs_folder": str(tmp_path / "runs"), "settings": settings}
    executed = Executed(name, tmp_path, SMOKE | changed)
    assert "left out: MinkowskiEngine is not installed" in executed.printed
    assert executed.pictures >= WITH_RECORDS[name]

    if name == TABLE_1:
        shown = {tuple(row[-2:]) for row in body(executed.table("<th>iteration</th>"))}
        assert shown == {("12.0", "22.0"), ("13.0", "23.0"), ("14.0", "24.0")}
        (row,) = [row for row in body(executed.table("verdict")) if row[0] == "MinkowskiEngine"]
        assert row[2:4] == ["no record", "no record"]
        assert not [line for line in results(executed) if line.startswith("All second derivatives")]

    table = EXPERIMENTS[name][0]
    (line,) = [line for line in executed.printed.splitlines() if line.startswith(f"{table}: ")]
    counts, command = re.fullmatch(r"\S+ (.*) records; the others: pcdd (.*)", line).groups()
    assert main([*shlex.split(command), "--list"]) == 0  # it names just these runs
    found, total = map(int, counts.split(" of "))
    summary = f"{total} runs: "
    (listed,) = [line for line in capsys.readouterr().out.splitlines() if summary in line]
    waiting = {f"{found} found", f"{total - found} waiting"}
    assert set(listed.removeprefix(summary).split(", ")) == waiting


# With made-up records at the paper's scale, whose settings no committed record has


CHANGED = {"evaluation.epochs": 7}


def score_of(mean: float) -> dict:
    """Return the score of one classifier."""
    return {"mean": mean, "standard_deviation": 0.0, "networks": 1, "accuracies": [mean]}


def make_up(folder, preset: str, seed: int, score: float, cell_settings=None, **more):
    """A record in which the clouds have not moved; the standard protocol scores 4 points more."""
    changed = {"seed": seed, **CHANGED, **(cell_settings or {})}
    settings = override(PRESETS[preset].config, changed)
    scores = {"standard": score_of(score + 4), "paper": score_of(score)}
    record = {
        "schema": SCHEMA,
        "kind": "distilled",
        "name": preset,
        "config": to_dict(settings),
        "scores": scores,
        "health": {"state": "moving", "iteration": None},
    }
    place = folder / f"{preset}-{seed}-{len(list(folder.iterdir()))}"
    place.mkdir()
    (place / "record.json").write_text(json.dumps(record | more))
    start = settings.start(released("mnist-1"))
    save_clouds(
        start.with_coordinates(boundary_check(start.coordinates, start.grid)), place / "clouds.npz"
    )


def execute_on(name: str, folder, tmp_path, monkeypatch) -> Executed:
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "no_data"))
    made_up = {"runs_folder": str(folder), "settings": CHANGED, "seeds": 2}
    return Executed(name, tmp_path, made_up)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made_up").mkdir()
    return tmp_path / "made_up"


def test_table_1_says_what_made_up_records_say(folder, tmp_path, monkeypatch):
    def moved(cells):  # what comes after iteration 1,250 does not count
        return {"curves": {"iteration": [9, 1300], "mean_absolute_displacement": [cells, 9.0]}}

    at = {"1250": {"paper": score_of(20.0)}, "2499": {"paper": score_of(26.0)}}
    for seed in (0, 1):
        make_up(folder, "paper-torch-2-sum-of-squares", seed, 24.69 + 2 * seed, **moved(0.02))
        make_up(folder, "paper-torch-3-sum-of-squares", seed, 40.0 + seed, scores_at=at)
        make_up(folder, "paper-torch-4-sum-of-squares", seed, 10.0 + seed, **moved(0.001))
        make_up(folder, "paper-sparse-2-sum-of-squares", seed, 31.5 + seed)
    make_up(folder, "paper-minkowski-2-sum-of-squares", 0, 30.0)
    norm = {**UNTIL_TABLE, "network.norm": "instance"}
    make_up(folder, "paper-minkowski-2-sum-of-squares", 0, 12.0, norm)
    executed = execute_on(TABLE_1, folder, tmp_path, monkeypatch)
    rows = [row[-4:] for row in body(executed.table("verdict"))]
    assert rows == [
        ["34.0 (1)", "30.0 (1)", "33.9", "one seed: a first look"],
        ["no record", "no record", "12.78", ""],
        ["no record", "no record", "10.48", ""],
        ["29.7 ± 1.0 (2)", "25.7 ± 1.0 (2)", "25.69", "within two standard deviations"],
        ["44.5 ± 0.5 (2)", "40.5 ± 0.5 (2)", "30.22", "above two standard deviations"],
        ["14.5 ± 0.5 (2)", "10.5 ± 0.5 (2)", "17.43", "below two standard deviations"],
        ["36.0 ± 0.5 (2)", "32.0 ± 0.5 (2)", "", ""],
        ["no record", "no record", "", ""],
        ["no record", "no record", "", ""],
    ]
    corner = r"Points of seed 0 in the corner at \(0, 0\): [67]% \(MinkowskiEngine, 2 layers\), .*"
    assert [line for line in results(executed) if re.fullmatch(corner, line)]
    assert [line for line in results(executed) if "in the corner" not in line] == [
        *(f"1 of the paper's 6 rows: {row[3]}." for row in rows if row[3]),
        "PyTorch: the best depth is 3, 40.5 %; the paper's is 3.",
        "Iteration 1250 is the best of these in 0 of 1 rows; its largest loss to the best is 6.0 "
        "points (PyTorch, 3 layers).",
        "PyTorch: 2 layers move points furthest per iteration, 20 times as far as 4.",
        "All second derivatives, gain in points: 2 layers +1.5 (1).",
        "norm, none -> instance: else as in the paper 30.0 -> 12.0 % (1 pairs); all 1 pairs -18.0 "
        "points.",
        "second derivatives, some lost -> all: else as in the paper 30.0 -> 31.5 % (1 pairs); all "
        "1 pairs +1.5 points.",
    ]
    assert executed.printed.count("no pair of records") == 2  # origin shift, network
    moves = [row[-3:] for row in body(executed.table("in another cell"))]
    assert moves[3] == ["0.02", "0.00", "0%"] and moves[4] == ["", "0.00", "0%"]


def test_table_2_says_what_made_up_records_say(folder, tmp_path, monkeypatch):
    def of_gradient(logged, missed=None):  # the mean over the whole run does not count
        layers = {"head": {"share": 1.0, "missed": 0.0}}
        derivatives = {"gradients_without_graph": ["x"], "missed": missed, "layers": layers}
        found = {"mean_absolute_gradient_as_logged": logged, "mean_absolute_gradient": 9.0}
        return found | ({} if missed is None else {"second_derivatives": derivatives})

    for seed in (0, 1):
        more = of_gradient(1e-4, 0.25 + 0.5 * seed)
        make_up(folder, "paper-minkowski-2-layerwise-cosine", seed, 10.0 + seed, **more)
        make_up(folder, "paper-minkowski-2-sum-of-squares", seed, 30.0, **of_gradient(0.02))
    make_up(folder, "paper-torch-3-layerwise-cosine", 0, 11.0)
    larger = {"optimiser.step_size": 1.0}
    make_up(folder, "paper-torch-3-layerwise-cosine", 0, 22.0, larger)
    executed = execute_on(TABLE_2, folder, tmp_path, monkeypatch)
    rows = [row[-5:] for row in body(executed.table("the paper's gradient"))]
    assert rows[0] == ["0.0001 ± 0 (2)", "0.0004", "14.5 ± 0.5 (2)", "10.5 ± 0.5 (2)", "11.37"]
    reach = [row[-4:] for row in body(executed.table("reach, the paper's"))]
    assert reach[:2] == [["0.025", "0.1", "0", "0%"], ["5", "8.2", "0", "0%"]]
    assert results(executed) == [
        "MinkowskiEngine, 2 layers: sum of squares has 200 times the gradient of the cosine; the "
        "paper's figures: 82.5 times.",
        "MinkowskiEngine, 2 layers, accuracy under the paper protocol: layerwise cosine "
        "10.5 ± 0.5 (2), sum of squares 30.0 ± 0.0 (2).",
        "layerwise cosine, points of seed 0 that ended in another cell: 0% (MinkowskiEngine, 2 "
        "layers), 0% (PyTorch, 3 layers).",
        "sum of squares, points of seed 0 that ended in another cell: 0% (MinkowskiEngine, 2 "
        "layers).",
        "layerwise cosine on MinkowskiEngine: 50.0% of the true gradient is missed (2).",
        "MinkowskiEngine, 2 layers, layerwise cosine: the best of 1 step sizes is 0.1, 10.5 %.",
        "PyTorch, 3 layers, layerwise cosine: the best of 2 step sizes is 1, 22.0 %.",
    ]


# With the committed records, whichever they are


@NOTEBOOKS
def test_with_default_parameters_records_are_read_and_nothing_is_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "no_data"))  # what is run instead fails
    executed = Executed(name, tmp_path, {})
    assert not (tmp_path / "runs").exists()
    assert executed.pictures >= ALWAYS[name]
    for table in EXPERIMENTS[name]:
        plans = experiment(table, seeds=5)
        if table == "step-size":
            plans = experiment(table, seeds=3, beside=False)
        found, total = records_in(COMMITTED, plans), len(plans)
        line = f"{table}: {len(found)} of {total} records"
        assert f"{line}\n" in executed.printed or f"{line}; the others: " in executed.printed
    records = records_in(COMMITTED, experiment(EXPERIMENTS[name][0], seeds=5))
    if name == TABLE_1:
        rows = [row[-5:] for row in body(executed.table("verdict"))]
        assert [row[:3] for row in rows] == table_1_rows(records)
        stated = ["33.9", "12.78", "10.48", "25.69", "30.22", "17.43", "", "", ""]
        assert [row[3] for row in rows] == stated
    if name == TABLE_2:
        rows = body(executed.table("the paper's gradient"))
        assert [row[-4] for row in rows] == ["0.0004", "0.033", "0.0005", "0.05", "", ""]
        assert [row[-1] for row in rows] == ["11.37", "33.9", "10.23", "30.22", "", ""]
    if name == POOLING:
        rows = [row[-5:] for row in body(executed.table("average - max"))]
        shown = scores_of(records, "standard", name="torch", layers=3, pooling="average")
        assert rows[6][2] == in_words(shown) and rows[6][4] == "significantly hurting"
