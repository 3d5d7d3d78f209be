"""Distil, checkpoint, score and record one run in its own folder. A stopped run can be resumed.

runs/<name>-<seed>-<hash of the configuration>/
    config.json       the settings
    steps.jsonl       one line per iteration
    trajectory.npz    `coordinates` (frames, points, 3) in cells, and `updates` (frames,): number of
                      updates before each frame; the first frame has the initial clouds
    checkpoint.pt     the state to resume from, see `checkpoint`
    checkpoint-previous.pt  the checkpoint before it
    clouds.npz        the distilled set
    scores.json       the scores that are finished
    record.json       written when all of this is safe: settings, scores, health, seconds, memory,
                      versions, commit
    migration.png     the clouds over time
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import ranks
from ..data.datasets import Splits
from ..engine.distill import Step
from ..engine.lifts import occupancy
from ..errors import DistillationFailed, InputError, RunFailed, WriteFailed
from ..files import (
    LOCK,
    atomic_write_text,
    is_leftover,
    refuse_file_in_the_way,
    refuse_impossible_path,
    remove_leftovers,
    sole_user,
)
from ..geometry.clouds import PointClouds
from ..geometry.storage import save_clouds, write_arrays
from ..nn.classifiers import ConvNet
from ..scoring.baselines import Baseline, Released
from ..sealed import parsed, sealed, unsealed
from ..text import printable
from . import checkpoint as checkpoints
from . import config as configuration
from . import figures, machine, second_order
from .checkpoint import Checkpoint
from .config import Config
from .health import Finding, Health
from .presets import label
from .records import SCHEMA, as_json, averages_of, label_of_score, runs_folder, score_record

RUN_FILES = (
    "record.json",
    "clouds.npz",
    "migration.png",
    "checkpoint.pt",
    "checkpoint-previous.pt",
    "trajectory.npz",
    "steps.jsonl",
    "scores.json",
    "config.json",
)
# of `evaluation.curve`
CURVE_CLASSIFIERS: dict[str, Any] = {"networks": 5, "epochs": 300, "classifier": ConvNet(32)}
SCORED = {"clouds", "points", "occupied_cells", "scores", "scored_on", "seconds"}  # of scores.json


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

    folder: default: <name>-<seed>-<hash> in `records.runs_folder`
    data: folder of the real data, see `DataSet.load`
    device: see `machine.choose_device`
    resume: continue from the last checkpoint. On the same CPU the result is identical bit for bit.
    overwrite: delete a finished or unfinished run in the folder and start again
    checkpoint_every: iterations between checkpoints
    progress: receives the progress (default: bars)

    Under `torchrun` the processes share the classes, see `ranks`. Only the first process writes and
    scores.
    Raises InputError, FolderInUse if another process runs in the folder, WriteFailed if the disk is
    full, and RunFailed if the run diverges. The record of a diverged run is written before
    RunFailed is raised. A picture that cannot be drawn gives a message only.
    """
    folder = Path(folder) if folder else runs_folder() / folder_name(name, config)
    machine.keep_freed_memory()
    with ranks.joined(machine.choose_device(device)) as place:
        _refuse_impossible(config, data)
        checkpoint, damage = _open_folder(folder, config, resume, overwrite)
        splits = config.data.load(data)
        _refuse_empty_split(splits, config)
        config.evaluation.check()
        _refuse_scored_iterations(config)
        if checkpoint:
            _refuse_other_points(folder, checkpoint, config.start(splits.train))
        steps = config.distill(splits.train, place, checkpoint.state if checkpoint else None)
        ranks.wait_for_all()  # every process checks the folder before the first one writes to it
        if ranks.rank() > 0:
            for _ in steps:
                pass
            return folder
        progress = progress or Progress()
        with _advice_when_full(folder), sole_user(folder):
            remove_leftovers(folder, RUN_FILES)
            if damage:
                progress.write(f"pcdd: {damage}")
                # so that it does not replace the intact checkpoint at the next one
                (folder / checkpoints.NAME).unlink(missing_ok=True)
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
                progress,
            )
    return folder


@contextmanager
def _advice_when_full(folder: Path) -> Iterator[None]:
    """Add to a WriteFailed how the run continues."""
    try:
        yield
    except WriteFailed as failure:
        kept = any((folder / name).exists() for name in (checkpoints.NAME, checkpoints.PREVIOUS))
        advice = (
            "the run is safe up to its last checkpoint; free space there, then the same command "
            "with --resume continues"
            if kept
            else "the run has no checkpoint yet; free space there, then start it again"
            + (" with --resume" if folder.exists() else "")
        )
        raise WriteFailed(failure.path, failure.reason, advice) from None


def folder_name(name: str, config: Config) -> str:
    """Return the default name of a run folder."""
    return f"{name}-{config.seed}-{configuration.identity(config)}"


def _run(
    config: Config,
    name: str,
    folder: Path,
    splits: Splits,
    steps: Iterator[Step],
    checkpoint: Checkpoint | None,
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
        json.dumps(sealed({"name": name, **configuration.to_dict(config)}), indent=2),
    )

    record = {
        "schema": SCHEMA,
        "kind": "distilled",
        "name": name,
        "row": label(name, config),
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
        trajectory, labels, rows, seconds, finding = _distill(
            folder, config, splits, steps, checkpoint, checkpoint_every, progress
        )
        distilled = replace(config.start(splits.train), label_probabilities=labels)
        distilled = distilled.with_coordinates(
            _coordinates_before(trajectory, scored_iteration(config))
        )
        save_clouds(distilled, folder / "clouds.npz")
        scored = _score_run(folder, config, splits, trajectory, distilled, place, progress)
    except RunFailed as failure:
        health = {"state": "failed", "iteration": None, "reason": str(failure)}
        if isinstance(failure, DistillationFailed):
            reason = f"{failure.what}; likely cause: {failure.likely_cause}"
            health |= {"iteration": failure.iteration, "reason": reason}
        record |= {"health": health, "scores": {}}
        atomic_write_text(folder / "record.json", as_json(sealed(record)))
        raise
    record |= {
        "health": asdict(finding) if finding else {"state": "moving", "iteration": None},
        **averages_of(rows),
        **scored,
        "seconds": {"distillation": seconds, **scored["seconds"]},
    }
    atomic_write_text(folder / "record.json", as_json(sealed(record)))
    _draw(trajectory, distilled, folder / "migration.png", progress)


def _draw(
    trajectory: dict[str, np.ndarray], distilled: PointClouds, path: Path, progress: "Progress"
) -> None:
    """Draw the clouds over time. If this fails the run is complete, so it gives a message only."""
    try:
        figures.save(figures.migration(trajectory, distilled), path)
    except Exception as error:  # matplotlib raises many types
        progress.write(f"pcdd: {path} is not drawn ({error}); the run is complete without it")


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
    scores = _finished_scores(path, progress)
    tasks = {"result": (distilled, config)}
    for iteration in config.evaluation.curve:
        tasks[str(iteration)] = (
            distilled.with_coordinates(_coordinates_before(trajectory, iteration)),
            curve_config,
        )
    for name, (clouds, settings) in tasks.items():
        if name not in scores:
            scores[name] = _score(clouds, splits, settings, place, progress)
            atomic_write_text(path, as_json(sealed(scores)))
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


def _finished_scores(path: Path, progress: "Progress") -> dict[str, Any]:
    """Return the scores that an earlier part of the run finished.

    Scores in a damaged file are made again, with a message.
    """
    try:
        scores = unsealed(parsed(path.read_text(encoding="utf-8")), required=True)
        if not all(isinstance(score, dict) and SCORED <= score.keys() for score in scores.values()):
            raise ValueError(f"expected scores with {', '.join(sorted(SCORED))}")
        return scores
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        progress.write(f"pcdd: {path}: not readable scores ({error}); they are made again")
        return {}


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
    _refuse_impossible(config, data)
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
    kind = "scored" if baseline is None else "baseline"
    if isinstance(baseline, Released):
        kind = "released"
    record = {
        "schema": SCHEMA,
        "kind": kind,
        "name": name,
        "row": label_of_score(name, config),
        "config": used,
        "machine": machine.describe(place),
    }
    return clouds, record | _score(clouds, splits, config, place, progress or Progress())


def _refuse_impossible(config: Config, data: Path | str | None) -> None:
    """Raise InputError for paths that no file can have."""
    for path in (data, getattr(config.data, "folder", ""), getattr(config.clouds, "file", "")):
        refuse_impossible_path(path or ".")


def _refuse_other_points(folder: Path, checkpoint: Checkpoint, start: PointClouds) -> None:
    if checkpoint.state["coordinates"].shape != start.coordinates.shape:
        raise InputError(
            f"{folder / checkpoints.NAME}: checkpoint with {len(checkpoint.state['coordinates'])} "
            f"points; these settings and data have {len(start.coordinates)}: resume with the data "
            "of the run, or restart it with --overwrite"
        )


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
    atomic_write_text(Path(folder) / "record.json", as_json(sealed(record)))


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
    quiet: show no bars; `write` still prints
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.bar: tqdm | None = None
        self.stage: str | None = None
        # programs other than kernels import this module too
        kernel = sys.modules.get("ipykernel.kernelapp")
        self.stream = (
            sys.stdout if kernel is not None and kernel.IPKernelApp.initialized() else sys.stderr
        )

    def __call__(self, fraction: float, stage: str, note: str = "") -> None:
        """Show that `fraction` (0 to 1) of `stage` is done."""
        if self.quiet:
            return
        if self.bar is None or stage != self.stage:
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
        tqdm.write(printable(text), file=self.stream)


def _open_folder(
    folder: Path, config: Config, resume: bool, overwrite: bool
) -> tuple[Checkpoint | None, str | None]:
    """Return the checkpoint to resume from, if any, and a message if a newer one is damaged.

    Raises InputError if an existing run would be damaged, or if no checkpoint is usable.
    """
    refuse_file_in_the_way(folder)
    if overwrite:
        return None, None
    if (folder / "record.json").exists():
        raise InputError(
            f"{folder}: this run has ended; "
            "inspect it with `pcdd show`, or restart it with --overwrite"
        )
    if not resume:
        if folder.exists() and any(
            path.name != LOCK and not is_leftover(path, RUN_FILES) for path in folder.iterdir()
        ):
            raise InputError(
                f"{folder}: holds an unfinished run; "
                "continue it with --resume, or restart it with --overwrite"
            )
        return None, None
    if not folder.exists():
        raise InputError(f"{folder}: nothing to resume; start the run without --resume")
    # without a checkpoint, the run stopped before its first one and starts at the beginning
    checkpoint, damage = checkpoints.load(folder, config.schedule.iterations)
    this = configuration.identity(config)
    if checkpoint and checkpoint.configuration != this:
        raise InputError(
            f"{folder / checkpoints.NAME}: checkpoint of another configuration "
            f"({checkpoint.configuration}, this one is {this}); "
            "resume with the settings in config.json, or choose another folder"
        )
    return checkpoint, damage


def _distill(
    folder: Path,
    config: Config,
    splits: Splits,
    steps,
    checkpoint: Checkpoint | None,
    checkpoint_every: int,
    progress,
) -> tuple[
    dict[str, np.ndarray], torch.Tensor | None, list[checkpoints.Row], float, Finding | None
]:
    """Run the steps.

    Returns the trajectory, the learned labels, the lines of steps.jsonl, the seconds and the
    finding. The seconds include earlier parts of a resumed run. The finding is that of
    `health.Health`.
    """
    total, health = config.schedule.iterations, Health()
    if checkpoint:
        frames, updates, rows = (
            list(checkpoint.frames),
            list(checkpoint.updates),
            checkpoint.rows,
        )
        health.still, health.finding = checkpoint.still, checkpoint.finding
        labels, seconds = checkpoint.label_probabilities, checkpoint.seconds
    else:
        frames, updates, rows = [config.start(splits.train).coordinates], [0], []
        labels, seconds = None, 0.0
    begun = time.monotonic() - seconds

    def write_lines() -> None:
        # all of them: the file can be damaged, or have lines from after the checkpoint
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic_write_text(folder / "steps.jsonl", text)

    write_lines()

    try:
        for step in steps:
            done = step.iteration + 1
            rows.append(_row(step))
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
                kept = Checkpoint(
                    configuration=configuration.identity(config),
                    state=step.state(),
                    frames=torch.stack(frames),
                    updates=updates,
                    steps=checkpoints.columns_of(rows),
                    label_probabilities=labels,
                    seconds=time.monotonic() - begun,
                    still=health.still,
                    finding=health.finding,
                )
                checkpoints.save(kept, folder)
    except DistillationFailed:
        write_lines()  # they show how the failure developed
        raise
    progress.close()
    trajectory = {"updates": np.array(updates), "coordinates": torch.stack(frames).numpy()}
    write_arrays(folder / "trajectory.npz", trajectory)
    return trajectory, labels, rows, time.monotonic() - begun, health.finding


def _row(step: Step) -> checkpoints.Row:
    return {
        "iteration": step.iteration,
        "matching_loss": step.matching_loss,
        "mean_absolute_gradient": step.mean_absolute_gradient,
        "mean_absolute_displacement": step.mean_absolute_displacement,
    }
