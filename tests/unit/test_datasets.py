"""Real data as clouds: MNIST found or refused, digits, splits, threshold and cut."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import shape_samples
import tiny
import torch
import torchvision

from pcdd_core.data import datasets
from pcdd_core.data.datasets import DataSet, Digits, Folder, Mnist, Solids
from pcdd_core.data.mnist import MNIST_FILES
from pcdd_core.errors import InputError

# most tests read made-up images in MNIST's format
pytestmark = pytest.mark.filterwarnings("ignore:.*not the original MNIST:UserWarning")
MNIST = Mnist()
REAL_MNIST = os.environ.get("PCDD_DATA", "")


def made_up_images(count: int) -> np.ndarray:
    """Return nearly empty images that contain their number as 16 bits in row 2."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = 76, 75  # just above and just at the threshold
    images[:, 2, :16] = (np.arange(count)[:, None] >> np.arange(16) & 1) * 255
    images[:, 27, 27] = 255
    return images


def numbers(clouds) -> list[int]:
    """Read the numbers of images of `made_up_images` from their clouds."""
    _, height, width = clouds.coordinates.long().unbind(1)
    bits = torch.where(height == 2, 2**width, 0)
    return (
        torch.zeros(len(clouds), dtype=torch.int64).index_add(0, clouds.cloud_index, bits).tolist()
    )


@pytest.fixture(scope="session")
def mnist(tmp_path_factory) -> Path:
    """Make a folder with files of MNIST's exact sizes; the labels are 0, 1, ... 9, 0, 1 ..."""
    folder = tmp_path_factory.mktemp("mnist")
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for name, (shape, _) in MNIST_FILES.items():
        content = (
            made_up_images(shape[0])
            if len(shape) == 3
            else (np.arange(shape[0]) % 10).astype(np.uint8)
        )
        (folder / "MNIST" / "raw" / name).write_bytes(shape_samples.idx(content))
    return folder


@pytest.fixture(scope="session")
def loaded(mnist):
    with pytest.warns(UserWarning, match=f"raw: not the original MNIST.*{', '.join(MNIST_FILES)};"):
        return datasets.load_data(MNIST, mnist)


@pytest.fixture
def linked(mnist, tmp_path) -> Path:
    """Make a copy of `mnist` for a test to damage, and return its raw folder.

    The files are links: replace them, do not write to them.
    """
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / name).symlink_to(mnist / "MNIST" / "raw" / name)
    return raw


@pytest.fixture
def no_network(monkeypatch):
    def download(self):
        os.makedirs(self.raw_folder, exist_ok=True)  # as torchvision does before it tries
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)


def test_mnist_is_found_in_the_folder_given(loaded):
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [
        54000,
        6000,
        10000,
    ]
    assert loaded.train.class_names == tuple("0123456789")


def test_mnist_is_found_through_the_environment(mnist, monkeypatch):
    monkeypatch.setenv("PCDD_DATA", str(mnist))
    assert len(datasets.load_data(MNIST).test) == 10000


def test_folder_given_wins_over_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "environment"))
    with pytest.raises(InputError, match="given: no such folder"):
        datasets.load_data(MNIST, tmp_path / "given")


def test_an_axis_of_one_cell_is_added(loaded):
    assert loaded.train.grid == loaded.test.grid == (1, 28, 28)
    assert (loaded.train.coordinates[:, 0] == 0.5).all()


def test_pixels_above_the_threshold_become_points_and_those_at_it_do_not(loaded):
    points = [tuple(point) for point in loaded.test[0].tolist()]  # image 0 has no bit set
    assert points == [(0.5, 0.5, 0.5), (0.5, 27.5, 27.5)]


def test_threshold_is_a_setting(mnist):
    clouds = Mnist(threshold=80 / 255).load(mnist).test
    assert [tuple(point) for point in clouds[0].tolist()] == [(0.5, 27.5, 27.5)]


def test_clouds_keep_different_numbers_of_points(loaded):
    expected = [2 + number.bit_count() for number in range(10000)]
    assert loaded.test.sizes.tolist() == expected


def test_max_points_keeps_the_first_in_raster_order(mnist):
    splits = Mnist(max_points=3).load(mnist)
    whole = Mnist().load(mnist)
    assert splits.train.sizes.max() == 3 and splits.test.sizes.max() > 3
    for cut, uncut in zip(
        splits.train.coordinates.split(splits.train.sizes.tolist())[:50],
        whole.train.coordinates.split(whole.train.sizes.tolist()),
        strict=False,
    ):
        assert torch.equal(cut, uncut[:3])


def test_splits_are_disjoint_and_complete(loaded):
    train, validation = numbers(loaded.train), numbers(loaded.validation)
    assert sorted(train + validation) == list(range(60000))
    assert numbers(loaded.test) == list(range(10000))


def test_validation_clouds_come_evenly_from_the_whole_training_set(loaded):
    """MNIST's last training images are easier than the rest and would raise the scores."""
    held_out = torch.tensor(numbers(loaded.validation))
    assert torch.histc(held_out.float(), bins=10, min=0, max=60000).tolist() == [600] * 10


def test_labels_stay_with_their_clouds(loaded):
    for part in (loaded.train, loaded.validation, loaded.test):
        assert [number % 10 for number in numbers(part)] == part.labels.tolist()


def test_splits_are_stratified(loaded):
    assert torch.bincount(loaded.train.labels).tolist() == [5400] * 10
    assert torch.bincount(loaded.validation.labels).tolist() == [600] * 10


def test_image_without_a_bright_pixel_is_refused_by_threshold():
    with pytest.raises(InputError, match=r"data\.threshold = 0\.99.*image 0 of digits"):
        Digits(threshold=0.99).load()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder.*MNIST/raw"):
        datasets.load_data(MNIST, tmp_path / "nowhere")


@pytest.mark.parametrize("name", MNIST_FILES)
def test_missing_file_is_named(linked, name):
    (linked / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        datasets.load_data(MNIST, linked.parents[1])


@pytest.mark.parametrize("name", MNIST_FILES)
@pytest.mark.parametrize("change", [-1, 1], ids=["cut short", "too long"])
def test_file_of_a_wrong_length_is_named_with_both_lengths(linked, name, change):
    right = (linked / name).stat().st_size
    shutil.copy((linked / name).resolve(), linked / "copy")
    os.truncate(linked / "copy", right + change)
    os.replace(linked / "copy", linked / name)
    with pytest.raises(
        InputError,
        match=f"{name}: damaged or cut short \\({right + change} bytes, expected {right}\\)",
    ):
        datasets.load_data(MNIST, linked.parents[1])


@pytest.mark.parametrize("name", MNIST_FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b\x08\x00 still gzipped", b"<html>"], ids=["empty", "gzip", "html"]
)
def test_file_that_is_no_idx_is_named(linked, name, content):
    (linked / name).unlink()
    (linked / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: not an IDX file"):
        datasets.load_data(MNIST, linked.parents[1])


def test_labels_in_place_of_images_are_refused(linked):
    images, labels = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    (linked / images).unlink()
    (linked / images).symlink_to((linked / labels).resolve())
    with pytest.raises(InputError, match=f"{images}: not an IDX file"):
        datasets.load_data(MNIST, linked.parents[1])


def test_images_of_another_shape_are_refused(linked):
    name = "t10k-images-idx3-ubyte"
    content = (linked / name).read_bytes()
    (linked / name).unlink()
    header = np.array([2051, 10000, 14, 56], dtype=">u4").tobytes()
    (linked / name).write_bytes(header + content[16:])  # the same length
    with pytest.raises(InputError, match=f"{name}: images of 14 x 56 pixels; expected 28 x 28"):
        datasets.load_data(MNIST, linked.parents[1])


def replace(raw, name, content):
    (raw / name).unlink(missing_ok=True)
    (raw / name).write_bytes(shape_samples.idx(content))


def test_another_set_of_the_same_format_is_read(linked):
    for split, count in (("train", 40), ("t10k", 20)):
        replace(linked, f"{split}-images-idx3-ubyte", made_up_images(count))
        replace(linked, f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    real = Mnist(validation_fraction=0.25).load(linked.parents[1])
    assert [len(part) for part in (real.train, real.validation, real.test)] == [30, 10, 20]
    assert numbers(real.test) == list(range(20))


@pytest.mark.parametrize("split", ["train", "t10k"])
def test_images_and_labels_of_different_number_are_refused(linked, split):
    replace(linked, f"{split}-labels-idx1-ubyte", np.zeros(123, np.uint8))
    with pytest.raises(
        InputError,
        match=f"{split}-labels-idx1-ubyte: 123 labels for .0000 images in {split}-images",
    ):
        datasets.load_data(MNIST, linked.parents[1])


def test_a_label_above_9_and_an_empty_file_are_refused(linked):
    replace(linked, "train-labels-idx1-ubyte", np.full(60000, 26, np.uint8))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte: label 26"):
        datasets.load_data(MNIST, linked.parents[1])
    replace(linked, "train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte: an empty array of shape \(0,"):
        datasets.load_data(MNIST, linked.parents[1])


@pytest.mark.parametrize("length", [4, 15])
def test_a_header_cut_short_is_refused(linked, length):
    name = "train-images-idx3-ubyte"
    content = (linked / name).read_bytes()[:length]
    (linked / name).unlink()
    (linked / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: damaged or cut short .{length} bytes"):
        datasets.load_data(MNIST, linked.parents[1])


def test_neither_data_nor_network_names_the_three_ways_out(no_network, tmp_path):
    with pytest.raises(InputError) as error:
        datasets.load_data(MNIST, tmp_path)
    message = str(error.value)
    assert "--data" in message and "PCDD_DATA" in message and "network" in message
    assert str(tmp_path / "MNIST" / "raw") in message and "Error downloading" in message
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_the_download_goes_to_the_cache(no_network, monkeypatch, tmp_path):
    monkeypatch.delenv("PCDD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"\.cache/pcdd/MNIST/raw"):
        datasets.load_data(MNIST)


needs_real_mnist = pytest.mark.skipif(
    not (Path(REAL_MNIST) / "MNIST").is_dir(), reason="PCDD_DATA names no folder with MNIST"
)


@needs_real_mnist
def test_a_changed_byte_of_mnist_is_named_in_a_warning(tmp_path):
    raw, name = tmp_path / "MNIST" / "raw", "t10k-labels-idx1-ubyte"
    raw.mkdir(parents=True)
    for file in MNIST_FILES:
        (raw / file).symlink_to((Path(REAL_MNIST) / "MNIST" / "raw" / file).resolve())
    content = bytearray((raw / name).read_bytes())
    content[500] = (content[500] + 1) % 10
    (raw / name).unlink()
    (raw / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"raw: not the original MNIST, by .* of {name};"):
        loaded = datasets.load_data(MNIST, tmp_path)
    assert loaded.test.labels.tolist() == list(content[8:])


@needs_real_mnist
def test_real_mnist():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its checksums are the original's
        real = datasets.load_data(MNIST, REAL_MNIST)
    assert (len(real.train) + len(real.validation), len(real.test)) == (60000, 10000)
    assert torch.bincount(real.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert real.train.sizes.min() > 0 and 90 < real.train.sizes.float().mean() < 150


def test_digits_are_split_three_ways():
    real = tiny.digits()
    assert len(real.train) + len(real.validation) + len(real.test) == 1797
    assert 0.3 < len(real.test) / 1797 < 0.35
    for part in (real.train, real.validation, real.test):
        assert part.grid == (1, 28, 28)
        assert part.sizes.min() > 0
        assert part.labels.unique().tolist() == list(range(10))


def test_digits_lie_within_the_frame_of_mnist_s():
    coordinates = tiny.digits().train.coordinates
    assert (coordinates[:, 0] == 0.5).all()
    assert coordinates[:, 1:].min() >= 4.5 and coordinates[:, 1:].max() <= 23.5


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_every_class_gives_the_validation_fraction(fraction):
    real = Digits(validation_fraction=fraction).load()
    kept, held_out = (
        torch.bincount(part.labels, minlength=10) for part in (real.train, real.validation)
    )
    assert held_out.tolist() == [int(fraction * count) for count in (kept + held_out).tolist()]
    # the choice of a validation split does not change the test split
    assert len(real.test) == len(tiny.digits().test)


# --- shapes ---------------------------------------------------------------------------------------


def test_solids_are_clouds_inside_a_grid_split_in_three():
    splits = Solids(points=16, cells=12, validation_fraction=0.25).load()
    assert [len(clouds) for clouds in (splits.train, splits.validation, splits.test)] == [
        600,
        200,
        400,
    ]
    for clouds in (splits.train, splits.validation, splits.test):
        assert (
            clouds.grid == (12, 12, 12)
            and clouds.class_names[:2] == ("ball", "box")
            and set(clouds.sizes.tolist()) == {16}
        )
        assert clouds.coordinates.min() >= 1 and clouds.coordinates.max() <= 11
        distance = (clouds.coordinates - 6).view(len(clouds), 16, 3).norm(dim=2).amax(1)
        assert torch.allclose(distance, torch.full_like(distance, 5.0), atol=1e-3)


def test_a_folder_of_one_s_own_shapes_is_a_data_set(tmp_path):
    draws = np.random.default_rng(0)
    for name in ("chair", "lamp"):
        (tmp_path / name).mkdir()
        for number in range(6):
            np.save(tmp_path / name / f"{number}.npy", draws.normal(size=(30, 3)))
    splits = Folder(folder=str(tmp_path), points=20, validation_fraction=0.25).load()
    assert splits.train.class_names == ("chair", "lamp")
    assert [len(clouds) for clouds in (splits.train, splits.validation, splits.test)] == [6, 2, 4]


def test_folder_of_own_shapes_must_be_given():
    with pytest.raises(InputError, match="setting data.folder = '': expected the folder of your"):
        Folder().load()


@pytest.mark.parametrize("name", ["solids", "modelnet40"])
def test_other_data_sets_have_no_folder_setting(name):
    with pytest.raises(
        InputError,
        match=f"no setting of data.name={name} is called 'data.folder'; nearest: data",
    ):
        DataSet.of({"name": name, "folder": "shapes"}, "data")


def test_data_set_can_be_loaded_by_name():
    by_name = datasets.load_data("digits").test
    assert torch.equal(by_name.coordinates, tiny.digits().test.coordinates)


def test_published_shapes_are_read_from_the_data_folder(tmp_path, monkeypatch):
    root = tmp_path / "ModelNet10"
    for name in ("bed", "chair"):
        for split in ("train", "test"):
            (root / name / split).mkdir(parents=True)
            for number in range(4):
                np.save(
                    root / name / split / f"{number}.npy",
                    np.random.default_rng(number).normal(size=(30, 3)),
                )
    config = DataSet.of({"name": "modelnet10", "points": 20, "validation_fraction": 0.25})
    given = datasets.load_data(config, tmp_path)
    monkeypatch.setenv("PCDD_DATA", str(tmp_path))
    assert torch.equal(datasets.load_data(config).train.coordinates, given.train.coordinates)
    monkeypatch.setenv("PCDD_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        datasets.load_data(config)


def test_chosen_classes_are_kept_in_every_split():
    whole, few = Digits().load(), Digits(classes=("7", "2")).load()
    for name in ("train", "validation", "test"):
        every, kept = getattr(whole, name), getattr(few, name)
        assert kept.class_names == ("2", "7")
        for label, digit in enumerate((2, 7)):
            expected = every.select((every.labels == digit).nonzero().flatten())
            got = kept.select((kept.labels == label).nonzero().flatten())
            assert torch.equal(got.coordinates, expected.coordinates)
            assert torch.equal(got.offsets, expected.offsets)
        assert len(kept) == sum(int((every.labels == digit).sum()) for digit in (2, 7))


@pytest.mark.parametrize("classes, words", [(("2", "x"), "'x'"), (("2",), "at least 2")])
def test_classes_that_do_not_exist_or_are_too_few_are_refused(classes, words):
    with pytest.raises(InputError, match=words):
        Digits(classes=classes).load()
