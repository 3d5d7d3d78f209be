"""Vertices and triangles of .off and .ply files.

A truncated or damaged file often still parses, with fewer faces than before. So the numbers of rows
and of indices must equal those that the file declares.
"""

import re
import warnings
from pathlib import Path

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray | None]  # vertices (n, 3); triangles (m, 3) or None


def read_off(path: Path) -> Mesh:
    """Read an .off file: counts, then a row per vertex and a row per face.

    The counts may follow `OFF` in the first line, as in ModelNet. Polygons become triangles.
    Columns of colours, normals and texture are ignored.
    Raises ValueError with the reason if the file is damaged.
    """
    from trimesh.geometry import triangulate_quads  # imported here, because it takes long

    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    rows = [row for line in lines if (row := line.partition("#")[0].strip())]
    header = re.match("(ST)?C?N?OFF", rows[0] if rows else "")
    if not header:
        raise ValueError("it does not start with OFF")
    first = rows[0][header.end() :].strip()
    rows = [first, *rows[1:]] if first else rows[1:]
    vertices, faces = _counts(rows[0].split() if rows else [])
    if len(rows) != 1 + vertices + faces:
        raise ValueError(f"{len(rows) - 1} rows; it declares {vertices} vertices and {faces} faces")
    polygons = []
    for number, row in enumerate(rows[1 + vertices :]):
        size, *indices = row.split()
        if not 1 <= int(size) <= len(indices):
            raise ValueError(f"face {number} has {len(indices)} indices; it declares {size}")
        polygons.append([int(index) for index in indices[: int(size)]])
    points = np.loadtxt(rows[1 : 1 + vertices], usecols=(0, 1, 2), ndmin=2) if vertices else []
    return _checked(np.asarray(points), triangulate_quads(polygons))


def read_ply(path: Path) -> Mesh:
    """Read a .ply file, text or binary. Polygons become triangles.

    Raises ValueError with the reason if the file is damaged; trimesh raises several other types.
    """
    from trimesh.exchange.ply import load_ply
    from trimesh.geometry import triangulate_quads

    with path.open("rb") as file, warnings.catch_warnings():
        # numpy keeps the numbers before a word that is not a number
        warnings.filterwarnings("error", message="string or file could not be read")
        _check_text_rows(file.read())
        file.seek(0)
        loaded = load_ply(file, skip_materials=True)
    for name, element in loaded["metadata"]["_ply_raw"].items():
        _check_list_sizes(name, element.get("data"))
    faces = loaded.get("faces")
    if faces is not None and np.asarray(faces).dtype.kind == "f":
        raise ValueError("the indices of its faces are not integers")
    return _checked(
        np.asarray(loaded.get("vertices", [])),
        triangulate_quads([] if faces is None else faces),
    )


def _counts(fields: list[str]) -> tuple[int, int]:
    """Read the numbers of vertices and faces of an .off file."""
    if len(fields) not in (2, 3):  # the third, of edges, is optional
        raise ValueError(f"its counts are {' '.join(fields)!r}; expected vertices, faces, edges")
    vertices, faces = int(fields[0]), int(fields[1])
    if min(vertices, faces) < 0:
        raise ValueError(f"its counts are {vertices} vertices and {faces} faces")
    return vertices, faces


def _check_text_rows(content: bytes) -> None:
    """Raise ValueError unless a .ply file in text has the rows and list sizes that it declares."""
    header, _, body = content.partition(b"end_header")
    lines = [line.split() for line in header.decode("utf-8").splitlines()]
    if "ascii" not in (lines[1] if len(lines) > 1 else []):
        return  # trimesh checks the length of binary files
    rows = body.decode("utf-8").rstrip().split("\n")[1:]
    elements: list[tuple[str, int, list[bool]]] = []  # name, rows, whether each property is a list
    for line in lines:
        if line[:1] == ["element"]:
            elements.append((line[1], int(line[2]), []))
        elif line[:1] == ["property"]:
            elements[-1][2].append(line[1] == "list")
    if min((count for _, count, _ in elements), default=0) < 0 or len(rows) != sum(
        count for _, count, _ in elements
    ):
        declared = ", ".join(f"{count} of {name}" for name, count, _ in elements)
        raise ValueError(f"{len(rows)} rows; it declares {declared}")
    first = 0
    for name, count, lists in elements:
        for number, row in enumerate(rows[first : first + count]):
            fields, place = row.split(), 0
            for is_list in lists:
                place += 1 + (int(fields[place]) if is_list else 0)
            if place != len(fields):
                raise ValueError(f"{name} {number} has {len(fields)} numbers; expected {place}")
        first += count


def _check_list_sizes(name: str, data: object) -> None:
    """Raise ValueError if the lists of a binary .ply element differ in size.

    trimesh reads all with the size of the first.
    """
    if not isinstance(data, np.ndarray):
        return
    for field in data.dtype.names or ():
        if data.dtype[field].names == ("f0", "f1"):
            size = data.dtype[field]["f1"].shape[0]
            if (wrong := np.flatnonzero(data[field]["f0"] != size)).size:
                raise ValueError(
                    f"{name} {wrong[0]} has {data[field]['f0'][wrong[0]]} indices, others {size}; "
                    "faces of different sizes are read from text files only"
                )


def _checked(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """Return vertices and faces. Raises ValueError if an index has no vertex."""
    if len(faces) == 0:
        return vertices, None
    wrong = np.argwhere((faces < 0) | (faces >= len(vertices)))
    if wrong.size:
        row, corner = wrong[0]
        raise ValueError(
            f"triangle {row} has vertex {faces[row, corner]}; expected 0 to {len(vertices) - 1}"
        )
    return vertices, faces
