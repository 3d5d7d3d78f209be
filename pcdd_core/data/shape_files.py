"""Three-dimensional shapes, read from one file, many files, or a folder of classes.

All functions return the same format: equally many points per shape, zero mean, largest norm 1.
`read_all` skips files that it cannot use and reports them in a warning, so that one damaged mesh
does not waste an hour of reading. It raises an error if a class is left without shapes.
"""

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
