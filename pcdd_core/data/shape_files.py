"""Three-dimensional shapes, read from one file, many files, or a folder of classes.

All functions return the same format: equally many points per shape, zero mean, largest norm 1.
`read_all` skips files that it cannot use and reports them in a warning, so that one damaged mesh
does not waste an hour of reading. It raises an error if a class is left without shapes.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..arrays import array_names, read_array, read_arrays
from ..errors import InputError
from ..geometry.names import check_class_names
from ..text import printable
from .meshes import read_off, read_ply

MESHES, LISTS, ARRAYS = (".off", ".ply"), (".xyz", ".txt"), (".npy", ".npz")
LARGEST_FILE = 2**28  # bytes; the meshes of the published data sets are far smaller
Named = tuple[Path, int]  # file and label of a shape


@dataclass(frozen=True)
class Shapes:
    """Labelled shapes of equally many points.

    points: float32 (shapes, points, 3), zero mean, largest norm 1
    labels: int64 (shapes,)
    """

    points: np.ndarray
    labels: np.ndarray


# --- one file -------------------------------------------------------------------------------------


def read_shape(path: Path, points: int, draws: np.random.Generator) -> np.ndarray:
    """Read points of the shape in a file: float32 (points, 3), zero mean, largest norm 1.

    Mesh (.off, .ply with faces): points are sampled on the surface in proportion to area.
    List of points (.xyz, .txt, .ply without faces, .npy, .npz with one array or `points`): a random
    subsample. A list that is too short gets random repeats.
    Columns after the third, such as normals, are ignored. Raises InputError that names the file and
    what is wrong with it.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InputError(
                f"{path}: {size / 2**20:.0f} MiB; expected at most {LARGEST_FILE / 2**20:.0f}"
            )
        rows, faces = _reader(path)(path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a shape") from None
    except Exception as error:  # the libraries raise about ten types for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable {path.suffix} file ({reason})") from None
    if rows.ndim != 2 or rows.shape[1] < 3 or len(rows) == 0:
        raise InputError(
            f"{path}: an array of shape {rows.shape}; expected one or more rows of 3 coordinates"
        )
    if rows.dtype.kind not in "fiu":
        raise InputError(f"{path}: an array of type {rows.dtype}; expected floats or integers")
    with np.errstate(over="ignore"):  # overflow gives inf, which is refused
        rows = rows[:, :3].astype(np.float64)
    _refuse_infinite(rows, path)
    return normalised(
        _on_surface(path, rows, faces, points, draws)
        if faces is not None
        else _subsample(rows, points, draws),
        str(path),
    )


def normalised(points: np.ndarray, name: str) -> np.ndarray:
    """Move and scale points to zero mean and largest norm 1: float32 (points, 3).

    points: float64 (points, 3), of any size
    name: names the shape in the error message
    Raises InputError if a coordinate is not finite or all points coincide.
    """
    _refuse_infinite(points, name)
    scaled = np.ldexp(points, -_exponent(points))  # the square of 1e200 would overflow
    centred = scaled - scaled.mean(0)
    radius = np.linalg.norm(centred, axis=1).max()
    if not radius > 1e-9 * np.abs(scaled).max():
        raise InputError(
            f"{name}: all points are at {points[0].tolist()}; expected a shape with some extent"
        )
    return (centred / radius).astype(np.float32)


def _exponent(points: np.ndarray) -> int:
    """Return the power of 2 just above the largest coordinate. A division by it is exact."""
    return int(np.frexp(np.abs(points).max())[1])


def _refuse_infinite(points: np.ndarray, name: object) -> None:
    if (wrong := np.argwhere(~np.isfinite(points))).size:
        row, axis = wrong[0]
        raise InputError(
            f"{name}: coordinate {points[row, axis]} in row {row}; expected finite numbers"
        )


def _reader(path: Path) -> Callable[[Path], tuple[np.ndarray, np.ndarray | None]]:
    """Return the function that reads files with this suffix.

    It returns points or vertices, and faces or None.
    """
    suffix = path.suffix.lower()
    if suffix in MESHES:
        return read_off if suffix == ".off" else read_ply
    if suffix in LISTS:
        return lambda path: (_read_list(path), None)
    if suffix in ARRAYS:
        return lambda path: (_read_array(path), None)
    raise InputError(
        f"{path}: files with this suffix are not read; "
        f"expected one of {', '.join(MESHES + LISTS + ARRAYS)}"
    )


def _read_list(path: Path) -> np.ndarray:
    rows = [
        line.replace(",", " ")
        for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if rows and len(first := rows[0].split()) == 1:  # some .xyz files start with the number of rows
        rows = rows[1:]
        if int(first[0]) != len(rows):
            raise ValueError(f"{len(rows)} rows; its first line declares {first[0]}")
    for number, row in enumerate(rows):
        if (count := len(row.split())) < 3:
            raise InputError(
                f"{path}: {count} numbers in row {number}; "
                "expected 3 or more, separated by spaces or commas"
            )
    # loadtxt refuses what float() reads, such as 1_000
    return np.loadtxt(rows, usecols=(0, 1, 2), ndmin=2, comments=None) if rows else np.empty(0)


def _read_array(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":  # of a zip archive
        return read_array(path, LARGEST_FILE)
    names = array_names(path)
    if "points" not in names and len(names) != 1:
        raise InputError(
            f"{path}: arrays {ascii(', '.join(names)[:200])[1:-1] or 'none'}; "
            "expected one, or one called points"
        )
    name = "points" if "points" in names else names[0]
    return read_arrays(path, [name], LARGEST_FILE)[name]


def _on_surface(
    path: Path, vertices: np.ndarray, faces: np.ndarray, points: int, draws: np.random.Generator
) -> np.ndarray:
    """Sample points uniformly on the surface.

    A triangle is chosen in proportion to its area, then a point uniformly inside it.
    """
    import trimesh  # imported here, because it takes long

    exponent = _exponent(vertices)  # the area of a triangle of sides of 1e200 would overflow
    mesh = trimesh.Trimesh(np.ldexp(vertices, -exponent), faces, process=False)
    if not mesh.area > 0:
        raise InputError(
            f"{path}: a mesh without surface ({len(faces)} faces of area 0); "
            "expected triangles with some extent"
        )
    sampled = np.asarray(trimesh.sample.sample_surface(mesh, points, seed=draws)[0])
    return np.ldexp(sampled, exponent)


def _subsample(rows: np.ndarray, points: int, draws: np.random.Generator) -> np.ndarray:
    """Subsample rows at random; with fewer rows than `points`, keep all and add random repeats."""
    order = draws.permutation(len(rows))[:points]
    return rows[np.concatenate([order, draws.integers(len(rows), size=max(points - len(rows), 0))])]


# --- many files -----------------------------------------------------------------------------------


def read_all(
    named: Sequence[Named], points: int, class_names: Sequence[str], root: Path, seed: int = 0
) -> Shapes:
    """Read all shapes in `named`.

    root: folder that contains the files
    Files that cannot be used are skipped, and one warning names them. The points of a file depend
    on the file, its path inside `root` and the seed, but not on other files. Raises InputError if
    no file of a class can be used.
    """

    def read(path: Path) -> np.ndarray:
        inside = os.fsencode(path.relative_to(root).as_posix())
        number = int.from_bytes(hashlib.sha256(inside).digest()[:8], "big")
        return read_shape(path, points, np.random.default_rng((seed, number)))

    reads = [(label, partial(read, path)) for path, label in named]
    return usable(reads, class_names, f"{root}: no files", "files")


def usable(
    reads: Iterable[tuple[int, Callable[[], np.ndarray]]],
    class_names: Sequence[str],
    none: str,
    kind: str,
) -> Shapes:
    """Read shapes one by one, and skip those that raise InputError.

    reads: for each shape its label and a function that returns its points
    none:  message if there is nothing to read
    kind:  plural noun for the shapes in the warning, which has a line for each skipped shape
    Raises InputError if nothing can be used, or no shape of a class.
    """
    all_labels, shapes, labels, refused = [], [], [], []
    for label, read in reads:
        all_labels.append(label)
        try:
            shapes.append(read())
            labels.append(label)
        except InputError as error:
            refused.append(str(error))
    if not all_labels:
        raise InputError(none)
    if refused:
        listed = "\n  ".join(map(printable, refused))  # one line each, for all names of files
        warnings.warn(
            f"{len(refused)} of {len(all_labels)} {kind} are left out:\n  {listed}", stacklevel=3
        )
    for label in sorted(set(all_labels) - set(labels)):
        raise InputError(
            f"class '{class_names[label]}': none of its {kind} can be used; the first: {refused[0]}"
        )
    return Shapes(np.stack(shapes), np.array(labels, dtype=np.int64))


def read_folder(root: Path, points: int, seed: int = 0) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """Read a folder of classes: training shapes, test shapes, class names.

    Three layouts are read: root/train/CLASS/FILE with root/test/CLASS/FILE; root/CLASS/train/FILE
    with root/CLASS/test/FILE, as ModelNet is published; and root/CLASS/FILE, where every third file
    in the order of names is a test shape. A warning counts the files with other suffixes. Raises
    InputError if the folder, its classes or their files are missing, if a class has an unprintable
    name, or if no file of a class can be used.
    """
    ignored = Counter()

    def files(folder: Path) -> list[Path]:
        present = [path for path in folder.iterdir() if path.is_file()]
        read = [path for path in present if path.suffix.lower() in MESHES + LISTS + ARRAYS]
        ignored.update(path.suffix or path.name for path in set(present) - set(read))
        return sorted(read)

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
    names = check_class_names([folder.name for folder in classes], root)
    tested = folders(root / "test") if split_first else []
    if unknown := [folder.name for folder in tested if folder.name not in names]:
        raise InputError(
            f"{root / 'test'}: class {ascii(unknown[0])} is not in {root / 'train'}; "
            "expected the same classes in both"
        )
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
            listed = files(folder)
            own = [path for place, path in enumerate(listed) if place % 3 != 2], listed[2::3]
        for split, paths, kept in zip(("training", "testing"), own, (train, test)):
            if not paths:
                raise InputError(
                    f"{folder}: no files for {split}; "
                    f"expected some of {', '.join(MESHES + LISTS + ARRAYS)}"
                )
            kept += [(path, label) for path in paths]
    if ignored:
        counts = ", ".join(
            f"{printable(ending)} ({count})" for ending, count in sorted(ignored.items())
        )
        warnings.warn(f"{root}: files with other suffixes are not read: {counts}", stacklevel=2)
    train, test = (read_all(split, points, names, root, seed) for split in (train, test))
    return train, test, names
