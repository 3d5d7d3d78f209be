"""Animated GIFs and videos of recordings."""

import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..errors import InputError, extra_missing
from ..experiments import figures
from ..files import atomic_write
from ..geometry.clouds import Grid
from .recording import Recording

FRAMES_PER_SECOND = 12
ANIMATION_FRAMES = 150  # largest number of frames
LAST_SECONDS = 1.5  # duration of the last frame
ANIMATION_CLOUDS = 20  # largest number of clouds


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
    clouds, grid, names = recording.clouds, recording.clouds.grid, recording.names()
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
        _prepare_tile(axes, names[cloud], grid)
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
