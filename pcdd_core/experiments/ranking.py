"""What the score of a set is worth: its bytes, and its distance to random and to all real clouds.

The names IOR and HLR are those of DD-Ranking (Li et al. 2025): improvement over random, and hard
label recovery. Both are about one protocol, `standard`, with hard labels.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data.datasets import Images
from ..errors import InputError
from ..geometry.clouds import PointClouds
from ..geometry.packing import pack
from ..geometry.storage import load_clouds, released
from ..scoring.evaluate import Hard
from .config import Config
from .records import settings_of

PROTOCOL = "standard"
RESOLUTION = 1 / 32  # cells, of sets that are not scored as occupied cells
# settings that change neither the task nor how one classifier is trained
FREE = {
    "data": ("max_points", "validation_fraction"),
    "evaluation": ("networks", "protocols", "iteration", "curve"),
}


def packed_size(clouds: PointClouds, config: Config) -> dict[str, int]:
    """Return {"bytes": bytes of the packed set}, {} if the set is too large to pack.

    The occupied cells are packed if the set is scored by them, else the positions of points, in
    steps of RESOLUTION.
    """
    hard = clouds.grid[0] == 1 and isinstance(config.evaluation.projection, Hard)
    try:
        return {"bytes": len(pack(clouds, None if hard else RESOLUTION))}
    except InputError:
        return {}


def with_bytes(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run with its bytes.

    It stays as it is if it has them, or if its set is not at hand.
    record: from `records.read_record` or `records.find_records`
    """
    if "bytes" in record or (clouds := _set_of(record)) is None:
        return record
    return record | packed_size(clouds, settings_of(record))


def _set_of(record: dict[str, Any]) -> PointClouds | None:
    if record["kind"] == "released":
        return released(record["config"]["baseline"]["file"])
    return load_clouds(record["clouds_file"]) if record["clouds_file"] else None


def mean_bytes(group: Iterable[dict[str, Any]]) -> int | None:
    """Return the rounded mean of the bytes in the records that have them, None if none has."""
    sizes = [record["bytes"] for record in group if "bytes" in record]
    return round(float(np.mean(sizes))) if sizes else None


def is_of_images(record: dict[str, Any]) -> bool:
    """Return whether the record is of a set of images."""
    return isinstance(settings_of(record).data, Images)


def beside_references(
    group: list[dict[str, Any]], references: Iterable[dict[str, Any]]
) -> dict[str, float | None]:
    """Return IOR and HLR of a row of images, in percentage points.

    IOR: accuracy minus that of as many random real clouds; HLR: accuracy of all real clouds minus
    accuracy. None: no reference was scored under the same protocol, or the labels are learned.
    group: the records of the row, one per seed
    references: records, of which those of the baselines `random` and `whole` count
    """
    ours = _mean(group)
    hard = not any(_has_learned_labels(record) for record in group)
    found: dict[str, list[dict[str, Any]]] = {"random": [], "whole": []}
    if ours is not None and hard:
        for record in references:
            baseline = record["config"].get("baseline", {})
            name = baseline.get("name")
            if name not in found or baseline.get("points") is not None:
                continue
            same_size = name == "whole" or record.get("clouds") == group[0].get("clouds")
            if same_size and _task(record) == _task(group[0]):
                found[name].append(record)
    random, whole = _mean(found["random"]), _mean(found["whole"])
    return {
        "IOR": None if ours is None or random is None else round(ours - random, 2),
        "HLR": None if ours is None or whole is None else round(whole - ours, 2),
    }


def _mean(group: list[dict[str, Any]]) -> float | None:
    """Return the mean accuracy of records under PROTOCOL, None if none has one."""
    means = [record["scores"][PROTOCOL]["mean"] for record in group if PROTOCOL in record["scores"]]
    return float(np.mean(means)) if means else None


def _has_learned_labels(record: dict[str, Any]) -> bool:
    return bool(record["config"].get("objective", {}).get("learned_labels"))


def _task(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of data and evaluation that make two scores comparable."""
    settings = settings_of(record).to_dict()
    return {
        section: {key: value for key, value in settings[section].items() if key not in free}
        for section, free in FREE.items()
    }
