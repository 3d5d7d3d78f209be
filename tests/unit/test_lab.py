"""The lab without a browser: settings, command and program, runs, scores and their cost."""

import base64
import gzip
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pcdd_core.data.datasets import Digits
from pcdd_core.engine.objectives import GradientMatching, Objective
from pcdd_core.errors import InputError
from pcdd_core.experiments.config import override, to_dict
from pcdd_core.experiments.presets import preset
from pcdd_core.geometry.storage import load_clouds
from pcdd_core.view import controls
from pcdd_core.view import scorer as scorers
from pcdd_core.view.lab import Lab, LabView, lab
from pcdd_core.view.scorer import SHARE, Scorer, Stopped, Throttle
from pcdd_core.view.session import Session

ROOT = Path(__file__).parents[2]
HUNG = 30 * 60  # seconds: far above the time on a busy machine
SMALL = {
    "schedule.iterations": 4,
    "network.width": 4,
    "network.layers": 2,
    "objective.real_batch": 2,
    "clouds.points_per_cloud": 12,
    "data.classes": ["2", "3", "7"],
}


def until(condition) -> None:
    end = time.monotonic() + HUNG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def threads() -> list[str]:
    """Return the names of the threads that iterate, score or compute forces."""
    return [thread.name for thread in threading.enumerate() if "distillation" in thread.name]


def panel(**settings) -> LabView:
    """Return the panel of a small lab. Its widgets have no front end."""
    made = Lab("quickstart", {**SMALL, **settings})
    view = made._make_view(made._session)
    made._session.view = view
    return view


def press(view, name: str) -> None:
    view.obey({"order": name})


@pytest.fixture
def view():
    made = panel()
    yield made
    made.session.close()
    until(lambda: not threads())


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", controls.PRESETS)
def test_every_preset_of_the_panel_can_be_configured_and_is_itself(name):
    base = controls.start_of(name)
    values = controls.values_of(base)
    assert controls.configured(base, values) == base and base.data.name != "mnist"
    for control in controls.CONTROLS:
        assert control.tooltip.startswith(f"{control.name}: ")
        if control.name in values and control.choices:
            assert values[control.name] in control.choices


def test_an_objective_of_a_notebook_is_in_the_menu():
    before = tuple(Objective.choices)

    class Mine(GradientMatching, name="mine_in_the_lab"):
        """An objective that is made after the lab was imported."""

    view = panel()
    try:
        menu = view.controls["objective.name"]
        assert menu.options == (*before, "mine_in_the_lab")
        menu.value = "mine_in_the_lab"
        assert isinstance(view.desk.configs[0].objective, Mine) and view.message.value == ""
    finally:
        view.session.close()
        del Objective.choices["mine_in_the_lab"]


def test_values_that_a_piece_does_not_have_are_left_out():
    base = controls.start_of("quickstart")
    config = controls.configured(base, {**controls.values_of(base), "lift.name": "coordinates"})
    assert to_dict(config)["lift"] == {"name": "coordinates"}
    assert config == override(base, {"lift.name": "coordinates"})


@pytest.mark.parametrize("control", controls.COMPARED, ids=lambda control: control.name)
def test_second_run_is_one_setting_apart_and_has_the_same_scatter(control):
    config = controls.start_of("quickstart", SMALL)
    value = controls.values_of(config)[control.name]
    other = control.other if control.other != value else controls.another(control, value)
    second = controls.second(config, control.name, other)
    assert controls.values_of(second)[control.name] == other
    real = config.data.load().train
    assert torch.equal(config.start(real).coordinates, second.start(real).coordinates)
    assert config.schedule.iterations == second.schedule.iterations
    with pytest.raises(InputError, match="equals the first run"):
        controls.second(config, control.name, value)


def test_live_changes_are_told_from_others():
    base = controls.start_of("quickstart")
    step = override(base, {"optimiser.step_size": 0.2})
    wider = override(step, {"lift.bandwidth_end": 1.5})
    deeper = override(wider, {"network.layers": 2})
    hidden = override(base, {"optimiser.momentum": 0.1})
    assert controls.changed([base], [base]) == set()
    assert controls.changed([base], [step]) == {"optimiser.step_size"}
    assert controls.changed([base], [wider]) == {"optimiser.step_size", "lift.bandwidth_end"}
    assert not controls.changed([base], [deeper]) <= controls.LIVE
    assert controls.changed([base], [hidden]) == {""} == controls.changed([base], [base, base])


# --- copies ---------------------------------------------------------------------------------------

COPIED = {
    **SMALL,
    "optimiser.step_size": 0.125,
    "objective.distance": "global_cosine",
    "seed": 5,
    "evaluation.networks": 1,
    "evaluation.epochs": 1,
    "evaluation.classifier.width": 2,
}


@pytest.fixture(scope="module")
def distilled():
    config = controls.start_of("quickstart", COPIED)
    *_, last = config.distill(config.data.load().train)
    return config, last.clouds


def run_in(folder: Path, *words: str) -> None:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_copied_command_makes_the_clouds_of_the_lab(distilled, tmp_path):
    config, clouds = distilled
    program, *words = shlex.split(controls.command("quickstart", config, device="cpu"))
    assert program == "pcdd"
    run_in(tmp_path, "-m", "pcdd_core", *words, "--quiet")
    (path,) = tmp_path.glob("runs/*/clouds.npz")
    assert torch.equal(load_clouds(path).coordinates, clouds.coordinates)


@pytest.mark.slow
def test_copied_program_makes_the_clouds_of_the_lab(distilled, tmp_path):
    config, clouds = distilled
    run_in(tmp_path, "-c", controls.program("quickstart", config, device="cpu"))
    assert torch.equal(load_clouds(tmp_path / "clouds.npz").coordinates, clouds.coordinates)


def test_copies_name_what_differs_from_the_preset_and_folders_with_spaces():
    config = controls.start_of("quickstart", {"data.classes": ["0", "1"], "seed": 3})
    words = shlex.split(controls.command("quickstart", config, "my data", "cpu"))
    assert words == [
        "pcdd", "distill", "--preset=quickstart", "--seed=3", "--data=my data", "--device=cpu",
        "data.name=digits", 'data.classes=["0", "1"]',
    ]  # fmt: skip
    text = controls.program("quickstart", config, "my data", "cpu")
    assert "config.data.load('my data')" in text and "real.train, 'cpu'" in text


# --- the panel ------------------------------------------------------------------------------------


def test_panel_shows_the_settings_and_disables_what_the_pieces_do_not_have(view):
    assert view.controls["data.classes"].value == "2, 3, 7"
    assert view.controls["network.layers"].value == 2
    assert not view.controls["lift.bandwidth_end"].disabled
    view.controls["lift.name"].value = "coordinates"
    assert view.controls["lift.bandwidth_end"].disabled
    assert view.desk.configs[0].lift.name == "coordinates"


def test_step_size_changes_in_a_run_and_depth_begins_another(view):
    session = view.session
    press(view, "Step")
    session.wait()
    run = session.run
    view.controls["optimiser.step_size"].value = 0.05
    assert session.run is run and "from update 2 on" in view.message.value
    press(view, "Step")
    session.wait()
    assert run.tracks[0].config.optimiser.step_size == 0.05
    press(view, "Stop")
    view.session.wait()
    view.controls["optimiser.step_size"].value = 0.06
    assert view.message.value == "Step size 0.06, after Restart."
    press(view, "Restart")
    view.session.wait()
    assert view.session.run.tracks[0].config.optimiser.step_size == 0.06
    run, start = view.session.run, run.recorder.frames[0][1]
    view.controls["network.layers"].value = 1
    assert session.run is not run and session.state() == "ready"
    assert (session.run.recorder.frames[0][1] == start).all()  # the same scatter
    assert session.run.tracks[0].config.optimiser.step_size == 0.06


def test_a_change_in_a_run_starts_the_other_run_and_leaves_none_behind():
    view = panel(**{"schedule.iterations": 10_000})
    view.every.value = 0
    press(view, "Start")
    for layers in (1, 2, 1, 2):
        view.controls["network.layers"].value = layers
        assert view.session.state() == "running"
    until(lambda: threads().count("distillation") == 1)
    until(lambda: view.session.run.tracks[0].updates > 1)
    view.session.close()
    until(lambda: not threads())


def test_settings_that_contradict_are_explained_and_the_run_goes_on(view):
    press(view, "Step")
    view.session.wait()
    run = view.session.run
    view.controls["network.name"].value = "pointnet"
    assert "network.name" in view.message.value and view.session.run is run
    view.controls["network.name"].value = "torch"
    assert view.message.value == "" and view.session.run is run
    view.controls["data.classes"].value = "2, nine"
    assert "nine" in view.message.value and view.session.run is run


def test_second_run_goes_in_step_and_can_be_taken_away(view):
    view.compare.value = "lift.name"
    assert view.names == ["Lift: gaussian", "Lift: coordinates"]
    press(view, "Step")
    view.session.wait()
    assert [track.updates for track in view.session.run.tracks] == [1, 1]
    assert [track.config.lift.name for track in view.session.run.tracks] == [
        "gaussian",
        "coordinates",
    ]
    view.compare.value = "objective.distance"
    assert len(view.session.run.tracks) == 2 and view.names[1] == "Distance: sum_of_squares"
    view.other.children[0].value = "global_cosine"
    assert view.session.run.tracks[1].config.objective.distance.__name__ == "global_cosine"
    view.compare.value = ""
    assert len(view.session.run.tracks) == 1 and view.names == [""]


def test_step_size_of_two_runs_changes_in_both(view):
    view.compare.value = "lift.name"
    press(view, "Step")
    view.session.wait()
    run = view.session.run
    view.controls["optimiser.step_size"].value = 0.05
    press(view, "Step")
    view.session.wait()
    assert view.session.run is run
    assert [track.config.optimiser.step_size for track in run.tracks] == [0.05, 0.05]


def test_reset_and_presets_show_their_settings(view):
    view.controls["network.layers"].value = 1
    view.compare.value = "lift.name"
    view.reset_button.click()
    assert view.desk.configs == [view.desk.base] and view.compare.value == ""
    assert view.controls["network.layers"].value == 2
    view.preset.value = "demo"
    assert view.desk.configs == [controls.start_of("demo")]
    count = preset("demo").config.clouds.clouds_per_class
    assert view.controls["clouds.clouds_per_class"].value == count > 1
    assert len(view.session.run.recorder.clouds) == 10 * count


def test_copy_shows_what_runs(view):
    view.compare.value = "objective.distance"
    view.copy_button.click()
    assert view.copied.layout.display == ""
    for config in view.desk.configs:
        assert controls.command("quickstart", config) in view.copied.value
        assert controls.program("quickstart", config) in view.copied.value


def test_page_of_two_runs_has_both(view, tmp_path):
    view.compare.value = "lift.name"
    press(view, "Step")
    view.session.wait()
    made = Lab("quickstart", SMALL)
    made._session.close()
    made._session = view.session
    made.save(tmp_path / "two.html")
    text = (tmp_path / "two.html").read_text()
    unzipped = gzip.decompress(base64.b64decode(re.search(r'atob\("([^"]*)"\)', text)[1]))
    (length,) = struct.unpack_from("<I", unzipped)
    header = json.loads(unzipped[4 : 4 + length])
    assert header["runs"] == ["Lift: gaussian", "Lift: coordinates"]
    assert header["updates"] == [0, 1] and len(header["labels"]) == 6


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="no preset"):
        lab("quickstrat")
    with pytest.raises(InputError, match="network.layers"):
        lab(settings={"network.layer": 3})


def test_lab_without_a_front_end_runs_to_the_end():
    made = lab(settings=SMALL)
    assert made.status == "finished, update 4 of 4" and len(made.recording) == 5


# --- scores ---------------------------------------------------------------------------------------


def test_throttle_bounds_the_share_of_work(monkeypatch):
    """Slices of any length: the work is at most SHARE of the time, on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(scorers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scorers.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    throttle, worked = Throttle(lambda: True, lambda: False), 0.0
    for slice in (0.01, 0.2, 0.003, 1.0, 0.05):
        now[0] += slice
        worked += slice
        throttle()
    assert worked / now[0] <= SHARE * (1 + 1e-9)
    assert 1 / (1 - SHARE) - 1 <= 0.15  # the slow-down that is stated
    idle = Throttle(lambda: False, lambda: False)
    before = now[0]
    idle()
    assert now[0] == before  # nobody is slowed down
    with pytest.raises(Stopped):
        Throttle(lambda: True, lambda: True)()


def scored(session: Session, every: int = 2) -> list[dict]:
    splits = Digits(classes=("2", "3", "7")).load()
    told: list[dict] = []
    scorer = Scorer(session, splits, every, lambda scores: told.append(scores))
    scorer.start()
    return told


def session_of(iterations: int, *changes: dict) -> Session:
    small = {**SMALL, "schedule.iterations": iterations}
    configs = [controls.start_of("quickstart", {**small, **change}) for change in changes]
    return Session(configs, configs[0].data.load().train, "cpu")


@pytest.mark.slow
def test_scores_of_each_run_beside_those_of_baselines():
    session = session_of(4, {}, {"optimiser.step_size": 0.01})
    told = scored(session)
    session.start()
    until(lambda: told and all(curve and curve[-1][0] == 4 for curve in told[-1]["runs"]))
    assert set(told[-1]["baselines"]) == {"random", "herding", "class mean"}
    for value in (*told[-1]["baselines"].values(), *(curve[-1][1] for curve in told[-1]["runs"])):
        assert 0 <= value <= 100
    assert max(told[-1]["baselines"].values()) > 50  # three digits: a third by chance
    assert "10%" in told[-1]["note"]
    until(lambda: "distillation helper" not in threads())


@pytest.mark.slow
def test_scoring_ends_with_its_session():
    session = session_of(100_000, {})
    told = scored(session)
    session.start()
    until(lambda: told)
    assert set(threads()) == {"distillation", "distillation helper"}
    session.close()
    until(lambda: not threads())
    assert told[-1]["baselines"]["random"] > 0 and session.run.ended == "stopped"


def test_score_is_that_of_the_evaluation():
    session = session_of(2, {})
    splits = Digits(classes=("2", "3", "7")).load()
    scorer = Scorer(session, splits, 1, lambda scores: None)
    config = session.run.tracks[0].config
    clouds = session.run.recorder.clouds
    expected = scorers.evaluate(
        clouds,
        splits.validation,
        scorers.ConvNet(16),
        scorers.Protocol(networks=1, epochs=100, augmentation="fast"),
        seed=config.seed,
    )
    assert scorer.accuracy(clouds, lambda *_: None) == expected["standard"].mean
