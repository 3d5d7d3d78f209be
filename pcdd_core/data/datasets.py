"""Real labelled clouds with train, validation and test splits."""

import json
import os
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError, nearest_names
from ..geometry.clouds import PointClouds, from_occupancy
from ..geometry.grid import clouds_from_unit_ball
from ..pieces import Count, Fraction, Piece, setting
from . import medmnist, mnist
from .layouts import read_published
from .shape_files import Shapes, read_folder
from .solids import solids


@dataclass(frozen=True)
class Splits:
    """Real clouds in three splits. Choose on `validation`. Use `test` for the final score only."""

    train: PointClouds
    validation: PointClouds
    test: PointClouds

    @classmethod
    def held_out(
        cls, train: PointClouds, test: PointClouds, validation_fraction: float = 0.1
    ) -> "Splits":
        """Hold out a fraction of each class of `train`, evenly spaced, as the validation split."""
        kept, held_out = _hold_out(train.labels, validation_fraction)
        return cls(train.select(kept), train.select(held_out), test)

    def to(self, device: torch.device | str) -> "Splits":
        """Return the same splits on another device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )


class DataSet(Piece):
    """A kind of real data. A choice defines `load`.

    redistributable: its licence allows anyone to share its clouds and sets made from them
    balanced: scores are balanced accuracies, because its classes differ much in size
    """

    validation_fraction: Fraction = setting(
        default=0.1,
        help="fraction of the training set in the validation split; make every choice on that "
        "split",
        kw_only=True,
    )
    classes: tuple[str, ...] | None = setting(
        default=None, help="names of the classes to keep; null: all", kw_only=True
    )
    redistributable: ClassVar[bool] = False
    balanced: ClassVar[bool] = False

    @abstractmethod
    def load(self, folder: Path | str | None = None) -> Splits:
        """Load the clouds.

        folder: the folder of MNIST (torchvision's layout, downloaded if missing), of MedMNIST
            (likewise) and of published shapes; None: the environment variable PCDD_DATA, or
            ~/.cache/pcdd if that is unset
        Raises InputError if the data is damaged or cannot be obtained.
        """

    def chosen(self, splits: Splits) -> Splits:
        """Return the splits with the clouds of `classes` only.

        Raises InputError if there is no such class, or only one is left.
        """
        if self.classes is None:
            return splits
        names = splits.train.class_names
        if unknown := [name for name in self.classes if name not in names]:
            raise InputError(
                f"setting data.classes: no class of data.name={self.name} is called "
                f"{unknown[0]!r}; {nearest_names(unknown[0], names)}"
            )
        kept = [label for label, name in enumerate(names) if name in self.classes]
        if len(kept) < 2:
            raise InputError(
                f"setting data.classes = {json.dumps(self.classes)}: expected at least 2 classes"
            )
        return replace(
            splits,
            train=_of_classes(splits.train, kept),
            validation=_of_classes(splits.validation, kept),
            test=_of_classes(splits.test, kept),
        )


class Images(DataSet):
    """Settings of images, which become clouds of occupied cells."""

    threshold: Fraction = setting(
        default=75 / 255, help="a cell is occupied above this fraction of full brightness"
    )
    max_points: Count | None = setting(
        default=None, help="keep the first points of each training cloud in raster order; null: all"
    )
    redistributable = True

    @abstractmethod
    def read(self, folder: Path | str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return brightness in [0, 1] and labels of the training images, then of the test images.

        Shapes: (images, height, width) and int64 (images,).
        """

    def load(self, folder: Path | str | None = None) -> Splits:
        """Load the images and turn them into clouds, see `DataSet.load`."""
        images, labels, test_images, test_labels = self.read(folder)
        names = tuple(str(name) for name in labels.unique().tolist())
        train, validation = _hold_out(labels, self.validation_fraction)

        def clouds(images: Tensor, labels: Tensor, max_points: int | None = None) -> PointClouds:
            # the added axis is the depth of one cell (paper, section 3.1.1)
            occupied = images[:, None] > self.threshold
            if (empty := (~occupied.flatten(1).any(1)).nonzero()).numel():
                raise InputError(
                    f"setting data.threshold = {self.threshold}: image {int(empty[0])} of "
                    f"{self.name} becomes an empty cloud; choose a lower threshold"
                )
            return from_occupancy(occupied, labels, names, max_points)

        return self.chosen(
            Splits(
                clouds(images[train], labels[train], self.max_points),
                clouds(images[validation], labels[validation]),
                clouds(test_images, test_labels),
            )
        )


class Mnist(Images, name="mnist"):
    """MNIST, 60,000 and 10,000 handwritten digits."""

    def read(self, folder: Path | str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read MNIST's files, see `Images.read`."""
        return mnist.read_mnist(_data_folder(folder))


class Digits(Images, name="digits"):
    """The handwritten digits of scikit-learn, which need no files. A third is the test split."""

    def read(self, folder: Path | str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the digits, see `Images.read`."""
        images, labels = mnist.read_digits()
        train, test = _hold_out(labels, 1 / 3)
        return images[train], labels[train], images[test], labels[test]


class Adrenal(DataSet, name="adrenal"):
    """AdrenalMNIST3D (MedMNIST v2, Yang et al. 2023), 1,584 adrenal glands on 28 x 28 x 28 cells.

    Its three splits are the official ones.
    """

    redistributable = balanced = True  # CC BY 4.0; 78 % of the glands are normal

    def load(self, folder: Path | str | None = None) -> Splits:
        """Load the volumes and turn occupied cells into points, see `DataSet.load`."""
        if self.validation_fraction != (usual := self.settings()["validation_fraction"][0]):
            raise InputError(
                f"setting data.validation_fraction = {self.validation_fraction}: {self.name} has a "
                f"validation split of its own; leave the setting at {usual}"
            )
        clouds = (
            from_occupancy(torch.from_numpy(occupied), torch.from_numpy(labels), medmnist.CLASSES)
            for occupied, labels in medmnist.read_adrenal(_data_folder(folder))
        )
        return self.chosen(Splits(*clouds))


class ShapeSet(DataSet):
    """Settings of three-dimensional shapes."""

    points: Count = setting(default=1024, help="points per shape, sampled on its surface")
    cells: Annotated[int, Field(ge=4, lt=2**10)] = setting(
        default=24, help="cells of the grid along each axis"
    )

    @abstractmethod
    def read(self, folder: Path | str | None) -> tuple[Shapes, Shapes, tuple[str, ...]]:
        """Return training shapes, test shapes and class names."""

    def load(self, folder: Path | str | None = None) -> Splits:
        """Load shapes in the unit ball and put them on the grid, see `DataSet.load`."""
        train, test, names = self.read(folder)

        def clouds(split: Shapes) -> PointClouds:
            points, labels = torch.from_numpy(split.points), torch.from_numpy(split.labels)
            return clouds_from_unit_ball(points, labels, names, self.cells)

        return self.chosen(Splits.held_out(clouds(train), clouds(test), self.validation_fraction))


class Solids(ShapeSet, name="solids"):
    """Simple solids, which are generated and need no files."""

    redistributable = True

    def read(self, folder: Path | str | None) -> tuple[Shapes, Shapes, tuple[str, ...]]:
        """Generate the solids."""
        return solids(self.points)


class Folder(ShapeSet, name="folder"):
    """Your own shapes: a folder of classes with .off, .ply, .xyz, .txt, .npy or .npz files."""

    folder: str = setting(default="", help="the folder")

    def read(self, folder: Path | str | None) -> tuple[Shapes, Shapes, tuple[str, ...]]:
        """Read the folder of the setting."""
        if not self.folder:
            raise InputError("setting data.folder = '': expected the folder of your shapes")
        return read_folder(Path(self.folder), self.points)


class PublishedShapes(ShapeSet):
    """A published data set of shapes, in a folder of its own inside the data folder."""

    def read(self, folder: Path | str | None) -> tuple[Shapes, Shapes, tuple[str, ...]]:
        """Read the files of the data set."""
        return read_published(self.name, _data_folder(folder), self.points)


class ModelNet10(PublishedShapes, name="modelnet10"):
    """ModelNet10 (Wu et al. 2015)."""


class ModelNet40(PublishedShapes, name="modelnet40"):
    """ModelNet40 (Wu et al. 2015)."""


class ShapeNetCore(PublishedShapes, name="shapenetcore"):
    """ShapeNetCore (Chang et al. 2015)."""


class ShapeNetPart(PublishedShapes, name="shapenetpart"):
    """ShapeNetPart (Yi et al. 2016)."""


class ScanObjectNN(PublishedShapes, name="scanobjectnn"):
    """ScanObjectNN (Uy et al. 2019)."""


def load_data(data: DataSet | str, folder: Path | str | None = None) -> Splits:
    """Load a data set, given as a piece or by name, see `DataSet.load`."""
    return DataSet.of(data, "data").load(folder)


def _of_classes(clouds: PointClouds, kept: list[int]) -> PointClouds:
    """Return the clouds with these labels, numbered anew in their order."""
    number = torch.full((len(clouds.class_names),), -1)
    number[kept] = torch.arange(len(kept))
    few = clouds.select((number[clouds.labels] >= 0).nonzero().flatten())
    names = tuple(clouds.class_names[label] for label in kept)
    return replace(few, labels=number[few.labels], class_names=names)


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
