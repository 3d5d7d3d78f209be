"""Small data and small settings that several test modules share."""

import importlib.util
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from pcdd_core.cli.main import main
from pcdd_core.data import datasets
from pcdd_core.data.datasets import Digits
from pcdd_core.engine.distill import Step
from pcdd_core.experiments.config import Config, described_pieces, override
from pcdd_core.experiments.presets import preset
from pcdd_core.geometry.clouds import PointClouds, from_occupancy
from pcdd_core.nn.grid import Network

needs_minkowski = pytest.mark.minkowski
# conftest.py adds this mark to all tests that have the mark `minkowski`. `make test` sets
# PCDD_TEST_MINKOWSKI=yes: these tests then fail without MinkowskiEngine instead of being skipped.
without_minkowski = pytest.mark.skipif(
    importlib.util.find_spec("MinkowskiEngine") is None
    and os.environ.get("PCDD_TEST_MINKOWSKI") != "yes",
    reason="MinkowskiEngine is not installed: make minkowski",
)

DISTILLATION = {
    "data.name": "digits",
    "network.width": 4,
    "network.layers": 2,
    "objective.real_batch": 4,
    "clouds.points_per_cloud": 20,
    "schedule.iterations": 5,
}
EVALUATION = {"evaluation.networks": 2, "evaluation.epochs": 2, "evaluation.classifier.width": 4}


def settings_that_fit(changes: dict) -> dict:
    """Return the settings of tiny runs and `changes`, by dotted name.

    Tiny settings of other choices of the same kind of piece are dropped, so that tests can try
    several.
    """
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = {**DISTILLATION, **EVALUATION, **changes}
    for kind in ("clouds", "lift", "network", "objective"):
        named = {f"{kind}.name": settings[f"{kind}.name"]} if f"{kind}.name" in settings else {}
        has = getattr(override(preset("quickstart").config, named), kind).to_dict()
        others = {field for choice in described_pieces()[kind].values() for field in choice[1]}
        for name in [name for name in settings if name.startswith(f"{kind}.")]:
            if name.split(".")[1] in others - set(has):
                del settings[name]
    return settings


def config(**changes) -> Config:
    """Return a tiny `quickstart` preset; `network__layers=3` changes network.layers."""
    return override(preset("quickstart").config, settings_that_fit(changes))


def network_of(backend: str = "torch", **settings) -> Network:
    """Return the description of a network without norm and with max pooling, or as `settings` say.

    Settings that this kind of network does not have are dropped.
    """
    kind = Network.choice(backend)
    settings = {"pooling": "max", "norm": "none", **settings}
    return kind(**{key: value for key, value in settings.items() if key in kind.settings()})


def distill(config: Config, real: PointClouds, **more) -> Iterator[Step]:
    """Return the steps of a run."""
    return config.distill(real, **more)


def arguments(settings: dict) -> list[str]:
    """Return settings in the form of the command line."""
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


@cache
def digits() -> datasets.Splits:
    """Return scikit-learn's digits as clouds."""
    return Digits().load()


@cache
def three_digits() -> PointClouds:
    """Return the first 8 training clouds of each of the digits 0, 1 and 2."""
    train = digits().train
    chosen = torch.cat([(train.labels == label).nonzero().flatten()[:8] for label in range(3)])
    few = train.select(chosen)
    return PointClouds(few.coordinates, few.offsets, few.labels, few.grid, few.class_names[:3])


@cache
def three_solids() -> PointClouds:
    """Return three classes of clouds in a grid of 6 x 6 x 6 cells.

    The clouds are noise in the lower half, in the upper half, or in both.
    """
    occupied = torch.rand(24, 6, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    labels = torch.arange(24) % 3
    occupied[labels == 0, 3:] = False
    occupied[labels == 1, :3] = False
    return from_occupancy(occupied, labels, ("lower", "upper", "either"))


def pcdd(*words: str, **changes) -> int:
    """Run `pcdd words...` in this process, on the CPU, with tiny settings on the digits.

    Returns the exit code.
    """
    if words[0] == "distill":
        settings = settings_that_fit(changes)
    else:
        given = {name.replace("__", "."): value for name, value in changes.items()}
        settings = {**DISTILLATION, **EVALUATION, **given}
    return main([words[0], *arguments(settings), "--device", "cpu", *words[1:]])


def files(folder: Path) -> dict[str, bytes]:
    """Return the paths of all files and folders below `folder`, with their contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }
