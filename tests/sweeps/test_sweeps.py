"""Many runs: the planned runs of experiments, records that are found again, and sweeps on Ray."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import tiny
import torch

from pcdd_core.data.datasets import DataSet
from pcdd_core.errors import EngineMissing, EvaluationFailed, FolderInUse, InputError
from pcdd_core.experiments import checkpoint, records, report, runs, scores, sweeps
from pcdd_core.experiments.config import Config, override, to_dict
from pcdd_core.experiments.presets import PRESETS, STORED_BATCHES, preset
from pcdd_core.experiments.sweeps import Sweep, make_planned, obtain
from pcdd_core.experiments.tables import COLUMNS, PlannedRun, experiment
from pcdd_core.experiments.variants import INGREDIENTS, SCALES, STEP_SIZES
from pcdd_core.files import sole_user
from pcdd_core.geometry.storage import load_clouds, released
from pcdd_core.nn.classifiers import Classifier
from pcdd_core.scoring.baselines import Baseline, Herding, KCenter, Random, Whole

TINY = {**tiny.DISTILLATION, **tiny.EVALUATION}
UNSIZED = {name: value for name, value in TINY.items() if "classifier" not in name}
OF_DIGITS = [
    name
    for name, kind in Classifier.choices.items()
    if not (kind.of_points or kind.of_grids) or name == "pointnet"
]
# long enough to kill a process during the run
SLOW = {**TINY, "schedule.iterations": 400, "network.width": 16, "objective.real_batch": 16}
HUNG = 30 * 60  # seconds: far above the time on a busy machine


# two iterations, and all classes at once in each
SHORT = {"schedule.iterations": 2, "objective.name": "feature_regression"}


def plans(seeds=2, **more):
    return experiment("quickstart", seeds=seeds, settings={**TINY, **SHORT, **more})


# --- which runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("table1", 9),
        ("table2", 6),
        ("ablation", 12),
        ("step-size", 12),
        ("initialisation", 2),
        ("why", 16),
        ("pool", 14),
    ],
)
def test_experiment_has_its_cells_for_every_seed_and_the_rows_beside_them(name, kinds, scale):
    planned = experiment(name, scale, seeds=3)
    # one of our settings and random have a run for every seed, herding has one run
    beside = 0 if name in ("initialisation", "why", "pool") else 3 * 2 + 1
    assert len({plan.identity for plan in planned}) == len(planned) == 3 * kinds + beside
    distilled = [plan for plan in planned if plan.preset.startswith("paper-")]
    assert len(distilled) == 3 * kinds and {plan.config.seed for plan in planned} == {0, 1, 2}
    assert all(plan.preset.endswith("-small") == (scale == "small") for plan in planned)
    widths = {plan.config.evaluation.classifier.width for plan in planned}
    assert widths == ({32} if scale == "small" else {128}), "all rows of a table are scored alike"


@pytest.mark.parametrize(
    "clouds",
    [{"clouds.name": "file", "clouds.file": "set.npz"}, {"clouds.clouds_per_class": [1] * 10}],
)
def test_rows_for_comparison_need_one_number_of_clouds_per_class(clouds):
    with pytest.raises(InputError, match="rows for comparison of the table 'step-size' need one"):
        experiment("step-size", seeds=1, settings=clouds)
    assert experiment("step-size", seeds=1, settings=clouds, beside=False)


def test_ingredients_score_on_the_validation_split_and_differ_from_the_base_as_named():
    planned = experiment("ingredients", seeds=2)
    assert {plan.config.evaluation.split for plan in planned} == {"validation"}
    assert len({plan.identity for plan in planned}) == len(planned)
    distilled = [plan for plan in planned if plan.baseline is None]
    kinds = 1 + sum(map(len, INGREDIENTS.values()))
    chosen = {plan.baseline.name for plan in planned if plan.baseline}
    assert len(distilled) == 2 * kinds and chosen == set(Baseline.choices) - {"whole", "released"}
    for changed in (changed for group in INGREDIENTS.values() for changed in group):
        for name, value in changed.items():
            pieces = {key: kept for key, kept in changed.items() if key.endswith(".name")}
            one = override(distilled[0].config, {**pieces, name: value})
            assert one != distilled[0].config, changed
    # no variant equals the base or another variant
    assert len({plan.label for plan in distilled}) == kinds


def test_architectures_score_the_released_set_beside_real_clouds_by_every_classifier(tmp_path):
    planned = experiment("architectures", seeds=2)
    assert {(plan.baseline.name, plan.config.evaluation.classifier.name) for plan in planned} == {
        (scored, kind) for scored in ("released", "class_mean", "random") for kind in OF_DIGITS
    }
    assert all(plan.config.seed == 0 or plan.baseline.name == "random" for plan in planned)
    # random has two seeds
    folders = {plan.folder for plan in planned}
    assert len({plan.label for plan in planned}) == len(folders) - len(OF_DIGITS)
    assert not any(":" in plan.folder for plan in planned)
    small = [
        plan
        for plan in experiment(
            "architectures", seeds=1, settings={"data.name": "digits", **UNSIZED}
        )
        if plan.name != "random-1"
    ]
    chosen = [plan for plan in small if plan.config.evaluation.classifier.name == "mlp"]
    made = obtain(chosen, tmp_path)
    assert [record["name"] for record in made] == ["released-mnist-1", "class_mean-1"]
    assert made[0]["points"] == len(released("mnist-1").coordinates)
    assert [row["name"] for row in report.table(made)] == [plan.label for plan in chosen]


@pytest.mark.parametrize(
    ("scale", "split", "protocols"),
    [("small", "validation", {"standard"}), ("paper", "test", {"standard", "paper"})],
)
def test_the_best_start_from_scatter_and_score_on_test_images_only_at_full_scale(
    scale, split, protocols
):
    for plan in experiment("best", scale, seeds=1):
        config = plan.config
        assert config.evaluation.split == split and set(config.evaluation.protocols) == protocols
        assert (config.evaluation.classifier.width, config.evaluation.epochs) == (
            (128, 1001) if scale == "paper" else (64, 500)
        )
        assert config.clouds.name == "scatter" and config.clouds.points_per_cloud <= 250
        if plan.name.startswith("mnist-1-split"):
            assert config.clouds.points_per_cloud * config.clouds.clouds_per_class <= 250
        assert config.evaluation.projection.name == (
            "soft" if plan.name.startswith("mnist-1-soft") else "hard"
        )


@pytest.mark.parametrize(("scale", "split"), [("small", "validation"), ("paper", "test")])
def test_shapes_compare_sets_of_as_many_points_in_the_same_protocols(scale, split):
    planned = experiment("modelnet10", scale, seeds=3)
    assert len({plan.identity for plan in planned}) == len(planned)
    assert {plan.config.data.name for plan in planned} == {"modelnet10"}
    for plan in planned:
        evaluation = plan.config.evaluation
        if evaluation.classifier.name == "pointnet" and plan.baseline != Whole():
            assert evaluation.protocols == ("standard", "sadm")
            assert evaluation.networks == (3 if scale == "paper" else 1)
            assert (evaluation.epochs, evaluation.batch) == (501, 8)
        else:
            assert evaluation.protocols == ("standard",) and evaluation.networks == 1
        assert evaluation.split == split

    def of(name):
        return [
            plan
            for plan in planned
            if plan.preset == f"{name}{SCALES[scale]}" and plan.config.seed == 0
        ]

    for count in (1, 3, 10):
        own, split_own = of(f"shapes-{count}"), of(f"shapes-{count}-split")
        assert {plan.config.clouds.clouds_per_class for plan in own} == {count}
        for plan in [*own, *split_own]:
            clouds = plan.config.clouds
            assert clouds.clouds_per_class * clouds.points_per_cloud == count * 1024
        for plans in (own, split_own):
            assert {plan.config.clouds.name for plan in plans if not plan.baseline} == {
                "scatter",
                "real",
            }
        whole = {Whole()} if count == 1 else set()
        assert {plan.baseline for plan in own} - whole == {
            None,
            Random(count),
            Herding(count),
            KCenter(count),
        }
        assert {plan.baseline for plan in split_own} == {None, Random(8 * count, points=128)}
    one = [plan.config for plan in of("shapes-1") if not plan.baseline]
    assert {config.objective.name for config in one} == {
        "maximum_mean_discrepancy",
        "gradient_matching",
        "distribution_matching",
        "sorted_feature_matching",
    }
    assert [config.optimiser.turn_step_size for config in one].count(None) == len(one) - 1
    seeds = {
        plan.baseline: {other.config.seed for other in planned if other.baseline == plan.baseline}
        for plan in planned
    }
    assert seeds[Herding()] == seeds[Random()] == {0, 1, 2} and seeds[Whole()] == {0}


@pytest.mark.parametrize(("scale", "split"), [("paper", "test"), ("small", "validation")])
def test_glands_compare_three_networks_with_as_many_real_clouds_of_as_many_points(scale, split):
    planned = experiment("adrenal", scale, seeds=2)
    assert len({plan.identity for plan in planned}) == len(planned)
    made = [plan.config for plan in planned if not plan.baseline and plan.config.seed == 0]
    assert {(config.network.name, config.objective.name) for config in made} == {
        (network, objective)
        for network in ("torch", "sparse", "minkowski")
        for objective in ("maximum_mean_discrepancy", "gradient_matching")
    }
    others = [
        dataclasses.replace(config, network=made[0].network, objective=made[0].objective)
        for config in made
    ]
    assert others == [made[0]] * 6  # nothing else differs
    count, points = made[0].clouds.clouds_per_class, made[0].clouds.points_per_cloud
    real = {plan.baseline for plan in planned if plan.baseline}
    expected = {kind(count, points=points) for kind in (Random, Herding, KCenter)}
    assert real - expected == {Whole(count)}
    assert {plan.config.evaluation.split for plan in planned} == {split}
    assert {plan.config.data.name for plan in planned} == {"adrenal"}


def test_modelnet40_has_one_cloud_per_class_and_its_split_in_the_settings_of_modelnet10():
    planned = experiment("modelnet40", seeds=1)
    assert {plan.config.data.name for plan in planned} == {"modelnet40"}
    beside = {
        dataclasses.replace(
            plan, config=dataclasses.replace(plan.config, data=DataSet.of("modelnet10", "data"))
        )
        for plan in planned
    }
    assert beside <= set(experiment("modelnet10", seeds=1))
    assert {plan.preset for plan in planned} == {"shapes-1", "shapes-1-split"}


@pytest.mark.slow
def test_a_baseline_may_be_of_fewer_points(tmp_path):
    config = override(
        preset("solids").config,
        {
            "data.points": 64,
            "evaluation.protocols": ["standard"],
            "evaluation.split": "validation",
            "evaluation.networks": 1,
            "evaluation.epochs": 1,
            "clouds.clouds_per_class": 2,
        },
    )
    make_planned(PlannedRun("solids", config, Random(2, points=40)), tmp_path / "fewer")
    make_planned(PlannedRun("solids", config, Random(2)), tmp_path / "all")
    fewer, whole = (load_clouds(tmp_path / name / "clouds.npz") for name in ("fewer", "all"))
    assert fewer.sizes.tolist() == [40] * 16 and whole.sizes.tolist() == [64] * 16
    for cloud in range(16):
        all_points = {tuple(point) for point in whole[cloud].tolist()}
        assert len({tuple(point) for point in fewer[cloud].tolist()} & all_points) == 40
    assert records.read_record(tmp_path / "fewer")["name"] == "random-2-of-40-points"


def test_table1_holds_every_cell_of_the_papers_table_1():
    stated = {
        PRESETS[plan.preset].paper_accuracy for plan in experiment("table1", "paper", seeds=1)
    }
    assert {33.9, 12.78, 10.48, 25.69, 30.22, 17.43} <= stated


def test_table2_holds_every_cell_of_the_papers_table_2():
    stated = {
        PRESETS[plan.preset].paper_accuracy for plan in experiment("table2", "paper", seeds=1)
    }
    assert {11.37, 33.9, 10.23, 30.22} <= stated


def test_ablation_compares_the_poolings_and_nothing_else():
    configs = {plan.preset: plan.config for plan in experiment("ablation", seeds=1, beside=False)}
    assert any(name.endswith("average-pooling") for name in configs)
    for name, config in configs.items():
        if name.endswith("average-pooling"):
            twin = configs[name.replace("average-pooling", "sum-of-squares")]
            assert config.network.pooling == "average" and twin.network.pooling == "max"
            assert scores.scored_iteration(config) == scores.scored_iteration(twin)
            # a run that continues is scored at the same iteration
            same = {"schedule": twin.schedule, "evaluation": twin.evaluation}
            config = dataclasses.replace(config, **same)
            assert dataclasses.replace(config, network=twin.network) == twin
            assert dataclasses.replace(config.network, pooling="max") == twin.network


def test_why_turns_on_and_off_norm_shift_second_derivatives_and_redrawn_networks():
    planned = experiment("why", seeds=1)
    rows = [
        {name: column(plan.config) for name, column in COLUMNS["why"].items()} for plan in planned
    ]
    assert len({tuple(row.values()) for row in rows}) == 16
    assert {plan.preset for plan in planned} == {
        f"paper-{backend}-2-sum-of-squares" for backend in ("minkowski", "sparse")
    }
    as_in_table1 = {plan.identity for plan in experiment("table1", seeds=1)}
    of_paper = [
        plan
        for plan, row in zip(planned, rows)
        if row["norm"] == "none" and row["origin shift"] and row["network"] == "fixed"
    ]
    assert len(of_paper) == 2 and all(plan.identity in as_in_table1 for plan in of_paper)
    assert {scores.scored_iteration(plan.config) for plan in planned} == {1250}


def test_pool_compares_sizes_over_whole_runs_and_fresh_gradients_over_short_ones():
    plans = experiment("pool", seeds=1)
    kinds = {
        (plan.preset, plan.config.objective.real_gradients, scores.scored_iteration(plan.config))
        for plan in plans
    }
    whole = {
        (f"paper-torch-{kind}", size, 1250)
        for kind in (
            "2-sum-of-squares",
            "3-sum-of-squares",
            "4-sum-of-squares",
            "3-layerwise-cosine",
            "3-average-pooling",
        )
        for size in (STORED_BATCHES["torch"], 8)
    }
    short = {
        (f"paper-{network}-sum-of-squares", size, 625)
        for network in ("torch-3", "minkowski-2")
        for size in (STORED_BATCHES[network.split("-")[0]], "fresh")
    }
    assert kinds == whole | short and len(plans) == len(kinds)
    assert len({plan.config.seed for plan in plans}) == 1


def test_paper_tables_have_the_paper_s_scale_by_default():
    for name in ("table1", "table2", "ablation", "why"):
        paper, small = (experiment(name, scale, seeds=1)[0].config for scale in (None, "small"))
        assert (paper.network.width, scores.scored_iteration(paper)) == (128, 1250)
        assert (small.network.width, scores.scored_iteration(small)) == (32, 300)
    assert experiment("ingredients", seeds=1)[0].preset == "ingredients-base-small"


def test_step_sizes_multiply_the_presets_own():
    planned = experiment("step-size", seeds=1, beside=False)
    usual = preset("paper-torch-3-sum-of-squares").config.optimiser.step_size
    assert sorted({plan.config.optimiser.step_size for plan in planned}) == [
        usual * f for f in STEP_SIZES
    ]


def test_vary_makes_every_combination():
    vary = {"optimiser.step_size": [0.1, 0.2], "network.layers": [2, 3, 4]}
    planned = experiment("quickstart", seeds=2, settings={"data.name": "digits"}, vary=vary)
    assert len(planned) == 12 and all(plan.config.data.name == "digits" for plan in planned)
    assert {(plan.config.optimiser.step_size, plan.config.network.layers) for plan in planned} == {
        (size, layers) for size in (0.1, 0.2) for layers in (2, 3, 4)
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "tabel1"}, "table1"),
        ({"name": "table1", "scale": "huge"}, "small, paper"),
        ({"name": "table1", "seeds": 0}, "1 or more"),
        ({"name": "table1", "settings": {"network.layer": 2}}, "network.layers"),
        ({"name": "quickstart", "vary": {"network.layer": [2]}}, "network.layers"),
    ],
)
def test_wrong_experiment_is_refused_by_name(wrong, message):
    with pytest.raises(InputError, match=message):
        experiment(**wrong)


# --- records found again --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(records.COMMITTED.glob("*.jsonl")), ids=lambda path: path.stem
)
def test_committed_records_are_intact_and_each_is_found_by_its_settings(path):
    kept, found = records.read_records(path), records.find_records([path.parent])
    assert kept and {records.identity(record) for record in kept} <= found.keys()
    assert len({records.identity(record) for record in kept}) == len(kept)
    order = [(records.row_of(record), record["config"]["seed"]) for record in kept]
    assert order == sorted(order)
    for record in kept:
        assert record["clouds_file"] is None or load_clouds(record["clouds_file"])


def test_no_run_is_committed_twice():
    kept = [one for path in records.COMMITTED.glob("*.jsonl") for one in records.read_records(path)]
    assert len({records.identity(record) for record in kept}) == len(kept)


def test_every_committed_set_belongs_to_a_record():
    sets = {str(path.resolve()) for path in records.COMMITTED.parent.glob("sets/*/*.npz")}
    named = [records.read_records(path) for path in records.COMMITTED.glob("*.jsonl")]
    assert sets == {one["clouds_file"] for lines in named for one in lines if one["clouds_file"]}


def test_finished_reads_records_and_makes_no_run(tmp_path):
    both = plans(seeds=2)
    assert sweeps.finished(both, tmp_path / "runs") == [] and not (tmp_path / "runs").exists()
    obtain(both[1:], tmp_path / "runs")
    assert [record["config"]["seed"] for record in sweeps.finished(both, tmp_path / "runs")] == [1]


def test_cell_and_its_record_have_the_same_identity(tmp_path):
    kinds = [
        *plans(seeds=1),
        *[plan for plan in experiment("table1", "small", seeds=1, settings=TINY) if plan.baseline],
    ]
    made = obtain(kinds, tmp_path / "runs")
    assert [records.identity(record) for record in made] == [plan.identity for plan in kinds]
    assert [record["name"] for record in made] == ["quickstart", "random-1", "herding-1"]
    assert all(Path(record["clouds_file"]).is_file() for record in made)


def test_finished_cells_are_not_run_again(tmp_path, capsys, monkeypatch):
    first = obtain(plans(), tmp_path / "runs")
    assert "run 2 of 2: quickstart" in capsys.readouterr().out
    monkeypatch.setattr(
        sweeps, "make_planned", lambda *_: pytest.fail("a finished run was made again")
    )
    assert obtain(plans(), tmp_path / "runs") == first
    assert capsys.readouterr().out == ""
    assert [state.status for state in Sweep(plans(), tmp_path / "runs").states] == [
        "found",
        "found",
    ]


def test_record_from_before_a_setting_existed_is_found(tmp_path):
    (record,) = obtain(plans(seeds=1), tmp_path / "runs")
    del record["config"]["network"]["padding"]
    records.write_records([record], tmp_path / "old" / "experiment.jsonl")
    assert plans(seeds=1)[0].identity in records.find_records([tmp_path / "old"])


def test_cells_that_need_minkowski_are_left_out_where_it_is_missing(tmp_path, capsys, monkeypatch):
    def missing(*_, **__):
        raise EngineMissing("MinkowskiEngine is not installed; make minkowski")

    monkeypatch.setattr(sweeps, "make_planned", missing)
    assert obtain(plans(), tmp_path / "runs") == []
    assert "left out: MinkowskiEngine is not installed" in capsys.readouterr().out


def test_failed_scoring_is_printed_and_only_a_run_leaves_a_record(tmp_path, capsys, monkeypatch):
    def diverging(*_):
        raise EvaluationFailed("scoring: no numbers")

    monkeypatch.setattr(Config, "evaluate", diverging)
    (plan,) = plans(seeds=1)
    (record,) = obtain([dataclasses.replace(plan, baseline=Random()), plan], tmp_path / "runs")
    assert records.health_of(record) == "failed: scoring: no numbers"
    assert record["name"] == "quickstart" and record["health"]["state"] == "failed"
    assert capsys.readouterr().out.count("failed at scoring: no numbers") == 2


def test_kept_record_holds_curves_and_goes_with_its_clouds(tmp_path):
    (plan,) = plans(seeds=1)
    (whole,) = obtain([plan], tmp_path / "runs")
    path = records.keep([whole], tmp_path / "kept", "quickstart", with_clouds=True)
    (kept,) = records.read_records(path)
    assert "network.width-4" in kept.pop("set") and kept["curves"]
    copied, own = Path(kept["clouds_file"]), Path(whole["clouds_file"])
    added = ("clouds_file", "place")
    stored, made = ({k: v for k, v in one.items() if k not in added} for one in (kept, whole))
    assert stored == made
    assert copied != own and copied.read_bytes() == own.read_bytes()
    assert list(records.find_records([path.parent])) == [plan.identity]
    records.keep([whole], tmp_path / "bare", "quickstart", with_clouds=False)
    assert not (tmp_path / "bare" / "sets").exists()


def test_records_of_other_settings_are_kept_beside_each_other(tmp_path):
    score = {"mean": 50.0, "standard_deviation": 0.0, "networks": 1, "accuracies": [50.0]}
    whole = {"schema": records.SCHEMA, "kind": "baseline", "scores": {"standard": score}}
    for split in ("test", "validation", "test", "validation"):
        (plan,) = plans(1, **{"evaluation.split": split})
        config = {key: to_dict(plan.config)[key] for key in ("data", "evaluation", "seed")}
        one = whole | {"name": "random-1", "config": config}
        path = records.keep([one], tmp_path, "both", with_clouds=False)
    splits = [record["config"]["evaluation"]["split"] for record in records.read_records(path)]
    assert sorted(splits) == ["test", "validation"]


def test_long_rows_have_short_file_names():
    settings = {
        "clouds.clouds_per_class": list(range(1, 11)),
        "clouds.points_per_cloud": list(range(1, 56)),
    }
    (plan,) = plans(1, **settings)
    assert len(records.slug({"name": "quickstart", "config": to_dict(plan.config)})) < 140


def test_records_are_written_with_lists_of_numbers_on_one_line():
    record = {
        "name": 'a [\n"1", 2 ]',
        "numbers": [1, -2.5, 3e-7],
        "words": ["a", "b"],
        "nested": {"empty": [], "one": [7]},
    }
    text = records.as_json(record)
    assert json.loads(text) == record and '"numbers": [1, -2.5, 3e-07]' in text


# --- a folder has one user ------------------------------------------------------------------------


def test_folder_in_use_is_refused_and_free_afterwards(tmp_path):
    (plan,) = plans(seeds=1)
    with sole_user(tmp_path / "run"), pytest.raises(FolderInUse, match="another process"):
        runs.run(plan.config, "quickstart", tmp_path / "run")
    runs.run(plan.config, "quickstart", tmp_path / "run")
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made == set(runs.RUN_FILES) - {"checkpoint-previous.pt"}  # one checkpoint only


def test_folder_of_a_killed_process_is_free(tmp_path):
    code = """
import signal, sys
from pcdd_core.files import sole_user
with sole_user(sys.argv[1]):
    print("in", flush=True)
    signal.pause()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    with pytest.raises(FolderInUse), sole_user(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    with sole_user(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()


# --- on Ray ---------------------------------------------------------------------------------------


def watched(sweep: Sweep, on_change=lambda states: None) -> list[sweeps.State]:
    """Iterate to the end, and call `on_change` in every round."""
    begun = time.monotonic()
    for states in sweep:
        assert time.monotonic() - begun < HUNG, states
        on_change(states)
    return sweep.states


def assert_as_run_alone(states, tmp_path):
    """Assert that the clouds of every run equal those of the same run alone."""
    for state in states:
        alone = tmp_path / "alone" / state.plan.folder
        sweeps.make_planned(state.plan, alone)
        assert torch.equal(
            load_clouds(alone / "clouds.npz").coordinates,
            load_clouds(state.folder / "clouds.npz").coordinates,
        )


@pytest.fixture()
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.ray
def test_sweep_runs_every_cell_keeps_failures_apart_and_survives_a_killed_worker(
    tmp_path, one_thread
):
    wrong = experiment("quickstart", seeds=1, settings={**TINY, "objective.real_batch": 10**6})
    failing = experiment(
        "quickstart",
        seeds=1,
        settings={**TINY, "optimiser.name": "sgd", "optimiser.step_size": 1e38},
    )
    slow = experiment("quickstart", seeds=1, settings=SLOW)
    killed, progress = [], set()

    def kill_once(states):
        progress.update((state.status, state.stage) for state in states)
        steps = states[0].folder / "steps.jsonl"
        if not killed and steps.exists() and len(steps.read_text().splitlines()) >= 50:
            for process in psutil.Process().children(recursive=True):
                if any(word.startswith("ray::_work") for word in process.cmdline()) and any(
                    file.path == str(states[0].folder / ".lock") for file in process.open_files()
                ):
                    killed.append(process.pid)
                    process.kill()

    sweep = Sweep([*slow, *wrong, *failing, *plans()], tmp_path / "runs", cpus_per_run=1)
    states = watched(sweep, kill_once)
    assert len(killed) == 1
    assert [state.status for state in states] == [
        "finished",
        "failed",
        "failed",
        "finished",
        "finished",
    ]
    assert [state.attempts for state in states] == [2, 1, 1, 1, 1]
    assert "1000000" in states[1].note and "iteration" in states[2].note
    assert records.read_record(states[2].folder)["health"]["state"] == "failed"
    assert ("running", "distilling") in progress
    assert_as_run_alone([states[0], states[3]], tmp_path)


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_leaves_whole_records_and_the_same_command_goes_on(tmp_path):
    endless = {**TINY, "schedule.iterations": 10**6}
    settings = tiny.arguments(endless)
    command = [sys.executable, "-m", "pcdd_core", "sweep", "quickstart", "--seeds", "2", *settings]
    # tests that run in the background ignore SIGINT
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True, **heed
    )
    begun = time.monotonic()
    while not any(
        len(path.read_text().splitlines()) >= 50 for path in tmp_path.glob("runs/*/steps.jsonl")
    ):
        assert time.monotonic() - begun < HUNG and process.poll() is None
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=HUNG) == 130
    assert "the same command continues" in process.stderr.read()
    assert not list(tmp_path.glob("runs/*/record.json"))
    for folder in tmp_path.glob("runs/*"):
        if (folder / "checkpoint.pt").exists():
            kept, damage = checkpoint.load(folder, 10**6)
            assert damage is None and kept.state["iteration"] >= 24
    plan = experiment("quickstart", seeds=1, settings=endless)[0]
    with sole_user(tmp_path / "runs" / plan.folder):  # no process uses the folder any more
        assert (tmp_path / "runs" / plan.folder / "config.json").exists()


def two_nodes(attempts: int = 5):
    """Start two raylets on this machine. Returns the cluster, and the node to lose.

    A raylet gives up if its helpers have not started after 15 seconds, and no setting changes that:
    on a busy machine it takes several attempts. If none succeeds, the test is skipped.
    """
    from ray.cluster_utils import Cluster

    before = set(psutil.Process().children(recursive=True))
    head = {"num_cpus": 1, "include_dashboard": False, "wait": False}
    for attempt in range(attempts):
        try:
            cluster = Cluster(initialize_head=True, head_node_args=head)
            doomed = cluster.add_node(num_cpus=1, wait=False)
            cluster.wait_for_nodes(timeout=90)
            return cluster, doomed
        except Exception as error:
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.Error):
                    process.kill()
            reason = f"Ray starts no two nodes here, in {attempt + 1} attempts: {error}"
    return pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.ray
def test_sweep_survives_the_loss_of_a_node(tmp_path, one_thread):
    """Start two raylets on this machine, and kill the one without the sweep while it works."""
    cluster, doomed = two_nodes()
    try:
        lost, waited = [], []

        def lose_node_once(states):
            on_doomed = [
                state
                for state in states
                if state.status == "running" and doomed.node_id[:8] in state.note
            ]
            steps = [state.folder / "steps.jsonl" for state in on_doomed]
            if lost:
                waited.extend(s.note for s in states if s.status == "waiting" and s.attempts == 2)
            if not lost and any(
                path.exists() and len(path.read_text().splitlines()) >= 50 for path in steps
            ):
                lost.append(on_doomed[0].plan)
                cluster.remove_node(doomed, allow_graceful=False)

        planned = experiment("quickstart", seeds=2, settings=SLOW)
        states = watched(Sweep(planned, tmp_path / "runs", address=cluster.address), lose_node_once)
        assert len(lost) == 1 and waited[0].startswith("started again after: NodeDiedError")
        assert [state.status for state in states] == ["finished"] * 2
        attempts = {state.plan: state.attempts for state in states}
        assert attempts[lost[0]] == 2 and sum(attempts.values()) == 3
        assert_as_run_alone([state for state in states if state.plan == lost[0]], tmp_path)
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999999"])
def test_no_cluster_at_the_address_is_an_input_error(tmp_path, address):
    with pytest.raises(InputError, match=f"{address}: no Ray cluster"):
        list(Sweep(plans(seeds=1), tmp_path, address=address))


# --- on the command line --------------------------------------------------------------------------


def test_list_cell_and_report_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = ["quickstart", "--seeds", "2", *tiny.arguments(TINY | SHORT)]
    assert tiny.main(["report", *chosen]) == 2
    assert "none of its 2 runs is finished" in capsys.readouterr().err
    assert tiny.main(["sweep", *chosen, "--run", "0"]) == 0
    capsys.readouterr()
    assert tiny.main(["sweep", *chosen, "--list"]) == 0
    assert "2 runs: 1 found, 1 waiting" in capsys.readouterr().out
    assert tiny.main(["sweep", *chosen, "--run", "2"]) == 2
    assert "expected 0 to 1" in capsys.readouterr().err
    assert tiny.main(["report", *chosen, "--output", "tables", "--keep", "kept"]) == 0
    text = capsys.readouterr().out
    assert "1 of 2 runs are missing" in text
    for suffix, sign in (("md", "| quickstart"), ("csv", "quickstart"), ("tex", r"\toprule")):
        assert sign in (tmp_path / f"tables/quickstart.{suffix}").read_text()
    (kept,) = records.read_records(tmp_path / "kept" / "records" / "quickstart.jsonl")
    assert load_clouds(kept["clouds_file"])


@pytest.mark.slow
@pytest.mark.ray
def test_sweep_on_the_command_line_varies_a_setting_and_prints_its_progress(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    chosen = [
        "quickstart",
        "--seeds",
        "1",
        *tiny.arguments(TINY),
        "--vary",
        "network.layers",
        "3",
        "4",
    ]
    assert tiny.main(["sweep", *chosen, "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["status"] for row in json.loads(printed.out)] == ["finished", "finished"]
    assert printed.err.count("finished") == 2
    assert tiny.main(["report", *chosen, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    # the preset has 3 layers, so 3 is not in the name
    assert ["network.layers=4" in row["name"] for row in rows] == [False, True]


def test_vary_needs_values(capsys):
    assert tiny.main(["sweep", "quickstart", "--vary", "network.layers", "--list"]) == 2
    assert "--vary network.layers" in capsys.readouterr().err
