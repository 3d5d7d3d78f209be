"""Keep the recording of a finished run, and draw the README's animation from one.

    pcdd distill --preset mnist-1-gradient evaluation.networks=1 evaluation.epochs=1 --output RUN
    python figures/recordings.py keep RUN mnist-1-gradient
    python figures/recordings.py draw                        # figures/migration.gif

`keep` writes figures/recordings/NAME.npz: the arrays of a distilled set without coordinates,
`updates` (frames,), `differences` (frames, points, 3) uint16, `matching_loss` and
`mean_absolute_gradient` (updates,) float32, and `settings`, the run's configuration in JSON.
`differences` are coordinates in 1 / STEPS of a cell, from the second frame on minus those of the
frame before, modulo 2**16.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import pcdd_core as pcdd
from pcdd_core.files import atomic_write
from pcdd_core.view.page import STEPS, quantised

FOLDER = Path(__file__).parent / "recordings"
ANIMATED = "mnist-1-gradient"
FRAMES = 25  # most frames of the animation, so that it has less than 1 MiB


def keep(recording: pcdd.Recording, settings: dict, path: Path) -> None:
    """Write a recording and the settings of its run."""
    places = quantised(recording.coordinates, recording.clouds.grid).swapaxes(1, 2)
    places[1:] -= places[:-1].copy()
    arrays = {
        "updates": recording.updates,
        "differences": places,
        "matching_loss": recording.matching_loss,
        "mean_absolute_gradient": recording.mean_absolute_gradient,
        "offsets": recording.clouds.offsets.numpy(),
        "labels": recording.clouds.labels.numpy(),
        "grid": np.array(recording.clouds.grid),
        "class_names": np.array(recording.clouds.class_names),
        "settings": np.array(json.dumps(settings)),
    }
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def read(name: str) -> pcdd.Recording:
    """Read a kept recording. Each position is in its cell, and less than a step below its place."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as kept:
        places = np.cumsum(kept["differences"], axis=0, dtype=np.uint16)
        coordinates = places.astype(np.float32) / STEPS
        clouds = pcdd.PointClouds(
            torch.from_numpy(coordinates[-1].copy()),
            torch.from_numpy(kept["offsets"]),
            torch.from_numpy(kept["labels"]),
            tuple(kept["grid"].tolist()),
            tuple(kept["class_names"].tolist()),
        )
        return pcdd.Recording(
            clouds,
            kept["updates"],
            coordinates,
            kept["matching_loss"],
            kept["mean_absolute_gradient"],
            len(kept["matching_loss"]),
        )


def moving_frames(recording: pcdd.Recording) -> pcdd.Recording:
    """Return at most FRAMES frames with about equal movement between, from the first to the last.

    Points move ten times faster in the first updates than in the last, so frames at equal times
    would show jumps, then nothing new.
    """
    steps = np.linalg.norm(np.diff(recording.coordinates, axis=0), axis=2).mean(1)
    moved = np.append(0, np.cumsum(steps))  # cells, until each frame
    nearest = np.abs(moved - np.linspace(0, moved[-1], FRAMES)[:, None]).argmin(1)
    chosen = np.unique(nearest)
    return replace(
        recording, updates=recording.updates[chosen], coordinates=recording.coordinates[chosen]
    )


def settings(name: str) -> dict:
    """Return the settings of the run of a kept recording."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as kept:
        return json.loads(str(kept["settings"]))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="keep the recording of a finished run")
    keeping.add_argument("run", metavar="RUN", type=Path)
    keeping.add_argument("name", metavar="NAME")
    commands.add_parser("draw", help=f"draw migration.gif from {ANIMATED}")
    options = parser.parse_args()
    if options.command == "keep":
        path = FOLDER / f"{options.name}.npz"
        keep(pcdd.read_recording(options.run), pcdd.read_record(options.run)["config"], path)
    else:
        path = FOLDER.parent / "migration.gif"
        pcdd.save_animation(moving_frames(read(ANIMATED)), path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
