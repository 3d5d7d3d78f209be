"""Recordings of moving points.

A `Recording` comes from a finished run (`read_recording`) or from a live run
(`live.LiveDistillation.recording`). `page` exports it as an HTML page, `animation` as an animated
GIF or a video.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..engine.distill import Step
from ..errors import InputError
from ..experiments import figures
from ..experiments.records import read_trajectory
from ..geometry.clouds import PointClouds
from ..geometry.storage import load_clouds

MOST_FRAMES = 200  # largest number of frames in a recorder


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

    def names(self) -> list[str]:
        """Return the class name of each cloud."""
        return [self.clouds.class_names[label] for label in self.clouds.labels.tolist()]

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
