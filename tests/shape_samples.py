"""Writers of small files of shapes, images and labels, in the formats that pcdd reads."""

import io
from pathlib import Path

import h5py
import numpy as np
import trimesh

from pcdd_core.data import medmnist

ADRENAL_COUNTS = {"train": 12, "val": 6, "test": 7}
BOX = trimesh.creation.box((1, 2, 3))
# a triangle, a square and a pentagon
OFF = "OFF\n5 3 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n-1 0.5 0\n3 0 1 2\n4 0 1 2 3\n5 0 1 2 3 4\n"
PLY = """ply
format ascii 1.0
element vertex 5
property float x
property float y
property float z
element face 3
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
1 1 0
0 1 0
-1 0.5 0
3 0 1 2
4 0 1 2 3
5 0 1 2 3 4
"""


def hdf5(file, labels, points=20, options=None, **changed):
    """Write random shapes with these labels to a path or a binary file. Returns their points.

    options: of h5py, for the array of the points
    changed: other fields, or other contents; None: without the field
    """
    fields = {
        "data": np.random.default_rng(0).normal(size=(len(labels), points, 3)).astype("f4"),
        "label": np.array(labels, "u1")[:, None],
        **changed,
    }
    with h5py.File(file, "w") as opened:
        for name, value in fields.items():
            if value is not None:
                opened.create_dataset(name, data=value, **(options or {} if name == "data" else {}))
    return fields["data"]


def idx(content: np.ndarray) -> bytes:
    """Return an array in the format of MNIST's files."""
    header = np.array([2048 + content.ndim, *content.shape], dtype=">u4")
    return header.tobytes() + content.astype(np.uint8).tobytes()


def adrenal_arrays() -> dict[str, np.ndarray]:
    """Return noise in the layout of AdrenalMNIST3D. Every third has class 1 and is larger."""
    draws, arrays = np.random.default_rng(0), {}
    for split, count in ADRENAL_COUNTS.items():
        labels = (np.arange(count) % 3 == 0).astype(np.uint8)
        volumes = np.zeros((count, 28, 28, 28), np.uint8)
        for volume, label in zip(volumes, labels, strict=True):
            side = 6 + 4 * int(label)
            volume[9 : 9 + side, 4 : 4 + side, 10 : 10 + side] = 255 * draws.integers(
                0, 2, (side, side, side)
            )
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = volumes, labels[:, None]
    return arrays


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the content of an .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def write_adrenal(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write the arrays where they are looked for. Returns the path of the file."""
    path = folder / medmnist.FILE
    path.parent.mkdir()
    path.write_bytes(npz(arrays))
    return path
