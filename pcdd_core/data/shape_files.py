"""Three-dimensional shapes, read from files in their published layouts or generated as solids.

All functions return the same format: equally many points per shape, zero mean, largest norm 1.
`read_all` and `read_hdf5` skip files and shapes that they cannot use and report them in a warning,
so that one damaged mesh does not waste an hour of reading. `read_all` raises an error if a class is
left without shapes.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError

MESHES, LISTS, ARRAYS = (".off", ".ply"), (".xyz", ".txt"), (".npy", ".npz")
LARGEST_FILE = 2**28  # bytes; the meshes of the published data sets are far smaller
Named = tuple[Path, int]  # file and label of a shape


@dataclass(frozen=True)
class Shapes:
    """Labelled shapes of equally many points.

    points:           float32 (shapes, points, 3), zero mean, largest norm 1
    labels:           int64 (shapes,)
    also_in_training: number of test shapes that are known to equal a training shape
    """

    points: np.ndarray
    labels: np.ndarray
    also_in_training: int = 0


@dataclass(frozen=True)
class Published:
    """A published data set: its folder inside the data folder, its source, and its reader.

    read: maps folder and points per shape to training shapes, test shapes and class names
    """

    folder: str
    source: str
    read: Callable[[Path, int], tuple[Shapes, Shapes, tuple[str, ...]]]


# --- one file -------------------------------------------------------------------------------------


def read_shape(path: Path, points: int, draws: np.random.Generator) -> np.ndarray:
    """Read points of the shape in a file: float32 (points, 3), zero mean, largest norm 1.

    Mesh (.off, .ply with faces): points are sampled on the surface in proportion to area.
    List of points (.xyz, .txt, .ply without faces, .npy, .npz with one array or `points`): a random
    subsample. A list that is too short gets random repeats.
    Columns after the third, such as normals, are ignored. Raises InputError that names the file and
    what is wrong with it.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(
            f"{path}: {path.stat().st_size / 2**20:.0f} MiB; "
            f"expected at most {LARGEST_FILE / 2**20:.0f}"
        )
    try:
        rows, faces = _reader(path)(path)
    except InputError:
        raise
    except Exception as error:  # the libraries raise about ten types for damaged files
        raise InputError(
            f"{path}: not a readable {path.suffix} file ({' '.join(str(error).split())[:200]})"
        ) from None
    if rows.ndim != 2 or rows.shape[1] < 3 or len(rows) == 0:
        raise InputError(
            f"{path}: an array of shape {rows.shape}; expected one or more rows of 3 coordinates"
        )
    rows = rows[:, :3].astype(np.float64)
    if (wrong := np.argwhere(~np.isfinite(rows))).size:
        row, axis = wrong[0]
        raise InputError(
            f"{path}: coordinate {rows[row, axis]} in row {row}; expected finite numbers"
        )
    return normalised(
        _on_surface(path, rows, faces, points, draws)
        if faces is not None
        else _part(rows, points, draws),
        str(path),
    )


def normalised(points: np.ndarray, name: str) -> np.ndarray:
    """Move and scale points to zero mean and largest norm 1: float32 (points, 3).

    name: names the shape in the error message
    Raises InputError if all points coincide.
    """
    centred = points - points.mean(0)
    radius = np.linalg.norm(centred, axis=1).max()
    if not radius > 1e-9 * max(1.0, np.abs(points).max()):
        raise InputError(
            f"{name}: all points are at {points[0].tolist()}; expected a shape with some extent"
        )
    return (centred / radius).astype(np.float32)


def _reader(path: Path) -> Callable[[Path], tuple[np.ndarray, np.ndarray | None]]:
    """Return the function that reads files with this suffix.

    It returns points or vertices, and faces or None.
    """
    suffix = path.suffix.lower()
    if suffix in MESHES:
        return _read_mesh
    if suffix in LISTS:
        return lambda path: (_read_list(path), None)
    if suffix in ARRAYS:
        return lambda path: (_read_array(path), None)
    raise InputError(
        f"{path}: files of this ending are not read; "
        f"expected one of {', '.join(MESHES + LISTS + ARRAYS)}"
    )


def _read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    import trimesh  # imported here, because it takes long

    loaded = trimesh.load(path, process=False)
    parts = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    vertices, faces, first = [], [], 0
    for part in parts:
        vertices.append(np.asarray(part.vertices))
        if getattr(part, "faces", None) is not None and len(part.faces):
            faces.append(np.asarray(part.faces) + first)
        first += len(part.vertices)
    if not vertices:
        raise InputError(f"{path}: no vertices; expected a mesh or points")
    return np.concatenate(vertices), np.concatenate(faces) if faces else None


def _read_list(path: Path) -> np.ndarray:
    text = path.read_text()
    rows = [
        line.replace(",", " ").split()
        for line in text.splitlines()
        if line.strip() and not line.startswith("#")
    ]
    if rows and len(rows[0]) == 1:  # some .xyz files start with the number of points
        rows = rows[1:]
    for number, row in enumerate(rows):
        if len(row) < 3:
            raise InputError(
                f"{path}: {len(row)} numbers in row {number}; "
                "expected 3 or more, separated by spaces or commas"
            )
    return np.array([[float(value) for value in row[:3]] for row in rows])


def _read_array(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if "points" not in loaded.files and len(loaded.files) != 1:
            raise InputError(
                f"{path}: arrays {', '.join(loaded.files) or 'none'}; "
                "expected one, or one called points"
            )
        return loaded["points" if "points" in loaded.files else loaded.files[0]]


def _on_surface(
    path: Path, vertices: np.ndarray, faces: np.ndarray, points: int, draws: np.random.Generator
) -> np.ndarray:
    """Sample points uniformly on the surface.

    A triangle is chosen in proportion to its area, then a point uniformly inside it.
    """
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if not mesh.area > 0:
        raise InputError(
            f"{path}: a mesh without surface ({len(faces)} faces of area 0); "
            "expected triangles with some extent"
        )
    return np.asarray(trimesh.sample.sample_surface(mesh, points, seed=draws)[0])


def _part(rows: np.ndarray, points: int, draws: np.random.Generator) -> np.ndarray:
    """Subsample rows at random; with fewer rows than `points`, keep all and add random repeats."""
    order = draws.permutation(len(rows))[:points]
    return rows[np.concatenate([order, draws.integers(len(rows), size=max(points - len(rows), 0))])]


# --- many files -----------------------------------------------------------------------------------


def read_all(named: Sequence[Named], points: int, class_names: Sequence[str], seed: int) -> Shapes:
    """Read all shapes in `named`.

    Files that cannot be used are skipped, and one warning names the first 20. The points of a file
    depend on the file, its index in `named` and the seed, but not on other files. Raises InputError
    if no file of a class can be used.
    """
    kept, labels, refused = [], [], []
    for number, (path, label) in enumerate(named):
        try:
            kept.append(read_shape(path, points, np.random.default_rng((seed, number))))
            labels.append(label)
        except (InputError, OSError) as error:
            refused.append(str(error))
    if refused:
        listed = "\n  ".join(refused[:20])
        more = f"\n  and {len(refused) - 20} more" if len(refused) > 20 else ""
        warnings.warn(
            f"{len(refused)} of {len(named)} files are left out:\n  {listed}{more}", stacklevel=2
        )
    for label in sorted({label for _, label in named} - set(labels)):
        raise InputError(
            f"class '{class_names[label]}': none of its files can be used; the first: {refused[0]}"
        )
    return Shapes(np.stack(kept), np.array(labels, dtype=np.int64))


def read_folder(root: Path, points: int, seed: int = 0) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read a folder of classes: training shapes, test shapes, class names.

    Three layouts are read: root/train/CLASS/FILE with root/test/CLASS/FILE; root/CLASS/train/FILE
    with root/CLASS/test/FILE, as ModelNet is published; and root/CLASS/FILE, where every third file
    in the order of names is a test shape. Raises InputError if the folder, its classes or their
    files are missing, or if no file of a class can be used.
    """

    def files(folder: Path) -> list[Path]:
        endings = MESHES + LISTS + ARRAYS
        return sorted(
            path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file()
        )

    def folders(folder: Path) -> list[Path]:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )

    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one with a folder for each class")
    split_first = {path.name for path in folders(root)} >= {"train", "test"}
    classes = folders(root / "train" if split_first else root)
    if not classes:
        raise InputError(f"{root}: no folders of classes in it")
    train, test = [], []
    for label, folder in enumerate(classes):
        if split_first:
            own = (
                files(folder),
                files(root / "test" / folder.name)
                if (root / "test" / folder.name).is_dir()
                else [],
            )
        elif (folder / "train").is_dir() and (folder / "test").is_dir():
            own = files(folder / "train"), files(folder / "test")
        else:
            every = files(folder)
            own = [path for place, path in enumerate(every) if place % 3 != 2], every[2::3]
        for split, paths, kept in zip(("training", "testing"), own, (train, test)):
            if not paths:
                raise InputError(
                    f"{folder}: no files for {split}; "
                    f"expected some of {', '.join(MESHES + LISTS + ARRAYS)}"
                )
            kept += [(path, label) for path in paths]
    names = tuple(folder.name for folder in classes)
    return read_all(train, points, names, seed), read_all(test, points, names, seed + 1), names


# --- published layouts ----------------------------------------------------------------------------


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


# --- solids ---------------------------------------------------------------------------------------


def solids(
    points: int, seed: int = 0, train: int = 100, test: int = 50
) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Generate a data set of eight simple solids, which needs no files.

    train, test: number of shapes per solid
    Each shape has random proportions, a random rotation about the vertical and a small random tilt.
    Returns training shapes, test shapes and class names.
    """
    names = tuple(SOLIDS)
    splits = []
    for split, count in enumerate((train, test)):
        generated = []
        for label, name in enumerate(names):
            for number in range(count):
                draws = np.random.default_rng((seed, split, label, number))
                shape = SOLIDS[name](points, draws) * draws.uniform(0.6, 1.4, 3)
                generated.append(
                    normalised(
                        shape @ _turn(draws.uniform(0, 2 * np.pi), draws.normal(0, 0.1, 2)).T, name
                    )
                )
        splits.append(Shapes(np.stack(generated), np.repeat(np.arange(len(names)), count)))
    return *splits, names


def _turn(angle: float, tilt: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of a rotation about z, followed by small ones about x and y.

    angle, tilt: radians
    """
    matrix = np.eye(3)
    for axes, by in (((0, 1), angle), ((1, 2), tilt[0]), ((0, 2), tilt[1])):
        step = np.eye(3)
        step[np.ix_(axes, axes)] = [[np.cos(by), -np.sin(by)], [np.sin(by), np.cos(by)]]
        matrix = step @ matrix
    return matrix


def _mesh(name: str) -> Callable[[int, np.random.Generator], np.ndarray]:
    def sampled(points: int, draws: np.random.Generator) -> np.ndarray:
        import trimesh

        make = {
            "ball": lambda: trimesh.creation.icosphere(radius=1.0),
            "box": lambda: trimesh.creation.box((1.5, 1.5, 1.5)),
            "cylinder": lambda: trimesh.creation.cylinder(0.7, 2.0),
            "cone": lambda: trimesh.creation.cone(0.9, 2.0),
            "ring": lambda: trimesh.creation.torus(0.8, 0.25),
            "capsule": lambda: trimesh.creation.capsule(1.5, 0.4),
        }[name]
        return np.asarray(trimesh.sample.sample_surface(make(), points, seed=draws)[0])

    return sampled


def _cross(points: int, draws: np.random.Generator) -> np.ndarray:
    """Sample points in three bars at right angles."""
    along, across = draws.uniform(-1, 1, points), draws.uniform(-0.15, 0.15, (points, 2))
    bar, made = draws.integers(3, size=points), np.empty((points, 3))
    for axis in range(3):
        own = bar == axis
        made[own, axis], made[np.ix_(own, [(axis + 1) % 3, (axis + 2) % 3])] = (
            along[own],
            across[own],
        )
    return made


def _table(points: int, draws: np.random.Generator) -> np.ndarray:
    """Sample points in a plate on four legs."""
    made = draws.uniform((-1, -1, 0.7), (1, 1, 0.8), (points, 3))
    legs = draws.random(points) < 0.4
    corner = draws.choice([-0.85, 0.85], (points, 2))
    made[legs] = np.column_stack(
        [corner + draws.uniform(-0.06, 0.06, (points, 2)), draws.uniform(-1, 0.7, points)]
    )[legs]
    return made


SOLIDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    **{name: _mesh(name) for name in ("ball", "box", "cylinder", "cone", "ring", "capsule")},
    "cross": _cross,
    "table": _table,
}
