"""Bytes, IOR and HLR of the rows of a table."""

import pytest
import tiny

import pcdd_core as pcdd
from pcdd_core.experiments import ranking, report
from pcdd_core.experiments.config import to_dict
from pcdd_core.experiments.records import COMMITTED, read_record, read_records
from pcdd_core.geometry.packing import pack
from pcdd_core.geometry.storage import released_path


def record(mean, baseline=None, clouds=10, seed=0, preset="mnist-1", **changed):
    """Return the parts of a record that a table reads."""
    config = to_dict(pcdd.override(pcdd.preset(preset).config, {"seed": seed, **changed}))
    if baseline:
        config = {key: config[key] for key in ("data", "evaluation", "seed")}
        config["baseline"] = {"name": baseline, "clouds_per_class": 1, "points": None}
    return {
        "kind": "baseline" if baseline else "distilled",
        "name": f"{baseline}-{clouds // 10}" if baseline else preset,
        "config": config,
        "clouds": clouds,
        "clouds_file": None,
        "scores": {"standard": {"mean": mean, "standard_deviation": 0.0, "networks": 1}},
    }


def row_of(name, records, references=None):
    (row,) = [row for row in report.table(records, references=references) if row["name"] == name]
    return row


REFERENCES = [
    record(60.0, "random"),
    record(64.0, "random", seed=1),
    record(95.0, "random", clouds=100),
    record(99.5, "whole", clouds=60_000),
]


def test_row_stands_beside_random_and_all_real_clouds_of_its_protocol():
    row = row_of("mnist-1", [record(91.0), record(92.0, seed=1), *REFERENCES])
    assert (row["IOR"], row["HLR"]) == (91.5 - 62, 99.5 - 91.5)
    assert row_of("random-1", REFERENCES)["IOR"] == 0
    assert row_of("whole-6000", REFERENCES)["HLR"] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluation.epochs": 500},
        {"evaluation.augmentation": "fast", "evaluation.split": "validation"},
        {"evaluation.classifier.name": "mlp"},
        {"data.name": "digits"},
    ],
)
def test_references_of_another_protocol_do_not_count(changed):
    ours = record(91.0, **changed)
    (row,) = report.table([ours], references=REFERENCES)
    assert (row["IOR"], row["HLR"]) == (None, None)


def test_number_of_classifiers_and_real_clouds_held_back_may_differ():
    ours = record(91.0, **{"evaluation.networks": 2, "data.validation_fraction": 0.0})
    (row,) = report.table([ours], references=REFERENCES)
    assert (row["IOR"], row["HLR"]) == (29.0, 8.5)


def test_learned_labels_and_subsampled_clouds_have_no_place_in_it():
    (row,) = report.table([record(92.0, preset="mnist-1-labels")], references=REFERENCES)
    assert (row["IOR"], row["HLR"]) == (None, None)
    few = record(40.0, "random")
    few["config"]["baseline"]["points"] = 31
    assert report.table([record(91.0)], references=[few])[0]["IOR"] is None


def test_tables_of_shapes_have_bytes_but_no_such_columns():
    (row,) = report.table([record(80.0, preset="solids") | {"bytes": 700}])
    assert row["bytes"] == 700 and not {"IOR", "HLR"} & row.keys()


def test_bytes_are_the_mean_of_the_records_that_have_them():
    records = [record(90.0, seed=seed) for seed in range(3)]
    assert row_of("mnist-1", records)["bytes"] is None
    records[0]["bytes"], records[2]["bytes"] = 400, 411
    assert row_of("mnist-1", records)["bytes"] == 406  # 405.5


@pytest.mark.parametrize("name", ["mnist-1", "mnist-1-soft", "solids"])
def test_bytes_in_a_record_are_those_of_its_set_as_it_is_scored(name):
    kept = read_record(released_path(name).with_suffix(".json"))
    resolution = None if name == "mnist-1" else ranking.RESOLUTION
    expected = len(pack(pcdd.released(name), resolution))
    assert kept["bytes"] == expected
    del kept["bytes"]
    assert ranking.with_bytes(kept)["bytes"] == expected
    assert "bytes" not in ranking.with_bytes(kept | {"clouds_file": None})


def test_runs_and_baselines_record_their_bytes(tmp_path):
    folder = pcdd.run(tiny.config(), "tiny", tmp_path / "run")
    made = read_record(folder)
    assert made["bytes"] == len(pack(pcdd.load_clouds(folder / "clouds.npz")))
    clouds, scored = pcdd.score(pcdd.Random(), "random-1", tiny.config())
    assert scored["bytes"] == len(pack(clouds))


def test_kept_records_with_a_set_have_bytes():
    for path in COMMITTED.glob("*.jsonl"):
        for kept in read_records(path):
            assert kept["clouds_file"] is None or "bytes" in kept, "run tools/record_bytes.py"
