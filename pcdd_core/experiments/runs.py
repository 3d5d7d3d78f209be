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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from .. import ranks
from ..data.datasets import Splits
from ..engine.distill import Step
from ..errors import DistillationFailed, InputError, RunFailed, WriteFailed
from ..files import (
    LOCK,
    atomic_write_text,
    is_leftover,
    refuse_file_in_the_way,
    remove_leftovers,
    sole_user,
)
from ..geometry.clouds import PointClouds
from ..geometry.storage import save_clouds, write_arrays
from ..sealed import sealed
from . import checkpoint as checkpoints
from . import config as configuration
from . import figures, machine, second_order
from .checkpoint import Checkpoint
from .config import Config
from .health import Finding, Health
from .presets import label
from .progress import Progress
from .ranking import packed_size
from .records import SCHEMA, as_json, averages_of, runs_folder
from .scores import (
    coordinates_before,
    refuse_empty_split,
    refuse_impossible,
    refuse_scored_iterations,
    score_run,
    scored_iteration,
)

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


def run(
    config: Config,
    name: str,
    folder: Path | str | None = None,
    data: Path | str | None = None,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 25,
    progress: Progress | None = None,
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
        refuse_impossible(config, data)
        checkpoint, damage = _open_folder(folder, config, resume, overwrite)
        splits = config.data.load(data)
        refuse_empty_split(splits, config)
        config.evaluation.check()
        refuse_scored_iterations(config)
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
    progress: Progress,
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
            coordinates_before(trajectory, scored_iteration(config))
        )
        save_clouds(distilled, folder / "clouds.npz")
        scored = score_run(folder, config, splits, trajectory, distilled, place, progress)
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
        **packed_size(distilled, config),
        "seconds": {"distillation": seconds, **scored["seconds"]},
    }
    atomic_write_text(folder / "record.json", as_json(sealed(record)))
    _draw(trajectory, distilled, folder / "migration.png", progress)


def _draw(
    trajectory: dict[str, np.ndarray], distilled: PointClouds, path: Path, progress: Progress
) -> None:
    """Draw the clouds over time. If this fails the run is complete, so it gives a message only."""
    try:
        figures.save(figures.migration(trajectory, distilled), path)
    except Exception as error:  # matplotlib raises many types
        progress.write(f"pcdd: {path} is not drawn ({error}); the run is complete without it")


def _refuse_other_points(folder: Path, checkpoint: Checkpoint, start: PointClouds) -> None:
    if checkpoint.state["coordinates"].shape != start.coordinates.shape:
        raise InputError(
            f"{folder / checkpoints.NAME}: checkpoint with {len(checkpoint.state['coordinates'])} "
            f"points; these settings and data have {len(start.coordinates)}: resume with the data "
            "of the run, or restart it with --overwrite"
        )


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
