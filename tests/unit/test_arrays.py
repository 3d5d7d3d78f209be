"""Arrays from .npy and .npz files: size limits, damaged headers, pickles and text."""

import struct
import zipfile

import numpy as np
import pytest

from pcdd_core.arrays import array_names, read_array, read_arrays
from pcdd_core.errors import InputError
from pcdd_core.geometry.names import check_class_names


def npy(array, descr=None, shape=None) -> bytes:
    """Return an .npy file whose header may declare another type and shape; it has 128 bytes."""
    fields = f"'descr': '{descr or array.dtype.str}', 'fortran_order': False"
    header = f"{{{fields}, 'shape': {shape or array.shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + array.tobytes()


def archive(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.array(["bed", "chair $5_$10"]),
        np.array(["bed"]).astype(">U5"),
        np.float32(3),
        np.zeros((0, 3)),
        np.array([""]),
    ],
)
def test_arrays_are_read_as_numpy_reads_them(array, tmp_path):
    np.save(tmp_path / "one.npy", array)
    np.savez(tmp_path / "two.npz", a=array, b=np.ones(3))
    for loaded in (
        read_array(tmp_path / "one.npy", 1000),
        read_arrays(tmp_path / "two.npz", ["a", "missing"], 1000)["a"],
    ):
        assert loaded.dtype == array.dtype and np.array_equal(loaded, array)
    assert array_names(tmp_path / "two.npz") == ["a", "b"]
    assert list(read_arrays(tmp_path / "two.npz", ["missing", "b"], 1000)) == ["b"]


def test_only_the_arrays_that_are_asked_for_are_unpacked(tmp_path):
    path = archive(tmp_path / "a.npz", points=npy(np.ones(3)), other=b"noise")
    assert read_arrays(path, ["points"], 1000)["points"].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="a.npz: field 'other': not a readable array"):
        read_arrays(path, ["other"], 1000)


def test_an_array_over_the_limit_is_refused_by_its_header(tmp_path):
    """The body is missing, so a reader that unpacks first fails otherwise."""
    header = npy(np.ones((2, 3)), shape="(99999999, 3)")[:128]
    path = archive(tmp_path / "zeros.npz", points=header)
    with pytest.raises(InputError, match="299,999,997 elements of 8 bytes; expected at most 2,000"):
        read_arrays(path, ["points"], 2000)
    (tmp_path / "zeros.npy").write_bytes(header)
    with pytest.raises(InputError, match="zeros.npy: .*expected at most 2,000 bytes"):
        read_array(tmp_path / "zeros.npy", 2000)


def test_the_limit_counts_all_arrays_and_elements_without_bytes(tmp_path):
    path = archive(tmp_path / "two.npz", a=npy(np.ones(100)), b=npy(np.ones(100)))
    assert len(read_arrays(path, ["a", "b"], 1600)) == 2
    with pytest.raises(InputError, match="field 'b': .*expected at most 799 bytes"):
        read_arrays(path, ["a", "b"], 1599)
    empty = npy(np.array([""]), descr="<U0", shape="(999999999,)")
    with pytest.raises(InputError, match="999,999,999 elements of 0 bytes"):
        read_arrays(archive(tmp_path / "empty.npz", a=empty[:128]), ["a"], 2000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a readable .npy file"),
        (b"noise that is no array", "the magic string is not correct"),
        (npy(np.ones((4, 3)))[:-1], r"223 bytes; expected 224 for float64 of shape \(4, 3\)"),
        (npy(np.ones((4, 3)), shape="(3, 3)"), "224 bytes; expected 200"),
        (npy(np.ones((4, 3)), shape="(-4, 3)"), "of shape"),
        (npy(np.ones((4, 3)), descr="<f9"), "not a readable .npy file"),
        (npy(np.ones((4, 3)), shape="(4L, 3)"), "not a readable .npy file"),
        (
            npy(np.full((2,), 0x110000, "<u4"), descr="<U1"),
            r"character U\+110000; Unicode ends at U\+10FFFF",
        ),
        (
            npy(np.full((2,), 0x110000, ">u4"), descr=">U1"),
            r"character U\+110000; Unicode ends at U\+10FFFF",
        ),
    ],
)
def test_a_damaged_array_is_refused_in_one_line_that_says_no_pickle(content, said, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_array(tmp_path / "a.npy", 2000)
    assert "pickle" not in str(error.value) and "\n" not in str(error.value)


def test_objects_are_called_a_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", names=np.array(["a", None], dtype=object))
    with pytest.raises(InputError, match="a.npz: field 'names': .*as a pickle"):
        read_arrays(tmp_path / "a.npz", ["names"], 2000)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"noise"])
def test_a_missing_or_damaged_archive_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    for read in (array_names, lambda path: read_arrays(path, ["a"], 2000)):
        with pytest.raises(InputError, match="a.npz: (no such|not a readable .npz) file"):
            read(tmp_path / "a.npz")


def test_a_changed_byte_of_an_archive_is_noticed_by_its_checksum(tmp_path):
    path = archive(tmp_path / "a.npz", zipfile.ZIP_STORED, a=npy(np.ones(100)))
    content = path.read_bytes()
    place = content.index(np.ones(100).tobytes()) + 5
    path.write_bytes(content[:place] + b"\x07" + content[place + 1 :])
    with pytest.raises(InputError, match="field 'a': .*CRC"):
        read_arrays(path, ["a"], 2000)


# --- names ----------------------------------------------------------------------------------------


def test_printable_names_are_accepted():
    names = ("bed", "night_stand", "cost $5_$10", "Stühle", "椅子", "a" * 100)
    assert check_class_names(list(names), "list") == names


@pytest.mark.parametrize(
    "name",
    ["", " ", "two\nlines", "\x1b[31m", "caf\udce9", "turned\u202e", "a" * 101, "b" * 200_000],
    ids=lambda name: ascii(name[:10]),
)
def test_other_names_are_refused_in_one_short_line(name):
    with pytest.raises(InputError, match="names.txt: class 1 is called '.*printable") as error:
        check_class_names(["bed", name], "names.txt")
    assert str(error.value).isprintable() and len(str(error.value)) < 400
