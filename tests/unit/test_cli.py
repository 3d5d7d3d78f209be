"""The command line: output and files of every command; wrong input ends in one message."""

import csv
import functools
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torchvision
from tiny import files, pcdd

from pcdd_core.cli import commands
from pcdd_core.cli.main import main
from pcdd_core.experiments.config import described_settings
from pcdd_core.experiments.presets import PRESETS
from pcdd_core.experiments.records import read_record, read_trajectory
from pcdd_core.geometry.storage import load_clouds, save_clouds
from pcdd_core.scoring.baselines import Baseline, herding, random

PNG = b"\x89PNG\r\n\x1a\n"
SCORING = tiny.arguments({"data.name": "digits", **tiny.EVALUATION})
ON_CPU = ["--quiet", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("cli") / "finished"
    assert pcdd("distill", "--preset", "quickstart", "--output", str(folder), "--quiet") == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Change to an empty working folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, finished) -> Path:
    """Copy the finished run to the working folder."""
    return shutil.copytree(finished, here / "run")


@pytest.fixture
def json_of(capsys):
    """Return json_of("presets"), which returns what the command prints with --json."""

    def call(*words: str):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["presets", "--help"], ["sweep", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = f"""
import sys
from pcdd_core.cli.main import main
try:
    main({words})
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "torchvision", "numpy", "sklearn", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: pcdd" in done.stdout


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys):
    text = help_of(capsys)
    assert all(
        f"    {command} " in text
        for command in ("distill", "evaluate", "baseline", "presets", "show", "table")
    )


def test_every_setting_is_in_the_help_with_default_and_explanation(capsys):
    text = help_of(capsys, "distill")
    for name, (default, explanation) in described_settings().items():
        assert f"  {name}={json.dumps(default)}\n      {explanation}\n" in text + "\n"


@pytest.mark.parametrize("command", ["evaluate", "baseline"])
def test_help_of_scoring_lists_the_settings_it_uses(command, capsys):
    text = help_of(capsys, command)
    for name in described_settings():
        assert (f"  {name}=" in text) == name.startswith(("data.", "evaluation."))


@pytest.mark.slow
def test_help_lists_the_settings_of_an_imported_piece(tmp_path):
    (tmp_path / "my_lifts.py").write_text(
        "import pcdd_core as pcdd\n\n\n"
        'class Rings(pcdd.Lift, name="rings"):\n'
        '    """Rings around points."""\n\n    radius: float = 3.0\n\n'
        "    def __call__(self, clouds, progress=1.0, real=False):\n        return clouds\n"
    )

    def help_with(module):
        command = [sys.executable, "-m", "pcdd_core", "distill", "--import", module, "--help"]
        path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert "  lift.name=rings\n      Rings around points.\n  lift.radius=3.0" in (
        help_with("my_lifts").stdout
    )
    missing = help_with("no_such_module")
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1


# --- commands -------------------------------------------------------------------------------------


def test_distill_says_the_scores_and_where_the_run_is(here, capsys):
    assert pcdd("distill", "--preset", "quickstart", "--output", "run") == 0
    text, progress = capsys.readouterr()
    record = read_record(here / "run")
    assert (
        f"standard: {record['scores']['standard']['mean']:.2f}" in text
        and "run: clouds.npz" in text
    )
    assert "distilling: 100%" in progress and "left" in progress


def test_quiet_distillation_says_nothing_on_the_way_and_the_seed_is_the_setting(here, capsys):
    options = ["--preset", "quickstart", "--output", "run", "--quiet", "--seed", "5"]
    assert pcdd("distill", *options) == 0
    assert capsys.readouterr().err == ""
    assert read_record(here / "run")["config"]["seed"] == 5


def test_distill_prints_the_record_as_json(here, capsys):
    assert pcdd("distill", "--preset", "quickstart", "--output", "run", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("folder") == "run"
    assert printed == read_record(Path("run"))


def test_settings_may_stand_before_between_and_after_options(here):
    words = [
        "data.name=digits",
        "--quiet",
        "schedule.iterations=1",
        "network.width=4",
        "--output",
        "run",
        "network.layers=2",
    ]
    words += ["--preset", "quickstart", "objective.real_batch=2", *tiny.arguments(tiny.EVALUATION)]
    assert main(["distill", *words]) == 0
    config = read_record(here / "run")["config"]
    assert (
        config["data"]["name"],
        config["schedule"]["iterations"],
        config["network"]["layers"],
    ) == ("digits", 1, 2)


def test_run_of_a_set_starts_from_its_clouds(run, here):
    settings = {
        "clouds__name": "file",
        "clouds__file": "run/clouds.npz",
        "optimiser__step_size": 1e-9,
    }
    options = ["--preset", "quickstart", "--output", "second", "--quiet"]
    assert pcdd("distill", *options, **settings) == 0
    before, after = (
        load_clouds(here / name / "clouds.npz").coordinates for name in ("run", "second")
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_evaluating_a_run_gives_the_scores_of_its_record(run, json_of):
    record, printed = read_record(run), json_of("evaluate", "run", *ON_CPU)
    assert printed["scores"] == record["scores"] and printed["scored_on"] == record["scored_on"]
    assert printed["config"] == {
        key: record["config"][key] for key in ("data", "evaluation", "seed")
    }


def test_evaluating_a_set_gives_the_same_scores_as_its_run(run, json_of):
    assert (
        json_of("evaluate", "run/clouds.npz", *SCORING, *ON_CPU)["scores"]
        == read_record(run)["scores"]
    )


@pytest.mark.parametrize(
    "words", [["evaluate", "run", *ON_CPU, *SCORING], ["baseline", "random", *ON_CPU, *SCORING]]
)
def test_settings_may_follow_the_options_of_scoring(words, run, json_of):
    assert json_of(*words)["config"]["data"]["name"] == "digits"


def test_evaluate_scores_on_the_split_asked_for(run, json_of):
    validation, test = (
        json_of("evaluate", "run", *ON_CPU, f"evaluation.split={split}")
        for split in ("validation", "test")
    )
    assert (
        validation["scored_on"]
        == f"digits, validation split, {len(tiny.digits().validation)} clouds"
    )
    assert validation["scores"] != test["scores"]


def test_evaluate_keeps_set_and_record_where_asked(run, here, capsys):
    assert main(["evaluate", "run", *ON_CPU, "--output", "scored/there"]) == 0
    assert "scored/there" in capsys.readouterr().out
    kept = here / "scored" / "there"
    assert sorted(path.name for path in kept.iterdir()) == ["clouds.npz", "record.json"]
    assert read_record(kept)["scores"] == read_record(run)["scores"]
    assert torch.equal(
        load_clouds(kept / "clouds.npz").coordinates, load_clouds(run / "clouds.npz").coordinates
    )


def test_evaluate_leaves_nothing_where_not_asked(run, here):
    before = files(here)
    assert main(["evaluate", "run", *ON_CPU]) == 0
    assert files(here) == before


@pytest.mark.parametrize(("name", "choose"), [("random", random), ("herding", herding)])
def test_baseline_scores_the_clouds_it_chooses(name, choose, here, json_of):
    words = [*SCORING, "--seed", "3", "--clouds-per-class", "2", "--output", "chosen", *ON_CPU]
    printed = json_of("baseline", name, *words)
    assert (
        printed["name"] == f"{name}-2"
        and printed["clouds"] == 20
        and printed["config"]["seed"] == 3
    )
    kept, expected = load_clouds(here / "chosen" / "clouds.npz"), choose(tiny.digits().train, 2, 3)
    assert torch.equal(kept.coordinates, expected.coordinates) and torch.equal(
        kept.labels, expected.labels
    )


def test_presets_lists_every_preset_with_the_paper_s_figure(capsys):
    assert main(["presets"]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: line for line in printed if line}
    assert sum(line.split()[0] in PRESETS for line in printed if line) == len(PRESETS)
    for name, entry in PRESETS.items():
        assert entry.text in lines[name] and str(entry.paper_accuracy or "-") in lines[name]


def test_presets_come_in_groups_with_the_first_ones_to_try_at_the_top(capsys):
    assert main(["presets"]) == 0
    _, *groups = capsys.readouterr().out.rstrip().split("\n\n")
    names = [[line.split()[0] for line in group.splitlines()[1:]] for group in groups]
    assert set(names[0]) == {"demo", "quickstart", "solids"}
    assert names[1][0] == "mnist-1-gradient"
    places = [index for index, group in enumerate(names) if group[0].startswith("paper-")]
    assert places == list(range(len(names)))[-len(places) :]  # the paper's many come last
    for group in names:  # small variants follow the presets that they belong to
        small = [name.endswith("-small") for name in group]
        assert small == sorted(small)


def test_presets_prints_configurations_as_json(json_of):
    listed = {entry["name"]: entry for entry in json_of("presets")}
    assert set(listed) == set(PRESETS)
    assert listed["paper-torch-2-sum-of-squares"]["paper_accuracy"] == 25.69
    assert listed["paper-torch-2-sum-of-squares"]["config"]["network"]["layers"] == 2


def test_show_draws_a_run_and_says_what_it_is(run, capsys):
    assert main(["show", "run"]) == 0
    text = capsys.readouterr().out
    assert (
        "10 clouds of 10 classes" in text
        and "(1, 28, 28) cells, 20 points each" in text
        and "quickstart, seed 0: moving" in text
    )
    assert f"{read_record(run)['scores']['paper']['mean']:.2f}" in text
    picture = next(
        path for path in run.iterdir() if path.suffix == ".png" and str(path.name) in text
    )
    assert picture.read_bytes().startswith(PNG) and len(picture.read_bytes()) > 2000


def test_show_draws_a_set_that_has_no_record(run, here, json_of):
    shutil.copy(run / "clouds.npz", here / "lonely.npz")
    about = json_of("show", "lonely.npz")
    assert (about["clouds"], about["grid"], about["points_per_cloud"]) == (
        10,
        [1, 28, 28],
        [20, 20],
    )
    assert about["classes"] == list("0123456789") and about["record"] is None
    assert Path(about["picture"]).read_bytes().startswith(PNG)


def test_show_draws_solid_clouds(here):
    save_clouds(tiny.three_solids(), here / "solids.npz")
    assert main(["show", "solids.npz", "--picture", "deep/picture.png"]) == 0
    assert (here / "deep" / "picture.png").read_bytes().startswith(PNG)


def test_table_has_a_row_per_name(run, here, json_of, capsys):
    assert main(["baseline", "random", *SCORING, *ON_CPU, "--output", "random"]) == 0
    capsys.readouterr()
    rows = json_of("table", "run", "random/record.json", "--csv", "tables/table.csv")
    assert (
        rows[0]["name"].split()[:2] == ["quickstart", 'data.name="digits"']
        and rows[1]["name"] == "random-1"
    )
    assert rows[0]["standard"] == pytest.approx(
        read_record(run)["scores"]["standard"]["mean"], abs=0.01
    )
    with (here / "tables" / "table.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["name"] for row in written] == [row["name"] for row in rows]
    assert float(written[0]["standard"]) == rows[0]["standard"]


def test_table_as_text_names_columns_and_rows(run, capsys):
    assert main(["table", "run"]) == 0
    text = capsys.readouterr().out
    assert "quickstart" in text and "standard" in text and "peak memory MiB" in text


@pytest.mark.slow
def test_animate_writes_a_page_a_gif_and_a_video(run, here, json_of):
    written = json_of("animate", "run", "out/run.html", "out/run.gif", "out/run.mp4")
    assert written["frames"] == len(read_trajectory(run)["updates"])
    heads = {
        name: (here / "out" / name).read_bytes()[:12] for name in ("run.html", "run.gif", "run.mp4")
    }
    assert heads["run.html"].lower().startswith(b"<!doctype") and heads["run.gif"].startswith(
        b"GIF8"
    )
    assert heads["run.mp4"][4:8] == b"ftyp"


def test_animate_refuses_what_it_cannot_write_or_read(run, here, capsys):
    assert main(["animate", "run", "run.html", "run.mov"]) == 2
    assert "run.mov: " in (said := capsys.readouterr().err) and ".html, .gif or .mp4" in said
    assert not (here / "run.html").exists()  # nothing is written
    assert main(["animate", "nowhere", "run.gif"]) == 2
    assert "trajectory.npz: no such file" in capsys.readouterr().err


# --- bad input ------------------------------------------------------------------------------------


@pytest.fixture
def assert_refused(here, capsys):
    """Return assert_refused(command, parts ...).

    It asserts that `command()` returns 2, prints one line that contains the parts, and changes no
    file.
    """

    def call(command, *parts: str) -> str:
        before = files(here)
        assert command() == 2
        out, message = capsys.readouterr()
        assert out == "" and message.startswith("pcdd: ") and message.count("\n") == 1, message
        for part in parts:
            assert part in message
        assert files(here) == before, "something was written"
        return message

    return call


def distill(*words: str, **changes):
    return lambda: pcdd("distill", "--preset", "quickstart", "--quiet", *words, **changes)


def test_unknown_preset_names_the_nearest(assert_refused):
    assert_refused(
        lambda: main(["distill", "--preset", "quickstrat"]), "'quickstrat'", "nearest: quickstart"
    )


def test_unknown_setting_names_the_nearest(assert_refused):
    assert_refused(
        lambda: main(["distill", "network.layer=2", "--preset", "quickstart"]),
        "'network.layer'",
        "network.layers",
    )


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("network.layers=two", ["network.layers", "'two'", "integer"]),
        ("network.layers=true", ["network.layers", "True", "integer"]),
        ("network.layers=0", ["network.layers", "0", "greater than or equal to 1"]),
        ("network.layers=9", ["network.layers", "9", "at most 4"]),
        (
            "network.name=torhc",
            ["network.name", "'torhc'", "nearest: torch"],
        ),
        ("optimiser.step_size=NaN", ["optimiser.step_size", "nan", "finite"]),
        ("optimiser.step_size=-1", ["optimiser.step_size", "-1", "greater than 0"]),
        ("data.threshold=1", ["data.threshold", "1", "less than 1"]),
        ('evaluation.protocols=["papr"]', ["evaluation.protocols", "'papr'", "'paper'"]),
        ("evaluation.protocols=[]", ["evaluation.protocols"]),
        ("clouds.clouds_per_class=[1,2]", ["clouds.clouds_per_class", "2 numbers", "10"]),
        ("clouds.points_per_cloud=null", ["clouds.points_per_cloud"]),
        ("network.layers", ["'network.layers'", "setting=value"]),
        ("=3", ["''"]),
    ],
)
def test_wrong_setting_is_named_with_its_value_and_what_would_be_right(
    argument, parts, assert_refused
):
    assert_refused(
        lambda: main(
            ["distill", *tiny.arguments(tiny.DISTILLATION), argument, "--preset", "quickstart"]
        ),
        *parts,
    )


def test_negative_seed_is_refused(assert_refused):
    assert_refused(distill("--seed", "-1"), "seed", "-1", "0")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["distil"],
        ["distill"],
        ["distill", "--preset", "quickstart", "--seed", "one"],
        ["distill", "--preset", "quickstart", "--checkpoint-every", "0"],
        ["baseline", "best"],
        ["baseline", "random", "--clouds-per-class", "0"],
        ["evaluate", "set.npz", "--split", "test"],
    ],
    ids=" ".join,
)
def test_wrong_option_ends_with_exit_code_2(words, here, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "usage: pcdd" in capsys.readouterr().err
    assert files(here) == {}


@pytest.mark.parametrize(
    "count",
    [
        {"objective__real_batch": 300},
        {"clouds__name": "real", "clouds__clouds_per_class": 300},
    ],
)
def test_class_with_fewer_samples_than_asked_is_named(count, assert_refused):
    assert_refused(distill(**count), "class '0'", "300 were asked for")


@pytest.mark.parametrize("name", ["random", "herding"])
def test_baseline_of_more_clouds_than_a_class_has_is_refused(name, assert_refused):
    assert_refused(
        lambda: main(["baseline", name, *SCORING, *ON_CPU, "--clouds-per-class", "300"]),
        "class '0'",
        "300",
    )


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "cuda:x", "mps:3", "meta"])
def test_device_that_is_not_there_is_named_with_those_that_are(device, assert_refused):
    assert_refused(distill("--device", device), repr(device), "cpu")


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["new", "overwrite"])
@pytest.mark.parametrize("place", ["file", "file/run"])
def test_run_folder_that_cannot_be_written_to_is_named(place, options, here, assert_refused):
    (here / "file").write_text("not a folder")  # permissions would not stop root
    assert_refused(distill("--output", place, *options), place)


@pytest.mark.parametrize("place", ["file", "file/scored"])
def test_folder_for_scores_that_cannot_be_written_to_is_named(place, here, assert_refused):
    (here / "file").write_text("not a folder")
    assert_refused(
        lambda: main(["baseline", "random", *SCORING, *ON_CPU, "--output", place]), place
    )


def test_files_that_cannot_be_written_are_named(run, here, assert_refused):
    (here / "file").write_text("not a folder")
    assert_refused(
        lambda: main(["show", "run", "--picture", "file/picture.png"]), "file/picture.png"
    )
    assert_refused(lambda: main(["table", "run", "--csv", "file/table.csv"]), "file/table.csv")


# MNIST


def mnist(*words: str):
    return distill("--output", "run", *words, data__name="mnist")


@pytest.fixture
def raw(here) -> Path:
    """Make the folder of MNIST's files, with one file that has a valid header."""
    (here / "data" / "MNIST" / "raw").mkdir(parents=True)
    header = np.array([2051, 60000, 28, 28], dtype=">u4").tobytes()
    (here / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(header + b"\0" * 784)
    return here / "data" / "MNIST" / "raw"


def test_truncated_mnist_file_is_named(raw, assert_refused):
    assert_refused(mnist("--data", "data"), "train-images-idx3-ubyte", "cut short", "47040016")


def test_mnist_file_that_is_no_idx_is_named(raw, assert_refused):
    (raw / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
    assert_refused(mnist("--data", "data"), "train-images-idx3-ubyte", "not an IDX file")


def test_missing_mnist_file_is_named(raw, assert_refused):
    (raw / "train-images-idx3-ubyte").rename(raw / "t10k-images-idx3-ubyte")
    assert_refused(mnist("--data", "data"), "train-images-idx3-ubyte", "missing")


def test_missing_data_folder_is_named(assert_refused, monkeypatch):
    assert_refused(mnist("--data", "nowhere"), "nowhere", "MNIST/raw")
    monkeypatch.setenv("PCDD_DATA", "elsewhere")
    assert_refused(mnist(), "elsewhere", "MNIST/raw")


@pytest.fixture
def no_network(monkeypatch):
    def download(self):
        os.makedirs(self.raw_folder, exist_ok=True)  # as torchvision does before it tries
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried two addresses")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)


def test_neither_mnist_nor_network_names_the_three_ways_out(no_network, here, assert_refused):
    (here / "data").mkdir()
    assert_refused(mnist("--data", "data"), "--data", "PCDD_DATA", "network", "data.name=digits")


def test_failed_download_leaves_nothing_in_the_cache(no_network, here, assert_refused, monkeypatch):
    monkeypatch.delenv("PCDD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(here))
    assert_refused(mnist(), "--data", "PCDD_DATA", "network", "data.name=digits")


# distilled sets


@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_bad_set_is_refused_by_field_place_and_value(command, run, here, assert_refused):
    with np.load(run / "clouds.npz") as archive:
        arrays = dict(archive)
    arrays["coordinates"][3, 2] = 28
    np.savez(here / "bad.npz", **arrays)
    parts = ["bad.npz", "coordinates", "28.0 at [3, 2]", "expected 0 or more and below 28"]
    assert_refused(lambda: main([command, "bad.npz"]), *parts)


@pytest.mark.parametrize("command", ["evaluate", "show"])
@pytest.mark.parametrize("name", ["text", "folder"])
def test_file_that_is_no_set_is_refused(name, command, here, assert_refused):
    if name == "text":
        (here / "bad.npz").write_bytes(b"hello")
    else:
        (here / "bad.npz").mkdir()
    assert_refused(lambda: main([command, "bad.npz"]), "bad.npz")


def test_set_of_other_data_is_refused(here, assert_refused):
    save_clouds(tiny.three_solids(), here / "solids.npz")
    assert_refused(
        lambda: main(["evaluate", "solids.npz", *SCORING]), "solids", "(6, 6, 6)", "(1, 28, 28)"
    )


def test_baseline_knows_every_one_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["baseline", "--help"])
    assert (
        "{" + ",".join(name for name in Baseline.choices if name != "released") + "}"
        in capsys.readouterr().out
    )


def test_split_without_clouds_is_refused(run, assert_refused):
    words = ["data.validation_fraction=0", "evaluation.split=validation", *ON_CPU]
    assert_refused(lambda: main(["evaluate", "run", *words]), "validation")


def test_warning_is_a_plain_line_on_the_terminal(monkeypatch):
    shown = []

    @functools.wraps(commands.presets)
    def warned(options):
        shown.append(warnings.formatwarning(UserWarning("\x1b[31mred"), UserWarning, "a.py", 1))
        return {"text": "", "json": {}}

    monkeypatch.setattr(commands, "presets", warned)
    before = warnings.formatwarning
    assert main(["presets"]) == 0
    assert shown == ["pcdd: \\x1b[31mred\n"] and warnings.formatwarning is before


# runs and records


def test_checkpoint_of_another_configuration_is_refused(run, assert_refused):
    (run / "record.json").unlink()
    assert_refused(
        distill("--resume", "--output", "run", seed=9),
        "run/checkpoint.pt",
        "another configuration",
        "config.json",
    )


def test_damaged_checkpoint_is_refused(run, assert_refused):
    (run / "record.json").unlink()
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:500])
    assert_refused(distill("--resume", "--output", "run"), "run/checkpoint.pt", "--overwrite")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"hello": 1}', '{"seed": 1}'])
def test_run_with_a_damaged_configuration_is_not_evaluated(content, run, assert_refused):
    (run / "config.json").write_text(content)
    assert_refused(lambda: main(["evaluate", "run", *ON_CPU]), "run/config.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"hello": 1}'])
@pytest.mark.parametrize("command", ["show", "table"])
def test_damaged_record_is_named(content, command, run, assert_refused):
    (run / "record.json").write_text(content)
    assert_refused(lambda: main([command, "run"]), "run/record.json")


def test_table_of_something_else_than_records_is_refused(run, here, assert_refused):
    # `pcdd table runs/*` finds such a file beside the runs of a demo
    (here / "quickstart.ipynb").write_text('{"cells": []}')
    assert_refused(lambda: main(["table", "run", "quickstart.ipynb"]), "quickstart.ipynb")


@pytest.mark.parametrize("command", ["show", "evaluate", "table"])
def test_missing_path_is_named(command, assert_refused):
    assert_refused(lambda: main([command, "nowhere"]), "nowhere", "no such file")
