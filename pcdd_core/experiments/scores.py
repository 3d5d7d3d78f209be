"""Score the clouds of a run, an existing set or a baseline by the settings of a configuration."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.datasets import Splits
from ..engine.lifts import occupancy
from ..errors import InputError
from ..files import atomic_write_text, refuse_impossible_path
from ..geometry.clouds import PointClouds
from ..geometry.storage import save_clouds
from ..nn.classifiers import ConvNet
from ..scoring.baselines import Baseline, Released
from ..sealed import parsed, sealed, unsealed
from . import config as configuration
from . import machine
from .config import Config
from .progress import Progress
from .ranking import packed_size
from .records import SCHEMA, as_json, label_of_score, score_record

# of `evaluation.curve`
CURVE_CLASSIFIERS: dict[str, Any] = {"networks": 5, "epochs": 300, "classifier": ConvNet(32)}
SCORED = {"clouds", "points", "occupied_cells", "scores", "scored_on", "seconds"}  # of scores.json


def scored_iteration(config: Config) -> int:
    """Return the number of updates after which the clouds are the result of the run."""
    iteration = config.evaluation.iteration
    return config.schedule.iterations if iteration is None else iteration


def score_run(
    folder: Path,
    config: Config,
    splits: Splits,
    trajectory: dict[str, np.ndarray],
    distilled: PointClouds,
    place: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Score the distilled clouds, and as `scores_at` the clouds before `evaluation.curve`.

    Each score is written to scores.json at once, so a stopped run continues with the next score.
    """
    path, curve_config = (
        folder / "scores.json",
        replace(config, evaluation=replace(config.evaluation, **CURVE_CLASSIFIERS)),
    )
    scores = finished_scores(path, progress)
    tasks = {"result": (distilled, config)}
    for iteration in config.evaluation.curve:
        tasks[str(iteration)] = (
            distilled.with_coordinates(coordinates_before(trajectory, iteration)),
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


def finished_scores(path: Path, progress: Progress) -> dict[str, Any]:
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


def coordinates_before(trajectory: dict[str, np.ndarray], iteration: int) -> torch.Tensor:
    """Return the coordinates (points, 3) after `iteration` updates."""
    return torch.from_numpy(trajectory["coordinates"][list(trajectory["updates"]).index(iteration)])


def score(
    clouds: PointClouds | Baseline,
    name: str,
    config: Config,
    data: Path | str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
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
    refuse_impossible(config, data)
    splits = config.data.load(data)
    refuse_empty_split(splits, config)
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
    scored = _score(clouds, splits, config, place, progress or Progress())
    return clouds, record | scored | packed_size(clouds, config)


def refuse_impossible(config: Config, data: Path | str | None) -> None:
    """Raise InputError for paths that no file can have."""
    for path in (data, getattr(config.data, "folder", ""), getattr(config.clouds, "file", "")):
        refuse_impossible_path(path or ".")


def refuse_empty_split(splits: Splits, config: Config) -> None:
    """Raise InputError if the split to score on has no clouds."""
    if len(getattr(splits, config.evaluation.split)) == 0:
        raise InputError(
            f"setting data.validation_fraction = {config.data.validation_fraction}: "
            f"the {config.evaluation.split} split is empty"
        )


def refuse_scored_iterations(config: Config) -> None:
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
    clouds: PointClouds, splits: Splits, config: Config, place: torch.device, progress: Progress
) -> dict[str, Any]:
    begun, real = time.monotonic(), getattr(splits, config.evaluation.split)
    scores = config.evaluate(clouds, real, place, progress)
    progress.close()
    return {
        "clouds": len(clouds),
        "points": len(clouds.coordinates),
        "occupied_cells": int(occupancy(clouds).sum()),
        "scores": {protocol: score_record(score) for protocol, score in scores.items()},
        "scored_on": f"{config.data.name}, {config.evaluation.split} split, {len(real)} clouds"
        + (", balanced accuracy" if config.data.balanced else ""),
        "seconds": {"evaluation": time.monotonic() - begun},
        "peak_memory_bytes": machine.peak_memory(place),
    }
