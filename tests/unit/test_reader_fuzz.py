"""Damaged files of every kind that pcdd reads: a valid result, or InputError in one line."""

import io
import warnings
import zipfile

import fuzz
import numpy as np
import pytest
import shape_samples
import trimesh
from hypothesis import strategies as st

from pcdd_core.data import layouts, mnist
from pcdd_core.data import shape_files as shapes
from pcdd_core.errors import InputError

pytestmark = pytest.mark.fuzz

POINTS = np.random.default_rng(0).normal(size=(12, 3))


def written(write) -> bytes:
    """Return what `write` writes to a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


NPY = [
    written(lambda file, array=array: np.save(file, array))
    for array in (POINTS, np.asfortranarray(POINTS), (10 * POINTS).astype("i2"))
]
TEXT = [
    written(lambda file: np.savetxt(file, POINTS)),
    written(lambda file: np.savetxt(file, np.hstack([POINTS, POINTS]), "%.4f", ",")),
    written(lambda file: np.savetxt(file, POINTS, "%.2f", header="12", comments="")),
]
VALID = {
    ".off": [shape_samples.BOX.export(file_type="off").encode(), shape_samples.OFF.encode()],
    ".ply": [
        shape_samples.BOX.export(file_type="ply"),
        shape_samples.BOX.export(file_type="ply", encoding="ascii"),
        trimesh.PointCloud(POINTS).export(file_type="ply"),
        shape_samples.PLY.encode(),
    ],
    ".xyz": TEXT,
    ".txt": TEXT,
    ".npy": NPY,
    ".npz": [
        written(lambda file: np.savez(file, points=POINTS)),
        written(lambda file: np.savez_compressed(file, points=POINTS, more=POINTS)),
        written(lambda file: np.savez(file, POINTS)),
    ],
    ".h5": [
        written(lambda file, options=options: shape_samples.hdf5(file, [0, 1], 12, options))
        for options in ({}, {"compression": "gzip", "chunks": (1, 12, 3)})
    ],
    ".idx": [
        shape_samples.idx(np.arange(3 * 28 * 28).reshape(3, 28, 28)),
        shape_samples.idx(np.arange(3)),
    ],
}


def check(path) -> bool:
    """Read a file as its suffix says. Fail unless the result is valid or an InputError is clear.

    True: the result is valid
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".* shapes are left out")
            if path.suffix == ".h5":
                points = layouts.read_hdf5([path], 10, ("a", "b")).points
            elif path.suffix == ".idx":
                dimensions = 3 if path.read_bytes()[3:4] == b"\x03" else 1
                assert mnist.read_idx(path, dimensions)[0].ndim == dimensions
                return True
            else:
                points = shapes.read_shape(path, 10, np.random.default_rng(0))[None]
    except InputError as error:
        fuzz.assert_clear(error, str(path))
        return False
    assert points.dtype == np.float32 and points.shape[1:] == (10, 3)
    assert np.abs(points.mean(1)).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(points, axis=2).max(1), 1, rtol=1e-5)
    return True


@pytest.mark.parametrize("suffix", VALID)
def test_a_damaged_file_is_read_or_refused(suffix, tmp_path, record_property):
    path = tmp_path / f"damaged{suffix}"

    def read(content) -> bool:
        path.write_bytes(content)
        return check(path)

    fuzz.attack(f"`{suffix}` of a data set", fuzz.mutations(VALID[suffix]), read, record_property)


def test_a_damaged_array_in_a_whole_archive_is_read_or_refused(tmp_path, record_property):
    def read(drawn) -> bool:
        content, compression = drawn
        with zipfile.ZipFile(tmp_path / "damaged.npz", "w", compression) as archive:
            archive.writestr("points.npy", content)
        return check(tmp_path / "damaged.npz")

    compressions = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    fuzz.attack(
        "array in a whole `.npz`",
        st.tuples(fuzz.mutations(NPY), compressions),
        read,
        record_property,
    )


def test_a_folder_with_a_damaged_file_is_read_without_it(tmp_path, record_property):
    kinds = [suffix for suffix in VALID if suffix in shapes.MESHES + shapes.LISTS + shapes.ARRAYS]
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "whole.off").write_bytes(VALID[".off"][0])

    def read(drawn) -> bool:
        suffix, content = drawn
        path = tmp_path / "train" / "a" / f"damaged{suffix}"
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train, test, _ = shapes.read_folder(tmp_path, 10)
        path.unlink()
        assert np.isfinite(train.points).all() and len(test.points) == 1
        left_out = [str(warning.message) for warning in said]
        assert len(train.points) + len(left_out) == 2 and all(
            path.name in text for text in left_out
        )
        return not left_out

    files = st.sampled_from(kinds).flatmap(
        lambda suffix: st.tuples(st.just(suffix), fuzz.mutations(VALID[suffix]))
    )
    fuzz.attack("one file of a folder of shapes", files, read, record_property)
