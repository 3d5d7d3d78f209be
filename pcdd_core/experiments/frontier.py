"""Rows of accuracy against bytes on MNIST: distilled sets, real ones and published ones.

Rows of records have hard labels, the hard projection and the protocol `standard` on test images.
Those scored with the fast augmentation, which older records have, say so in their name, and stand
only where no score as published exists.

Published accuracies, in percent, of grey images of 28 x 28 pixels with hard labels:
DC: Zhao, Mopuri, Bilen, ICLR 2021; DSA: Zhao, Bilen, ICML 2021; IDC: Kim et al., ICML 2022. The
papers store float32. What uint8 would lose they do not say, so those rows are the best case.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..nn.classifiers import ConvNet
from ..scoring.baselines import ClassMean, Herding, Random
from ..scoring.evaluate import STANDARD, Hard
from .config import Config
from .presets import differences
from .ranking import PROTOCOL, mean_bytes
from .records import settings_of

COLUMNS = ("name", "bytes", "standard", "standard sd", "seeds", "kind")
FAST = " (fast augmentation)"
PIXELS = 28 * 28
CLASSES = 10
PUBLISHED = {  # accuracy by images per class
    "DC": {1: 91.7, 10: 97.4, 50: 98.8},
    "DSA": {1: 88.7, 10: 97.8, 50: 99.2},
    "IDC": {1: 94.2, 10: 98.4, 50: 99.1},
}
PIXEL_BYTES = {"uint8": 1, "float32": 4}
REAL = (Random.name, Herding.name, ClassMean.name)


def rows(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of records, the smallest set first, then the published rows: COLUMNS.

    Other records than the module describes are left out. Entries that are not known are None.
    """
    groups: dict[tuple[str, bool], dict[int, dict[str, Any]]] = {}
    for record in records:
        if not _belongs(record):
            continue
        fast = settings_of(record).evaluation.augmentation == "fast"
        seeds = groups.setdefault((record["name"], fast), {})
        seeds.setdefault(record["config"]["seed"], record)
    made = []
    for (name, fast), by_seed in groups.items():
        if fast and (name, False) in groups:
            continue
        means = [record["scores"][PROTOCOL]["mean"] for record in by_seed.values()]
        made.append(
            {
                "name": name + FAST * fast,
                "bytes": mean_bytes(by_seed.values()),
                "standard": round(float(np.mean(means)), 2),
                "standard sd": round(float(np.std(means)), 2) if len(means) > 1 else None,
                "seeds": len(means),
                "kind": "real"
                if "baseline" in next(iter(by_seed.values()))["config"]
                else "distilled",
            }
        )
    # a set without bytes comes last
    return sorted(made, key=lambda row: (row["bytes"] or np.inf, row["name"])) + published_rows()


def published_rows() -> list[dict[str, Any]]:
    """Return the published rows, the smallest set first."""
    listed = [
        {
            "name": f"{method}, {count} per class, {pixel}",
            "bytes": CLASSES * count * PIXELS * size,
            "standard": accuracy,
            "standard sd": None,
            "seeds": None,
            "kind": "published",
        }
        for method, accuracies in PUBLISHED.items()
        for count, accuracy in accuracies.items()
        for pixel, size in PIXEL_BYTES.items()
    ]
    return sorted(listed, key=lambda row: (row["bytes"], row["name"]))


def _belongs(record: dict[str, Any]) -> bool:
    """Return whether a record is of a row."""
    config = settings_of(record)
    return (
        PROTOCOL in record["scores"]
        and config.data.name == "mnist"
        and _as_published_or_fast(config)
        and (_is_real(record) or _is_best(record))
    )


def _as_published_or_fast(config: Config) -> bool:
    """Return whether the set is scored on test images as published, or but for augmentation."""
    scoring = config.evaluation
    published = scoring.augmentation == "published" and scoring.epochs == STANDARD.epochs
    return (
        scoring.split == "test"
        and scoring.classifier == ConvNet()
        and isinstance(scoring.projection, Hard)
        and (published or scoring.augmentation == "fast")
    )


def _is_real(record: dict[str, Any]) -> bool:
    baseline = record["config"].get("baseline", {})
    return baseline.get("name") in REAL and baseline.get("points") is None


def _is_best(record: dict[str, Any]) -> bool:
    """Return whether a run has the settings of a preset mnist-*, with hard labels."""
    config = record["config"]
    if "network" not in config or not record["name"].startswith("mnist-"):
        return False
    changed = differences(record["name"], settings_of(record))
    own = all(name.startswith("evaluation.") for name in changed)
    return own and not config["objective"].get("learned_labels")
