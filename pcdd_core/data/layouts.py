"""Published data sets of three-dimensional shapes, read in the layouts of their publishers.

All functions return the same format: equally many points per shape, zero mean, largest norm 1.
`read_hdf5` skips shapes that it cannot use and reports them in a warning.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..geometry.names import check_class_names
from .shape_files import Shapes, normalised, read_all, read_folder, usable

LARGEST_SET = 2**30  # bytes of an array; the largest published one, ScanObjectNN's, has 280 MB
Read = tuple[int, Callable[[], np.ndarray]]  # label of a shape, and a function that reads it


@dataclass(frozen=True)
class Published:
    """A published data set: its folder inside the data folder, its source, and its reader.

    read: maps folder and points per shape to training shapes, test shapes and class names
    """

    folder: str
    source: str
    read: Callable[[Path, int], tuple[Shapes, Shapes, tuple[str, ...]]]


def read_hdf5(paths: Sequence[Path], points: int, class_names: Sequence[str]) -> Shapes:
    """Read shapes from HDF5 files in the layout of PointNet's authors.

    Fields: `data` (shapes, points, 3 or more) and `label` (shapes,) or (shapes, 1). The function
    takes the first `points` points of each shape, because the files store them in random order. It
    skips shapes that are not finite or have no extent, and one warning names them. Raises
    InputError that names the file and the field.
    """

    def reads() -> Iterator[Read]:  # one file after another, because all may not fit into memory
        for path in paths:
            data, label = (_hdf5_array(path, field) for field in ("data", "label"))
            yield from _reads(path, data, label, points, len(class_names))

    return usable(reads(), class_names, f"{paths[0] if paths else 'HDF5'}: no shapes", "shapes")


def _hdf5_array(path: Path, field: str) -> np.ndarray:
    """Read an array of numbers from an HDF5 file. Raises InputError that names file and field."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if field not in file:
                raise InputError(f"{path}: field '{field}' is missing; expected data and label")
            dataset = file[field]
            if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
                raise InputError(f"{path}: field '{field}' is no array; expected an array")
            if dataset.dtype.kind not in "fiu":  # the size of text is unknown
                raise InputError(
                    f"{path}: field '{field}' is of type {dataset.dtype}; "
                    "expected floats or integers"
                )
            # a part of a compressed array is unpacked as a whole, so its size counts too
            sizes = math.prod(dataset.shape), math.prod(dataset.chunks or ())
            if max(sizes) * dataset.dtype.itemsize > LARGEST_SET:
                raise InputError(
                    f"{path}: field '{field}' has {max(sizes):,} numbers; "
                    f"expected at most {LARGEST_SET:,} bytes"
                )
            return np.asarray(dataset[()])
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected an HDF5 file") from None
    except Exception as error:  # h5py raises about five types for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable HDF5 file (field '{field}': {reason})") from None


def _reads(
    path: Path, data: np.ndarray, label: np.ndarray, points: int, classes: int
) -> list[Read]:
    """Return label and reader of each shape in the arrays of an HDF5 file.

    data:  (shapes, points or more, 3 or more)
    label: (shapes,) or (shapes, 1)
    Raises InputError that names the file and the field.
    """
    if data.ndim != 3 or data.shape[2] < 3 or data.shape[1] < points:
        raise InputError(
            f"{path}: field 'data' is of shape {data.shape}; "
            f"expected (shapes, {points} points or more, 3)"
        )
    if label.size != len(data) or label.shape not in ((len(data),), (len(data), 1)):
        raise InputError(
            f"{path}: field 'label' is of shape {label.shape}; "
            f"expected one for each of {len(data)} shapes"
        )
    label = label.reshape(-1)
    if (wrong := np.flatnonzero(~np.isin(label, np.arange(classes)))).size:
        raise InputError(
            f"{path}: field 'label' is {label[wrong[0]]} at shape {wrong[0]}; "
            f"expected 0 to {classes - 1}"
        )

    def read(number: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # overflow gives inf, which is refused
            shape = data[number, :points, :3].astype(np.float64)
        return normalised(shape, f"{path}, shape {number}")

    return [(int(value), partial(read, number)) for number, value in enumerate(label)]


def _modelnet(root: Path, points: int, classes: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read ModelNet10 or 40 in any of its three forms: .off meshes, resampled .txt, HDF5."""
    if (root / f"modelnet{classes}_train.txt").exists():
        return _resampled(root, points, classes)
    if (root / "train_files.txt").exists():
        return _hdf5_lists(root, points)
    return read_folder(root, points)


def _resampled(root: Path, points: int, classes: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read modelnet40_normal_resampled: CLASS/CLASS_0001.txt, and lists of names."""
    names = _class_names(root / f"modelnet{classes}_shape_names.txt")
    splits = []
    for split in ("train", "test"):
        listed = _lines(root / f"modelnet{classes}_{split}.txt")
        owners = [shape.rpartition("_")[0] for shape in listed]
        if unknown := set(owners) - set(names):
            raise InputError(
                f"{root / f'modelnet{classes}_{split}.txt'}: "
                f"class '{min(unknown)}' is not in the list of names"
            )
        named = [
            (root / owner / f"{shape}.txt", names.index(owner))
            for shape, owner in zip(listed, owners)
        ]
        splits.append(read_all(named, points, names, root))
    train, test = splits
    return train, test, names


def _hdf5_lists(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read modelnet40_ply_hdf5_2048.

    train_files.txt and test_files.txt list the HDF5 files, shape_names.txt lists the classes.
    """
    names = _class_names(root / "shape_names.txt")
    splits = [
        [root / Path(line).name for line in _lines(root / f"{split}_files.txt")]
        for split in ("train", "test")
    ]
    train, test = (read_hdf5(paths, points, names) for paths in splits)
    return train, test, names


def _shapenet_core(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read shapenetcorev2_hdf5_2048: train0.h5 ..., val0.h5, test0.h5 ..., shape_names.txt.

    Training shapes include the validation part.
    """
    names = _class_names(root / "shape_names.txt")
    splits = [
        [path for split in parts for path in sorted(root.glob(f"{split}*.h5"))]
        for parts in (("train", "val"), ("test",))
    ]
    for paths, split in zip(splits, ("train", "test")):
        if not paths:
            raise InputError(f"{root}: no files {split}*.h5")
    train, test = (read_hdf5(paths, points, names) for paths in splits)
    return train, test, names


def _shapenet_part(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read shapenetcore_partanno_segmentation_benchmark_v0_normal.

    The shapes are SYNSET/SHAPE.txt, and JSON files list them. Training shapes include the
    validation part.
    """
    rows = [line.split() for line in _lines(root / "synsetoffset2category.txt")]
    folders = [row[-1] for row in rows]
    names = check_class_names([row[0] for row in rows], root / "synsetoffset2category.txt")
    splits = []
    for parts in (("train", "val"), ("test",)):
        named = []
        for part in parts:
            path = root / "train_test_split" / f"shuffled_{part}_file_list.json"
            try:
                listed = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise InputError(f"{path}: not a readable list ({error})") from None
            for shape in listed if isinstance(listed, list) else [listed]:
                parts = shape.split("/") if isinstance(shape, str) else []
                if len(parts) < 2:
                    raise InputError(
                        f"{path}: entry {str(shape)[:100]!r}; "
                        "expected a list of names such as shape_data/02691156/NAME"
                    )
                folder, name = parts[-2:]
                if folder not in folders:
                    raise InputError(
                        f"{path}: '{shape}' has no class in {root / 'synsetoffset2category.txt'}"
                    )
                named.append((root / folder / f"{name}.txt", folders.index(folder)))
        splits.append(read_all(named, points, names, root))
    train, test = splits
    return train, test, names


SCANOBJECTNN = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed",
    "pillow", "sink", "sofa", "toilet",
)  # fmt: skip


def _scanobjectnn(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read PB_T50_RS, the hardest variant of ScanObjectNN, with background."""
    files = [
        root / "main_split" / f"{split}_objectdataset_augmentedrot_scale75.h5"
        for split in ("training", "test")
    ]
    train, test = (read_hdf5([path], points, SCANOBJECTNN) for path in files)
    return train, test, SCANOBJECTNN


PUBLISHED = {
    "modelnet10": Published(
        "ModelNet10",
        "modelnet.cs.princeton.edu: ModelNet10.zip",
        lambda root, points: _modelnet(root, points, 10),
    ),
    "modelnet40": Published(
        "ModelNet40",
        "modelnet.cs.princeton.edu: ModelNet40.zip, or its forms modelnet40_normal_resampled and "
        "modelnet40_ply_hdf5_2048, unpacked into this folder",
        lambda root, points: _modelnet(root, points, 40),
    ),
    "shapenetcore": Published(
        "shapenetcorev2_hdf5_2048", "github.com/antao97/PointCloudDatasets", _shapenet_core
    ),
    "shapenetpart": Published(
        "shapenetcore_partanno_segmentation_benchmark_v0_normal",
        "the archive of that name, from shapenet.org after registration",
        _shapenet_part,
    ),
    "scanobjectnn": Published(
        "ScanObjectNN",
        "hkust-vgd.github.io/scanobjectnn, h5_files.zip, after registration",
        _scanobjectnn,
    ),
}


def read_published(name: str, data: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read a published data set: training shapes, test shapes, class names.

    name: a key of `PUBLISHED`
    data: the folder that contains the folder of the data set
    Raises InputError that names the source if the folder is missing.
    """
    published = PUBLISHED[name]
    root = data / published.folder
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; {name} is expected there, from {published.source}. "
            "data.name=solids needs no files"
        )
    return published.read(root, points)


def _class_names(path: Path) -> tuple[str, ...]:
    return check_class_names(_lines(path), path)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable list of names ({error})") from None
    return [line.strip() for line in lines if line.strip()]
