"""The rows of accuracy against bytes."""

import csv

import pytest
from test_ranking import record
from test_readme import script

from pcdd_core.experiments import frontier
from pcdd_core.experiments.records import COMMITTED, read_records
from pcdd_core.experiments.tables import experiment
from pcdd_core.scoring.baselines import ClassMean, Herding, Random


def named_fast(mean, **changed):
    """Return a record scored with the fast augmentation, as only older records are."""
    made = record(mean, **changed)
    made["config"]["evaluation"] |= {"augmentation": "fast", "epochs": 1000}
    return made


def ours(records):
    return [row for row in frontier.rows(records) if row["kind"] != "published"]


def test_rows_have_the_columns_mean_and_deviation_over_seeds_and_their_kind():
    records = [record(90.0) | {"bytes": 400}, record(92.0, seed=1) | {"bytes": 404}]
    records.append(record(60.0, "random") | {"bytes": 193})
    assert [tuple(row.values()) for row in ours(records)] == [
        ("random-1", 193, 60.0, None, 1, "real"),
        ("mnist-1", 402, 91.0, 1.0, 2, "distilled"),
    ]
    assert all(tuple(row) == frontier.COLUMNS for row in frontier.rows(records))


def test_fast_scores_say_so_and_give_way_to_published_ones():
    assert [row["name"] for row in ours([named_fast(91.6)])] == ["mnist-1 (fast augmentation)"]
    (row,) = ours([named_fast(91.6), named_fast(91.0, seed=1), record(90.0, seed=2)])
    assert (row["name"], row["standard"], row["seeds"]) == ("mnist-1", 90.0, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluation.split": "validation"},
        {"evaluation.epochs": 500},
        {"evaluation.classifier.name": "mlp"},
        {"optimiser.step_size": 0.1},
        {"preset": "mnist-1-labels"},
        {"preset": "mnist-1-soft"},
        {"preset": "gaussian"},
        {"data.name": "digits"},
    ],
)
def test_other_records_are_left_out(changed):
    assert ours([record(90.0, **changed)]) == []


def test_published_sets_have_the_bytes_of_their_pixels():
    rows = {row["name"]: row for row in frontier.published_rows()}
    assert len(rows) == 3 * 3 * 2
    assert rows["DC, 1 per class, uint8"]["bytes"] == 7_840
    assert rows["IDC, 10 per class, float32"]["bytes"] == 313_600
    assert rows["DSA, 50 per class, float32"]["standard"] == 99.2


def test_experiment_has_real_sets_from_below_our_smallest_to_above_our_largest_set():
    plans = experiment("frontier", seeds=3)
    kinds = {type(plan.baseline) for plan in plans}
    assert kinds == {type(None), Random, Herding, ClassMean}
    assert {plan.name for plan in plans if plan.baseline is None} == {
        "mnist-1", "mnist-1-gradient", "mnist-1-split", "mnist-10", "mnist-50"
    }  # fmt: skip
    counts = {plan.baseline.clouds_per_class for plan in plans if plan.baseline}
    assert min(counts) == 1 and max(counts) == 100
    for plan in plans:
        assert plan.config.evaluation.augmentation == "published"
        assert plan.config.evaluation.split == "test"


def test_every_planned_run_is_a_row():
    """A run that is made for the table must not be left out of it."""
    for plan in experiment("frontier", seeds=1):
        config = plan.config.to_dict()
        if plan.baseline:
            config = {key: config[key] for key in ("data", "evaluation", "seed")}
            config["baseline"] = plan.baseline.to_dict()
        made = {"name": plan.name, "config": config, "scores": {"standard": {"mean": 90.0}}}
        assert [row["name"] for row in ours([made])] == [plan.name]


def test_kept_records_give_rows_with_bytes():
    kept = [record for path in COMMITTED.glob("*.jsonl") for record in read_records(path)]
    rows = ours(kept)
    assert {row["kind"] for row in rows} == {"distilled", "real"}
    assert all(row["bytes"] for row in rows if "fast" in row["name"])


def test_picture_shows_every_row_it_reads():
    drawing = script("figures/frontier.py")
    rows = drawing.read_rows()
    with (drawing.HERE / "tables" / "frontier.csv").open(newline="") as file:
        assert 0 < len(rows) <= len(list(csv.DictReader(file)))
    (axes,) = drawing.draw(rows).axes
    assert axes.get_xscale() == "log"
    assert sorted(text.get_text() for text in axes.texts) == sorted(
        row["name"].removesuffix(frontier.FAST).removesuffix(", uint8")
        for row in rows
        if "float32" not in row["name"]
    )
