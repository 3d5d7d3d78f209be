"""Real labelled clouds with train, validation and test splits."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..experiments.config import DataConfig
from ..geometry.clouds import PointClouds, from_occupancy
from ..geometry.grid import clouds_from_unit_ball
from . import mnist
from .layouts import read_published
from .shape_files import Shapes, read_folder
from .solids import solids


@dataclass(frozen=True)
class Splits:
    """Real clouds in three splits. Choose on `validation`. Use `test` for the final score only.

    also_in_training: number of clouds of `test` that are known to equal a training cloud
    """

    train: PointClouds
    validation: PointClouds
    test: PointClouds
    also_in_training: int = 0

    def to(self, device: torch.device | str) -> "Splits":
        """Return the same splits on another device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )


def load_data(config: DataConfig, folder: Path | str | None = None) -> Splits:
    """Load the data set that `config` names, as clouds.

    folder: the folder of MNIST (torchvision's layout, downloaded if missing) and of published
        shapes; None: the environment variable PCDD_DATA, or ~/.cache/pcdd if that is unset
    Raises InputError if the data is damaged or cannot be obtained.
    """
    if config.name not in IMAGES:
        return _shapes(config, folder)
    images, labels, test_images, test_labels = IMAGES[config.name](folder)
    names = tuple(str(name) for name in labels.unique().tolist())
    train, validation = _hold_out(labels, config.validation_fraction)

    def clouds(images: Tensor, labels: Tensor, max_points: int | None = None) -> PointClouds:
        # the added axis is the depth of one cell (paper, section 3.1.1)
        occupied = images[:, None] > config.threshold
        if (empty := (~occupied.flatten(1).any(1)).nonzero()).numel():
            raise InputError(
                f"setting data.threshold = {config.threshold}: image {int(empty[0])} of "
                f"{config.name} becomes an empty cloud; choose a lower threshold"
            )
        return from_occupancy(occupied, labels, names, max_points)

    return Splits(
        clouds(images[train], labels[train], config.max_points),
        clouds(images[validation], labels[validation]),
        clouds(test_images, test_labels),
    )


def _hold_out(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the indices that are kept and those held out: `fraction` of each class, evenly spaced.

    Even spacing matters because MNIST has an order: its last training images are easier than the
    rest.
    """
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        samples = (labels == label).nonzero().flatten()
        count = int(fraction * len(samples))
        held_out[samples[(torch.arange(1, count + 1) * len(samples)) // max(count, 1) - 1]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _data_folder(folder: Path | str | None) -> Path:
    given = folder or os.environ.get("PCDD_DATA")
    root = Path(given) if given else Path("~/.cache/pcdd").expanduser()
    if given and not root.is_dir():
        raise InputError(
            f"data folder {root}: no such folder; "
            "give the folder that contains MNIST/raw or the folders of the shapes"
        )
    return root


def _shapes(config: DataConfig, folder: Path | str | None) -> Splits:
    """Load shapes in the unit ball and put them on the grid."""
    if (config.name == "folder") != (config.folder is not None):
        raise InputError(
            f"setting data.folder = {json.dumps(config.folder)} with data.name={config.name}: "
            "data.name=folder needs the folder of your shapes; other data sets do not use it"
        )
    if config.name == "solids":
        train, test, names = solids(config.points)
    elif config.name == "folder":
        train, test, names = read_folder(Path(config.folder), config.points)
    else:
        train, test, names = read_published(config.name, _data_folder(folder), config.points)

    def clouds(split: Shapes) -> PointClouds:
        return clouds_from_unit_ball(
            torch.from_numpy(split.points), torch.from_numpy(split.labels), names, config.cells
        )

    whole = clouds(train)
    kept, held_out = _hold_out(whole.labels, config.validation_fraction)
    return Splits(whole.select(kept), whole.select(held_out), clouds(test), test.also_in_training)


def _mnist(folder: Path | str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return mnist.read_mnist(_data_folder(folder))


def _digits(_folder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load scikit-learn's digits. A third of them is the test split."""
    images, labels = mnist.read_digits()
    train, test = _hold_out(labels, 1 / 3)
    return images[train], labels[train], images[test], labels[test]


IMAGES = {"mnist": _mnist, "digits": _digits}
# Data sets whose licence allows redistribution of their clouds and of sets made from them.
# ModelNet's licence does not say so.
PASSED_ON = (*IMAGES, "solids")
