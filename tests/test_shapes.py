"""Shapes from files: every format and layout, damaged files, and simple solids."""

import json
import warnings

import h5py
import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from pcdd_core.data import layouts, solids
from pcdd_core.data import shape_files as shapes
from pcdd_core.engine.baselines import random
from pcdd_core.errors import InputError
from pcdd_core.experiments.config import Config, DataConfig, override
from pcdd_core.experiments.runs import score

DRAWS = np.random.default_rng(0)
BOX = trimesh.creation.box((1, 2, 3))


def draws():
    return np.random.default_rng(0)


def assert_well_formed(points, count):
    assert points.shape[-2:] == (count, 3) and points.dtype == np.float32
    assert np.abs(points.mean(-2)).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1).max(-1), 1, rtol=1e-5)


def write(path, points=None, mesh=BOX):
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
            "index.off: not a readable .off file",
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
        (
            "shape.obj",
            b"v 0 0 0\n",
            "shape.obj: files of this ending are not read; expected one of .off, .ply, .xyz",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        shapes.read_shape(tmp_path / name, 10, draws())


def test_arrays_that_could_run_code_or_are_ambiguous_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="object.npy: not a readable .npy file"):
        shapes.read_shape(tmp_path / "object.npy", 10, draws())
    np.savez(tmp_path / "two.npz", a=np.ones((3, 3)), b=np.ones((3, 3)))
    with pytest.raises(
        InputError, match="two.npz: arrays a, b; expected one, or one called points"
    ):
        shapes.read_shape(tmp_path / "two.npz", 10, draws())
    np.save(tmp_path / "plane.npy", np.ones((5, 2)))
    with pytest.raises(InputError, match=r"plane.npy: an array of shape \(5, 2\)"):
        shapes.read_shape(tmp_path / "plane.npy", 10, draws())


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
    fields = {
        "data": DRAWS.normal(size=(len(labels), points, 3)).astype("f4"),
        "label": np.array(labels, "u1")[:, None],
        **changed,
    }
    with h5py.File(path, "w") as file:
        for field, value in fields.items():
            if value is not None:
                file[field] = value
    return fields["data"]


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


def test_modelnet10_from_voxels(tmp_path):
    arrays = {
        "class_names": np.array(["bed", "chair"]),
        "test_voxels_also_in_train": np.array([True]),
    }
    for split, labels in (("train", [0, 1, 1]), ("test", [1])):
        arrays |= {
            f"x_{split}": DRAWS.normal(size=(len(labels), 20, 3)).astype("f2"),
            f"y_{split}": np.array(labels),
        }
    (tmp_path / "modelnet10_voxels24").mkdir()
    np.savez(tmp_path / "modelnet10_voxels24" / "modelnet10_voxels24_1024.npz", **arrays)
    train, test, names = layouts.read_published("modelnet10-voxels24", tmp_path, 20)
    assert names == ("bed", "chair") and train.labels.tolist() == [0, 1, 1]
    assert (train.also_in_training, test.also_in_training) == (0, 1)
    assert_well_formed(train.points, 20)
    config = Config(data=DataConfig(name="modelnet10-voxels24", points=20, validation_fraction=0.5))
    few = override(
        config,
        {
            "evaluation.networks": 1,
            "evaluation.epochs": 1,
            "evaluation.classifier": "pointnet",
            "evaluation.projection": "soft",
        },
    )
    _, record = score(lambda real: random(real, 1, 0), "random", few, data=tmp_path, device="cpu")
    assert (
        record["scored_on"]
        == "modelnet10-voxels24, test split, 1 clouds, of which 1 equal a training cloud"
    )
    with pytest.raises(InputError, match="data.points = 21.*has 20"):
        layouts.read_published("modelnet10-voxels24", tmp_path, 21)


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
    ],
)
def test_a_wrong_hdf5_file_names_the_field(changed, said, tmp_path):
    hdf5(tmp_path / "wrong.h5", [0, 1], **changed)
    with pytest.raises(InputError, match=f"wrong.h5: {said}"):
        layouts.read_hdf5([tmp_path / "wrong.h5"], 16, ("a", "b"))


def test_shapes_of_an_hdf5_file_that_cannot_be_used_are_left_out(tmp_path):
    data = DRAWS.normal(size=(3, 20, 3))
    data[1] = 5
    hdf5(tmp_path / "some.h5", [0, 1, 1], data=data)
    with pytest.warns(
        UserWarning, match="1 shapes are left out; the first: .*some.h5, shape 1: all points are at"
    ):
        loaded = layouts.read_hdf5([tmp_path / "some.h5"], 16, ("a", "b"))
    assert loaded.labels.tolist() == [0, 1]
    (tmp_path / "cut.h5").write_bytes((tmp_path / "some.h5").read_bytes()[:100])
    with pytest.raises(InputError, match="cut.h5: not a readable HDF5 file"):
        layouts.read_hdf5([tmp_path / "cut.h5"], 16, ("a",))


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
