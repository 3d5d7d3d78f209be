"""Packed sets: the way there and back, their size, damage, and the commands."""

import json
import lzma
import math
import tracemalloc
import zlib

import fuzz
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_export import sets

import pcdd_core as pcdd
from pcdd_core.cli.main import main
from pcdd_core.errors import InputError
from pcdd_core.geometry import packing
from pcdd_core.geometry.clouds import PointClouds, clouds_from_list, from_occupancy
from pcdd_core.geometry.packing import pack, read_packed, unpack

FLAT = [name for name in pcdd.released_names() if pcdd.released(name).grid[0] == 1]
SLOW = ("mnist-1-split", "mnist-10", "mnist-50")
RESOLUTIONS = st.sampled_from([1.0, 0.7, 0.5, 0.1, 1 / 32, 1e-3])


def slow_ones(names) -> list:
    """Return parameters, those of large sets with the mark `slow`."""
    marks = {name: pytest.mark.slow for name in SLOW}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


def assert_same_but_points(one: PointClouds, other: PointClouds) -> None:
    assert one.labels.tolist() == other.labels.tolist()
    assert (one.grid, one.class_names) == (other.grid, other.class_names)
    learned = [clouds.label_probabilities for clouds in (one, other)]
    assert (learned[0] is None) == (learned[1] is None)
    assert learned[0] is None or torch.equal(*learned)


def cells_of(clouds: PointClouds) -> list[set[tuple[int, ...]]]:
    """Return the occupied cells of each cloud."""
    cells = (clouds[number].floor().int().tolist() for number in range(len(clouds)))
    return [set(map(tuple, points)) for points in cells]


def sorted_points(clouds: PointClouds, steps: int, axes: list[int]) -> np.ndarray:
    """Return the coordinates along these axes, float64, sorted in each cloud by their steps."""
    sorted_ = []
    for number in range(len(clouds)):
        points = clouds[number].double().numpy()[:, axes]
        order = sorted(range(len(points)), key=lambda row: tuple(np.floor(points[row] * steps)))
        sorted_.append(points[order])
    return np.concatenate(sorted_)


def random_image_set(counts, shape=(5, 7), share=0.3, seed=0) -> PointClouds:
    """Return sets of random cells with `counts` clouds of each class, class after class."""
    draws = torch.Generator().manual_seed(seed)
    occupied = torch.rand(sum(counts), 1, *shape, generator=draws) < share
    occupied[:, 0, 0, 0] = True
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return from_occupancy(occupied, labels, [f"class {label}" for label in range(len(counts))])


# --- the way there and back -----------------------------------------------------------------------


@given(clouds=sets(depth=st.just(1), longest=9))
def test_packed_cells_give_back_cells_labels_grid_and_names(clouds):
    back = unpack(pack(clouds))
    assert_same_but_points(back, clouds)
    assert cells_of(back) == cells_of(clouds)
    assert back.sizes.tolist() == [len(cells) for cells in cells_of(clouds)]
    assert torch.equal(pcdd.project(back), pcdd.project(clouds))
    assert pack(back) == pack(clouds)


@given(clouds=sets(), resolution=RESOLUTIONS)
def test_packed_positions_give_back_coordinates_at_the_resolution(clouds, resolution):
    packed = pack(clouds, resolution)
    back = unpack(packed)
    assert_same_but_points(back, clouds)
    assert back.sizes.tolist() == clouds.sizes.tolist()
    steps = 2 ** math.ceil(math.log2(1 / resolution))
    axes = [axis for axis in range(3) if clouds.grid[axis] > 1]
    ours, given = (sorted_points(each, steps, axes) for each in (back, clouds))
    assert abs(ours - given).max(initial=0) <= 1 / steps / 2 <= resolution / 2
    assert np.array_equal(np.floor(ours), np.floor(given))
    assert (back.coordinates[:, [axis for axis in range(3) if axis not in axes]] == 0.5).all()
    assert pack(back, resolution) == packed


@given(
    seed=st.integers(0, 2**16),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]),
)
def test_images_of_every_density_come_back(seed, counts, share):
    clouds = random_image_set(counts, share=share, seed=seed)
    back = unpack(pack(clouds))
    assert_same_but_points(back, clouds)
    assert torch.equal(back.coordinates, clouds.coordinates)


def test_one_point_and_many_equal_points_come_back():
    one = clouds_from_list([torch.tensor([[0.5, 3.2, 4.9]])], [0], (1, 28, 28), ["x"])
    assert unpack(pack(one)).coordinates.tolist() == [[0.5, 3.5, 4.5]]
    many = clouds_from_list([torch.full((1000, 3), 0.75)], [0], (2, 2, 2), ["x"])
    assert torch.equal(unpack(pack(many, 0.5)).coordinates, many.coordinates)


def test_points_of_one_cell_are_one_point_and_order_is_lost():
    points = torch.tensor([[0.5, 3.2, 4.9], [0.5, 1.1, 1.1], [0.5, 3.3, 4.1]])
    clouds = clouds_from_list([points], [0], (1, 28, 28), ["x"])
    assert unpack(pack(clouds)).coordinates.tolist() == [[0.5, 1.5, 1.5], [0.5, 3.5, 4.5]]
    assert pack(clouds) == pack(clouds.with_coordinates(points.flip(0)))


@pytest.mark.parametrize("name", slow_ones(pcdd.released_names()))
def test_released_sets_come_back(name):
    clouds = pcdd.released(name)
    resolution = None if name in FLAT else 1 / 32
    back = unpack(pack(clouds, resolution))
    assert_same_but_points(back, clouds)
    assert cells_of(back) == cells_of(clouds)


def test_format_has_not_changed():
    """A file of an earlier pcdd must stay readable: change VERSION if this test fails."""
    clouds = random_image_set([2, 1, 3], shape=(6, 7))
    assert pack(clouds).hex() == GOLDEN_CELLS
    assert pack(clouds, 0.25).hex() == GOLDEN_POSITIONS


GOLDEN_CELLS = (
    "0156f8fd8c0001060703150000068b564ace492c2e563050d25180320d114c23a558000cf3d62d5e800f5ab7de"
    "76477d661571d6bf930e0581f59a9acdbcdde2784b3c3cb8d0d2"
)
GOLDEN_POSITIONS = (
    "01c104b96303010607031500000600100f11100e0c8b564ace492c2e563050d25180320d114c23a558000ce01e"
    "ec604d4526a60f469c26a6c0a387696632c4e77eeff01b2d39b5ad59d2efdc418f8692c1ebe7598c6c"
)


# --- its size -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_ones(name for name in FLAT if name != "mnist-1-labels"))
def test_packed_set_is_smaller_than_a_list_a_bitmap_and_a_compressed_bitmap(name):
    clouds = pcdd.released(name)
    bitmap = np.packbits(pcdd.project(clouds).bool().flatten(1).numpy()).tobytes()
    settings = {"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 0, "lp": 0, "pb": 0}
    others = (
        int(pcdd.packed_bytes(clouds).sum()),
        len(zlib.compress(bitmap, 9)),
        len(lzma.compress(bitmap, lzma.FORMAT_RAW, filters=[settings])),
    )
    assert len(pack(clouds)) < 0.86 * min(others)


@pytest.mark.slow
def test_random_cells_take_little_more_than_their_entropy():
    """No model helps here, so what is above the entropy is the cost of learning that."""
    clouds = random_image_set([100] * 10, shape=(28, 28), share=0.2)
    entropy = 1000 * 784 * -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)) / 8
    assert entropy < len(pack(clouds)) < 1.01 * entropy


def test_random_positions_take_little_more_than_those_of_a_list_without_order():
    draws = np.random.default_rng(0)
    points = torch.from_numpy(draws.random((200, 100, 3)) * 16).float()
    clouds = clouds_from_list(list(points), [0] * 200, (16, 16, 16), ["x"])
    positions = 16**3 * 16**3  # 16 steps per cell
    least = 200 * math.log2(math.comb(positions + 99, 100)) / 8  # bytes of the multisets
    assert least < len(pack(clouds, 1 / 16)) < 1.02 * least


def test_header_of_image_sets_in_order_is_short():
    clouds = random_image_set([1] * 10, shape=(1, 1), share=1.0)
    named = PointClouds(**{**vars(clouds), "class_names": tuple("0123456789")})
    assert len(pack(named)) <= 15


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [0, -1, 1.5, math.nan, math.inf])
def test_impossible_resolution_is_refused(resolution):
    with pytest.raises(InputError, match="resolution .*: expected cells, above 0 and at most 1"):
        pack(pcdd.released("mnist-1"), resolution)


def test_too_fine_a_resolution_is_refused():
    with pytest.raises(InputError, match="state a coarser resolution"):
        pack(pcdd.released("mnist-1"), 1e-6)


def test_cells_of_a_grid_with_depth_are_refused():
    with pytest.raises(InputError, match="24 cells of depth; state a resolution"):
        pack(pcdd.released("solids"))


def test_empty_cloud_is_refused():
    clouds = clouds_from_list([torch.zeros(0, 3)], [0], (1, 4, 4), ["x"])
    with pytest.raises(InputError, match="cloud 0, which is empty"):
        pack(clouds)


@pytest.mark.parametrize("content", [b"", b"\1", b"PK\3\4 another file", bytes(100)])
def test_another_file_is_refused(content, tmp_path):
    path = tmp_path / "set.pack"
    path.write_bytes(content)
    with pytest.raises(InputError, match="set.pack: damaged, or not a packed set"):
        read_packed(path)


def test_newer_version_is_refused():
    packed = pack(random_image_set([1, 1]))
    with pytest.raises(InputError, match="version 2; expected 1; a newer pcdd may read it"):
        unpack(b"\2" + packed[1:])


def test_every_flipped_bit_and_every_cut_is_refused():
    packed = pack(random_image_set([2, 1]))
    for place in range(8, 8 * len(packed)):
        flipped = bytearray(packed)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(InputError, match="checksum"):
            unpack(bytes(flipped))
    for end in range(len(packed)):
        with pytest.raises(InputError, match="checksum"):
            unpack(packed[:end])


def sealed(rest: bytes) -> bytes:
    """Return a packed set with a valid checksum."""
    return bytes([packing.VERSION]) + zlib.crc32(rest).to_bytes(4, "big") + rest


LEARNED = PointClouds(
    **{
        **vars(random_image_set([2, 1])),
        "label_probabilities": torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]]),
    }
)
SHUFFLED = random_image_set([2, 3, 2]).select(torch.tensor([4, 0, 6, 2, 1]))
VALID = [pack(LEARNED), pack(SHUFFLED), pack(LEARNED, 0.5), pack(SHUFFLED, 0.1)]


@pytest.mark.fuzz
def test_damage_behind_a_valid_checksum_is_read_or_refused(record_property):
    """The checksum stops accidents; this is what a reader meets in a file made to harm it."""

    def read(rest) -> bool:
        try:
            clouds = unpack(sealed(rest), "set.pack")
        except InputError as error:
            fuzz.assert_clear(error, "set.pack")
            return False
        assert len(clouds) and (clouds.sizes > 0).all()
        assert (clouds.coordinates < torch.tensor(clouds.grid)).all()
        return True

    rests = [packed[5:] for packed in VALID]
    fuzz.attack("packed set, checksum repaired", fuzz.mutations(rests), read, record_property)


HUGE = 2**34
CLAIMS = {  # form, grid, classes, bytes of names, learned, clouds per class, points per cloud
    "clouds": [0, 1, 28, 28, 10, 0, 0, HUGE],
    "cells": [0, 1, HUGE, HUGE, 10, 0, 0, 1],
    "classes": [0, 1, 28, 28, HUGE, 0, 0, 1],
    "cells of all classes": [0, 1, 1000, 1000, 60000, 0, 0, 1],
    "names": [0, 1, 28, 28, 10, HUGE, 0, 1],
    "learned labels": [0, 1, 28, 28, 60000, 0, 1, 1],
    "points": [1, 1, 28, 28, 10, 0, 0, 1, HUGE],
    "steps": [60, 1, 28, 28, 10, 0, 0, 1, 5],
    "clouds without points": [1, 1, 28, 28, 1, 0, 0, 2**22, 0],
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_of_a_huge_set_takes_no_memory(claim):
    content = sealed(b"".join(map(packing._varint, CLAIMS[claim])))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="set.pack: "):
            unpack(content, "set.pack")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


# --- the commands ---------------------------------------------------------------------------------


def test_commands_pack_and_unpack(tmp_path, capsys):
    file, output = tmp_path / "mnist-1.pack", tmp_path / "cells.npz"
    assert main(["pack", "released:mnist-1", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"file": str(file), "clouds": 10, "bytes": file.stat().st_size}
    assert file.read_bytes() == pack(pcdd.released("mnist-1"))
    assert main(["unpack", str(file), str(output)]) == 0
    assert cells_of(pcdd.load_clouds(output)) == cells_of(pcdd.released("mnist-1"))


def test_command_packs_positions(tmp_path):
    file = tmp_path / "solids.pack"
    assert main(["pack", "released:solids", str(file), "--resolution", "0.1"]) == 0
    assert file.read_bytes() == pack(pcdd.released("solids"), 1 / 16)


def test_commands_refuse_what_is_there_and_what_is_damaged(tmp_path, capsys):
    file, output = tmp_path / "set.pack", tmp_path / "set.npz"
    file.write_bytes(VALID[0][:-1])
    for words, said in (
        (["pack", "released:mnist-1", str(file)], "is there already"),
        (["unpack", str(file), str(output)], "damaged, or not a packed set"),
        (["unpack", str(tmp_path / "none"), str(output)], "no such file"),
        (["unpack", str(tmp_path), str(output)], "no such file"),
        (["pack", "released:solids", str(output)], "state a resolution"),
        (["pack", "released:solids", str(output), "--resolution", "2"], "at most 1"),
    ):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
        assert not output.exists()
