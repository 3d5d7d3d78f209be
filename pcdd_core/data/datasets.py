"""Real labelled clouds with train, validation and test splits."""

import json
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import shape_files as shapes
from ..geometry.clouds import PointClouds, from_occupancy
from ..geometry.grid import clouds_from_unit_ball
from ..experiments.config import DataConfig
from ..errors import InputError

# name: (magic number, dimensions) of the files in torchvision's layout, folder/MNIST/raw/name
MNIST_FILES = {
    "train-images-idx3-ubyte": (2051, (60000, 28, 28)),
    "train-labels-idx1-ubyte": (2049, (60000,)),
    "t10k-images-idx3-ubyte": (2051, (10000, 28, 28)),
    "t10k-labels-idx1-ubyte": (2049, (10000,)),
}


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


def _digits(_folder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load scikit-learn's 1,797 embedded digits of 8 x 8 pixels. A third of them is the test split.

    Images are resized to 20 x 20 pixels, with a padding of 4 on each side as in MNIST.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images / 16).float()[:, None]
    images = F.pad(
        F.interpolate(images, (20, 20), mode="bicubic", align_corners=False).clamp(0, 1)[:, 0],
        (4, 4, 4, 4),
    )
    labels = torch.from_numpy(data.target).long()
    train, test = _hold_out(labels, 1 / 3)
    return images[train], labels[train], images[test], labels[test]


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
        train, test, names = shapes.solids(config.points)
    elif config.name == "folder":
        train, test, names = shapes.read_folder(Path(config.folder), config.points)
    else:
        train, test, names = shapes.read_published(config.name, _data_folder(folder), config.points)

    def clouds(split: shapes.Shapes) -> PointClouds:
        return clouds_from_unit_ball(
            torch.from_numpy(split.points), torch.from_numpy(split.labels), names, config.cells
        )

    whole = clouds(train)
    kept, held_out = _hold_out(whole.labels, config.validation_fraction)
    return Splits(whole.select(kept), whole.select(held_out), clouds(test), test.also_in_training)


def _mnist(folder: Path | str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load MNIST through torchvision: brightness in [0, 1] and labels, training, then test."""
    root = _data_folder(folder)
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    if not any((raw / name).exists() for name in MNIST_FILES):
        created = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
            MNIST(root, download=True)
        except (RuntimeError, OSError) as error:
            for empty in (raw, raw.parent, *created):  # remove what the failed download left
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()
            reason = " ".join(str(error).split())
            raise InputError(
                f"MNIST is not in {raw} and could not be downloaded ({reason}). "
                "Do one of the following: give the folder that contains MNIST/raw with --data DIR; "
                "set the environment variable PCDD_DATA to that folder; run once with a network "
                "connection, which downloads MNIST; or take data.name=digits, which needs no files"
            ) from None
    for name, (magic, shape) in MNIST_FILES.items():
        _check_idx(raw / name, magic, shape)
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    for name, labels in zip(list(MNIST_FILES)[1::2], (train.targets, test.targets)):
        if labels.max() > 9:
            raise InputError(
                f"{raw / name}: label {int(labels.max())}; MNIST's labels are 0 to 9; "
                "put the original file there"
            )
    return train.data / 255, train.targets.long(), test.data / 255, test.targets.long()


IMAGES = {"mnist": _mnist, "digits": _digits}
# Data sets whose licence allows redistribution of their clouds and of sets made from them.
# ModelNet's licence does not say so.
PASSED_ON = (*IMAGES, "solids")


def _check_idx(path: Path, magic: int, shape: tuple[int, ...]) -> None:
    """Check an IDX file before anything reads it.

    Raises InputError if the file is missing, truncated or of another kind.
    """
    remedy = "delete the folder to download it again, or put the original file there"
    if not path.is_file():
        raise InputError(f"{path}: missing, while other files of MNIST exist; {remedy}")
    header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
    with path.open("rb") as file:
        start = file.read(len(header))
    if start[:4] != header[:4]:
        raise InputError(
            f"{path}: not an IDX file of MNIST "
            f"(it starts with {start[:4].hex()}, not {header[:4].hex()}); {remedy}"
        )
    expected = len(header) + int(np.prod(shape))
    if start != header or path.stat().st_size != expected:
        raise InputError(
            f"{path}: damaged or cut short ({path.stat().st_size} bytes, expected {expected}); "
            f"{remedy}"
        )
