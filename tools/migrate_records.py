"""Convert settings and records of pcdd 0.1 to the format of today.

    python tools/migrate_records.py RECORD.json ...

Writes each file again: the record.json of a run folder, or a record beside a distilled set.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pcdd_core.experiments.config import KINDS
from pcdd_core.experiments.presets import label
from pcdd_core.experiments.records import SCHEMA, as_json, label_of_score, settings_of
from pcdd_core.files import atomic_write_text
from pcdd_core.scoring.baselines import Baseline
from pcdd_core.sealed import sealed, unsealed

BASELINE = re.compile(r"(\w+)-(\d+)(?:-of-(\d+)-points)?")

OLD: dict[str, Any] = {
    "data.name": "mnist",
    "data.threshold": 0.29411764705882354,
    "data.max_points": None,
    "data.points": 1024,
    "data.cells": 24,
    "data.folder": None,
    "data.validation_fraction": 0.1,
    "clouds.initialisation": "scatter",
    "clouds.clouds_per_class": 1,
    "clouds.points_per_cloud": 250,
    "clouds.file": None,
    "lift.name": "coordinates",
    "lift.bandwidth_start": 2.5,
    "lift.bandwidth_end": 0.5,
    "lift.real_bandwidth_end": None,
    "lift.saturation": 3.0,
    "lift.saturation_start": None,
    "lift.closed": False,
    "lift.hard_from": 1.0,
    "network.backend": "torch",
    "network.layers": 3,
    "network.width": 128,
    "network.pooling": "max",
    "network.norm": "none",
    "network.padding": 1,
    "network.weights": "default",
    "network.paper_layout": False,
    "network.origin_shift": False,
    "network.kernel_maps": "torch",
    "objective.name": "gradient_matching",
    "objective.distribution_matching_until": 0.0,
    "objective.distance": "sum_of_squares",
    "objective.ridge": 0.001,
    "objective.unrolled_steps": 50,
    "objective.unrolled_steps_before": 0,
    "objective.unrolled_step_size": 0.01,
    "objective.unrolled_batch": None,
    "objective.learned_labels": False,
    "objective.real_batch": 256,
    "objective.real_gradients": "fresh",
    "objective.real_precision": "float32",
    "objective.augmentation": False,
    "optimiser.name": "sgd",
    "optimiser.step_size": 0.1,
    "optimiser.label_step_size": 0.02,
    "optimiser.turn_step_size": None,
    "optimiser.momentum": 0.5,
    "optimiser.final_step_fraction": 1.0,
    "schedule.iterations": 2500,
    "schedule.iterations_per_network": 0,
    "schedule.training_steps": 0,
    "schedule.training_data": "synthetic",
    "schedule.training_batch": 64,
    "schedule.training_step_size": 0.01,
    "schedule.snapshots": 60,
    "evaluation.protocols": ["standard", "paper"],
    "evaluation.split": "test",
    "evaluation.classifier": "convnet",
    "evaluation.projection": "hard",
    "evaluation.projection_bandwidth": 0.5,
    "evaluation.projection_saturation": 6.0,
    "evaluation.iteration": None,
    "evaluation.curve": [],
    "evaluation.networks": None,
    "evaluation.epochs": 1001,
    "evaluation.batch": 256,
    "evaluation.augmentation": "published",
    "evaluation.width": 128,
    "seed": 0,
}


def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert the settings of a record, with the defaults of their time filled in."""
    sections: dict[str, Any] = {}
    for name, default in OLD.items():
        section, _, key = name.partition(".")
        if key and section in settings:
            sections.setdefault(section, {})[key] = settings[section].get(key, default)
    for section, new_name in (("network", "backend"), ("clouds", "initialisation")):
        if section in sections:
            sections[section]["name"] = sections[section].pop(new_name)
    if "evaluation" in sections:
        scoring = sections["evaluation"]
        scoring["classifier"] = {"name": scoring["classifier"], "width": scoring.pop("width")}
        scoring["projection"] = {
            "name": scoring["projection"],
            "bandwidth": scoring.pop("projection_bandwidth"),
            "saturation": scoring.pop("projection_saturation"),
        }
        for part in ("classifier", "projection"):
            scoring[part] = _of_piece(KINDS[f"evaluation.{part}"], scoring[part])
    made = {section: _of_piece(KINDS[section], values) for section, values in sections.items()}
    return made | {"seed": settings.get("seed", 0)}


def _of_piece(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return what the piece with this name has of the values, in its order."""
    choice = kind.choice(values.get("name", ""))
    kept = {"name": choice.name} if choice.name else {}
    return kept | {key: values[key] for key in choice.settings()}


def converted(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of pcdd 0.1. A record of today is returned as it is."""
    record = unsealed(record)
    if "schema" in record:
        return record
    name, old = record["name"], record["config"]
    # a record between the versions has settings of today
    of_today = "name" in old["data"] and isinstance(old["evaluation"].get("classifier"), dict)
    config = old if of_today else upgraded(old)
    kind = "distilled" if "network" in config else "scored"
    if kind == "scored" and name.startswith("released-"):
        kind, config["baseline"] = "released", {"name": "released", "file": name[9:]}
    elif kind == "scored" and (match := BASELINE.fullmatch(name)) and match[1] in Baseline.choices:
        kind, points = "baseline", match[3] and int(match[3])
        config["baseline"] = {"name": match[1], "clouds_per_class": int(match[2]), "points": points}
    if "baseline" in config:
        config["baseline"] = Baseline.of(config["baseline"]).to_dict()
    new = {"schema": SCHEMA, "kind": kind, "name": name, "row": name, **record, "config": config}
    named = label if kind == "distilled" else label_of_score
    new["row"] = named(name, settings_of(new))
    for scores in (new["scores"], *new.get("scores_at", {}).values()):
        for score in scores.values():
            score.pop("epochs", None)
            score.pop("width", None)
    if "health" in record:
        new["health"] = _health(record["health"])
    return new


def _health(text: str) -> dict[str, Any]:
    """Return state, iteration and reason of a health in one sentence."""
    state, _, rest = text.partition(" at ")
    if not rest:
        return {"state": text, "iteration": None}
    when, _, reason = rest.partition(": ")
    number = re.fullmatch(r"iteration (\d+)", when)
    return {"state": state, "iteration": int(number[1]) if number else None, "reason": reason}


def main() -> None:
    """Convert the files of the command line."""
    for path in map(Path, sys.argv[1:]):
        new = converted(json.loads(path.read_text()))
        atomic_write_text(path, as_json(sealed(new)))


if __name__ == "__main__":
    main()
