"""Recordings of moving points, and their export as an HTML page, an animated GIF or a video.

A `Recording` comes from a finished run (`read_recording`) or from a live run
(`live.LiveDistillation.recording`). The page contains player.js, which also draws the live view,
and needs no other file and no network.
"""

import base64
import gzip
import html
import itertools
import json
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..engine.distill import Step
from ..errors import InputError, extra_missing
from ..experiments import figures
from ..experiments.records import read_trajectory
from ..files import atomic_write, atomic_write_text
from ..geometry.clouds import Grid, PointClouds
from ..geometry.storage import load_clouds

SCRIPT = Path(__file__).with_name("player.js")
MOST_FRAMES = 200  # largest number of frames in a recorder
# Steps per cell of coordinates in the page and the live view. A power of 2 keeps cells exact.
STEPS = 256
# Gradients in the page and the live view: levels 0 to 255 of a logarithmic scale, 1e-8 to 1e2 per
# cell.
LOWEST_DECADE, LEVELS_PER_DECADE = -8, 25.5
FRAMES_PER_SECOND = 12  # of GIFs and videos
ANIMATION_FRAMES = 150  # largest number of frames in an animation
LAST_SECONDS = 1.5  # duration of the last frame
ANIMATION_CLOUDS = 20  # largest number of clouds in an animation


@dataclass(frozen=True, eq=False)
class Recording:
    """Positions of points in several frames, and two curves over all updates.

    clouds:                 labels, offsets, grid and class names; coordinates of the last frame
    updates:                int64 (frames,), updates before each frame, increasing; 0 is the start
    coordinates:            float32 (frames, points, 3), in cells
    matching_loss:          float32 (finished updates,), summed over classes, before each update
    mean_absolute_gradient: float32 (finished updates,), per cell
    iterations:             updates of the whole run; the recording can end earlier
    gradients:              float32 (frames, points), length of each point's gradient in the last
                            update before the frame, per cell; 0 at the start; None: not recorded
    """

    clouds: PointClouds
    updates: np.ndarray
    coordinates: np.ndarray
    matching_loss: np.ndarray
    mean_absolute_gradient: np.ndarray
    iterations: int
    gradients: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.updates)

    def picture(self, rows: int = 3) -> Figure:
        """Draw the clouds in at most `rows` frames with `figures.migration`."""
        return figures.migration(
            {"updates": self.updates, "coordinates": self.coordinates}, self.clouds, rows
        )


class Recorder:
    """Record a run while it proceeds: every `stride`-th update, and the last one.

    The stride doubles when there would be more than MOST_FRAMES frames, so frames stay evenly
    spaced in a run of any length.
    """

    def __init__(self, start: PointClouds, iterations: int):
        self.clouds, self.iterations, self.stride = start.to("cpu"), iterations, 1
        self.frames = [
            (0, self.clouds.coordinates.numpy(), np.zeros(len(start.coordinates), np.float32))
        ]
        self.matching_loss: list[float] = []
        self.mean_absolute_gradient: list[float] = []

    def add(self, step: Step) -> None:
        """Record one iteration."""
        self.clouds = step.clouds.to("cpu")
        self.matching_loss.append(sum(step.matching_loss))
        self.mean_absolute_gradient.append(step.mean_absolute_gradient)
        self._thin()
        if len(self.frames) >= MOST_FRAMES:
            self.stride *= 2
            self._thin()
        gradients = step.gradient.norm(dim=1).cpu().numpy()
        self.frames.append((step.iteration + 1, self.clouds.coordinates.numpy(), gradients))

    def _thin(self) -> None:
        self.frames = [frame for frame in self.frames if frame[0] % self.stride == 0]

    def recording(self) -> Recording:
        """Return the recording up to the latest update."""
        updates, coordinates, gradients = zip(*self.frames)
        return Recording(
            self.clouds,
            np.array(updates, np.int64),
            np.stack(coordinates),
            np.array(self.matching_loss, np.float32),
            np.array(self.mean_absolute_gradient, np.float32),
            self.iterations,
            np.stack(gradients),
        )


def still(clouds: PointClouds) -> Recording:
    """Return a recording with one frame, for clouds that do not move."""
    frame = clouds.coordinates.detach().cpu().numpy().astype(np.float32)[None]
    no_curve = np.zeros(0, np.float32)
    return Recording(clouds.to("cpu"), np.zeros(1, np.int64), frame, no_curve, no_curve, 0)


def read_recording(folder: Path | str) -> Recording:
    """Read the recording of a finished run from its folder.

    A run stores no gradients of single points, so `gradients` is None. Raises InputError if a file
    is missing or damaged.
    """
    folder = Path(folder)
    for name in ("trajectory.npz", "steps.jsonl", "clouds.npz"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name}: no such file; expected the folder of a finished run"
            )
    clouds = load_clouds(folder / "clouds.npz")
    path = folder / "trajectory.npz"
    try:
        trajectory = read_trajectory(folder)
        updates = trajectory["updates"].astype(np.int64)
        coordinates = trajectory["coordinates"].astype(np.float32)
    except Exception as error:  # damaged files raise about ten types
        raise InputError(f"{path}: not a readable trajectory ({error})") from None
    expected = (updates.size, len(clouds.coordinates), 3)
    if coordinates.shape != expected or not updates.size:
        raise InputError(
            f"{path}: coordinates of shape {coordinates.shape}; "
            f"expected {expected}, as in clouds.npz"
        )
    if not ((coordinates >= 0) & (coordinates < clouds.grid)).all():  # also refuses NaN
        raise InputError(f"{path}: coordinates outside of the grid {clouds.grid}")
    path = folder / "steps.jsonl"
    try:
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        loss = np.array([sum(step["matching_loss"]) for step in steps], np.float32)
        gradient = np.array([step["mean_absolute_gradient"] for step in steps], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the steps of a run ({error!r})") from None
    return Recording(
        clouds, updates, coordinates, loss, gradient, max(len(steps), int(updates[-1]))
    )


# --- encoding for player.js -----------------------------------------------------------------------


def steps_per_cell(grid: Grid) -> int:
    """Return STEPS, halved until the coordinates of the grid fit into 16 bits."""
    steps = STEPS
    while steps > 1 and steps * max(grid) > 2**16:
        steps //= 2
    return steps


def quantised(coordinates: np.ndarray, grid: Grid) -> np.ndarray:
    """Quantise coordinates (..., points, 3) in cells to uint16 (..., 3, points) in steps.

    Values are rounded down, so that each point stays in its cell. The view adds half a step, so its
    error is at most half a step.
    """
    return np.floor(coordinates.swapaxes(-1, -2) * np.float32(steps_per_cell(grid))).astype(
        np.uint16
    )


def gradient_levels(gradients: np.ndarray) -> np.ndarray:
    """Convert lengths of gradients, of any shape, to uint8 levels of the logarithmic scale."""
    decades = np.log10(np.maximum(gradients, 10.0**LOWEST_DECADE)) - LOWEST_DECADE
    return (decades * LEVELS_PER_DECADE).round().clip(0, 255).astype(np.uint8)


def encode(recording: Recording) -> bytes:
    """Encode a recording for `decode` in player.js.

    The result is gzipped: length of the header, header in JSON, arrays. Coordinates and gradients
    are stored as differences between frames, modulo their range. Low and high bytes of coordinates
    are separate arrays, because points move little between frames and most high bytes are 0.
    """
    clouds = recording.clouds
    header = {
        "grid": clouds.grid,
        "labels": clouds.labels.tolist(),
        "offsets": clouds.offsets.tolist(),
        "class_names": clouds.class_names,
        "updates": recording.updates.tolist(),
        "iterations": recording.iterations,
        "curve_length": len(recording.matching_loss),
        "has_gradients": recording.gradients is not None,
        "steps": steps_per_cell(clouds.grid),
        "lowest_decade": LOWEST_DECADE,
        "levels_per_decade": LEVELS_PER_DECADE,
    }
    text = json.dumps(header).encode()
    places = _differences(quantised(recording.coordinates, clouds.grid))
    low, high = places.astype(np.uint8), (places >> 8).astype(np.uint8)
    parts = [struct.pack("<I", len(text)), text, low.tobytes(), high.tobytes()]
    if recording.gradients is not None:
        parts.append(_differences(gradient_levels(recording.gradients)).tobytes())
    parts += [
        curve.astype("<f4").tobytes()
        for curve in (recording.matching_loss, recording.mean_absolute_gradient)
    ]
    return gzip.compress(b"".join(parts), 6, mtime=0)


def _differences(frames: np.ndarray) -> np.ndarray:
    """Subtract from each frame the one before, modulo the range of the type. The first stays."""
    return np.concatenate([frames[:1], frames[1:] - frames[:-1]])


def save_player(recording: Recording, path: Path | str) -> None:
    """Write an HTML page that plays the recording, atomically.

    The page is one file and needs no network. Raises InputError if `path` has another suffix than
    .html or .htm, or if the folder is not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: the player is an HTML page; expected a name that ends in .html")
    title = html.escape("Moving points: " + ", ".join(dict.fromkeys(_names(recording.clouds))))
    page = PAGE.replace("{script}", SCRIPT.read_text(encoding="utf-8"))
    page = page.replace("{data}", base64.b64encode(encode(recording)).decode())
    # The title comes last, because a class name can contain "{script}" or "{data}".
    atomic_write_text(path, page.replace("{title}", title))


# The content security policy forbids all requests, so the page cannot load anything. Text from data
# occurs in the title, where it is escaped, and in the recording. The recording is base64 here, and
# player.js writes its text by `textContent` and to canvases only.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark }
body { margin: 12px auto; padding: 0 12px; max-width: 1100px }
</style>
</head>
<body>
<main id="player">This page needs JavaScript and a browser from 2023 or later.</main>
<script type="module">
{script}
const bytes = Uint8Array.from(atob("{data}"), (character) => character.charCodeAt(0));
mount(document.getElementById("player")).show(await decode(bytes));
</script>
</body>
</html>
"""


# --- animations -----------------------------------------------------------------------------------


def save_animation(recording: Recording, path: Path | str) -> None:
    """Write the recording as an animated .gif or as an .mp4 video (H.264), atomically.

    The animation has at most ANIMATION_FRAMES frames, FRAMES_PER_SECOND, and the first
    ANIMATION_CLOUDS clouds. The colour of a point is its distance from its start. Raises InputError
    if the suffix is another one or the folder is not writable, and RuntimeError if ffmpeg fails.
    """
    path = Path(path)
    kinds = {".gif": _write_gif, ".mp4": _write_mp4}
    write = kinds.get(path.suffix.lower())
    if write is None:
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}; expected .gif or .mp4"
        )
    atomic_write(path, lambda file: write(recording, file))


def _write_gif(recording: Recording, file: BinaryIO) -> None:
    frames = list(_frames(recording))
    # All frames share the palette of the last frame, so that colours do not flicker. In the last
    # frame points have the full range of colours.
    palette = Image.fromarray(frames[-1]).quantize(64)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    duration = [1000 // FRAMES_PER_SECOND] * (len(images) - 1) + [int(1000 * LAST_SECONDS)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)


def _write_mp4(recording: Recording, file: BinaryIO) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise extra_missing("imageio-ffmpeg", "notebooks", "(or write a .gif)") from None
    frames = _frames(recording)
    first = next(frames)
    # a file, because ffmpeg seeks back to the beginning of its output
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
        command += [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{first.shape[1]}x{first.shape[0]}",
        ]
        command += ["-r", str(FRAMES_PER_SECOND), "-i", "-"]
        command += ["-vf", f"tpad=stop_mode=clone:stop_duration={LAST_SECONDS}", "-c:v", "libx264"]
        command += ["-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart", str(video)]
        pictures = b"".join(frame.tobytes() for frame in itertools.chain([first], frames))
        done = subprocess.run(command, input=pictures, capture_output=True)
        if done.returncode:
            raise RuntimeError(
                f"ffmpeg could not write the video: {done.stderr.decode(errors='replace').strip()}"
            )
        file.write(video.read_bytes())


def _frames(recording: Recording) -> Iterator[np.ndarray]:
    """Yield the frames of an animation, uint8 (height, width, 3). Videos need even sides."""
    clouds, grid = recording.clouds, recording.clouds.grid
    numbers = range(min(len(clouds), ANIMATION_CLOUDS))
    columns = min(len(numbers), 5)
    rows = -(-len(numbers) // columns)
    wide = 2.0 if columns > 2 else 4.0  # width of a tile in inches of 100 pixels
    tall = wide * (grid[1] / grid[2] if grid[0] == 1 else 1) + 0.3
    size = [2 * round(50 * inches) for inches in (columns * wide, rows * tall + 0.3)]
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.01, 30 / size[1], 0.99, 1 - 25 / size[1], 0.04, 0.3 / tall)
    moment = figure.text(0.01, 8 / size[1], "", fontsize=9)
    for axes in figure.axes[len(numbers) :]:
        axes.set_visible(False)
    most = max(grid) / 2  # cells, as in player.js
    drawn = []
    for cloud, axes in zip(numbers, figure.axes):
        _prepare_tile(axes, _names(clouds)[cloud], grid)
        points = axes.scatter(
            [], [], s=5 * wide / 2, c=[], linewidths=0, cmap="plasma", clim=(0, 1.15 * most)
        )
        drawn.append((points, slice(clouds.offsets[cloud], clouds.offsets[cloud + 1])))
    for frame in (
        np.linspace(0, len(recording) - 1, min(len(recording), ANIMATION_FRAMES))
        .round()
        .astype(int)
    ):
        coordinates = recording.coordinates[frame]
        distance = np.linalg.norm(coordinates - recording.coordinates[0], axis=1).clip(max=most)
        for points, own in drawn:
            points.set_offsets(figures.seen(coordinates[own], grid)[:, :2])
            points.set_array(distance[own])
        moment.set_text(f"update {recording.updates[frame]} of {recording.iterations}")
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _prepare_tile(axes: Axes, name: str, grid: Grid) -> None:
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_title(name, fontsize=9, pad=3, parse_math=False)
    axes.set(**figures.limits(grid))
    if grid[0] == 1:
        return
    corners = [np.array(corner) for corner in np.ndindex(2, 2, 2)]
    for one, other in itertools.combinations(corners, 2):
        if abs(one - other).sum() == 1:  # the corners share an edge
            axes.plot(
                *figures.seen(np.stack([one, other]) * grid, grid)[:, :2].T,
                color="0.8",
                linewidth=0.7,
                zorder=0,
            )


def _names(clouds: PointClouds) -> list[str]:
    """Return the class name of each cloud."""
    return [clouds.class_names[label] for label in clouds.labels.tolist()]
