"""Checkpoints: damage is found, two generations, and nothing of a run is lost on the way."""

import dataclasses
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tiny import files, pcdd

from pcdd_core.cli.main import main
from pcdd_core.errors import InputError, WriteFailed
from pcdd_core.experiments import checkpoint as checkpoints
from pcdd_core.experiments import figures, runs
from pcdd_core.experiments.progress import Progress
from pcdd_core.experiments.records import read_record, read_trajectory
from pcdd_core.experiments.scores import finished_scores
from pcdd_core.geometry.storage import load_clouds

ITERATIONS = 6
SETTINGS = {
    "schedule__iterations": ITERATIONS,
    "schedule__iterations_per_network": 4,
    "schedule__training_steps": 1,
    "objective__name": "feature_regression",  # all classes at once, so iterations are short
    "evaluation__protocols": ["standard"],
    "evaluation__networks": 1,
    "evaluation__epochs": 1,
}


def distill(folder: Path, *options: str, **changes) -> int:
    words = ("--preset", "quickstart", "--output", str(folder), "--checkpoint-every", "2")
    return pcdd("distill", *words, *options, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "finished"
    assert distill(folder) == 0
    return folder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    """Return a run that stopped after 5 of 6 iterations, with checkpoints after 2 and 4."""
    folder = tmp_path_factory.mktemp("checkpoint") / "stopped"
    watch = runs.Health.watch

    def interrupted(health, step):
        if step.iteration == 4:
            raise KeyboardInterrupt
        watch(health, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Health, "watch", interrupted)
        assert distill(folder) == 130
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    return shutil.copytree(stopped_once, tmp_path / "run")


def assert_same_result(folder: Path, other: Path) -> None:
    one, two = (load_clouds(place / "clouds.npz").coordinates for place in (folder, other))
    assert torch.equal(one, two)
    assert (folder / "steps.jsonl").read_text() == (other / "steps.jsonl").read_text()
    one, two = read_trajectory(folder), read_trajectory(other)
    assert all(np.array_equal(one[field], two[field]) for field in ("updates", "coordinates"))
    one, two = read_record(folder), read_record(other)
    assert one["scores"] == two["scores"] and one["curves"] == two["curves"]


# --- damage ---------------------------------------------------------------------------------------


def test_one_changed_byte_of_the_coordinates_is_found_and_the_previous_checkpoint_taken(
    stopped, finished, capsys
):
    path = stopped / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    kept, _ = checkpoints.load(stopped, ITERATIONS)
    place = content.index(kept.state["coordinates"].numpy().tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)
    assert distill(stopped, "--resume", "--quiet") == 0
    said = capsys.readouterr().err
    assert "differs from its checksum" in said
    assert "continues from checkpoint-previous.pt, after 2 iterations" in said
    assert_same_result(stopped, finished)


def test_damage_of_both_generations_is_refused_in_one_line(stopped, capsys):
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        content = bytearray((stopped / name).read_bytes())
        content[len(content) // 2] ^= 1
        (stopped / name).write_bytes(content)
    before = files(stopped)
    assert distill(stopped, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "checksum" in said and "--overwrite" in said
    assert files(stopped) == before


def test_checkpoint_without_a_checksum_is_refused_and_says_to_start_over(stopped, capsys):
    content = (stopped / "checkpoint.pt").read_bytes()
    (stopped / "checkpoint.pt").write_bytes(content[content.index(b"PK") :])
    before = files(stopped)
    assert distill(stopped, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "older version" in said and "--overwrite" in said
    assert files(stopped) == before


def test_run_killed_between_the_generations_continues_from_the_previous_one(stopped, finished):
    (stopped / "checkpoint.pt").unlink()
    assert distill(stopped, "--resume") == 0
    assert_same_result(stopped, finished)


def test_damaged_checkpoint_does_not_replace_the_intact_one(stopped, monkeypatch):
    (stopped / "checkpoint.pt").write_bytes(b"damaged")
    intact = (stopped / "checkpoint-previous.pt").read_bytes()
    save = checkpoints.save

    def killed_after_the_first(checkpoint, folder):
        save(checkpoint, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", killed_after_the_first)
    assert distill(stopped, "--resume") == 130
    assert (stopped / "checkpoint-previous.pt").read_bytes() == intact


def change(**fields):
    return lambda kept: dataclasses.replace(kept, **fields)


def in_state(**entries):
    return lambda kept: dataclasses.replace(kept, state={**kept.state, **entries})


def found(**fields):
    """Return a data class with these fields, which need not be those of a Finding."""
    return dataclasses.make_dataclass("Finding", fields)(**fields)


FORGED = {
    "negative iteration": (in_state(iteration=-1), "state.iteration"),
    "iteration beyond the run": (in_state(iteration=ITERATIONS), "state.iteration"),
    "iteration of text": (in_state(iteration="3"), "state.iteration"),
    "true as iteration": (in_state(iteration=True), "state.iteration"),
    "no coordinates": (in_state(coordinates=None), "state.coordinates"),
    "coordinates that are no numbers": (
        lambda kept: in_state(coordinates=kept.state["coordinates"] * torch.nan)(kept),
        "state.coordinates",
    ),
    "optimiser that is a list": (in_state(optimiser=[]), "state.optimiser"),
    "state that is a list": (change(state=[]), "state"),
    "configuration that is a number": (change(configuration=5), "configuration"),
    "updates of text": (change(updates=["0", "2"]), "updates"),
    "updates that fall": (change(updates=[0, 3, 2]), "updates"),
    "negative update": (change(updates=[-1]), "updates"),
    "frames of another shape": (
        lambda kept: change(frames=kept.frames[:, :-1])(kept),
        "frames",
    ),
    "steps missing": (change(steps={}), "steps"),
    "too few steps": (
        lambda kept: change(steps={name: part[:-1] for name, part in kept.steps.items()})(kept),
        "steps.matching_loss",
    ),
    "negative seconds": (change(seconds=-1.0), "seconds"),
    "seconds of text": (change(seconds="1"), "seconds"),
    "negative count": (change(still=-1), "still"),
    "finding without a reason": (change(finding=found(state="stuck", iteration=1)), "finding"),
    "finding with a number as state": (
        change(finding=found(state=3, iteration=1, reason="far")),
        "finding",
    ),
    "finding at a negative iteration": (
        change(finding=found(state="stuck", iteration=-1, reason="far")),
        "finding",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_checkpoint_with_a_right_checksum_and_wrong_types_is_refused(name, stopped_once, tmp_path):
    forge, field = FORGED[name]
    kept, _ = checkpoints.load(stopped_once, ITERATIONS)
    checkpoints.save(forge(kept), tmp_path)
    with pytest.raises(InputError, match=f"field '{field}'.*--overwrite") as refusal:
        checkpoints.load(tmp_path, ITERATIONS)
    assert "\n" not in str(refusal.value)


def test_checkpoint_of_other_points_is_refused(stopped, capsys):
    kept, _ = checkpoints.load(stopped, ITERATIONS)
    fewer = in_state(coordinates=kept.state["coordinates"][:-1])(kept)
    checkpoints.save(dataclasses.replace(fewer, frames=kept.frames[:, :-1]), stopped)
    assert distill(stopped, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "199 points" in said and "200" in said


def test_steps_come_back_to_the_last_bit(stopped_once):
    kept, _ = checkpoints.load(stopped_once, ITERATIONS)
    written = [json.loads(line) for line in (stopped_once / "steps.jsonl").read_text().splitlines()]
    assert kept.rows == written and len(written) == 4


@pytest.mark.parametrize("damage", ["missing", "cut", "garbled", "longer"])
def test_damaged_steps_are_made_again_from_the_checkpoint(damage, stopped, finished):
    path = stopped / "steps.jsonl"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        spoiled = {
            "cut": content[: len(content) // 2],
            "garbled": content[:100] + b"\xff\x00}" + content[103:],
            "longer": content + content[:50],
        }
        path.write_bytes(spoiled[damage])
    assert distill(stopped, "--resume") == 0
    assert_same_result(stopped, finished)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"result": 3}', b"[" * 100000, b"\xff\xfe"], ids=repr
)
def test_damaged_scores_are_dropped_with_a_message(content, tmp_path, capsys):
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    assert finished_scores(path, Progress()) == {}
    assert "scores.json: not readable scores" in "".join(capsys.readouterr())


def test_changed_digit_of_a_score_is_found_and_the_score_made_again(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "record.json").unlink()
    text = (folder / "scores.json").read_text()
    mean = text.index('"mean": ') + len('"mean": ')
    (folder / "scores.json").write_text(f"{text[:mean]}9{text[mean + 1 :]}")
    assert distill(folder, "--resume") == 0
    assert "differs from its checksum" in "".join(capsys.readouterr())
    assert_same_result(folder, finished)


# --- pictures come last ---------------------------------------------------------------------------

NAMES = ("cost $5_$10", "\ud800", "\x1b[31m", "a" * 5000, "two\nlines", "$x^{", "\u202egnp")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_name_can_be_drawn(name):
    clouds = dataclasses.replace(tiny.three_solids(), class_names=(name, "b", "c"))
    drawn = figures.gallery(clouds, most=6)
    drawn.savefig(io.BytesIO(), format="png")
    titles = [text.get_text() for text in drawn.axes[0].texts]
    assert max(map(len, titles)) <= 24
    if name == NAMES[0]:
        assert titles[0] == name
    moves = {"updates": np.array([0]), "coordinates": clouds.coordinates.numpy()[None]}
    figures.migration(moves, clouds).savefig(io.BytesIO(), format="png")


def test_run_is_complete_if_its_picture_fails(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"

    def failing(figure, path):
        assert read_record(folder)["scores"], "the record must be safe before the picture"
        raise ValueError("Expected end of text\n$5")

    monkeypatch.setattr(figures, "save", failing)
    assert distill(folder) == 0
    assert "migration.png is not drawn (Expected end of text\\n$5)" in "".join(capsys.readouterr())
    assert read_record(folder)["scores"] and len(load_clouds(folder / "clouds.npz")) == 10


# --- full disks and leftovers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        errno.ENOSPC,
        pytest.param(getattr(errno, "EDQUOT", errno.ENOSPC), marks=pytest.mark.slow),
    ],
)
def test_run_resumes_exactly_after_a_full_disk(code, finished, tmp_path, monkeypatch):
    folder, fsync, calls = tmp_path / "new" / "run", os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:  # config, first steps, then steps and checkpoint twice
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteFailed, match="last checkpoint.*--resume") as refusal:
            runs.run(
                tiny.config(**SETTINGS), "quickstart", folder, device="cpu", checkpoint_every=2
            )
    assert "\n" not in str(refusal.value) and os.strerror(code) in str(refusal.value)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert distill(folder, "--resume") == 0
    assert_same_result(folder, finished)


def test_disk_that_is_full_from_the_start_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert distill(tmp_path / "new" / "run", "--quiet") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(errno.ENOSPC) in said
    assert "start it again" in said and "--resume" not in said
    assert files(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_limit_on_file_sizes_ends_in_one_line(tmp_path, capsys):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        assert distill(tmp_path / "run", "--quiet") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "checkpoint.pt: cannot be written (File too large)" in said
    assert "with --resume" in said
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "steps.jsonl",
    ]


def test_temporary_files_of_a_killed_run_are_removed(stopped, finished):
    (stopped / ".checkpoint.pt.a1b2c3d4").write_bytes(b"half")
    (stopped / ".steps.jsonl.________").write_bytes(b"half")
    (stopped / ".notes.a1b2c3d4").write_text("mine")
    assert distill(stopped, "--resume") == 0
    hidden = [path.name for path in stopped.iterdir() if path.name.startswith(".")]
    assert hidden == [".notes.a1b2c3d4"]
    assert_same_result(stopped, finished)


def test_run_killed_at_its_first_file_can_be_started_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.a1b2c3d4").write_bytes(b"{")
    assert distill(tmp_path / "run") == 0


# --- impossible numbers and paths -----------------------------------------------------------------

IMPOSSIBLE = {
    "network.layers": 2**31,
    "network.width": 2**40,
    "clouds.clouds_per_class": 2**63,
    "clouds.points_per_cloud": 2**62,
    "schedule.iterations": 2**63,
    "evaluation.networks": 2_000_000_000,
    "objective.real_batch": 2**63,
    "data.points": 2**62,
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_number_is_refused_with_its_setting(name):
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as refusal:
        tiny.config(**{name.replace(".", "__"): IMPOSSIBLE[name]}, data__name="solids")
    assert "\n" not in str(refusal.value)


def test_number_of_points_counts_over_all_classes():
    real = tiny.three_digits()
    settings = {"clouds__clouds_per_class": 1000, "clouds__points_per_cloud": 20_000}
    with pytest.raises(InputError, match="clouds.points_per_cloud: 60000000 points are too many"):
        tiny.config(**settings).start(real)
    with pytest.raises(InputError, match="clouds.clouds_per_class: .* clouds are too many"):
        tiny.config(clouds__clouds_per_class=2**30).start(real)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "y/" * 3000], ids=["NUL", "name", "path"])
@pytest.mark.parametrize(
    "command",
    [
        "distill",
        "resume",
        "data",
        "evaluate",
        "score",
        "show",
        "table",
        "animate",
        "runs",
        "keep",
        "import",
        "imported",
    ],
)
def test_impossible_path_is_refused_in_one_line(path, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {
        "distill": ["distill", "--preset", "quickstart", "--output", path],
        "resume": ["distill", "--preset", "quickstart", "--output", path, "--resume"],
        "data": ["distill", "--preset", "quickstart", "--data", path],
        "evaluate": ["evaluate", path],
        "score": ["baseline", "random", "data.name=digits", "--output", path],
        "show": ["show", path],
        "table": ["table", path],
        "animate": ["animate", path, "a.gif"],
        "runs": ["sweep", "quickstart", "--list", "--runs", path],
        "keep": ["report", "table1", "--keep", path],
        "import": ["import", path, "--output", "set.npz"],
        "imported": ["import", "export", "--output", path],
    }
    assert main(words[command]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 400, said
    assert files(tmp_path) == {}
