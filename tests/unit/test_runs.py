"""Run folders: their files, their protection, and stopped runs that continue exactly."""

import hashlib
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tiny import files, pcdd

from pcdd_core.engine.distances import DISTANCES
from pcdd_core.errors import EvaluationFailed, InputError
from pcdd_core.experiments import runs, scores
from pcdd_core.experiments.config import Config, from_dict, identity, to_dict
from pcdd_core.experiments.health import WINDOW
from pcdd_core.experiments.records import (
    LOGGED,
    SCHEMA,
    averages,
    health_of,
    read_record,
    read_trajectory,
)
from pcdd_core.experiments.report import curve_table, table
from pcdd_core.experiments.runs import RUN_FILES
from pcdd_core.experiments.second_order import sentence
from pcdd_core.geometry.storage import load_clouds
from pcdd_core.nn.classifiers import ConvNet
from pcdd_core.sealed import sealed, unsealed

PNG = b"\x89PNG\r\n\x1a\n"
SCHEDULE = {  # much state: momentum, and a network that is trained and drawn again during the run
    "schedule__iterations": 8,
    "schedule__iterations_per_network": 3,
    "schedule__training_steps": 1,
    "schedule__snapshots": 4,
    # all classes at once, so iterations are short; test_distillation resumes every objective
    "objective__name": "feature_regression",
}
GRADIENTS = {"objective__name": "gradient_matching"}


def distill(folder: Path, *options: str, **changes) -> int:
    """Run in `folder` with a checkpoint every 2 iterations; returns the exit code."""
    changes = {**SCHEDULE, **changes}
    return pcdd(
        "distill",
        "--preset",
        "quickstart",
        "--output",
        str(folder),
        "--quiet",
        "--checkpoint-every",
        "2",
        *options,
        **changes,
    )


def interrupt_at(iteration: int, monkeypatch) -> None:
    """Simulate Ctrl-C after that iteration."""
    watch = runs.Health.watch

    def interrupted(health, step):
        if step.iteration == iteration:
            raise KeyboardInterrupt
        watch(health, step)

    monkeypatch.setattr(runs.Health, "watch", interrupted)


def assert_same_result(folder: Path, other: Path) -> None:
    """Assert that distilled set, steps and trajectory are equal to the last bit."""
    assert torch.equal(
        load_clouds(folder / "clouds.npz").coordinates,
        load_clouds(other / "clouds.npz").coordinates,
    )
    assert (folder / "steps.jsonl").read_text() == (other / "steps.jsonl").read_text()
    one, two = read_trajectory(folder), read_trajectory(other)
    assert np.array_equal(one["updates"], two["updates"]) and np.array_equal(
        one["coordinates"], two["coordinates"]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a run without a stop. Tests that change the run take `copy`."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert distill(folder) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """Return a run that stopped after 5 of 8 iterations, with its last checkpoint after 4."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(4, patch)
        assert distill(tmp_path / "interrupted") == 130
    return tmp_path / "interrupted"


# --- what a run leaves ----------------------------------------------------------------------------


def test_finished_run_holds_its_files_and_nothing_else(finished):
    assert sorted(path.name for path in finished.iterdir()) == sorted(RUN_FILES)


def test_run_folder_is_named_by_preset_seed_and_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        pcdd("distill", "--preset", "quickstart", "--quiet", "--seed", "7", schedule__iterations=1)
        == 0
    )
    expected = identity(tiny.config(schedule__iterations=1, seed=7))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"quickstart-7-{expected}"]


def test_config_file_gives_the_settings_back(finished):
    settings = unsealed(json.loads((finished / "config.json").read_text()), required=True)
    assert settings.pop("name") == "quickstart"
    assert from_dict(settings) == tiny.config(**SCHEDULE)


def test_steps_file_has_a_line_per_iteration(finished):
    rows = [json.loads(line) for line in (finished / "steps.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(8))
    for row in rows:
        assert len(row["matching_loss"]) == 10
        assert row["mean_absolute_gradient"] > 0 and row["mean_absolute_displacement"] > 0


def test_trajectory_goes_from_the_initial_to_the_distilled_clouds(finished):
    trajectory = read_trajectory(finished)
    assert trajectory["updates"].tolist() == [0, 2, 4, 6, 8]
    start = tiny.config(**SCHEDULE).start(tiny.digits().train)
    assert np.array_equal(trajectory["coordinates"][0], start.coordinates.numpy())
    assert np.array_equal(
        trajectory["coordinates"][-1], load_clouds(finished / "clouds.npz").coordinates.numpy()
    )


def test_more_snapshots_than_iterations_keep_every_iteration(tmp_path):
    assert distill(tmp_path / "run", schedule__snapshots=60, schedule__iterations=3) == 0
    assert read_trajectory(tmp_path / "run")["updates"].tolist() == [0, 1, 2, 3]


def test_distilled_set_has_the_configured_clouds(finished):
    distilled = load_clouds(finished / "clouds.npz")
    assert distilled.labels.tolist() == list(range(10)) and distilled.sizes.tolist() == [20] * 10
    assert distilled.grid == (1, 28, 28) and distilled.class_names == tuple("0123456789")


def test_picture_is_a_png(finished):
    assert (finished / "migration.png").read_bytes().startswith(PNG)


def test_record_has_settings_machine_seconds_and_memory(finished):
    record = read_record(finished)
    assert record["name"] == "quickstart" and record["config"] == to_dict(tiny.config(**SCHEDULE))
    assert record["config"]["seed"] == 0
    always = {"torch", "torchvision", "numpy", "scikit-learn"}
    assert always <= set(record["machine"]["versions"]) <= always | {"MinkowskiEngine"}
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert (
        record["machine"]["device"]
        and record["machine"]["threads"] >= 1
        and "commit" in record["machine"]
    )
    assert record["seconds"]["distillation"] > 0 and record["seconds"]["evaluation"] > 0
    assert record["peak_memory_bytes"] > 2**26
    assert record["health"] == {"state": "moving", "iteration": None}
    assert (record["schema"], record["kind"]) == (SCHEMA, "distilled")
    assert record["row"].startswith("quickstart data.name=")
    assert (record["clouds"], record["points"]) == (10, 200) and 0 < record["occupied_cells"] <= 200


def test_record_of_a_backend_with_all_second_derivatives_says_that_none_is_missing(tmp_path):
    assert distill(tmp_path / "run", **GRADIENTS, schedule__iterations=1) == 0
    assert read_record(tmp_path / "run")["config"]["network"]["name"] == "torch"
    assert read_record(tmp_path / "run")["second_derivatives"] == {"gradients_without_graph": []}


@tiny.needs_minkowski
def test_missing_second_derivatives_of_minkowski_are_recorded_and_printed_once(tmp_path, capsys):
    options = ("--preset", "quickstart", "--output", str(tmp_path / "run"))
    assert (
        pcdd(
            "distill",
            *options,
            network__name="minkowski",
            network__norm="none",
            schedule__iterations=2,
        )
        == 0
    )
    derivatives = read_record(tmp_path / "run")["second_derivatives"]
    assert derivatives["gradients_without_graph"] == [
        "convolution_weights.0",
        "convolution_weights.1",
    ]
    assert 0 < derivatives["missed"] and list(derivatives["layers"]) == [
        "convolution 1",
        "convolution 2",
        "head",
    ]
    # the message is on standard output in a notebook, or if a notebook ran before
    said = "".join(capsys.readouterr())
    assert said.count(sentence(derivatives)) == 1 and said.count("no second derivatives") == 1


def test_record_s_scores_are_consistent_with_their_accuracies(finished):
    record = read_record(finished)
    assert set(record["scores"]) == {"standard", "paper"}
    for score in record["scores"].values():
        assert len(score["accuracies"]) == score["networks"] == 2
        assert score["mean"] == pytest.approx(np.mean(score["accuracies"]))
        assert score["standard_deviation"] == pytest.approx(np.std(score["accuracies"]))
        assert 0 <= min(score["accuracies"]) and max(score["accuracies"]) <= 100
    assert record["scored_on"] == f"digits, test split, {len(tiny.digits().test)} clouds"


def test_run_is_scored_on_the_configured_split(tmp_path):
    runs.run(tiny.config(evaluation__split="validation"), "tiny", tmp_path / "run", device="cpu")
    scored = read_record(tmp_path / "run")["scored_on"]
    assert scored == f"digits, validation split, {len(tiny.digits().validation)} clouds"


def test_run_that_could_not_be_scored_is_refused_before_it_begins(tmp_path):
    config = tiny.config(evaluation__split="validation", data__validation_fraction=0.0)
    with pytest.raises(
        InputError, match="validation_fraction = 0.0: the validation split is empty"
    ):
        runs.run(config, "tiny", tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_record_s_averages_are_those_of_the_steps(finished):
    record, rows = (
        read_record(finished),
        [json.loads(line) for line in (finished / "steps.jsonl").read_text().splitlines()],
    )
    assert record["iterations"] == 8
    for key in ("mean_absolute_gradient", "mean_absolute_displacement"):
        assert record[key] == pytest.approx(np.mean([row[key] for row in rows]))
    assert record["matching_loss"]["first"] == pytest.approx(sum(rows[0]["matching_loss"]))
    assert record["matching_loss"]["last"] == pytest.approx(sum(rows[-1]["matching_loss"]))


def test_long_runs_also_have_the_gradient_as_the_paper_logs_it(tmp_path):
    rows = [
        {
            "iteration": i,
            "matching_loss": [1.0],
            "mean_absolute_gradient": float(i),
            "mean_absolute_displacement": 0.1,
        }
        for i in range(1300)
    ]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert averages(path)["mean_absolute_gradient_as_logged"] == np.mean(range(0, 1250, 100)) == 600
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[: LOGGED.stop - 1]))
    assert "mean_absolute_gradient_as_logged" not in averages(path)


def test_checkpoint_loads_without_unpickling_code(finished):
    content = (finished / "checkpoint.pt").read_bytes()
    version, digest, payload = content.split(b"\n", 2)
    assert version == b"pcdd checkpoint 2"
    assert digest.decode() == hashlib.sha256(payload).hexdigest()
    checkpoint = torch.load(io.BytesIO(payload), weights_only=True)
    assert checkpoint["configuration"] == identity(tiny.config(**SCHEDULE))
    assert checkpoint["state"]["iteration"] == 7


def test_same_settings_same_result(finished, tmp_path):
    assert distill(tmp_path / "again") == 0
    assert_same_result(tmp_path / "again", finished)
    assert read_record(tmp_path / "again")["scores"] == read_record(finished)["scores"]


def test_how_often_checkpoints_are_written_changes_nothing(finished, tmp_path):
    assert distill(tmp_path / "rarely", "--checkpoint-every", "100") == 0
    assert_same_result(tmp_path / "rarely", finished)


# --- what protects a run --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=["again", "resume"])
def test_finished_run_is_not_overwritten(copy, options, capsys):
    before = files(copy)
    assert distill(copy, *options) == 2
    assert "finished" in capsys.readouterr().err
    assert files(copy) == before


def test_overwrite_replaces_the_run_and_leaves_foreign_files_alone(copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "more").mkdir()
    (copy / "more" / "clouds.npz").write_text("mine too")
    assert distill(copy, "--overwrite", schedule__iterations=3) == 0
    assert (
        read_record(copy)["iterations"] == 3
        and len((copy / "steps.jsonl").read_text().splitlines()) == 3
    )
    assert (copy / "notes.txt").read_text() == "mine" and (
        copy / "more" / "clouds.npz"
    ).read_text() == "mine too"


def test_run_that_is_overwritten_is_not_taken_for_finished(copy, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(0, patch)
        assert distill(copy, "--overwrite") == 130
    assert not {"record.json", "clouds.npz", "checkpoint.pt"} & {
        path.name for path in copy.iterdir()
    }


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--device", "cuda:99"], {}),
        ([], {"objective__real_batch": 100000}),
        (["--data", "nowhere"], {"data__name": "mnist"}),
    ],
    ids=["device", "too few samples", "no data"],
)
def test_overwrite_with_wrong_input_removes_nothing(copy, options, changes):
    before = files(copy)
    assert distill(copy, "--overwrite", *options, **changes) == 2
    assert files(copy) == before


def test_unfinished_run_is_not_restarted_without_an_option(interrupted, capsys):
    before = files(interrupted)
    assert distill(interrupted) == 2
    assert "--resume" in capsys.readouterr().err
    assert files(interrupted) == before


# --- stop and go on -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "iteration", [0, 2, 5, 7], ids=["before any checkpoint", "early", "late", "at the last"]
)
def test_interrupted_and_resumed_run_equals_the_unbroken_one(
    iteration, finished, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        interrupt_at(iteration, patch)
        assert distill(tmp_path / "run") == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "run" / "record.json").exists()
    assert distill(tmp_path / "run", "--resume") == 0
    assert_same_result(tmp_path / "run", finished)
    assert read_record(tmp_path / "run")["scores"] == read_record(finished)["scores"]


@pytest.mark.parametrize("iteration", [2, 7], ids=["early", "at the last"])
def test_learned_labels_are_in_the_set_of_a_run_that_was_interrupted_too(
    iteration, tmp_path, monkeypatch
):
    learning = dict(
        objective__name="unrolled_training",
        objective__learned_labels=True,
        objective__unrolled_steps=1,
    )
    assert distill(tmp_path / "unbroken", **learning) == 0
    with monkeypatch.context() as patch:
        interrupt_at(iteration, patch)
        assert distill(tmp_path / "run", **learning) == 130
    assert distill(tmp_path / "run", "--resume", **learning) == 0
    one, two = (
        load_clouds(tmp_path / name / "clouds.npz").label_probabilities
        for name in ("unbroken", "run")
    )
    assert torch.equal(one, two) and (one.max(1).values < 1).all()


def test_run_can_be_interrupted_twice(interrupted, finished, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        assert distill(interrupted, "--resume") == 130
    assert distill(interrupted, "--resume") == 0
    assert_same_result(interrupted, finished)


def test_lines_written_after_the_last_checkpoint_are_dropped(interrupted, finished):
    with (interrupted / "steps.jsonl").open("a") as file:
        file.write('{"iteration": 4, "matching_loss": [0]}\n{"iteration": 5, "matc')
    assert distill(interrupted, "--resume") == 0
    assert_same_result(interrupted, finished)


def test_run_stopped_while_it_was_scored_is_scored_on_resume(copy, finished):
    for name in ("record.json", "clouds.npz", "migration.png", "trajectory.npz"):
        (copy / name).unlink()
    assert distill(copy, "--resume") == 0
    assert_same_result(copy, finished)
    assert read_record(copy)["scores"] == read_record(finished)["scores"]


# --- scores along a run ---------------------------------------------------------------------------

ALONG = {"evaluation__iteration": 5, "evaluation__curve": [0, 3, 7]}


@pytest.fixture(scope="module")
def along(tmp_path_factory) -> Path:
    """Return a run whose result are its clouds before iteration 5, scored at three more."""
    folder = tmp_path_factory.mktemp("along") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scores, "CURVE_CLASSIFIERS", {"networks": 1, "epochs": 2, "classifier": ConvNet(6)}
        )
        assert distill(folder, **ALONG) == 0
    return folder


def test_result_is_the_set_before_the_configured_iteration(along, finished):
    steps = read_trajectory(along)
    place = {update: number for number, update in enumerate(steps["updates"])}
    assert {0, 3, 5, 7, 8} <= set(place)
    result = load_clouds(along / "clouds.npz")
    assert np.array_equal(result.coordinates, steps["coordinates"][place[5]])
    assert not np.array_equal(result.coordinates, steps["coordinates"][place[8]])
    whole = read_trajectory(finished)
    # scoring does not change the run
    assert np.array_equal(whole["coordinates"][-1], steps["coordinates"][-1])


def test_record_has_the_scores_of_every_iteration_of_the_curve(along):
    record = read_record(along)
    assert list(record["scores_at"]) == ["0", "3", "7"]
    for scored in record["scores_at"].values():
        assert set(scored) == {"standard", "paper"}
        assert {score["networks"] for score in scored.values()} == {1}
    assert {score["networks"] for score in record["scores"].values()} == {2}
    assert record["seconds"]["curve"] > 0
    rows = curve_table([record])
    assert [row["iteration"] for row in rows] == [0, 3, 7]
    assert [row["paper"] for row in rows] == [
        round(record["scores_at"][str(at)]["paper"]["mean"], 2) for at in (0, 3, 7)
    ]


def test_curve_scores_the_clouds_of_its_iteration(tmp_path, monkeypatch):
    scored = []
    evaluate = Config.evaluate

    def spy(config, training, *rest):
        scored.append(training.coordinates.clone())
        return evaluate(config, training, *rest)

    monkeypatch.setattr(Config, "evaluate", spy)
    monkeypatch.setattr(
        scores, "CURVE_CLASSIFIERS", {"networks": 1, "epochs": 1, "classifier": ConvNet(4)}
    )
    assert distill(tmp_path / "run", **ALONG) == 0
    steps = read_trajectory(tmp_path / "run")
    place = {update: number for number, update in enumerate(steps["updates"])}
    for coordinates, iteration in zip(scored, (5, 0, 3, 7), strict=True):
        assert np.array_equal(coordinates, steps["coordinates"][place[iteration]])


def test_run_stopped_between_scores_makes_the_missing_ones_only(along, tmp_path, monkeypatch):
    folder = shutil.copytree(along, tmp_path / "copy")
    record = read_record(folder)
    (folder / "record.json").unlink()
    made = json.loads((folder / "scores.json").read_text())
    kept = sealed({name: made[name] for name in ("result", "0")})
    (folder / "scores.json").write_text(json.dumps(kept))
    scored = []
    evaluate = Config.evaluate
    monkeypatch.setattr(
        scores, "CURVE_CLASSIFIERS", {"networks": 1, "epochs": 2, "classifier": ConvNet(6)}
    )
    monkeypatch.setattr(Config, "evaluate", lambda *call: scored.append(call) or evaluate(*call))
    assert distill(folder, "--resume", **ALONG) == 0
    assert len(scored) == 2
    assert read_record(folder)["scores_at"] == record["scores_at"]
    assert read_record(folder)["scores"] == record["scores"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"evaluation__iteration": 9},
            "evaluation.iteration has 9, but the run has schedule.iterations = 8",
        ),
        (
            {"evaluation__curve": [0, 12]},
            "evaluation.curve has 12, but the run has schedule.iterations = 8",
        ),
        (
            {
                "evaluation__curve": [2],
                "objective__name": "unrolled_training",
                "objective__learned_labels": True,
            },
            "evaluation.curve has 2: learned labels",
        ),
    ],
)
def test_iteration_that_cannot_be_scored_is_refused_before_the_run(changes, said, tmp_path, capsys):
    assert distill(tmp_path / "run", **changes) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


LONG = {**SCHEDULE, "schedule__iterations": 16, "evaluation__protocols": ["standard"]}
# `pcdd` that stops in its tenth iteration of 16, between two checkpoints, and waits for a signal
HELD = """
import signal, sys
from pcdd_core.cli.main import main
from pcdd_core.experiments.progress import Progress

def wait_in_mid_run(self, fraction, stage, note=""):
    if stage == "distilling" and fraction > 0.6:
        print("held", flush=True)
        signal.pause()

Progress.__call__ = wait_in_mid_run
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, *options: str, held: bool = False) -> subprocess.Popen:
    """Start `pcdd distill` as a process with one thread."""
    settings = {name.replace("__", "."): value for name, value in LONG.items()}
    settings = tiny.arguments({**tiny.DISTILLATION, **tiny.EVALUATION, **settings})
    command = [sys.executable, *(["-c", HELD] if held else ["-m", "pcdd_core"]), "distill"]
    command += [*settings, "--preset", "quickstart", "--quiet", "--device", "cpu"]
    return subprocess.Popen(
        [*command, "--output", str(folder), "--checkpoint-every", "4", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in the background ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop_in_mid_run(folder: Path, how: signal.Signals) -> tuple[int, str]:
    """Start a run and stop it by a signal. Returns exit code and standard error."""
    process = start(folder, held=True)
    first = process.stdout.readline()
    process.send_signal(how)
    said = process.communicate()[1]
    assert first == "held\n", said
    assert (folder / "checkpoint.pt").exists() and not (folder / "clouds.npz").exists()
    return process.returncode, said


@pytest.mark.slow
def test_run_killed_in_mid_run_and_resumed_equals_the_unbroken_one(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert stop_in_mid_run(killed, signal.SIGKILL)[0] == -signal.SIGKILL
    for folder, options in ((killed, ["--resume"]), (unbroken, [])):
        process = start(folder, *options)
        said = process.communicate()[1]
        assert process.returncode == 0, said
    assert_same_result(killed, unbroken)
    assert read_record(killed)["scores"] == read_record(unbroken)["scores"]


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_run_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    code, said = stop_in_mid_run(folder, signal.SIGINT)
    assert code == 130
    assert "--resume" in said and "Traceback" not in said
    assert distill(folder, "--resume", **LONG) == 0
    rows = [json.loads(row) for row in (folder / "steps.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(16))


# --- what cannot be resumed -----------------------------------------------------------------------


def test_checkpoint_of_another_configuration_is_refused(interrupted, capsys):
    before = files(interrupted)
    assert distill(interrupted, "--resume", optimiser__step_size=0.123) == 2
    message = capsys.readouterr().err
    assert "another configuration" in message and str(interrupted) in message
    assert identity(tiny.config(**SCHEDULE)) in message
    assert files(interrupted) == before


class Malicious:
    """An object that creates the file `path` when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["empty", "no checkpoint", "cut short", "malicious"])
def test_damaged_checkpoint_is_refused_in_one_line_and_runs_no_code(
    damage, interrupted, capsys, tmp_path
):
    path = interrupted / "checkpoint.pt"
    content = {
        "empty": b"",
        "no checkpoint": b"garbage",
        "cut short": path.read_bytes()[:1000],
        "malicious": pickle.dumps(Malicious(tmp_path / "harm"), protocol=2),
    }
    path.write_bytes(content[damage])
    (interrupted / "checkpoint-previous.pt").write_bytes(content[damage])
    before = files(interrupted)
    assert distill(interrupted, "--resume") == 2
    message = capsys.readouterr().err
    assert (
        message.startswith(f"pcdd: {path}: not a readable checkpoint") and "--overwrite" in message
    )
    assert message.count("\n") == 1
    assert "weights_only" not in message  # torch advises to switch its protection off
    assert files(interrupted) == before and not (tmp_path / "harm").exists()


def test_resume_without_a_run_is_refused(tmp_path, capsys):
    assert distill(tmp_path / "nothing", "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert files(tmp_path) == {}


# --- failure --------------------------------------------------------------------------------------


@pytest.fixture
def failed(tmp_path, monkeypatch, capsys) -> Path:
    """Return a run that failed because its matching loss is NaN from iteration 1 on."""
    calls = itertools.count()

    def broken(real, synthetic):
        return sum(s.square().sum() for s in synthetic) * (
            float("nan") if next(calls) >= 10 else 1.0
        )

    broken.__name__ = "sum_of_squares"
    monkeypatch.setitem(DISTANCES, "sum_of_squares", broken)
    settings = GRADIENTS | {"objective__distance": "sum_of_squares"}
    assert distill(tmp_path / "failed", **settings) == 1
    monkeypatch.undo()
    message = capsys.readouterr().err
    assert message.startswith("pcdd: the run failed at iteration 1:") and "likely cause" in message
    return tmp_path / "failed"


def test_a_run_whose_classifiers_diverge_keeps_its_clouds_and_has_no_score(
    tmp_path, monkeypatch, capsys
):
    def diverging(*all):
        raise EvaluationFailed("epoch 3 of training classifiers: no numbers")

    monkeypatch.setattr(Config, "evaluate", diverging)
    assert distill(tmp_path / "run") == 1
    assert capsys.readouterr().err.startswith(
        "pcdd: the run failed at epoch 3 of training classifiers"
    )
    record = read_record(tmp_path / "run")
    assert record["scores"] == {} and record["health"]["state"] == "failed"
    assert "epoch 3 of training classifiers" in health_of(record)
    assert len(load_clouds(tmp_path / "run" / "clouds.npz")) == 10


def test_run_that_fails_is_recorded_as_failed(failed):
    record = read_record(failed)
    assert health_of(record).startswith("failed at iteration 1:") and record["scores"] == {}
    assert (record["health"]["state"], record["health"]["iteration"]) == ("failed", 1)


def test_failed_run_can_be_tabled_beside_a_finished_one(failed, finished):
    other_seed = read_record(finished)
    other_seed["config"]["seed"] += 1
    alone, pair = table([read_record(failed), read_record(finished), other_seed])
    assert (
        alone["health"] == "failed"
        and "standard" not in alone
        and alone["name"].startswith("quickstart ")
    )
    assert pair["health"] == "moving" and pair["seeds"] == 2 and "sum_of_squares" in alone["name"]


# a run too slow to move
STUCK = {
    "optimiser__name": "sgd",
    "optimiser__step_size": 1e-9,
    "schedule__iterations": WINDOW + 2,
    "schedule__training_steps": 0,
}


def test_stuck_run_is_recorded_as_that_across_a_resume_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(30, patch)
        assert distill(tmp_path / "run", **STUCK) == 130
    assert distill(tmp_path / "run", "--resume", **STUCK) == 0
    record = read_record(tmp_path / "run")
    assert health_of(record).startswith("stopped moving at iteration 0: ")
    assert "the mean displacement is" in record["health"]["reason"]


# --- tables of records ----------------------------------------------------------------------------


def record(name: str, seed: int, accuracy: float, seconds: float) -> dict:
    return {
        "name": name,
        "config": {"seed": seed},
        "scores": {"standard": {"mean": accuracy}},
        "seconds": {"evaluation": seconds},
        "peak_memory_bytes": 2**30,
        "health": {"state": "moving" if seed else "stopped moving", "iteration": 3},
    }


def test_table_averages_over_the_records_of_a_name():
    rows = table([record("a", 0, 10.0, 1.0), record("b", 0, 50.0, 4.0), record("a", 1, 20.0, 3.0)])
    assert [row["name"] for row in rows] == ["a", "b"]
    a, b = rows
    assert (a["seeds"], a["standard"], a["standard sd"], a["evaluation seconds"]) == (
        2,
        15.0,
        5.0,
        2.0,
    )
    assert (b["seeds"], b["standard"], b["standard sd"], b["peak memory MiB"]) == (
        1,
        50.0,
        None,
        1024,
    )
    assert a["health"] == "moving; stopped moving"
