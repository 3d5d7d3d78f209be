"""Recordings, their page and animations, and live distillation controlled from code."""

import gc
import gzip
import json
import re
import struct
import subprocess
import threading
import time
import weakref
from dataclasses import replace
from itertools import islice

import imageio_ffmpeg
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pcdd_core.engine.distill import Step
from pcdd_core.errors import DistillationFailed, InputError
from pcdd_core.experiments.config import Config
from pcdd_core.geometry.clouds import PointClouds, clouds_from_list
from pcdd_core.geometry.storage import save_clouds
from pcdd_core.view import animation, page
from pcdd_core.view import recording as recordings
from pcdd_core.view.animation import save_animation
from pcdd_core.view.kernel import has_screen
from pcdd_core.view.live import LiveDistillation, watch
from pcdd_core.view.page import encode, encoded_in, save_player
from pcdd_core.view.recording import Recorder, Recording, read_recording, still
from pcdd_core.view.session import Session
from pcdd_core.view.widget import show


def recording(
    frames: int = 5, grid=(1, 28, 28), names=("zero", "one", "two"), points: int = 20
) -> Recording:
    """Return a recording of clouds on random walks."""
    draws = np.random.default_rng(0)
    start = draws.uniform(0, 1, (points * len(names), 3)) * (np.array(grid) - 1)
    moves = draws.normal(0, 0.5, (frames, len(start), 3)).cumsum(0) * (np.array(grid) > 1)
    coordinates = np.clip(start + moves, 0, np.array(grid) - 1).astype(np.float32)
    clouds = clouds_from_list(
        torch.from_numpy(coordinates[-1]).split(points), range(len(names)), grid, names
    )
    curves = draws.uniform(1, 2, (2, frames - 1)).astype(np.float32)
    gradients = 10 ** draws.uniform(-6, 1, coordinates.shape[:2]).astype(np.float32)
    return Recording(clouds, np.arange(frames), coordinates, *curves, frames - 1, gradients)


def decoded(encoded: bytes) -> dict:
    """Decode a recording as player.js does, written again from the description of the format."""
    data = gzip.decompress(encoded)
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    points, frames = header["offsets"][-1], len(header["updates"])
    at = 4 + length

    def take(kind: str, *shape: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
        at += array.nbytes
        return array

    low, high = (take("u1", frames, 3, points).astype(np.uint16) for _ in range(2))
    places = (low + 256 * high).cumsum(0, dtype=np.uint16)
    gradients = (
        take("u1", frames, points).cumsum(0, dtype=np.uint8) if header["has_gradients"] else None
    )
    curves = take("<f4", 2 * len(header["runs"]), header["curve_length"])
    assert at == len(data)
    return header | {"places": places, "gradients": gradients, "curves": curves}


# --- recordings -----------------------------------------------------------------------------------


def test_recorder_keeps_every_frame_of_a_short_run_and_thins_a_long_one_evenly(monkeypatch):
    monkeypatch.setattr(recordings, "MOST_FRAMES", 8)
    clouds = recording().clouds
    recorder = Recorder(clouds, 30)
    for iteration in range(30):
        moved = clouds.with_coordinates(clouds.coordinates + iteration / 100)
        step = Step(
            iteration,
            [1.0, 2.0, float(iteration)],
            0.1 * iteration,
            0.0,
            torch.ones(60, 3),
            moved,
            {},
        )
        recorder.add(step)
        updates = recorder.recording().updates
        assert updates[0] == 0 and updates[-1] == iteration + 1 and len(updates) <= 9
        assert (
            set(np.diff(updates[:-1])) <= {recorder.stride}
            and 0 < updates[-1] - updates[-2] <= recorder.stride
        )
        if iteration < 7:
            assert updates.tolist() == list(range(iteration + 2))
    kept = recorder.recording()
    assert np.allclose(kept.matching_loss, 3 + np.arange(30))
    assert np.allclose(kept.mean_absolute_gradient, 0.1 * np.arange(30))
    assert (
        np.array_equal(kept.coordinates[-1], moved.coordinates.numpy())
        and kept.clouds is not clouds
    )
    assert np.allclose(kept.gradients[-1], 3**0.5) and not kept.gradients[0].any()


def test_recording_of_a_run_folder_is_what_the_run_kept(tmp_path):
    assert (
        tiny.pcdd("distill", "--preset", "quickstart", "--output", str(tmp_path / "run"), "--quiet")
        == 0
    )
    read = read_recording(tmp_path / "run")
    assert (
        read.updates.tolist() == [0, 1, 2, 3, 4, 5]
        and read.iterations == 5
        and read.gradients is None
    )
    assert len(read.matching_loss) == 5 and torch.equal(
        read.clouds.coordinates, torch.from_numpy(read.coordinates[-1])
    )
    assert not decoded(encode(read))["has_gradients"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("trajectory.npz", None, "no such file"),
        ("steps.jsonl", None, "no such file"),
        ("clouds.npz", None, "no such file"),
        ("trajectory.npz", b"nonsense", "not a readable trajectory"),
        (
            "trajectory.npz",
            np.zeros((2, 7, 3), np.float32),
            r"shape \(2, 7, 3\); expected \(2, 6, 3\)",
        ),
        ("trajectory.npz", np.full((2, 6, 3), np.nan, np.float32), "outside of the grid"),
        ("trajectory.npz", np.full((2, 6, 3), 9, np.float32), "outside of the grid"),
        ("steps.jsonl", b'{"iteration": 0}\n', "not the steps of a run.*matching_loss"),
        ("steps.jsonl", b'{"iteration"', "not the steps of a run"),
    ],
)
def test_run_folder_that_is_not_whole_is_refused_by_the_file_that_is_wrong(
    tmp_path, name, content, said
):
    clouds = clouds_from_list([torch.rand(6, 3)], [0], (1, 8, 8), ("only",))
    clouds = clouds.with_coordinates(clouds.coordinates * torch.tensor([0.0, 7, 7]))
    save_clouds(clouds, tmp_path / "clouds.npz")
    np.savez(
        tmp_path / "trajectory.npz",
        updates=[0, 1],
        coordinates=np.stack([clouds.coordinates.numpy()] * 2),
    )
    (tmp_path / "steps.jsonl").write_text(
        '{"matching_loss": [1.0], "mean_absolute_gradient": 0.5}\n'
    )
    assert len(read_recording(tmp_path)) == 2
    if content is None:
        (tmp_path / name).unlink()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.savez(tmp_path / name, updates=[0, 1], coordinates=content)
    with pytest.raises(InputError, match=f"{name}: .*{said}"):
        read_recording(tmp_path)


# --- the encoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 28, 28), (16, 16, 16), (1, 300, 5), (1, 60000, 2)])
def test_encoded_coordinates_stay_in_their_cell_and_are_half_a_step_off_at_most(grid):
    given = recording(grid=grid)
    encoded, steps = decoded(encode(given)), page.steps_per_cell(grid)
    assert steps == encoded["steps"] and steps & (steps - 1) == 0
    places = encoded["places"].swapaxes(1, 2)
    assert np.array_equal(places // steps, np.floor(given.coordinates))
    assert np.abs((places + 0.5) / steps - given.coordinates).max() <= 0.5 / steps * 1.001


def test_encoding_keeps_everything_else():
    given = recording()
    encoded = decoded(encode(given))
    assert (
        encoded["labels"] == [0, 1, 2]
        and encoded["offsets"] == [0, 20, 40, 60]
        and encoded["grid"] == [1, 28, 28]
    )
    assert encoded["class_names"] == ["zero", "one", "two"] and encoded["iterations"] == 4
    assert encoded["updates"] == [0, 1, 2, 3, 4]
    assert np.array_equal(encoded["curves"], [given.matching_loss, given.mean_absolute_gradient])
    lengths = 10 ** (encoded["gradients"] / page.LEVELS_PER_DECADE + page.LOWEST_DECADE)
    assert np.abs(np.log10(lengths / given.gradients)).max() <= 0.51 / page.LEVELS_PER_DECADE


def test_two_recordings_are_encoded_one_after_the_other():
    first, second = recording(frames=4), replace(recording(frames=4), iterations=9)
    second = replace(
        second, coordinates=second.coordinates[:, ::-1], matching_loss=first.matching_loss + 1
    )
    got = decoded(encode(first, second, names=["a", "b"]))
    alone = [decoded(encode(given)) for given in (first, second)]
    assert got["runs"] == ["a", "b"] and got["labels"] == [0, 1, 2, 0, 1, 2]
    assert got["offsets"] == [0, 20, 40, 60, 80, 100, 120]
    for name in ("places", "gradients"):
        assert np.array_equal(got[name], np.concatenate([each[name] for each in alone], axis=-1))
    assert np.array_equal(got["curves"][[0, 2]], alone[0]["curves"])
    assert np.array_equal(got["curves"][[1, 3]], alone[1]["curves"])


def test_gradients_of_nothing_and_of_too_much_are_the_ends_of_the_scale():
    assert page.gradient_levels(np.array([0, 1e-30, 1e30], np.float32)).tolist() == [0, 0, 255]


def test_one_frame_can_be_encoded():
    given = still(recording().clouds)
    assert len(given) == 1 and len(decoded(encode(given))["places"]) == 1


# --- the page -------------------------------------------------------------------------------------


def test_page_is_self_contained_and_holds_the_recording(tmp_path):
    given = recording()
    save_player(given, tmp_path / "folder" / "page.html")
    text = (tmp_path / "folder" / "page.html").read_text(encoding="utf-8")
    assert not re.search(
        r"https?:|//cdn|\bimport\b\s*[\"'({*]|\bfrom\s+[\"']|fetch\(|\bsrc=|\bhref=", text
    )
    assert "default-src 'none'" in text
    assert encoded_in(text) == encode(given)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["page.html"]


def test_names_cannot_break_out_of_the_page(tmp_path):
    names = (
        "</title></script><script>alert(1)</script>",
        "{data}{script}",
        '"&amp;<img onerror=x>',
    )
    save_player(recording(names=names), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        text.count("<script") == text.count("</script") == 1
        and "<img" not in text
        and text.count("</title>") == 1
    )
    assert decoded(encoded_in(text))["class_names"] == list(names)


def test_script_of_the_page_can_hold_the_names_of_the_parts(monkeypatch, tmp_path):
    script = "const label = `${title} {data} {script}`;"
    (tmp_path / "player.js").write_text(script)
    monkeypatch.setattr(page, "SCRIPT", tmp_path / "player.js")
    assert script in page.page_of(recording())


def test_page_of_a_run_of_ten_digits_is_small(tmp_path):
    names = tuple("0123456789")
    save_player(
        replace(recording(61, names=names, points=250), gradients=None), tmp_path / "page.html"
    )
    assert (tmp_path / "page.html").stat().st_size < 600_000


@pytest.mark.parametrize(
    ("save", "name"), [(save_player, "page.pdf"), (save_player, "page"), (save_animation, "a.avi")]
)
def test_wrong_suffix_is_refused_and_nothing_written(tmp_path, save, name):
    with pytest.raises(InputError, match=f"{name}.*expected"):
        save(recording(), tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- animations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [recording(), recording(grid=(6, 6, 6)), recording(names=("only",))], ids="236"
)
def test_gif_has_every_frame_and_moves(tmp_path, given):
    save_animation(given, tmp_path / "points.GIF")
    image = Image.open(tmp_path / "points.GIF")
    assert image.n_frames == 5 and image.info["loop"] == 0
    first = np.asarray(image.convert("RGB"))
    image.seek(4)
    assert (first != np.asarray(image.convert("RGB"))).any() and image.info["duration"] > 1000


def test_long_recording_is_animated_in_fewer_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "ANIMATION_FRAMES", 3)
    save_animation(recording(), tmp_path / "points.gif")
    assert Image.open(tmp_path / "points.gif").n_frames == 3


def test_mp4_can_be_decoded_and_moves(tmp_path):
    save_animation(recording(), tmp_path / "points.mp4")
    seconds = 5 / animation.FRAMES_PER_SECOND + animation.LAST_SECONDS
    frames = imageio_ffmpeg.read_frames(str(tmp_path / "points.mp4"))
    about = next(frames)
    images = [np.frombuffer(frame, np.uint8) for frame in frames]
    assert (
        about["codec"] == "h264" and abs(len(images) / animation.FRAMES_PER_SECOND - seconds) < 0.2
    )
    assert about["pix_fmt"].startswith("yuv420p") and (images[0] != images[4]).any()
    assert [path.name for path in tmp_path.iterdir()] == ["points.mp4"]


def test_failing_encoder_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "false")
    with pytest.raises(RuntimeError, match="ffmpeg"):
        save_animation(recording(), tmp_path / "points.mp4")
    assert not list(tmp_path.iterdir())


def test_one_frame_can_be_animated(tmp_path):
    for name in ("still.gif", "still.mp4"):
        save_animation(still(recording().clouds), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


# --- live distillation controlled from code -------------------------------------------------------


def live(iterations: int = 6, **changes) -> LiveDistillation:
    config = tiny.config(schedule__iterations=iterations, **changes)
    return LiveDistillation(config, tiny.three_digits(), "cpu")


ENDLESS = 10**6  # iterations: more than any test waits for
HUNG = 30 * 60  # seconds: far above the time on a busy machine


def until(condition) -> None:
    end = time.monotonic() + HUNG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def updates(of: LiveDistillation) -> int:
    return int(of.recording.updates[-1])


def test_watched_distillation_ends_where_an_unwatched_one_does():
    watched = live()
    assert watched.status == "ready, update 0 of 6" and len(watched.recording) == 1
    recorded = watched.finish()
    *_, last = tiny.config(schedule__iterations=6).distill(tiny.three_digits())
    assert torch.equal(recorded.clouds.coordinates, last.clouds.coordinates)
    assert watched.status == "finished, update 6 of 6" and recorded.updates.tolist() == list(
        range(7)
    )


def test_step_makes_exactly_one_iteration():
    watched = live()
    for made in (1, 2):
        watched.step()
        watched.wait()
        assert watched.status == f"paused, update {made} of 6"
    watched.step()
    watched.step()  # does not wait: two iterations are due
    watched.wait()
    assert updates(watched) == 4


def test_nothing_moves_after_a_pause_and_start_goes_on():
    watched = live(ENDLESS)
    watched.start()
    until(lambda: updates(watched) >= 2)
    watched.pause()
    watched.wait()
    at = watched.recording
    assert watched.status.startswith("paused")
    for thread in threading.enumerate():  # what could still move points has ended
        if thread.name == "distillation":
            thread.join()
    assert updates(watched) == at.updates[-1]
    watched.start()
    until(lambda: updates(watched) > at.updates[-1])
    watched.stop()
    watched.wait()
    *_, last = islice(
        tiny.config(schedule__iterations=ENDLESS).distill(tiny.three_digits()), updates(watched)
    )
    assert torch.equal(watched.recording.clouds.coordinates, last.clouds.coordinates)


def test_stopped_run_keeps_its_recording_and_cannot_be_continued():
    watched = live(ENDLESS)
    watched.start()
    until(lambda: updates(watched) >= 2)
    watched.stop()
    watched.wait()
    assert watched.status.startswith("stopped") and updates(watched) >= 2
    for order in (watched.start, watched.step):
        with pytest.raises(InputError, match="restart"):
            order()


def test_orders_act_at_the_end_of_the_iteration_in_progress(monkeypatch):
    begun, may_end = threading.Event(), threading.Event()
    distill = Config.distill

    def slow(*arguments):
        for step in distill(*arguments):
            begun.set()
            may_end.wait(HUNG)
            yield step

    monkeypatch.setattr(Config, "distill", slow)
    watched = live()
    watched.start()
    assert begun.wait(HUNG)
    watched.pause()
    assert watched.status == "pausing, update 0 of 6"
    may_end.set()
    watched.wait()
    assert watched.status == "paused, update 1 of 6"


def test_restart_begins_from_the_same_scatter_at_any_moment():
    watched = live(ENDLESS)
    start = watched.recording.coordinates[0]
    watched.start()
    until(lambda: updates(watched) >= 3)
    watched.restart()  # while it runs
    until(lambda: updates(watched) >= 1)
    watched.stop()
    watched.wait()
    assert np.array_equal(watched.recording.coordinates[0], start)
    first = watched.recording.coordinates[1]
    watched.restart()  # after its end
    until(lambda: updates(watched) >= 1)
    watched.stop()
    watched.wait()
    assert np.array_equal(watched.recording.coordinates[1], first)


def test_failure_is_said_and_raised_and_the_recording_kept():
    watched = live(
        lift__name="coordinates",
        objective__distance="sum_of_squares",
        optimiser__name="sgd",
        optimiser__step_size=1e30,
        schedule__training_steps=2,
        schedule__training_step_size=1e30,
        network__norm="none",
        schedule__iterations_per_network=0,
    )
    with pytest.raises(DistillationFailed):
        watched.finish()
    assert watched.status.startswith("failed: iteration") and len(watched.recording) >= 1
    with pytest.raises(DistillationFailed):
        watched.wait()
    with pytest.raises(InputError, match="restart"):
        watched.start()


def test_settings_that_do_not_fit_are_refused_at_once():
    with pytest.raises(InputError, match="real_batch"):
        live(objective__real_batch=1000)


def test_without_a_front_end_watch_has_run_to_the_end_and_shows_a_picture(capsys):
    watched = watch(tiny.config(schedule__iterations=3), tiny.three_digits(), "cpu")
    assert not has_screen() and watched.status == "finished, update 3 of 3"
    assert show(watched.recording).data.startswith(b"\x89PNG")


def test_3d_clouds_can_be_watched(tmp_path):
    config = tiny.config(schedule__iterations=2, objective__real_batch=2)
    solid: PointClouds = tiny.three_solids()
    watched = watch(config, solid, "cpu")
    save_player(watched.recording, tmp_path / "solid.html")
    assert decoded(encoded_in((tmp_path / "solid.html").read_text()))["grid"] == [6, 6, 6]


def tracks(iterations: int = ENDLESS, *changes: dict) -> Session:
    """Return a session with one track for each of `changes`, on three digits."""
    configs = [tiny.config(schedule__iterations=iterations, **change) for change in changes]
    return Session(configs, tiny.three_digits(), "cpu")


def done(session: Session) -> list[int]:
    return [track.updates for track in session.run.tracks]


def test_two_tracks_go_in_step_and_each_as_it_would_alone():
    changes = {}, {"lift__name": "coordinates"}
    session = tracks(6, *changes)
    for expected in (1, 2):
        session.step()
        session.wait()
        assert done(session) == [expected, expected]
    session.start()
    session.wait()
    assert session.state() == "finished" and done(session) == [6, 6]
    first, second = (track.recorder for track in session.run.tracks)
    assert np.array_equal(first.frames[0][1], second.frames[0][1])  # the same scatter
    for change, recorder in zip(changes, (first, second)):
        *_, last = tiny.config(schedule__iterations=6, **change).distill(tiny.three_digits())
        assert torch.equal(recorder.clouds.coordinates, last.clouds.coordinates)


def test_changed_settings_hold_from_the_next_iteration_and_nothing_else_changes():
    changed = tiny.config(schedule__iterations=6, optimiser__step_size=0.05)
    session = tracks(6, {})
    for _ in range(2):
        session.step()
    session.wait()
    session.change([changed])
    session.step()
    session.wait()
    two = list(islice(tiny.config(schedule__iterations=6).distill(tiny.three_digits()), 2))
    resumed = next(changed.distill(tiny.three_digits(), state=two[-1].state()))
    assert torch.equal(session.run.recorder.clouds.coordinates, resumed.clouds.coordinates)
    moved = np.abs(session.run.recorder.frames[3][1] - session.run.recorder.frames[2][1]).max()
    before = np.abs(session.run.recorder.frames[2][1] - session.run.recorder.frames[1][1]).max()
    assert 0 < moved < before / 2


def test_changed_settings_that_do_not_fit_leave_the_run_as_it_is():
    session = tracks(6, {})
    with pytest.raises(InputError, match="real_batch"):
        session.change([tiny.config(schedule__iterations=6, objective__real_batch=1000)])
    with pytest.raises(InputError, match="real_batch"):
        session.replace([tiny.config(objective__real_batch=1000)], tiny.three_digits())
    session.start()
    session.wait()
    assert session.state() == "finished" and done(session) == [6]


def test_a_pause_between_iterations_does_not_delay_orders():
    session = tracks(ENDLESS, {})
    session.delay = HUNG
    session.start()
    until(lambda: done(session) == [1])
    session.pause()
    session.wait()
    session.start()
    until(lambda: done(session) == [2])
    session.stop()
    session.wait()
    assert session.state() == "stopped" and done(session) == [2]


def test_hundred_restarts_leave_nothing():
    session = tracks(ENDLESS, {})
    runs = []
    for _ in range(100):
        session.restart()
        runs.append(weakref.ref(session.run))
    until(lambda: session.run.tracks[0].updates >= 1)
    session.close()
    until(lambda: not [t for t in threading.enumerate() if t.name == "distillation"])
    gc.collect()
    assert [run() for run in runs[:-1]] == [None] * 99


def test_ffmpeg_is_there():
    assert (
        subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-version"], capture_output=True
        ).returncode
        == 0
    )
