"""Distil, checkpoint, score and record one run in its own folder. A stopped run can be resumed.

runs/<name>-<seed>-<hash of the configuration>/
    config.json       the settings
    steps.jsonl       one line per iteration
    trajectory.npz    `coordinates` (frames, points, 3) in cells, and `updates` (frames,): number of
                      updates before each frame; the first frame has the initial clouds
    checkpoint.pt     the state to resume from; loading it unpickles no code
    clouds.npz        the distilled set
    migration.png     the clouds over time
    scores.json       the scores that are finished
    record.json       written last: settings, scores, health, seconds, memory, versions, commit
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import ranks
from ..data.datasets import Splits
from ..engine.distill import Step
from ..engine.lifts import occupancy
from ..errors import DistillationFailed, InputError, RunFailed
from ..files import LOCK, atomic_write, atomic_write_text, refuse_file_in_the_way, sole_user
from ..geometry.clouds import PointClouds
from ..geometry.storage import save_clouds
from ..nn.classifiers import ConvNet
from ..scoring.baselines import Baseline
from . import config as configuration
from . import figures, machine, second_order
from .config import Config
from .health import Health
from .records import as_json, averages, score_record

RUN_FILES = (
    "record.json",
    "clouds.npz",
    "migration.png",
    "checkpoint.pt",
    "trajectory.npz",
    "steps.jsonl",
    "scores.json",
    "config.json",
)
CURVE_CLASSIFIERS = {
    "networks": 5,
    "epochs": 300,
    "classifier": ConvNet(32),
}  # of `evaluation.curve`
CHECKPOINT_KEYS = {
    "configuration",
    "state",
    "frames",
    "updates",
    "seconds",
    "still",
    "finding",
    "label_probabilities",
}


def run(
    config: Config,
    name: str,
    folder: Path | str | None = None,
    data: Path | str | None = None,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 25,
    progress: "Progress | None" = None,
) -> Path:
    """Distil and score as `config` says. Returns the run folder.

    folder: default: runs/<name>-<seed>-<hash>
    data: folder of the real data, see `DataSet.load`
    device: see `machine.choose_device`
    resume: continue from the last checkpoint. On the same CPU the result is identical bit for bit.
    overwrite: delete a finished or unfinished run in the folder and start again
    checkpoint_every: iterations between checkpoints
    progress: receives the progress (default: bars)

    Under `torchrun` the processes share the classes, see `ranks`. Only the first process writes and
    scores.
    Raises InputError, FolderInUse if another process runs in the folder, and RunFailed if the run
    diverges. The record of a diverged run is written before RunFailed is raised.
    """
    folder = Path(folder) if folder else Path("runs") / folder_name(name, config)
    machine.keep_freed_memory()
    with ranks.joined(machine.choose_device(device)) as place:
        checkpoint = _open_folder(folder, config, resume, overwrite)
        splits = config.data.load(data)
        _refuse_empty_split(splits, config)
        config.evaluation.check()
        _refuse_scored_iterations(config)
        steps = config.distill(splits.train, place, checkpoint["state"] if checkpoint else None)
        ranks.wait_for_all()  # every process checks the folder before the first one writes to it
        if ranks.rank() > 0:
            for _ in steps:
                pass
            return folder
        with sole_user(folder):
            _run(
                config,
                name,
                folder,
                splits,
                steps,
                checkpoint,
                place,
                overwrite,
                checkpoint_every,
                progress or Progress(),
            )
    return folder


def folder_name(name: str, config: Config) -> str:
    """Return the default name of a run folder."""
    return f"{name}-{config.seed}-{configuration.identity(config)}"


def _run(
    config: Config,
    name: str,
    folder: Path,
    splits: Splits,
    steps: Iterator[Step],
    checkpoint: dict[str, Any] | None,
    place: torch.device,
    overwrite: bool,
    checkpoint_every: int,
    progress: "Progress",
) -> None:
    if overwrite:
        # clouds.png is from `pcdd show`. Other files in the folder stay.
        for old in (*RUN_FILES, "clouds.png"):
            (folder / old).unlink(missing_ok=True)
    atomic_write_text(
        folder / "config.json",
        json.dumps({"name": name, **configuration.to_dict(config)}, indent=2),
    )

    record = {
        "name": name,
        "config": configuration.to_dict(config),
        "machine": machine.describe(place),
    }
    derivatives = second_order.second_derivatives(
        config.method, splits.train, config.start(splits.train), place
    )
    record["second_derivatives"] = derivatives
    if derivatives["gradients_without_graph"]:
        progress.write(f"pcdd: {second_order.sentence(derivatives)}")
    try:
        trajectory, labels, seconds, health = _distill(
            folder, config, splits, steps, checkpoint, checkpoint_every, progress
        )
        distilled = replace(config.start(splits.train), label_probabilities=labels)
        distilled = distilled.with_coordinates(
            _coordinates_before(trajectory, scored_iteration(config))
        )
        save_clouds(distilled, folder / "clouds.npz")
        figures.save(figures.migration(trajectory, distilled), folder / "migration.png")
        scored = _score_run(folder, config, splits, trajectory, distilled, place, progress)
    except RunFailed as failure:
        record |= {"health": f"failed at {failure}", "scores": {}}
        atomic_write_text(folder / "record.json", as_json(record))
        raise
    record |= {
        "health": health or "moving",
        **averages(folder / "steps.jsonl"),
        **scored,
        "seconds": {"distillation": seconds, **scored["seconds"]},
    }
    atomic_write_text(folder / "record.json", as_json(record))


def scored_iteration(config: Config) -> int:
    """Return the iteration before which the clouds are the result of the run.

    The number of iterations means the end of the run.
    """
    iteration = config.evaluation.iteration
    return config.schedule.iterations if iteration is None else iteration


def _score_run(
    folder: Path,
    config: Config,
    splits: Splits,
    trajectory: dict[str, np.ndarray],
    distilled: PointClouds,
    place: torch.device,
    progress: "Progress",
) -> dict[str, Any]:
    """Score the distilled clouds, and as `scores_at` the clouds before `evaluation.curve`.

    Each score is written to scores.json at once, so a stopped run continues with the next score.
    """
    path, curve_config = (
        folder / "scores.json",
        replace(config, evaluation=replace(config.evaluation, **CURVE_CLASSIFIERS)),
    )
    scores = json.loads(path.read_text()) if path.exists() else {}
    tasks = {"result": (distilled, config)}
    for iteration in config.evaluation.curve:
        tasks[str(iteration)] = (
            distilled.with_coordinates(_coordinates_before(trajectory, iteration)),
            curve_config,
        )
    for name, (clouds, settings) in tasks.items():
        if name not in scores:
            scores[name] = _score(clouds, splits, settings, place, progress)
            atomic_write_text(path, as_json(scores))
    if not config.evaluation.curve:
        return scores["result"]
    seconds = {"evaluation": scores["result"]["seconds"]["evaluation"]}
    seconds["curve"] = sum(
        scores[str(iteration)]["seconds"]["evaluation"] for iteration in config.evaluation.curve
    )
    scores_at = {
        str(iteration): scores[str(iteration)]["scores"] for iteration in config.evaluation.curve
    }
    return scores["result"] | {"scores_at": scores_at, "seconds": seconds}


def _coordinates_before(trajectory: dict[str, np.ndarray], iteration: int) -> torch.Tensor:
    """Return the coordinates (points, 3) before an iteration, so after `iteration` updates."""
    return torch.from_numpy(trajectory["coordinates"][list(trajectory["updates"]).index(iteration)])


def score(
    clouds: PointClouds | Baseline,
    name: str,
    config: Config,
    data: Path | str | None = None,
    device: str | None = None,
    progress: "Progress | None" = None,
) -> tuple[PointClouds, dict[str, Any]]:
    """Score an existing set without distillation. Returns the set and its record.

    clouds: the set, or a baseline, which is made from the training clouds
    config: only `data`, `evaluation` and `seed` are used
    data, device, progress: as in `run`
    Raises InputError if the set does not match the data, and EvaluationFailed if a classifier
    diverges.
    """
    place = machine.choose_device(device)
    machine.keep_freed_memory()
    splits = config.data.load(data)
    _refuse_empty_split(splits, config)
    config.evaluation.check()
    baseline = clouds if isinstance(clouds, Baseline) else None
    if isinstance(clouds, Baseline):
        clouds = clouds.choose(splits.train, config.seed)
    if clouds.grid != splits.test.grid or clouds.class_names != splits.test.class_names:
        raise InputError(
            f"the set '{name}' has grid {clouds.grid} and classes {list(clouds.class_names)}; "
            f"data.name={config.data.name} has {splits.test.grid} and "
            f"{list(splits.test.class_names)}: choose the data that the set was made from"
        )
    used = {key: configuration.to_dict(config)[key] for key in ("data", "evaluation", "seed")}
    if baseline:
        used["baseline"] = baseline.to_dict()
    record = {"name": name, "config": used, "machine": machine.describe(place)}
    return clouds, record | _score(clouds, splits, config, place, progress or Progress())


def _refuse_empty_split(splits: Splits, config: Config) -> None:
    if len(getattr(splits, config.evaluation.split)) == 0:
        raise InputError(
            f"setting data.validation_fraction = {config.data.validation_fraction}: "
            f"the {config.evaluation.split} split is empty"
        )


def _refuse_scored_iterations(config: Config) -> None:
    """Raise InputError if the settings name iterations that cannot be scored."""
    settings, total = config.evaluation, config.schedule.iterations
    largest = {
        "evaluation.iteration": settings.iteration or 0,
        "evaluation.curve": max(settings.curve, default=0),
    }
    for name, iteration in largest.items():
        if iteration > total:
            raise InputError(
                f"setting {name} has {iteration}, but the run has schedule.iterations = {total}; "
                "expected at most the number of iterations"
            )
        if iteration and config.method.learns_labels:
            raise InputError(
                f"setting {name} has {iteration}: learned labels are stored for the end of a run "
                "only; unset evaluation.iteration and evaluation.curve"
            )


def keep_score(clouds: PointClouds, record: dict[str, Any], folder: Path | str) -> None:
    """Write the result of `score` to a folder with the layout of a run, the record last."""
    save_clouds(clouds, Path(folder) / "clouds.npz")
    atomic_write_text(Path(folder) / "record.json", as_json(record))


def _score(
    clouds: PointClouds, splits: Splits, config: Config, place: torch.device, progress: "Progress"
) -> dict[str, Any]:
    begun, real = time.monotonic(), getattr(splits, config.evaluation.split)
    scores = config.evaluate(clouds, real, place, progress)
    progress.close()
    repeated = splits.also_in_training if config.evaluation.split == "test" else 0
    repeats = f", of which {repeated} equal a training cloud" if repeated else ""
    return {
        "clouds": len(clouds),
        "points": len(clouds.coordinates),
        "occupied_cells": int(occupancy(clouds).sum()),
        "scores": {protocol: score_record(score) for protocol, score in scores.items()},
        "scored_on": f"{config.data.name}, {config.evaluation.split} split, "
        f"{len(real)} clouds{repeats}",
        "seconds": {"evaluation": time.monotonic() - begun},
        "peak_memory_bytes": machine.peak_memory(place),
    }


class Progress:
    """Progress bars with the remaining time, one per stage.

    Bars go to standard error. In a notebook they go to standard output, because notebooks mark
    standard error as an alarm. Without a terminal a line is printed every 10 seconds at most.
    quiet: print nothing
    """

    def __init__(self, quiet: bool = False):
        self.quiet, self.bar, self.stage = quiet, None, None
        # programs other than kernels import this module too
        kernel = sys.modules.get("ipykernel.kernelapp")
        self.stream = (
            sys.stdout if kernel is not None and kernel.IPKernelApp.initialized() else sys.stderr
        )

    def __call__(self, fraction: float, stage: str, note: str = "") -> None:
        """Show that `fraction` (0 to 1) of `stage` is done."""
        if self.quiet:
            return
        if stage != self.stage:
            self.close()
            layout = "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} left {postfix}"
            interval = 0.5 if self.stream.isatty() else 10
            self.bar = tqdm(
                total=1.0, desc=stage, bar_format=layout, mininterval=interval, file=self.stream
            )
            self.stage = stage
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(fraction - self.bar.n)

    def close(self) -> None:
        """Close the current bar."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.stage = None

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            tqdm.write(text, file=self.stream)


def _open_folder(
    folder: Path, config: Config, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, if any.

    Raises InputError if an existing run would be damaged, or if the checkpoint is not usable.
    """
    refuse_file_in_the_way(folder)
    if overwrite:
        return None
    if (folder / "record.json").exists():
        raise InputError(
            f"{folder}: this run has ended; "
            "inspect it with `pcdd show`, or restart it with --overwrite"
        )
    path = folder / "checkpoint.pt"
    if not resume:
        if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise InputError(
                f"{folder}: holds an unfinished run; "
                "continue it with --resume, or restart it with --overwrite"
            )
        return None
    if not folder.exists():
        raise InputError(f"{folder}: nothing to resume; start the run without --resume")
    if not path.exists():
        return None  # the run stopped before its first checkpoint, so it starts at the beginning
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        wrong = checkpoint["configuration"] != configuration.identity(config)
        if missing := CHECKPOINT_KEYS - set(checkpoint):
            raise KeyError(*missing)
    except Exception:
        # torch raises many types for a damaged file, and its message advises unsafe loading
        raise InputError(
            f"{path}: not a readable checkpoint; restart the run with --overwrite"
        ) from None
    if wrong:
        raise InputError(
            f"{path}: checkpoint of another configuration ({checkpoint['configuration']}, "
            f"this one is {configuration.identity(config)}); "
            "resume with the settings in config.json, or choose another folder"
        )
    return checkpoint


def _distill(
    folder: Path,
    config: Config,
    splits: Splits,
    steps,
    checkpoint: dict[str, Any] | None,
    checkpoint_every: int,
    progress,
) -> tuple[dict[str, np.ndarray], torch.Tensor | None, float, str | None]:
    """Run the steps. Returns the trajectory, the learned labels, the seconds and the finding.

    The seconds include earlier parts of a resumed run. The finding is that of `health.Health`.
    """
    total, health = config.schedule.iterations, Health()
    if checkpoint:
        frames, updates, seconds = (
            list(checkpoint["frames"]),
            checkpoint["updates"],
            checkpoint["seconds"],
        )
        health.still, health.finding = checkpoint["still"], checkpoint["finding"]
        labels = checkpoint["label_probabilities"]
        _keep_lines(folder / "steps.jsonl", checkpoint["state"]["iteration"] + 1)
    else:
        frames, updates, seconds = [config.start(splits.train).coordinates], [0], 0.0
        labels = None
        _keep_lines(folder / "steps.jsonl", 0)
    lines: list[str] = []
    begun = time.monotonic() - seconds

    def write_lines() -> None:
        with (folder / "steps.jsonl").open("a") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        lines.clear()

    try:
        for step in steps:
            done = step.iteration + 1
            lines.append(_line(step))
            snapshot_due = (
                done * config.schedule.snapshots // total
                > (done - 1) * config.schedule.snapshots // total
            )
            if snapshot_due or done in {scored_iteration(config), *config.evaluation.curve}:
                frames.append(step.clouds.coordinates.cpu())
                updates.append(done)
            labels = (
                None
                if step.clouds.label_probabilities is None
                else step.clouds.label_probabilities.cpu()
            )
            healthy_before = health.finding is None
            health.watch(step)
            if health.finding and healthy_before:
                progress.write(f"pcdd: {health.finding}")
            progress(done / total, "distilling", f"matching loss {sum(step.matching_loss):.4g}")
            if done % checkpoint_every == 0 or done == total:
                write_lines()
                kept = {
                    "configuration": configuration.identity(config),
                    "state": step.state(),
                    "frames": torch.stack(frames),
                    "updates": updates,
                    "label_probabilities": labels,
                    "seconds": time.monotonic() - begun,
                    "still": health.still,
                    "finding": health.finding,
                }
                atomic_write(folder / "checkpoint.pt", partial(torch.save, kept))
    except DistillationFailed:
        write_lines()  # they show how the failure developed
        raise
    progress.close()
    trajectory = {"updates": np.array(updates), "coordinates": torch.stack(frames).numpy()}
    atomic_write(folder / "trajectory.npz", lambda file: np.savez_compressed(file, **trajectory))
    return trajectory, labels, time.monotonic() - begun, health.finding


def _line(step: Step) -> str:
    row = {
        "iteration": step.iteration,
        "matching_loss": step.matching_loss,
        "mean_absolute_gradient": step.mean_absolute_gradient,
        "mean_absolute_displacement": step.mean_absolute_displacement,
    }
    return json.dumps(row) + "\n"


def _keep_lines(path: Path, count: int) -> None:
    """Delete the lines after the checkpoint, including an incomplete last line."""
    lines = path.read_text().splitlines(keepends=True)[:count] if path.exists() else []
    atomic_write_text(path, "".join(lines))
