"""Published data sets of three-dimensional shapes, read in the layouts of their publishers.

All functions return the same format: equally many points per shape, zero mean, largest norm 1.
`read_hdf5` skips shapes that it cannot use and reports them in a warning.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .shape_files import Shapes, normalised, read_all, read_folder


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
    skips shapes that are not finite or have no extent, with a warning. Raises InputError that names
    the file and the field.
    """
    import h5py

    kept, labels, refused = [], [], []
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                arrays = {
                    field: np.asarray(file[field]) if field in file else None
                    for field in ("data", "label")
                }
        except OSError as error:
            raise InputError(f"{path}: not a readable HDF5 file ({error})") from None
        data, label = arrays["data"], arrays["label"]
        for field, array in arrays.items():
            if array is None:
                raise InputError(f"{path}: field '{field}' is missing; expected data and label")
        if data.ndim != 3 or data.shape[2] < 3 or data.shape[1] < points:
            raise InputError(
                f"{path}: field 'data' is of shape {data.shape}; "
                f"expected (shapes, {points} points or more, 3)"
            )
        if label.size != len(data):
            raise InputError(
                f"{path}: field 'label' is of shape {label.shape}; "
                f"expected one for each of {len(data)} shapes"
            )
        label = label.reshape(-1).astype(np.int64)
        if (wrong := np.flatnonzero((label < 0) | (label >= len(class_names)))).size:
            raise InputError(
                f"{path}: field 'label' is {label[wrong[0]]} at shape {wrong[0]}; "
                f"expected 0 to {len(class_names) - 1}"
            )
        for number, shape in enumerate(data[:, :points, :3]):
            try:
                if not np.isfinite(shape).all():
                    raise InputError(f"{path}, shape {number}: a coordinate that is not finite")
                kept.append(normalised(shape.astype(np.float64), f"{path}, shape {number}"))
                labels.append(label[number])
            except InputError as error:
                refused.append(str(error))
    if refused:
        warnings.warn(f"{len(refused)} shapes are left out; the first: {refused[0]}", stacklevel=2)
    if not kept:
        raise InputError(f"{paths[0] if paths else 'HDF5'}: no shapes")
    return Shapes(np.stack(kept), np.array(labels))


def _modelnet(root: Path, points: int, classes: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read ModelNet10 or 40 in any of its three forms: .off meshes, resampled .txt, HDF5."""
    if (root / f"modelnet{classes}_train.txt").exists():
        return _resampled(root, points, classes)
    if (root / "train_files.txt").exists():
        return _hdf5_lists(root, points)
    return read_folder(root, points)


def _resampled(root: Path, points: int, classes: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read modelnet40_normal_resampled: CLASS/CLASS_0001.txt, and lists of names."""
    names = tuple(_lines(root / f"modelnet{classes}_shape_names.txt"))
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
        splits.append(read_all(named, points, names, seed=0))
    return *splits, names


def _hdf5_lists(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read modelnet40_ply_hdf5_2048.

    train_files.txt and test_files.txt list the HDF5 files, shape_names.txt lists the classes.
    """
    names = tuple(_lines(root / "shape_names.txt"))
    splits = [
        [root / Path(line).name for line in _lines(root / f"{split}_files.txt")]
        for split in ("train", "test")
    ]
    return *(read_hdf5(paths, points, names) for paths in splits), names


def _shapenet_core(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read shapenetcorev2_hdf5_2048: train0.h5 ..., val0.h5, test0.h5 ..., shape_names.txt.

    Training shapes include the validation part.
    """
    names = tuple(_lines(root / "shape_names.txt"))
    splits = [
        [path for split in parts for path in sorted(root.glob(f"{split}*.h5"))]
        for parts in (("train", "val"), ("test",))
    ]
    for paths, split in zip(splits, ("train", "test")):
        if not paths:
            raise InputError(f"{root}: no files {split}*.h5")
    return *(read_hdf5(paths, points, names) for paths in splits), names


def _shapenet_part(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read shapenetcore_partanno_segmentation_benchmark_v0_normal.

    The shapes are SYNSET/SHAPE.txt, and JSON files list them. Training shapes include the
    validation part.
    """
    rows = [line.split() for line in _lines(root / "synsetoffset2category.txt")]
    folders = [row[-1] for row in rows]
    names, splits = tuple(row[0] for row in rows), []
    for parts in (("train", "val"), ("test",)):
        named = []
        for part in parts:
            path = root / "train_test_split" / f"shuffled_{part}_file_list.json"
            try:
                listed = json.loads(path.read_text())
            except (OSError, json.JSONDecodeError) as error:
                raise InputError(f"{path}: not a readable list ({error})") from None
            for shape in listed:
                _, folder, name = shape.rsplit("/", 2)
                if folder not in folders:
                    raise InputError(
                        f"{path}: '{shape}' has no class in {root / 'synsetoffset2category.txt'}"
                    )
                named.append((root / folder / f"{name}.txt", folders.index(folder)))
        splits.append(read_all(named, points, names, seed=0))
    return *splits, names


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
    return *(read_hdf5([path], points, SCANOBJECTNN) for path in files), SCANOBJECTNN


REPEATED = "test_voxels_also_in_train"


def _voxels24(root: Path, points: int) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read ModelNet10 as far as 24^3 occupancy grids preserve it: one .npz, see its source."""
    path = root / "modelnet10_voxels24_1024.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {
                name: archive[name]
                for name in ("x_train", "y_train", "x_test", "y_test", "class_names", REPEATED)
            }
    except Exception as error:  # numpy and zipfile raise about ten types for damaged files
        raise InputError(f"{path}: not a readable archive ({error})") from None
    if points > arrays["x_train"].shape[1]:
        raise InputError(
            f"setting data.points = {points}: {path} has {arrays['x_train'].shape[1]} per shape"
        )
    splits = []
    for split in ("train", "test"):
        shapes = [
            normalised(shape, f"{path}, shape {number}")
            for number, shape in enumerate(arrays[f"x_{split}"][:, :points].astype(np.float64))
        ]
        repeated = int(arrays[REPEATED].sum()) if split == "test" else 0
        splits.append(Shapes(np.stack(shapes), arrays[f"y_{split}"].astype(np.int64), repeated))
    return *splits, tuple(arrays["class_names"].tolist())


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
    "modelnet10-voxels24": Published(
        "modelnet10_voxels24",
        "made from the 24^3 grids of github.com/guoguo12/modelnet-cnn; "
        "not comparable with ModelNet10",
        _voxels24,
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


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable list of names ({error})") from None
