"""Shapes from files: every format and layout, damaged files, and simple solids."""

import json
import os
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import shape_samples
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from pcdd_core.data import layouts, meshes, solids
from pcdd_core.data import shape_files as shapes
from pcdd_core.errors import InputError

DRAWS = np.random.default_rng(0)


def draws():
    return np.random.default_rng(0)


def assert_well_formed(points, count):
    assert points.shape[-2:] == (count, 3) and points.dtype == np.float32
    assert np.abs(points.mean(-2)).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1).max(-1), 1, rtol=1e-5)


def write(path, points=None, mesh=shape_samples.BOX):
    """Write a file in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    points = DRAWS.normal(size=(30, 3)) if points is None else points
    if path.suffix in (".off", ".ply"):
        mesh.export(path)
    elif path.suffix in (".xyz", ".txt"):
        np.savetxt(path, points, delimiter="," if path.suffix == ".txt" else " ")
    elif path.suffix == ".npy":
        np.save(path, points)
    else:
        np.savez(path, points=points)
    return path


# --- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", shapes.MESHES + shapes.LISTS + shapes.ARRAYS)
def test_every_format_gives_as_many_points_as_asked_for(suffix, tmp_path):
    path = write(tmp_path / f"shape{suffix}")
    for count in (7, 100):
        assert_well_formed(shapes.read_shape(path, count, draws()), count)
    assert np.array_equal(*(shapes.read_shape(path, 20, draws()) for _ in range(2)))


@pytest.mark.parametrize("suffix", [".xyz", ".txt", ".npy", ".npz"])
def test_lists_of_points_keep_their_points_and_ignore_further_columns(suffix, tmp_path):
    points = DRAWS.normal(size=(40, 6))
    loaded = shapes.read_shape(write(tmp_path / f"shape{suffix}", points), 40, draws())
    expected = shapes.normalised(points[:, :3], "")
    assert np.abs(loaded[np.lexsort(loaded.T)] - expected[np.lexsort(expected.T)]).max() < 1e-5


def test_points_of_a_mesh_lie_on_its_surface_in_proportion_to_area(tmp_path):
    points = shapes.read_shape(write(tmp_path / "box.off"), 6000, draws())
    sides = np.array([0.5, 1, 1.5]) / np.linalg.norm([0.5, 1, 1.5])
    on_side = np.abs(np.abs(points) - sides).argmin(1)
    assert (
        np.abs(np.take_along_axis(np.abs(points), on_side[:, None], 1)[:, 0] - sides[on_side]).max()
        < 0.05
    )
    # the area of each pair of sides is the product of the two other lengths
    np.testing.assert_allclose(
        np.bincount(on_side) / len(points), np.array([6, 3, 2]) / 11, atol=0.03
    )


def test_the_first_line_of_modelnet_s_meshes_may_hold_the_counts_too(tmp_path):
    text = write(tmp_path / "box.off").read_text()
    assert text.startswith("OFF\n")
    (tmp_path / "joined.off").write_text(text.replace("OFF\n", "OFF", 1))
    joined, plain = (
        shapes.read_shape(tmp_path / name, 50, draws()) for name in ("joined.off", "box.off")
    )
    assert np.array_equal(joined, plain)


def test_a_ply_file_without_faces_is_a_list_of_points(tmp_path):
    points = DRAWS.normal(size=(25, 3))
    trimesh.PointCloud(points).export(tmp_path / "points.ply")
    assert len(np.unique(shapes.read_shape(tmp_path / "points.ply", 25, draws()), axis=0)) == 25


@given(st.integers(1, 60), st.integers(2, 60), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_normalised_points_do_not_depend_on_place_and_size(seed, count, scale, shift):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    expected = shapes.normalised(points, "")
    assert_well_formed(expected, count)
    np.testing.assert_allclose(shapes.normalised(scale * points + shift, ""), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.off", b"", "empty.off: not a readable .off file"),
        ("cut.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n", "cut.off: not a readable .off file"),
        (
            "index.off",
            b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n",
            "index.off: not a readable .off file .triangle 0 has vertex 7",
        ),
        (
            "nan.off",
            b"OFF\n3 1 0\n0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n",
            "nan.off: coordinate nan in row 1; expected finite",
        ),
        (
            "flat.off",
            b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n",
            "flat.off: a mesh without surface .1 faces of area 0",
        ),
        ("noise.ply", b"ply\nnonsense", "noise.ply: not a readable .ply file"),
        ("words.xyz", b"1 2 3\none two three\n", "words.xyz: not a readable .xyz file .*one"),
        ("short.xyz", b"1 2 3\n4 5\n", "short.xyz: 2 numbers in row 1; expected 3 or more"),
        ("none.xyz", b"\n", r"none.xyz: an array of shape \(0,\); expected one or more rows of 3"),
        ("infinite.txt", b"1,2,3\n4,inf,6\n", "infinite.txt: coordinate inf in row 1"),
        (
            "same.xyz",
            b"1 2 3\n1 2 3\n",
            r"same.xyz: all points are at \[1.0, 2.0, 3.0\]; expected a shape with some extent",
        ),
        ("noise.npy", b"\x93NUMPY", "noise.npy: not a readable .npy file"),
        ("text.npy", b"no array at all", "text.npy: not a readable .npy file .the magic string"),
        (
            "shape.obj",
            b"v 0 0 0\n",
            "shape.obj: files with this suffix are not read; expected one of .off, .ply, .xyz",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        shapes.read_shape(tmp_path / name, 10, draws())


def test_arrays_that_could_run_code_or_are_ambiguous_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="object.npy: not a readable .npy file .*pickle"):
        shapes.read_shape(tmp_path / "object.npy", 10, draws())
    np.savez(tmp_path / "two.npz", a=np.ones((3, 3)), b=np.ones((3, 3)))
    with pytest.raises(
        InputError, match="two.npz: arrays a, b; expected one, or one called points"
    ):
        shapes.read_shape(tmp_path / "two.npz", 10, draws())
    for members, said in ((["a\nb", "c"], r"arrays a\\nb, c"), (["notes.md"], "arrays none")):
        with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
            for member in members:
                archive.writestr(member if "." in member else f"{member}.npy", b"")
        with pytest.raises(InputError, match=f"odd.npz: {said}; expected one"):
            shapes.read_shape(tmp_path / "odd.npz", 10, draws())
    np.save(tmp_path / "plane.npy", np.ones((5, 2)))
    with pytest.raises(InputError, match=r"plane.npy: an array of shape \(5, 2\)"):
        shapes.read_shape(tmp_path / "plane.npy", 10, draws())


@pytest.mark.parametrize("kind", ["c16", "M8[s]", "U4", "S4", "?", "f4,f4,f4"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_no_numbers_are_refused(kind, suffix, tmp_path):
    numbers = np.arange(30).reshape(10, 3) % 7
    array = numbers.astype("i8" if kind[0] == "M" else "f8").astype(kind)
    write(tmp_path / f"shape{suffix}", array)
    with pytest.raises(InputError, match=f"shape{suffix}: an array of type .*; expected floats"):
        shapes.read_shape(tmp_path / f"shape{suffix}", 10, draws())


PLY = """ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
element face 2
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
1 1 0
0 1 0.5
3 0 1 2
3 0 2 3
"""
OFF = "OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0.5\n3 0 1 2\n3 0 2 3\n"


def with_faces(faces) -> bytes:
    """Return a binary .ply file of three vertices."""
    return trimesh.Trimesh(np.eye(3), faces, process=False).export(file_type="ply")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("seven.ply", PLY.replace("2 3\n", "2 7\n"), "triangle 1 has vertex 7; expected 0 to 3"),
        ("minus.ply", PLY.replace("2 3\n", "2 -1\n"), "triangle 1 has vertex -1; expected 0 to 3"),
        ("binary.ply", with_faces([[0, 1, 7]]), "triangle 0 has vertex 7; expected 0 to 2"),
        ("below.ply", with_faces([[0, 1, -1]]), "triangle 0 has vertex -1; expected 0 to 2"),
        ("cut.ply", PLY[:-8], "5 rows; it declares 4 of vertex, 2 of face"),
        ("short.ply", PLY[:-3], "face 1 has 3 numbers; expected 4"),
        ("word.ply", PLY.replace("1 1 0", "1 x 0"), "vertex 2 has 3 numbers|could not be read"),
        (
            "mixed.ply",
            with_faces([[0, 1, 2], [2, 1, 0]])[:-13] + b"\x04" + b"\0" * 12,
            "face 1 has 4 indices, others 3",
        ),
        ("minus.off", OFF.replace("2 3\n", "2 -1\n"), "triangle 1 has vertex -1"),
        ("cut.off", OFF[:-8], "5 rows; it declares 4 vertices and 2 faces"),
        ("more.off", OFF.replace("4 2 0", "4 1 0"), "6 rows; it declares 4 vertices and 1 faces"),
        ("short.off", OFF[:-3], "face 1 has 2 indices; it declares 3"),
        ("negative.off", OFF.replace("4 2 0", "4 -2 0"), "its counts are 4 vertices and -2 faces"),
        ("count.xyz", "4\n0 0 0\n1 0 0\n0 1 0\n", "3 rows; its first line declares 4"),
        ("digits.xyz", "0 0 0\n1_000 0 0\n", "1_000"),
    ],
)
def test_a_damaged_file_that_still_parses_is_refused(name, content, said, tmp_path):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: not a readable .*({said})"):
        shapes.read_shape(tmp_path / name, 10, draws())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "text.txt",
            b"\xef\xbb\xbf# caf\xe9\r\n0 0 0\r\n  # more\r\n1,0,0,7 # normal\r\n\r\n0 1 0\r\n",
        ),
        ("count.xyz", b"3\n0 0 0\n1 0 0\n0 1 0"),
        (
            "mesh.off",
            b"# caf\xe9\r\nOFF 3 1\r\n0 0 0\r\n1 0 0 # x\r\n0 1 0\r\n\r\n3 0 1 2 9\r\n",
        ),
        ("colours.off", b"COFF\n3 1 3\n0 0 0 9 9 9\n1 0 0 9 9 9\n0 1 0 9 9 9\n3 0 1 2\n"),
    ],
)
def test_byte_order_marks_comments_and_other_line_ends_do_no_harm(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    made = shapes.read_shape(tmp_path / name, 3, draws())
    assert_well_formed(made, 3)
    if name[-3:] != "off":
        expected = shapes.normalised(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), "")
        assert sorted(made.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("read", [meshes.read_off, meshes.read_ply])
def test_polygons_of_all_sizes_become_triangles(read, tmp_path):
    content = shape_samples.OFF if read == meshes.read_off else shape_samples.PLY
    (tmp_path / "mixed").write_text(content)
    mesh = trimesh.Trimesh(*read(tmp_path / "mixed"), process=False)
    assert len(mesh.faces) == 1 + 2 + 3 and mesh.area == 0.5 + 1 + 1.5


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000, 1e308, 1e-300])
@pytest.mark.parametrize("suffix", [".npy", ".off"])
def test_very_large_and_very_small_shapes_are_read_as_others(suffix, scale, tmp_path):
    points = DRAWS.normal(size=(30, 3)) / 10
    for name, size in (("usual", 1.0), ("odd", scale)):
        if suffix == ".npy":
            np.save(tmp_path / f"{name}.npy", points * size)
        else:
            rows = "".join("{!r} {!r} {!r}\n".format(*row) for row in (points * size).tolist())
            faces = "".join(f"3 {first} {first + 1} {first + 2}\n" for first in range(28))
            (tmp_path / f"{name}.off").write_text(f"OFF\n30 28 0\n{rows}{faces}")
    usual, odd = (
        shapes.read_shape(tmp_path / f"{name}{suffix}", 40, draws()) for name in ("usual", "odd")
    )
    assert_well_formed(odd, 40)
    np.testing.assert_allclose(odd, usual, atol=1e-6)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="none.off: no such file"):
        shapes.read_shape(tmp_path / "none.off", 10, draws())


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "LARGEST_FILE", 100_000)
    np.savez_compressed(tmp_path / "zeros.npz", points=np.zeros((100_000, 3)))
    assert (tmp_path / "zeros.npz").stat().st_size < 100_000
    with pytest.raises(
        InputError, match="zeros.npz: field 'points': .*300,000 elements of 8 bytes"
    ):
        shapes.read_shape(tmp_path / "zeros.npz", 10, draws())


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "LARGEST_FILE", 100)
    with pytest.raises(InputError, match="box.off: 0 MiB; expected at most"):
        shapes.read_shape(write(tmp_path / "box.off"), 10, draws())


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{split}/{name}/{number}.off", "{name}/{split}/{number}.off"])
def test_a_folder_with_splits_is_read_as_it_says(place, tmp_path):
    for name in ("bed", "chair"):
        for split, count in (("train", 3), ("test", 2)):
            for number in range(count):
                write(tmp_path / place.format(split=split, name=name, number=number))
    train, test, names = shapes.read_folder(tmp_path, 16)
    assert names == ("bed", "chair")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.labels.tolist() == [0, 0, 1, 1]
    assert_well_formed(train.points, 16)
    assert_well_formed(test.points, 16)


def test_of_a_folder_without_splits_every_third_shape_is_for_testing(tmp_path):
    for name, suffix in (("a", ".npy"), ("b", ".xyz")):
        for number in range(7):
            write(tmp_path / name / f"{number}{suffix}")
    (tmp_path / "a" / "notes.md").write_text("not a shape")
    with pytest.warns(UserWarning, match="files with other suffixes are not read: .md .1."):
        train, test, names = shapes.read_folder(tmp_path, 8)
    assert (
        names == ("a", "b")
        and train.labels.tolist() == [0] * 5 + [1] * 5
        and test.labels.tolist() == [0] * 2 + [1] * 2
    )


def test_damaged_files_are_left_out_and_named_at_the_end(tmp_path):
    for number in range(6):
        write(tmp_path / "a" / f"{number}.off")
    (tmp_path / "a" / "1.off").write_text("OFF\n")
    (tmp_path / "a" / "3.off").write_text("")
    with pytest.warns(
        UserWarning, match=r"2 of 4 files are left out:\n.*1.off: not a readable.*\n.*3.off"
    ) as said:
        train, test, _ = shapes.read_folder(tmp_path, 8)
    assert len(said) == 1 and len(train.labels) == 2 and len(test.labels) == 2


def test_what_is_read_of_a_file_does_not_depend_on_the_others(tmp_path):
    for number in range(6):
        write(tmp_path / "a" / f"{number}.off")
    whole, _, _ = shapes.read_folder(tmp_path, 8)
    (tmp_path / "a" / "0.off").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rest, _, _ = shapes.read_folder(tmp_path, 8)
    assert np.array_equal(whole.points[1:], rest.points)


def test_a_file_is_read_the_same_with_new_files_beside_it_and_in_another_split(tmp_path):
    for number in range(3):
        write(tmp_path / "a" / f"{number}.off")
    before, (third,) = (split.points for split in shapes.read_folder(tmp_path, 8)[:2])
    for number in range(4):  # sorted before the others
        write(tmp_path / "a" / f"+{number}.off")
    after = [split.points for split in shapes.read_folder(tmp_path, 8)[:2]]
    assert np.array_equal(after[0][-2:], [before[0], third]) and np.array_equal(
        after[1][-1], before[1]
    )
    assert not np.array_equal(before[0], before[1])  # equal files at other places


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1.ply", PLY.replace("2 3\n", "2 7\n").encode()),
        ("1.ply", b"ply\nformat binary_little_endian 1.0\nelement vertex 99\nend_header\n"),
        ("1.xyz", b"1e400 0 0\n0 1 0\n"),
        ("1.npy", b"\x93NUMPY\x01\x00"),
        ("1.npz", b"PK\x03\x04"),
        ("1.txt", b"\xff\xfe"),
    ],
)
def test_one_bad_file_of_any_kind_does_not_stop_the_read(name, content, tmp_path):
    for number in (0, 2, 3):
        write(tmp_path / "a" / f"{number}.off")
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"1 of 3 files are left out:\n  .*{name}: "):
        train, test, _ = shapes.read_folder(tmp_path, 8)
    assert len(train.points) == 2 and len(test.points) == 1
    assert_well_formed(train.points, 8)


def test_every_file_that_is_left_out_is_named(tmp_path):
    for number in range(100, 160):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "a" / f"{number}.off").write_text("")
    for split in ("train", "test"):
        write(tmp_path / split / "a" / "whole.off")
    with pytest.warns(UserWarning, match="60 of 61 files") as said:
        shapes.read_folder(tmp_path, 8)
    assert all(
        f"{number}.off: not a readable" in str(said[0].message) for number in range(100, 160)
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_of_files_are_printable_in_messages(tmp_path):
    for number in range(6):
        write(tmp_path / "a" / f"{number}.off")
    for name in ("\x1b[31mred\nforged: line.off", "notes.\x1b[2J"):
        (tmp_path / "a" / name).write_text("OFF")
    with pytest.warns(UserWarning) as said:
        shapes.read_folder(tmp_path, 8)
    endings, left_out = (str(warning.message) for warning in said)
    assert endings.endswith(": files with other suffixes are not read: .\\x1b[2J (1)")
    assert "/a/\\x1b[31mred\\nforged: line.off: not a readable" in left_out
    assert len(left_out.splitlines()) == 2


def test_files_with_other_suffixes_are_counted(tmp_path):
    for number in range(3):
        write(tmp_path / "a" / f"{number}.off")
        (tmp_path / "a" / f"{number}.obj").write_text("v 0 0 0\n")
    with pytest.warns(UserWarning, match="files with other suffixes are not read: .obj .3."):
        train, test, _ = shapes.read_folder(tmp_path, 8)
    assert (len(train.points), len(test.points)) == (2, 1)


def test_a_class_that_only_the_test_split_has_is_an_error(tmp_path):
    for name in ("train/a", "test/a", "test/b"):
        write(tmp_path / name / "0.off")
    with pytest.raises(InputError, match="test: class 'b' is not in .*train; expected the same"):
        shapes.read_folder(tmp_path, 8)


def test_names_of_classes_are_printable(tmp_path):
    for number in range(3):
        write(tmp_path / "cost $5_$10" / f"{number}.off")
    assert shapes.read_folder(tmp_path, 8)[2] == ("cost $5_$10",)
    for name in (b"two\nlines", b"caf\xe9", b"\x1b[31m"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        with pytest.raises(InputError, match="class . is called .*; expected 1 to 100 printable"):
            shapes.read_folder(tmp_path, 8)
        os.rmdir(folder)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no folders of classes in it"),
        ({"a/0.md": ""}, "a: no files for training; expected some of .off"),
        (
            {"a/0.off": "", "a/1.off": "", "a/2.off": ""},
            "class 'a': none of its files can be used; the first: .*0.off",
        ),
    ],
)
def test_a_folder_without_shapes_is_an_error(files, said, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes.read_folder(tmp_path, 8)


# --- published layouts ----------------------------------------------------------------------------


def hdf5(path, labels, points=20, **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    return shape_samples.hdf5(path, labels, points, **changed)


def lines(path, *text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n")


def test_modelnet_as_hdf5(tmp_path):
    root = tmp_path / "ModelNet40"
    data = hdf5(root / "ply_data_train0.h5", [0, 1])
    hdf5(root / "ply_data_train1.h5", [1])
    hdf5(root / "ply_data_test0.h5", [1, 0])
    lines(root / "shape_names.txt", "airplane", "bed")
    lines(
        root / "train_files.txt",
        *(f"data/modelnet40_ply_hdf5_2048/ply_data_train{number}.h5" for number in (0, 1)),
    )
    lines(root / "test_files.txt", "data/modelnet40_ply_hdf5_2048/ply_data_test0.h5")
    train, test, names = layouts.read_published("modelnet40", tmp_path, 16)
    assert (
        names == ("airplane", "bed")
        and train.labels.tolist() == [0, 1, 1]
        and test.labels.tolist() == [1, 0]
    )
    np.testing.assert_allclose(
        train.points[0], shapes.normalised(data[0, :16].astype("f8"), ""), atol=1e-6
    )


@pytest.mark.parametrize("classes", [10, 40])
def test_modelnet_resampled(classes, tmp_path):
    root = tmp_path / f"ModelNet{classes}"
    for shape in ("night_stand_0001", "night_stand_0002", "bed_0001", "bed_0002"):
        write(root / shape.rpartition("_")[0] / f"{shape}.txt", DRAWS.normal(size=(30, 6)))
    lines(root / f"modelnet{classes}_shape_names.txt", "bed", "night_stand")
    lines(root / f"modelnet{classes}_train.txt", "night_stand_0001", "bed_0001")
    lines(root / f"modelnet{classes}_test.txt", "night_stand_0002", "bed_0002")
    train, test, names = layouts.read_published(f"modelnet{classes}", tmp_path, 16)
    assert (
        names == ("bed", "night_stand") and train.labels.tolist() == [1, 0] == test.labels.tolist()
    )


def test_modelnet_as_meshes(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "ModelNet10" / "bathtub" / split / "bathtub_0001.off")
    train, _, names = layouts.read_published("modelnet10", tmp_path, 32)
    assert names == ("bathtub",)
    assert_well_formed(train.points, 32)


def test_shapenet_core_and_scanobjectnn(tmp_path):
    root = tmp_path / "shapenetcorev2_hdf5_2048"
    for name, labels in (("train0", [0, 1]), ("train1", [1]), ("val0", [0]), ("test0", [1])):
        hdf5(root / f"{name}.h5", labels)
    lines(root / "shape_names.txt", "airplane", "bag")
    train, test, _ = layouts.read_published("shapenetcore", tmp_path, 16)
    assert train.labels.tolist() == [0, 1, 1, 0] and test.labels.tolist() == [1]
    for split in ("training", "test"):
        hdf5(
            tmp_path
            / "ScanObjectNN"
            / "main_split"
            / f"{split}_objectdataset_augmentedrot_scale75.h5",
            [14, 0],
        )
    train, _, names = layouts.read_published("scanobjectnn", tmp_path, 16)
    assert len(names) == 15 and [names[label] for label in train.labels] == ["toilet", "bag"]


def test_shapenet_part(tmp_path):
    root = tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    lines(root / "synsetoffset2category.txt", "Airplane\t02691156", "Bag\t02773838")
    for split, listed in (
        ("train", ["02773838/a"]),
        ("val", ["02691156/b"]),
        ("test", ["02773838/c"]),
    ):
        path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        lines(path, json.dumps([f"shape_data/{shape}" for shape in listed]))
        for shape in listed:
            write(root / f"{shape}.txt", DRAWS.normal(size=(30, 7)))
    train, test, names = layouts.read_published("shapenetpart", tmp_path, 16)
    assert (
        names == ("Airplane", "Bag")
        and train.labels.tolist() == [1, 0]
        and test.labels.tolist() == [1]
    )


@pytest.mark.parametrize("name", layouts.PUBLISHED)
def test_a_data_set_that_is_not_there_says_where_it_comes_from(name, tmp_path):
    with pytest.raises(
        InputError, match="no such folder; .* is expected there, from .*data.name=solids"
    ):
        layouts.read_published(name, tmp_path, 16)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": None}, "field 'data' is missing"),
        ({"label": None}, "field 'label' is missing"),
        (
            {"data": np.ones((2, 20))},
            r"field 'data' is of shape \(2, 20\); expected \(shapes, 16 points or more, 3\)",
        ),
        ({"data": np.ones((2, 4, 3))}, r"field 'data' is of shape \(2, 4, 3\)"),
        (
            {"label": np.zeros(3, int)},
            r"field 'label' is of shape \(3,\); expected one for each of 2 shapes",
        ),
        ({"label": np.array([0, 2])}, "field 'label' is 2 at shape 1; expected 0 to 1"),
        ({"label": np.array([0, 0.5])}, "field 'label' is 0.5 at shape 1; expected 0 to 1"),
    ],
)
def test_a_wrong_hdf5_file_names_the_field(changed, said, tmp_path):
    hdf5(tmp_path / "wrong.h5", [0, 1], **changed)
    with pytest.raises(InputError, match=f"wrong.h5: {said}"):
        layouts.read_hdf5([tmp_path / "wrong.h5"], 16, ("a", "b"))


def test_all_shapes_of_an_hdf5_file_that_cannot_be_used_are_left_out_and_named(tmp_path):
    data = DRAWS.normal(size=(5, 20, 3))
    data[1], data[2, 3, 1], data[3] = 5, np.nan, 1e308 * np.sign(data[3])
    hdf5(tmp_path / "some.h5", [0, 1, 1, 0, 1], data=data)
    with pytest.warns(
        UserWarning,
        match="2 of 5 shapes are left out:\n  .*some.h5, shape 1: all points are at.*\n"
        "  .*some.h5, shape 2: coordinate nan in row 3; expected finite",
    ):
        loaded = layouts.read_hdf5([tmp_path / "some.h5"], 16, ("a", "b"))
    assert loaded.labels.tolist() == [0, 0, 1]
    assert_well_formed(loaded.points, 16)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100],
        lambda content: content.replace(b"HEAP", b"HEAQ"),
        lambda content: content.replace(b"TREE", b"TREF"),
        lambda content: content.replace(b"SNOD", b"SNOE"),
        lambda content: b"",
    ],
    ids=["cut", "heap", "tree", "node", "empty"],
)
def test_a_damaged_hdf5_file_is_named(damage, tmp_path):
    hdf5(tmp_path / "whole.h5", [0, 1])
    content = (tmp_path / "whole.h5").read_bytes()
    assert damage(content) != content
    (tmp_path / "bad.h5").write_bytes(damage(content))
    with pytest.raises(InputError, match="bad.h5: not a readable HDF5 file") as error:
        layouts.read_hdf5([tmp_path / "bad.h5"], 16, ("a", "b"))
    assert "\n" not in str(error.value)


def test_a_group_or_a_huge_array_in_an_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("data")
    with pytest.raises(InputError, match="group.h5: field 'data' is no array"):
        layouts.read_hdf5([tmp_path / "group.h5"], 16, ("a", "b"))
    with h5py.File(tmp_path / "huge.h5", "w") as file:  # without content, so the file is small
        file.create_dataset("data", (10**9, 20, 3), "f4")
    with pytest.raises(InputError, match="huge.h5: field 'data' has 60,000,000,000 numbers"):
        layouts.read_hdf5([tmp_path / "huge.h5"], 16, ("a", "b"))
    with pytest.raises(InputError, match="none.h5: no such file"):
        layouts.read_hdf5([tmp_path / "none.h5"], 16, ("a", "b"))


def test_a_class_of_which_no_shape_can_be_used_is_an_error(tmp_path):
    data = DRAWS.normal(size=(3, 20, 3))
    data[1] = 5
    hdf5(tmp_path / "some.h5", [0, 1, 0], data=data)
    with (
        pytest.raises(InputError, match="class 'b': none of its shapes"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        layouts.read_hdf5([tmp_path / "some.h5"], 16, ("a", "b"))


@pytest.mark.parametrize("listed", ["{}", "[1]", '["a"]', "[" * 100_000, "\udcff"])
def test_a_wrong_list_of_shapenet_part_is_named(listed, tmp_path):
    root = tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    lines(root / "synsetoffset2category.txt", "Airplane\t02691156")
    path = root / "train_test_split" / "shuffled_train_file_list.json"
    path.parent.mkdir()
    path.write_text(listed, errors="surrogateescape")
    with pytest.raises(InputError, match="shuffled_train_file_list.json: (entry|not a readable)"):
        layouts.read_published("shapenetpart", tmp_path, 16)


def test_lists_without_shapes_and_with_unprintable_classes_are_refused(tmp_path):
    root = tmp_path / "ModelNet10"
    lines(root / "modelnet10_shape_names.txt", "bed")
    lines(root / "modelnet10_train.txt", "")
    with pytest.raises(InputError, match="ModelNet10: no files"):
        layouts.read_published("modelnet10", tmp_path, 16)
    lines(root / "modelnet10_shape_names.txt", "bed", "\x1b[31mred")
    with pytest.raises(InputError, match="modelnet10_shape_names.txt: class 1 is called"):
        layouts.read_published("modelnet10", tmp_path, 16)


# --- solids ---------------------------------------------------------------------------------------


def test_solids_are_drawn_anew_and_told_apart_by_a_forest():
    """A plain classifier learns the eight kinds from distances, so they differ."""
    from sklearn.ensemble import RandomForestClassifier

    train, test, names = solids.solids(128, train=30, test=15)
    assert_well_formed(train.points, 128)
    assert (
        np.bincount(train.labels).tolist() == [30] * 8
        and len(np.unique(train.points[:, 0], axis=0)) == 240
    )

    def sorted_distances(points):
        return np.sort(np.linalg.norm(points, axis=2), axis=1)

    forest = RandomForestClassifier(random_state=0).fit(
        sorted_distances(train.points), train.labels
    )
    assert forest.score(sorted_distances(test.points), test.labels) > 0.7
    assert np.array_equal(
        solids.solids(128, train=1, test=1)[0].points[3],
        solids.solids(128, train=2, test=1)[0].points[6],
    )
