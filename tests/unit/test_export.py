"""Torch data sets of clouds; files in common formats, and the way back."""

import csv
import doctest
import json
import pickle
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import pcdd_core as pcdd
from pcdd_core.cli.main import main
from pcdd_core.geometry import export
from pcdd_core.geometry.clouds import PointClouds, clouds_from_list
from pcdd_core.geometry.grid import clouds_from_unit_ball
from pcdd_core.geometry.storage import load_clouds, released, save_clouds

EXACT = ("pt", "csv", "ply")


@st.composite
def sets(draw, depth=st.integers(1, 9), longest=30) -> PointClouds:
    """Draw a set with odd class names, repeated points, -0.0, and at times learned labels."""
    grid = (draw(depth), draw(st.integers(1, longest)), draw(st.integers(1, longest)))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    unit = st.floats(-0.0, 1, width=32, exclude_max=True)
    points = draw(arrays.arrays(np.float32, (sum(sizes), 3), elements=unit))
    # numpy, and so the .npz, cuts NUL characters at the end of a name
    letters = st.characters(exclude_characters="\0")
    names = draw(st.lists(st.text(letters, max_size=4), min_size=1, max_size=12))
    labels = draw(
        st.lists(st.integers(0, len(names) - 1), min_size=len(sizes), max_size=len(sizes))
    )
    coordinates = torch.from_numpy(points * np.array(grid, dtype=np.float32))
    clouds = clouds_from_list(coordinates.split(sizes), labels, grid, names)
    if draw(st.booleans()):
        weights = draw(arrays.arrays(np.float32, (len(sizes), len(names)), elements=unit)) + 1e-3
        learned = torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))
        clouds = PointClouds(
            clouds.coordinates, clouds.offsets, clouds.labels, grid, tuple(names), learned
        )
    return clouds


def bits(coordinates: torch.Tensor) -> torch.Tensor:
    """Return the bits of float32 numbers, in which 0.0 and -0.0 differ."""
    return coordinates.view(torch.int32)


def assert_same(one: PointClouds, other: PointClouds) -> None:
    assert torch.equal(bits(one.coordinates), bits(other.coordinates))
    assert torch.equal(one.offsets, other.offsets) and torch.equal(one.labels, other.labels)
    assert (one.grid, one.class_names) == (other.grid, other.class_names)
    assert (one.label_probabilities is None) == (other.label_probabilities is None)
    if one.label_probabilities is not None:
        assert torch.equal(one.label_probabilities, other.label_probabilities)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Change to an empty working folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def exported(here) -> PointClouds:
    """Export three digits to the folder `out` in every format, and return them."""
    pcdd.export_clouds(tiny.three_digits(), "out", export.KINDS)
    return tiny.three_digits()


# --- torch data sets ------------------------------------------------------------------------------


@given(sets())
def test_items_are_the_clouds_and_their_targets(clouds):
    dataset = clouds.to_dataset()
    assert len(dataset) == len(clouds) == len(list(dataset))
    for number, (points, target) in enumerate(dataset):
        assert points.dtype == torch.float32 and torch.equal(points, clouds[number])
        assert torch.equal(target, clouds.targets[number])


@given(sets())
def test_projected_items_are_the_images_of_the_evaluation(clouds):
    images = torch.stack([image for image, _ in clouds.to_dataset(project=True)])
    expected = pcdd.project(clouds)
    assert images.dtype == expected.dtype and torch.equal(images, expected)


@pytest.mark.parametrize("name", ["mnist-1-soft", "solids"])
def test_released_sets_project_as_in_the_evaluation(name):
    images = torch.stack([image for image, _ in released(name).to_dataset(project=True)])
    assert torch.equal(images, pcdd.project(released(name)))


@pytest.mark.parametrize(
    "point", [[0, 0, 28.0], [0, -0.1, 3], [1.0, 3, 3], [0, float("nan"), 0], [0, 0, float("inf")]]
)
def test_points_outside_the_grid_have_no_image(point):
    clouds = clouds_from_list([torch.tensor([point])], [0], (1, 28, 28), "a")
    with pytest.raises(ValueError, match="outside the grid"):
        clouds.to_dataset(project=True)[0]


def test_items_have_no_gradient_and_single_precision(random_clouds):
    clouds = random_clouds([3, 2])
    clouds.coordinates.requires_grad_()
    points, _ = clouds.to_dataset()[0]
    assert points.dtype == torch.float32 and not points.requires_grad


def test_transform_is_applied_to_the_item_alone():
    clouds = tiny.three_digits()
    plain, moved = clouds.to_dataset(), clouds.to_dataset(transform=lambda points: points + 1)
    assert torch.equal(moved[5][0], plain[5][0] + 1) and moved[5][1] == plain[5][1]
    inverted = clouds.to_dataset(project=True, transform=lambda image: 1 - image)
    assert torch.equal(inverted[5][0], 1 - clouds.to_dataset(project=True)[5][0])


def test_index_beyond_the_set_is_refused_and_negative_ones_count_from_the_end():
    dataset = tiny.three_digits().to_dataset()
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@given(sets())
def test_padded_batch_holds_the_clouds(clouds):
    loader = DataLoader(clouds.to_dataset(), len(clouds), collate_fn=pcdd.padded_collate)
    [(points, present, targets)] = loader
    assert points.shape == (len(clouds), int(clouds.sizes.max()), 3)
    assert present.shape == points.shape[:2] and present.dtype == torch.bool
    assert torch.equal(present.sum(1), clouds.sizes) and torch.equal(targets, clouds.targets)
    assert torch.equal(points[present], clouds.coordinates) and not points[~present].any()


@given(sets())
def test_ragged_batch_holds_the_clouds(clouds):
    loader = DataLoader(clouds.to_dataset(), len(clouds), collate_fn=pcdd.ragged_collate)
    [(points, offsets, targets)] = loader
    assert torch.equal(points, clouds.coordinates) and torch.equal(targets, clouds.targets)
    assert torch.equal(offsets, clouds.offsets) and offsets.dtype == torch.int64


@pytest.mark.parametrize("name", ["mnist-1", "mnist-1-labels"])
def test_a_plain_loop_learns_the_set(name):
    dataset = released(name).to_dataset(project=True)
    loader = DataLoader(dataset, 5, shuffle=True, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 10))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(20):
        for images, targets in loader:
            optimiser.zero_grad()
            F.cross_entropy(network(images), targets).backward()
            optimiser.step()
    images, _ = next(iter(DataLoader(dataset, len(dataset))))
    assert torch.equal(network(images).argmax(1), dataset.clouds.labels)


def test_dataset_reaches_other_processes():
    dataset = released("mnist-1").to_dataset(project=True)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3][0], dataset[3][0])


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
@given(sets())
def test_what_was_exported_comes_back_exactly(kind, clouds):
    with TemporaryDirectory() as folder:
        assert_same(
            pcdd.clouds_from_export(pcdd.export_clouds(clouds, folder, [kind])),
            clouds,
        )


@given(sets(depth=st.just(1)))
def test_images_give_the_occupied_cells(clouds):
    with TemporaryDirectory() as folder:
        pcdd.export_clouds(clouds, folder, ["png"])
        cells = pcdd.clouds_from_export(folder)
    assert torch.equal(pcdd.project(cells), pcdd.project(clouds))
    assert torch.equal(cells.sizes, pcdd.project(clouds).sum((1, 2, 3)).long())
    assert torch.equal(cells.coordinates, cells.coordinates.floor() + 0.5)
    assert torch.equal(cells.targets, clouds.targets) and cells.class_names == clouds.class_names


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("name", ["mnist-1-labels", "mnist-1-split", "solids"])
def test_released_sets_come_back_exactly(name, kind, tmp_path):
    folder = pcdd.export_clouds(released(name), tmp_path / "out", [kind])
    assert_same(pcdd.clouds_from_export(folder), released(name))


def test_image_of_a_solid_is_its_projection_and_does_not_come_back(here):
    clouds = released("solids")
    pcdd.export_clouds(clouds, "out", ["png"])
    image = np.asarray(Image.open("out/png/3/3.png"))
    assert np.array_equal(image, 255 * pcdd.project(clouds)[3, 0].numpy())
    with pytest.raises(pcdd.InputError, match="24 cells of depth.*expected an export with pt, csv"):
        pcdd.clouds_from_export("out")


def test_shapes_stand_upright_in_ply(here):
    """The axes of the file are those of `clouds_from_unit_ball`, but for scale and shift."""
    draws = torch.Generator().manual_seed(0)
    shapes = F.normalize(torch.randn(2, 50, 3, generator=draws), dim=2)
    clouds = clouds_from_unit_ball(shapes, torch.tensor([0, 1]), ("a", "b"), cells=24)
    pcdd.export_clouds(clouds, "out", ["ply"])
    for number, shape in enumerate(shapes):
        read = torch.tensor(np.asarray(trimesh.load(f"out/ply/{number}/{number}.ply").vertices))
        middle = torch.tensor([12.0, 12.0, -12.0])
        torch.testing.assert_close(((read - middle) / 11).float(), shape, atol=1e-5, rtol=0)


def test_table_has_a_row_per_point(exported):
    with open("out/clouds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["cloud", "label", "class", "depth", "height", "width"]
    assert [int(row["cloud"]) for row in rows] == exported.cloud_index.tolist()
    for row, point in zip(rows, exported.coordinates.tolist(), strict=True):
        assert [float(row[axis]) for axis in ("depth", "height", "width")] == point
        label = int(exported.labels[int(row["cloud"])])
        assert (int(row["label"]), row["class"]) == (label, exported.class_names[label])


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_class_name_is_no_formula_in_a_spreadsheet(name, here):
    clouds = clouds_from_list([torch.zeros(1, 3)] * 2, [0, 1], (1, 2, 2), [name, 'a "b", c=d'])
    pcdd.export_clouds(clouds, "out", ["csv"])
    with open("out/clouds.csv", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["'" + name, 'a "b", c=d']
    assert pcdd.clouds_from_export("out").class_names == (name, 'a "b", c=d')


def test_tensors_load_without_pickles(exported):
    fields = torch.load("out/clouds.pt", weights_only=True)
    assert type(fields) is dict and fields.pop("class_names") == list(exported.class_names)
    assert all(type(field) is torch.Tensor for field in fields.values())
    assert torch.equal(fields["coordinates"], exported.coordinates)
    assert torch.equal(fields["offsets"], exported.offsets)
    assert torch.equal(fields["labels"], exported.labels)
    assert tuple(fields["grid"].tolist()) == exported.grid


def test_torchvision_reads_the_images(exported):
    """The folders sort in the order of the labels, and the files in that of the clouds."""
    folder = ImageFolder("out/png")
    assert folder.targets == exported.labels.tolist()
    for (image, _), expected in zip(folder, pcdd.project(exported)):
        assert np.array_equal(np.asarray(image)[..., 0], 255 * expected[0].numpy())


def test_names_sort_as_their_numbers(here):
    clouds = clouds_from_list([torch.zeros(1, 3)] * 101, [11] * 101, (1, 1, 1), ["c"] * 12)
    pcdd.export_clouds(clouds, "out", ["ply"])
    names = sorted(str(path) for path in Path("out/ply").rglob("*.ply"))
    assert names == [f"out/ply/11/{number:03}.ply" for number in range(101)]


def test_edited_points_are_read(exported):
    moved = trimesh.load("out/ply/1/10.ply").vertices[:4] + (0.25, 0.0, -0.25)
    trimesh.PointCloud(moved).export("out/ply/1/10.ply")
    edited = pcdd.clouds_from_export("out", "ply")
    expected = exported[10][:4] + torch.tensor([0.0, 0.25, 0.25])
    assert torch.equal(edited[10], expected) and torch.equal(edited[9], exported[9])
    assert torch.equal(edited[11], exported[11])


def test_table_that_went_through_a_spreadsheet_is_read(exported):
    header, *rows = Path("out/clouds.csv").read_text().splitlines()
    owners = [int(row.split(",")[0]) for row in rows]
    rows = [row for _, row in sorted(zip(owners, rows), key=lambda pair: -pair[0])]
    Path("out/clouds.csv").write_text("\ufeff" + "\n".join([header, *rows]), encoding="utf-8")
    assert_same(pcdd.clouds_from_export("out", "csv"), exported)


def test_nothing_but_the_files_asked_for_is_written(here):
    pcdd.export_clouds(tiny.three_digits(), "out", ["csv", "csv"])
    assert sorted(path.name for path in Path("out").iterdir()) == ["clouds.csv", "manifest.json"]


def test_export_that_was_stopped_has_no_manifest(here, monkeypatch):
    project, images = export.projection, iter(range(10))

    def stop(points, grid):
        if next(images) == 9:
            raise KeyboardInterrupt
        return project(points, grid)

    monkeypatch.setattr(export, "projection", stop)
    with pytest.raises(KeyboardInterrupt):
        pcdd.export_clouds(tiny.three_digits(), "out", ["csv", "png"])
    assert len(list(Path("out").rglob("*.png"))) == 9
    with pytest.raises(pcdd.InputError, match="manifest.json: no such file"):
        pcdd.clouds_from_export("out")


# --- documented lines -----------------------------------------------------------------------------


def test_the_five_lines_of_the_module_run_as_written(here):
    [example] = doctest.DocTestFinder(recurse=False).find(export, globs={})
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    assert_same(example.globs["again"], released("mnist-1"))
    points, present, labels = next(iter(example.globs["loader"]))
    assert (points.shape, present.shape, labels.tolist()) == ((5, 250, 3), (5, 250), [*range(5)])


def test_the_five_lines_of_the_help_run_as_written(here, capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    lines = re.findall(r"^  pcdd (.*?)(?:  .*)?$", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        assert main(shlex.split(line)) == 0, line
    assert_same(load_clouds("solids.npz"), released("solids"))
    images = pcdd.project(load_clouds("cells.npz"))
    assert torch.equal(images, pcdd.project(released("mnist-1")))
    targets = torch.load("pt/clouds.pt", weights_only=True)["label_probabilities"]
    assert torch.equal(targets, released("mnist-1-labels").label_probabilities)


# --- commands -------------------------------------------------------------------------------------


def test_export_names_its_folder_after_the_set(here, capsys):
    (here / "run").mkdir()
    save_clouds(tiny.three_digits(), "run/clouds.npz")
    save_clouds(tiny.three_digits(), "set.npz")
    for words, folder in (("run", "run"), ("set.npz", "set"), ("released:mnist-1", "mnist-1")):
        assert main(["export", words, "--csv", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["folder"] == str(Path("exports") / folder)
        assert (here / "exports" / folder / "manifest.json").is_file()
    assert_same(pcdd.clouds_from_export("exports/run"), tiny.three_digits())


def test_import_reads_the_kind_asked_for(exported, capsys):
    trimesh.PointCloud([[1.5, 0.0, -2.5]]).export("out/ply/0/00.ply")
    assert main(["import", "out", "--output", "pt.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == len(exported.coordinates)
    assert main(["import", "out", "--from", "ply", "--output", "ply.npz"]) == 0
    assert_same(load_clouds("pt.npz"), exported)
    assert load_clouds("ply.npz")[0].tolist() == [[0.0, 2.5, 1.5]]


# --- bad input ------------------------------------------------------------------------------------


@pytest.fixture
def assert_refused(here, capsys):
    """Return assert_refused(words, parts ...).

    It asserts that `pcdd words...` exits with 2, prints one line that contains the parts, and
    changes no file.
    """

    def call(words: list[str], *parts: str) -> str:
        before = tiny.files(here)
        assert main(words) == 2
        out, message = capsys.readouterr()
        assert out == "" and message.startswith("pcdd: ") and message.count("\n") == 1, message
        for part in parts:
            assert part in message, message
        assert tiny.files(here) == before, "something was written"
        return message

    return call


def test_export_without_a_kind_is_refused(assert_refused):
    assert_refused(["export", "released:mnist-1"], "no kind", "--pt, --csv, --ply, --png")


def test_export_of_no_set_is_refused(here, assert_refused):
    (here / "empty").mkdir()
    assert_refused(["export", "nowhere.npz", "--csv"], "nowhere.npz", "no such file")
    assert_refused(["export", "empty", "--csv"], "empty/clouds.npz", "no such file")
    assert_refused(["export", "released:mnist-2", "--csv"], "'mnist-2'", "mnist-1")


def test_export_over_files_is_refused(exported, here, assert_refused):
    words = ["export", "released:mnist-1", "--csv", "--output"]
    assert_refused([*words, "out"], "out", "has files already", "another folder")
    assert_refused([*words, "out/clouds.csv"], "out/clouds.csv", "is a file")
    assert_refused([*words, "out/clouds.csv/deep"], "out/clouds.csv", "is a file")
    (here / "empty").mkdir()
    assert main([*words, "empty"]) == 0


@pytest.mark.parametrize(
    ("point", "parts"),
    [([0, 0, 8.0], ["8.0 at [0, 2]", "below 8"]), ([0, float("nan"), 0], ["nan at [0, 1]"])],
)
def test_clouds_that_no_set_may_hold_are_not_exported(point, parts, here):
    clouds = clouds_from_list([torch.tensor([point])], [0], (1, 8, 8), "a")
    with pytest.raises(pcdd.InputError) as refused:
        pcdd.export_clouds(clouds, "out", ["csv"])
    assert all(part in str(refused.value) for part in parts) and not (here / "out").exists()


def test_unknown_kind_is_named(here):
    with pytest.raises(pcdd.InputError, match="'pgn'; nearest: png"):
        pcdd.export_clouds(tiny.three_digits(), "out", ["csv", "pgn"])
    with pytest.raises(pcdd.InputError, match="out: no kind of file"):
        pcdd.export_clouds(tiny.three_digits(), "out", [])
    assert not (here / "out").exists()


def test_import_over_a_set_is_refused(exported, here, assert_refused):
    save_clouds(tiny.three_solids(), "set.npz")
    assert_refused(["import", "out", "--output", "set.npz"], "set.npz", "another file")


def test_import_of_something_else_is_refused(here, assert_refused):
    (here / "empty").mkdir()
    for place in ("nowhere", "empty"):
        assert_refused(
            ["import", place, "--output", "set.npz"], f"{place}/manifest.json", "no such file"
        )


def test_kind_that_was_not_exported_is_named(here, assert_refused):
    pcdd.export_clouds(tiny.three_digits(), "out", ["ply", "csv"])
    assert_refused(
        ["import", "out", "--from", "png", "--output", "set.npz"], "out", "png", "csv or ply"
    )


def in_set(field: str, value):
    def change(manifest):
        manifest["set"][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda manifest: manifest.pop("set"), ["'set'"]),
        (lambda manifest: manifest.update(set=[1]), ["'set'"]),
        (lambda manifest: manifest.pop("kinds"), ["'kinds'", "pt, csv, ply, png"]),
        (lambda manifest: manifest.update(kinds=["csv", "xyz"]), ["'kinds'", "xyz"]),
        (lambda manifest: manifest.update(kinds=[["csv"]]), ["'kinds'"]),
        (lambda manifest: manifest.update(kinds=[]), ["'kinds'"]),
        (lambda manifest: manifest["set"].pop("labels"), ["'labels'", "missing"]),
        (in_set("labels", [[0, 1]]), ["'labels'", "(1, 2)"]),
        (in_set("labels", []), ["'labels'"]),
        (in_set("labels", [[0], 1]), ["manifest.json"]),
        (in_set("labels", [3] * 24), ["'labels'", "3 at cloud 0", "0 to 2"]),
        (in_set("grid", [28, 28]), ["'grid'", "[28, 28]"]),
        (in_set("grid", [1, 28, 28.5]), ["'grid'", "integers"]),
        (in_set("grid", [1, 28, 10**40]), ["'grid'", "integers"]),
        (in_set("class_names", [1, 2, 3]), ["'class_names'", "text"]),
        (in_set("class_names", "abc"), ["'class_names'"]),
        (in_set("label_probabilities", [[1.0, 0.0]]), ["'label_probabilities'", "(24, 3)"]),
        (in_set("format_version", 3), ["'format_version'", "newer pcdd"]),
    ],
)
def test_wrong_manifest_is_refused(change, parts, exported, assert_refused):
    manifest = json.loads(Path("out/manifest.json").read_text())
    change(manifest)
    Path("out/manifest.json").write_text(json.dumps(manifest))
    assert_refused(["import", "out", "--output", "set.npz"], "out/manifest.json", *parts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100000, b"null"])
def test_file_that_is_no_manifest_is_refused(content, exported, assert_refused):
    Path("out/manifest.json").write_bytes(content)
    assert_refused(["import", "out", "--output", "set.npz"], "out/manifest.json")


FILES = {"pt": "clouds.pt", "csv": "clouds.csv", "ply": "ply/1/10.ply", "png": "png/1/10.png"}


@pytest.mark.parametrize("kind", export.KINDS)
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut short", "folder"])
def test_damaged_file_is_named(damage, kind, exported, assert_refused):
    path = Path("out") / FILES[kind]
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        # the middle of a line, of a vertex, of the pixels
        cut = content[: len(content) * 2 // 3 - (content[len(content) * 2 // 3 - 1] == 10)]
        path.write_bytes({"empty": b"", "text": b"hello", "cut short": cut}[damage])
    assert_refused(["import", "out", "--from", kind, "--output", "set.npz"], str(path))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("0,0,0,0,3", 2),
        ("0,0,0,0,3,4,5", 2),
        ("0,0,0,0,3,four", 2),
        ("24,0,0,0,3,4", 2),
        ("-1,0,0,0,3,4", 2),
        ("0,1,1,0,3,4", 2),
        ("zero,0,0,0,3,4", 2),
        ("", 2),
    ],
)
def test_wrong_row_is_named(row, line, exported, assert_refused):
    lines = Path("out/clouds.csv").read_text().splitlines()
    Path("out/clouds.csv").write_text("\n".join([lines[0], row, *lines[2:]]))
    words = ["import", "out", "--from", "csv", "--output", "set.npz"]
    assert_refused(words, "out/clouds.csv", f"line {line}", repr(row), "0 to 23")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("28", ["28.0 at [0, 2]", "below 28"]),
        ("-0.5", ["-0.5 at [0, 2]", "outside the grid"]),
        ("nan", ["nan at [0, 2]", "finite"]),
        ("1e400", ["inf at [0, 2]", "finite"]),
    ],
)
def test_wrong_coordinate_in_a_table_is_named(value, parts, exported, assert_refused):
    lines = Path("out/clouds.csv").read_text().splitlines()
    Path("out/clouds.csv").write_text("\n".join([lines[0], f"0,0,0,0,3,{value}", *lines[2:]]))
    words = ["import", "out", "--from", "csv", "--output", "set.npz"]
    assert_refused(words, "out/clouds.csv", "'coordinates'", *parts)


def test_table_without_points_of_a_cloud_or_with_other_columns_is_refused(exported, assert_refused):
    path, words = Path("out/clouds.csv"), ["import", "out", "--from", "csv", "--output", "set.npz"]
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row for row in rows if not row.startswith("7,"))]))
    assert_refused(words, "out/clouds.csv", "cloud 7, which is empty")
    path.write_text("\n".join([header.replace("class", "name"), *rows]))
    assert_refused(words, "out/clouds.csv", "name", "cloud,label,class,depth,height,width")
    path.write_text("\n".join([f'"{header}', *rows]))  # the quote makes one field of all rows
    assert len(assert_refused(words, "out/clouds.csv", "its columns are '")) < 250
    path.write_text(header)
    assert_refused(words, "out/clouds.csv", "empty")


def test_wrong_points_are_named_by_their_ply_file(exported, assert_refused):
    words = ["import", "out", "--from", "ply", "--output", "set.npz"]
    trimesh.PointCloud([[1.0, 0.0, -2.0], [28.5, 0.0, -2.0]]).export("out/ply/1/10.ply")
    assert_refused(words, "out/ply/1/10.ply", "28.5 at [1, 2]", "below 28")


def test_wrong_image_is_named(exported, assert_refused):
    words = ["import", "out", "--from", "png", "--output", "set.npz"]
    Image.new("L", (28, 27), 255).save("out/png/1/10.png")
    assert_refused(words, "out/png/1/10.png", "28 x 27 pixels", "28 x 28")
    Image.new("L", (28, 28), 127).save("out/png/1/10.png")
    assert_refused(words, "out/png/1/10.png", "no pixel", "occupied")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ([1, 2], ["'coordinates'", "tensor"]),
        ({"coordinates": [0.0]}, ["'coordinates'", "tensor"]),
        ({"offsets": None}, ["'offsets'", "tensor"]),
        (
            {"labels": torch.zeros(24, dtype=torch.int64)},
            ["'labels' is 0 at cloud 8", "expected 1"],
        ),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ["'labels'", "(3,)", "(24,)"]),
        ({"coordinates": torch.zeros(3, 2)}, ["'coordinates'", "(3, 2)"]),
        ({"coordinates": torch.zeros(3, 3, dtype=torch.bfloat16)}, ["clouds.pt"]),
        ({"coordinates": torch.eye(3).to_sparse()}, ["clouds.pt"]),
    ],
)
def test_wrong_tensors_are_refused(fields, parts, exported, assert_refused):
    path = Path("out/clouds.pt")
    if isinstance(fields, dict):
        fields = torch.load(path, weights_only=True) | fields
    torch.save(fields, path)
    assert_refused(["import", "out", "--output", "set.npz"], "out/clouds.pt", *parts)


def test_file_that_would_run_code_is_refused(exported, here, assert_refused):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (here / "ran",)

    torch.save({"coordinates": Malicious()}, "out/clouds.pt")
    assert_refused(["import", "out", "--output", "set.npz"], "out/clouds.pt", "not a readable")
    assert not (here / "ran").exists()
