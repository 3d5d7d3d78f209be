"""Point clouds: the container, its makers, the bounds of the grid, and sets on disk."""

import itertools
import math
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcdd_core.errors import InputError
from pcdd_core.geometry import storage
from pcdd_core.geometry.clouds import (
    PointClouds,
    clouds_from_list,
    from_occupancy,
    members_per_class,
    resampled,
    sample,
)
from pcdd_core.geometry.grid import (
    boundary_check,
    cell_centres,
    clouds_from_unit_ball,
    into_grid,
    scattered,
    within_box,
)
from pcdd_core.geometry.storage import load_clouds, packed_bytes, save_clouds

RAGGED = st.lists(st.integers(0, 6), min_size=1, max_size=6)
GRIDS = st.tuples(*[st.integers(1, 40)] * 3)


# --- the container --------------------------------------------------------------------------------


@given(sizes=RAGGED)
def test_sizes_and_items_are_those_of_the_listed_clouds(sizes):
    pieces = torch.rand(sum(sizes), 3).split(sizes)
    clouds = clouds_from_list(pieces, [0] * len(sizes), (1, 8, 8), "a")
    assert len(clouds) == len(sizes)
    assert clouds.sizes.tolist() == sizes
    for cloud, piece in enumerate(pieces):
        assert torch.equal(clouds[cloud], piece)
        assert torch.equal(clouds[cloud - len(sizes)], piece)


def test_an_item_past_the_end_is_an_index_error(random_clouds):
    clouds = random_clouds([2, 1])
    for outside in (2, -3):
        with pytest.raises(IndexError):
            clouds[outside]


@given(sizes=RAGGED)
def test_cloud_index_names_the_owner_of_every_point(sizes):
    clouds = clouds_from_list(
        torch.rand(sum(sizes), 3).split(sizes), [0] * len(sizes), (1, 8, 8), "a"
    )
    assert clouds.cloud_index.tolist() == [
        cloud for cloud, size in enumerate(sizes) for _ in range(size)
    ]


@given(sizes=RAGGED, data=st.data())
def test_select_equals_a_loop_over_the_chosen_clouds(random_clouds, sizes, data):
    clouds = random_clouds(sizes)
    pieces = clouds.coordinates.split(sizes)
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=8))
    selected = clouds.select(torch.tensor(chosen, dtype=torch.int64))
    assert selected.sizes.tolist() == [sizes[cloud] for cloud in chosen]
    assert selected.labels.tolist() == [cloud % 3 for cloud in chosen]
    assert (selected.grid, selected.class_names) == (clouds.grid, clouds.class_names)
    for place, cloud in enumerate(chosen):
        assert torch.equal(selected[place], pieces[cloud])


def test_select_sends_gradients_back_once_per_repeat(random_clouds):
    clouds = random_clouds([2, 1, 3])
    coordinates = clouds.coordinates.requires_grad_()
    clouds.select(torch.tensor([2, 0, 2])).coordinates.sum().backward()
    assert coordinates.grad[:, 0].tolist() == [1, 1, 0, 2, 2, 2]


# --- clouds from occupancy grids ------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    max_points=st.none() | st.integers(1, 9),
)
def test_from_occupancy_lists_cells_in_raster_order(seed, shape, max_points):
    occupied = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    clouds = from_occupancy(occupied, torch.arange(shape[0]), ["class"] * shape[0], max_points)
    for cloud in range(shape[0]):
        centres = [
            [index + 0.5 for index in cell]
            for cell in itertools.product(*map(range, shape[1:]))
            if occupied[(cloud, *cell)]
        ]
        assert clouds[cloud].tolist() == centres[:max_points]
    assert clouds.grid == shape[1:]
    assert clouds.labels.tolist() == list(range(shape[0]))


# --- scatter --------------------------------------------------------------------------------------


def random_scatter(seed, grid=(4, 8, 6), sizes=(300, 200)):
    return scattered(sizes, [0, 1], grid, "ab", torch.Generator().manual_seed(seed))


def test_scatter_is_uniform_in_the_box():
    clouds = random_scatter(0, sizes=(3000, 2000))
    assert clouds.sizes.tolist() == [3000, 2000]
    for axis, cells in enumerate(clouds.grid):
        along = clouds.coordinates[:, axis]
        assert 0 <= along.min() < 0.1 and cells - 0.1 < along.max() < cells
        share = torch.bincount(along.floor().long(), minlength=cells) / len(along)
        # at most 5 standard deviations of a share of 5,000 draws
        assert torch.allclose(share, torch.full((cells,), 1 / cells), atol=0.031)


def test_scatter_on_a_flat_grid_lies_in_the_middle_of_its_depth():
    assert (random_scatter(0, grid=(1, 8, 8)).coordinates[:, 0] == 0.5).all()


def test_scatter_is_a_function_of_the_seed():
    assert torch.equal(random_scatter(3).coordinates, random_scatter(3).coordinates)
    assert not torch.equal(random_scatter(3).coordinates, random_scatter(4).coordinates)


# --- the bounds of the grid -----------------------------------------------------------------------

ANYWHERE = st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=8)


@given(points=ANYWHERE, grid=GRIDS)
def test_boundary_check_is_the_nearest_point_inside(points, grid):
    checked = boundary_check(torch.tensor(points), grid)
    expected = [
        [min(max(c, 0.0), cells - 1.0) for c, cells in zip(point, grid)] for point in points
    ]
    assert checked.tolist() == expected


@given(points=ANYWHERE, grid=GRIDS)
def test_bounded_points_lie_in_the_cell_nearest_to_where_they_were(points, grid):
    bounded = within_box(torch.tensor(points), grid)
    for before, after in zip(points, bounded.tolist(), strict=True):
        for c, position, cells in zip(before, after, grid, strict=True):
            assert 0 <= position < cells
            assert math.floor(position) == math.floor(min(max(c, 0.0), cells - 1))
            assert position == (0.5 if cells == 1 else pytest.approx(min(max(c, 0.0), cells)))


@pytest.mark.parametrize("check", [boundary_check, within_box])
@given(points=ANYWHERE, grid=GRIDS)
def test_bounds_are_idempotent(check, points, grid):
    once = check(torch.tensor(points), grid)
    assert torch.equal(check(once, grid), once)


@given(seed=st.integers(0, 1000), grid=GRIDS)
def test_boundary_check_changes_nothing_inside(seed, grid):
    inside = torch.rand(20, 3, generator=torch.Generator().manual_seed(seed)) * (
        torch.tensor(grid) - 1
    )
    assert torch.equal(boundary_check(inside, grid), inside)


@pytest.mark.parametrize(("check", "last"), [(boundary_check, 7), (within_box, 7.9999995)])
def test_bounds_leave_nan_and_clamp_its_neighbours(check, last):
    checked = check(torch.tensor([[torch.nan, -1.0, 99.0]]), (4, 8, 8))
    assert checked[0, 0].isnan()
    assert checked[0, 1:].tolist() == [0, pytest.approx(last)]


@given(seed=st.integers(0, 1000), grid=GRIDS)
def test_cell_centres_are_the_middle_of_the_same_cell(random_clouds, seed, grid):
    clouds = random_clouds([5, 2], grid, seed)
    centred = cell_centres(clouds).coordinates
    for axis, cells in enumerate(grid):
        cell = clouds.coordinates[:, axis].floor()
        assert torch.equal(centred[:, axis], cell + 0.5)


# --- draws of clouds ------------------------------------------------------------------------------


def test_members_per_class_lists_the_indices_of_every_class():
    clouds = clouds_from_list([torch.zeros(1, 3)] * 5, [2, 0, 2, 0, 2], (1, 8, 8), "abc")
    assert [members.tolist() for members in members_per_class(clouds)] == [[1, 3], [], [0, 2, 4]]


@given(seed=st.integers(0, 1000), counts=st.tuples(st.integers(0, 4), st.integers(0, 6)))
def test_sample_draws_each_class_without_repeats(seed, counts):
    members = [torch.arange(4), torch.arange(10, 16)]
    chosen = sample(members, counts, torch.Generator().manual_seed(seed), "ab").split(counts)
    for indices, count, drawn in zip(members, counts, chosen):
        assert len(set(drawn.tolist())) == count
        assert set(drawn.tolist()) <= set(indices.tolist())


def test_sample_from_too_small_a_class_names_it():
    with pytest.raises(InputError, match="class 'b' has 2 clouds.* 3 were asked for"):
        sample([torch.arange(5), torch.arange(2)], [3, 3], torch.Generator(), "ab")


# --- bytes of a set -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [(1, 2), (4, 5), (31, 39), (77, 97), (78, 98), (79, 98), (784, 98)],
)
def test_bytes_are_those_of_the_smaller_of_list_and_bitmap(cells, expected):
    occupied = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    occupied.view(-1)[:cells] = True
    assert packed_bytes(from_occupancy(occupied, torch.zeros(1), ["only"])).tolist() == [expected]


@given(seed=st.integers(0, 2**16), sizes=RAGGED, grid=GRIDS)
def test_bytes_count_each_occupied_cell_of_a_cloud_once(random_clouds, seed, sizes, grid):
    clouds = random_clouds(sizes, grid=grid, seed=seed)
    cells = int(np.prod(grid))
    bits = int(np.ceil(np.log2(cells)))
    distinct = [len({tuple(map(int, point)) for point in cloud.floor()}) for cloud in clouds]
    expected = [-(-min(cells, bits * count) // 8) for count in distinct]
    assert packed_bytes(clouds).tolist() == expected
    twice = clouds_from_list([cloud.repeat(2, 1) for cloud in clouds], clouds.labels, grid, "0")
    assert packed_bytes(twice).tolist() == expected


# --- sets on disk ---------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    grid=GRIDS,
    seed=st.integers(0, 1000),
    names=st.lists(
        st.text(st.characters(exclude_categories=["C"]), max_size=5), min_size=3, max_size=4
    ),
)
def test_a_saved_set_is_loaded_exactly(tmp_path_factory, random_clouds, sizes, grid, seed, names):
    made = random_clouds(sizes, grid, seed)
    saved = PointClouds(
        made.coordinates.float().requires_grad_(), made.offsets, made.labels, grid, tuple(names)
    )
    path = tmp_path_factory.mktemp("sets") / "set.npz"
    save_clouds(saved, path)
    loaded = load_clouds(path)
    for field in ("coordinates", "offsets", "labels"):
        assert getattr(loaded, field).dtype == getattr(saved, field).dtype
        assert torch.equal(getattr(loaded, field), getattr(saved, field))
    assert (loaded.grid, loaded.class_names) == (saved.grid, saved.class_names)


def with_learned_labels(random_clouds) -> PointClouds:
    probabilities = torch.tensor(
        [[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [0.25, 0.5, 0.25]]
    )
    return replace(
        random_clouds([2, 3, 1, 4]), label_probabilities=probabilities, class_names=("a", "b", "c")
    )


def test_learned_labels_are_saved_loaded_and_chosen_with_their_clouds(tmp_path, random_clouds):
    clouds = with_learned_labels(random_clouds)
    save_clouds(clouds, tmp_path / "set.npz")
    loaded = load_clouds(tmp_path / "set.npz")
    assert torch.equal(loaded.label_probabilities, clouds.label_probabilities)
    assert loaded.targets is loaded.label_probabilities
    chosen = loaded.select(torch.tensor([3, 1, 1]))
    assert torch.equal(chosen.targets, clouds.label_probabilities[[3, 1, 1]])
    assert torch.equal(
        chosen.with_coordinates(chosen.coordinates + 1).to("cpu").targets, chosen.targets
    )


def test_a_set_without_learned_labels_is_written_as_earlier_versions_read_it(
    tmp_path, random_clouds
):
    clouds = random_clouds([2, 3])
    save_clouds(clouds, tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as arrays:
        assert int(arrays["format_version"]) == 1 and "label_probabilities" not in arrays.files
    assert load_clouds(tmp_path / "set.npz").label_probabilities is None
    assert torch.equal(clouds.targets, clouds.labels)


def test_a_failing_save_leaves_the_old_file_and_nothing_else(tmp_path, random_clouds, monkeypatch):
    path = tmp_path / "set.npz"
    save_clouds(random_clouds([2]), path)
    before = path.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half of it")
        # the new file is beside the old one: a rename is atomic only within a file system
        assert len(list(tmp_path.iterdir())) == 2
        raise OSError("No space left on device")

    monkeypatch.setattr(storage.np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_clouds(random_clouds([3]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_where_no_folder_can_be_made_is_an_input_error(tmp_path, random_clouds):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/set.npz"):
        save_clouds(random_clouds([2]), tmp_path / "file" / "set.npz")


GOOD = dict(
    coordinates=np.array([[0, 1, 2], [0, 3, 4.5], [0, 7, 7]], np.float32),
    offsets=np.array([0, 2, 3]),
    labels=np.array([0, 1]),
    grid=np.array([1, 8, 8]),
    class_names=np.array(["zero", "one"]),
    format_version=np.int64(1),
)


def with_coordinate(value, dtype=np.float32, axis=2):
    coordinates = GOOD["coordinates"].astype(dtype)
    coordinates[1, axis] = value
    return {"coordinates": coordinates}


def test_the_set_that_the_broken_ones_are_made_of_is_good(tmp_path):
    np.savez(tmp_path / "set.npz", **GOOD)
    assert torch.equal(load_clouds(tmp_path / "set.npz")[1], torch.tensor([[0.0, 7, 7]]))


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(tmp_path, field):
    path = tmp_path / "set.npz"
    np.savez(path, **{name: array for name, array in GOOD.items() if name != field})
    with pytest.raises(InputError) as error:
        load_clouds(path)
    assert str(path) in str(error.value) and f"'{field}' is missing" in str(error.value)


@pytest.mark.parametrize(
    "changed, field, value",
    [
        (with_coordinate(np.nan), "coordinates", "nan at [1, 2]"),
        (with_coordinate(-0.25), "coordinates", "-0.25 at [1, 2]"),
        (with_coordinate(8), "coordinates", "8.0 at [1, 2]"),
        (with_coordinate(1, axis=0), "coordinates", "1.0 at [1, 0]"),
        (with_coordinate(np.nextafter(8, 0), np.float64), "coordinates", "at [1, 2]"),
        (dict(coordinates=GOOD["coordinates"][:, :2]), "coordinates", "(3, 2)"),
        (dict(coordinates=GOOD["coordinates"].ravel()), "coordinates", "(9,)"),
        (dict(coordinates=GOOD["coordinates"].astype(np.int32)), "coordinates", "int32"),
        (dict(offsets=np.array([0, 3])), "offsets", "(2,)"),
        (dict(offsets=np.array([[0, 2, 3]])), "offsets", "(1, 3)"),
        (dict(offsets=np.array([0.0, 2, 3])), "offsets", "float64"),
        (dict(offsets=np.array([1, 2, 3])), "offsets", "1 ... 3"),
        (dict(offsets=np.array([0, 2, 4])), "offsets", "0 ... 4"),
        (dict(offsets=np.array([0, 4, 3])), "offsets", "0 ... 3"),
        (dict(offsets=np.array([0, 4, 3], np.uint64)), "offsets", "0 ... 3"),
        (dict(offsets=np.array([0, 3, 3])), "offsets", "cloud 1"),
        (dict(labels=np.array([0, 2])), "labels", "2 at cloud 1"),
        (dict(labels=np.array([-1, 1])), "labels", "-1 at cloud 0"),
        (dict(labels=np.array([0.0, 1.0])), "labels", "float64"),
        (dict(labels=np.array([[0, 1]])), "labels", "(1, 2)"),
        (dict(labels=np.zeros(0, np.int64)), "labels", "(0,)"),
        (dict(grid=np.array([8, 8])), "grid", "[8, 8]"),
        (dict(grid=np.array([0, 8, 8])), "grid", "[0, 8, 8]"),
        (dict(grid=np.array([1.0, 8, 8])), "grid", "float64"),
        (dict(class_names=np.array("zero")), "class_names", "()"),
        (dict(class_names=np.array([], np.str_)), "class_names", "(0,)"),
        (dict(class_names=np.array([b"zero", b"one"])), "class_names", "S4"),
        (dict(label_probabilities=np.ones((1, 2))), "label_probabilities", "(1, 2)"),
        (dict(label_probabilities=np.array([[1, 0], [0, 1]])), "label_probabilities", "int64"),
        (
            dict(label_probabilities=np.array([[1.5, -0.5], [0.5, 0.5]])),
            "label_probabilities",
            "1.5 at [0, 0]",
        ),
        (
            dict(label_probabilities=np.array([[1, 0], [0.5, np.nan]])),
            "label_probabilities",
            "nan at [1, 1]",
        ),
        (
            dict(label_probabilities=np.array([[1, 0], [0.5, 0.25]])),
            "label_probabilities",
            "0.75 at cloud 1",
        ),
        (dict(format_version=np.int64(3)), "format_version", "3"),
        (dict(format_version=np.int64(0)), "format_version", "0"),
        (dict(format_version=np.array([1])), "format_version", "[1]"),
        (dict(format_version=np.float64(1)), "format_version", "float64"),
    ],
)
def test_a_wrong_value_is_an_input_error_with_file_field_and_value(tmp_path, changed, field, value):
    path = tmp_path / "set.npz"
    np.savez(path, **{**GOOD, **changed})
    with pytest.raises(InputError) as error:
        load_clouds(path)
    for part in (str(path), f"'{field}'", value, "expected "):
        assert part in str(error.value)


def test_an_object_array_is_refused_and_never_unpickled(tmp_path):
    class RunsWhenUnpickled:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "code ran"),)

    path = tmp_path / "set.npz"
    np.savez(
        path,
        **{**GOOD, "labels": np.array([RunsWhenUnpickled(), 1], dtype=object)},
        allow_pickle=True,
    )
    with pytest.raises(InputError, match="Python objects as a pickle"):
        load_clouds(path)
    assert list(tmp_path.iterdir()) == [path]
    np.load(path, allow_pickle=True)["labels"]  # shows that the file does run code when unpickled
    assert (tmp_path / "code ran").is_dir()


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path):
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match="no such file") as error:
            load_clouds(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x93NUMPY"])
def test_a_file_that_is_no_zip_is_an_input_error(tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="set.npz"):
        load_clouds(path)


def test_a_single_array_is_an_input_error(tmp_path):
    path = tmp_path / "set.npz"
    with open(path, "wb") as file:
        np.save(file, GOOD["coordinates"])
    with pytest.raises(InputError, match="set.npz"):
        load_clouds(path)


def test_a_member_that_is_no_array_is_an_input_error(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **{name: array for name, array in GOOD.items() if name != "grid"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("grid", "1 8 8")
    with pytest.raises(InputError, match="'grid'"):
        load_clouds(path)


def test_a_file_truncated_anywhere_is_an_input_error(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="set.npz"):
            load_clouds(path)


@pytest.mark.slow
def test_a_damaged_byte_is_an_input_error_or_does_no_harm(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = load_clouds(path)  # bytes that nothing reads, such as time stamps
        except InputError:
            continue
        assert np.array_equal(loaded.coordinates, GOOD["coordinates"])
        assert np.array_equal(loaded.labels, GOOD["labels"])


# --- clouds in any unit, put on a grid ------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.floats(-3, 3),
    st.tuples(*[st.integers(1, 32)] * 3),
)
def test_cloud_put_on_a_grid_keeps_its_shape_fills_the_box_and_is_in_the_middle(
    count, seed, log_scale, grid
):
    draws = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 3, generator=draws) - 0.5) * 10**log_scale + torch.rand(
        3, generator=draws
    )
    flat = torch.tensor(grid) == 1
    points[:, flat] = 0.25  # an axis of one cell has no extent
    placed = into_grid(points, grid)
    size = torch.tensor(grid)
    room = size - 1
    assert placed.dtype == torch.float32
    assert (placed >= 0.4999).all() and (placed <= size - 0.4999).all()
    before, after = torch.pdist(points.double()), torch.pdist(placed.double())
    if count > 1 and before.max() > 1e-4 * points.abs().max():  # else only rounding differs
        scale = after.sum() / before.sum()
        torch.testing.assert_close(after, before * scale, rtol=1e-3, atol=1e-3)
        used = placed.amax(0) - placed.amin(0)
        assert ((room - used) < 1e-3)[~flat].any() and (used <= room + 1e-4).all()
    torch.testing.assert_close((placed.amax(0) + placed.amin(0)) / 2, size / 2, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "points", [torch.zeros(0, 3), torch.zeros(4, 2), torch.tensor([[0.0, float("nan"), 1.0]])]
)
def test_what_is_no_cloud_is_not_put_on_a_grid(points):
    with pytest.raises(InputError, match="rows of 3 finite coordinates"):
        into_grid(points, (4, 4, 4))


# --- shapes ---------------------------------------------------------------------------------------


def test_shapes_of_the_unit_ball_stand_upright_in_the_middle_of_a_cubic_grid():
    up, right, origin = [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    clouds = clouds_from_unit_ball(
        torch.tensor([[up, right], [origin, up]]), torch.tensor([1, 0]), "ab", cells=24
    )
    assert (
        clouds.grid == (24, 24, 24)
        and clouds.labels.tolist() == [1, 0]
        and clouds.class_names == ("a", "b")
    )
    # height points down, width is x; a radius of 11 leaves one cell free on either side
    assert clouds.coordinates.tolist() == [[12, 1, 12], [12, 12, 23], [12, 12, 12], [12, 1, 12]]
    behind = clouds_from_unit_ball(
        torch.tensor([[[0.0, 1.0, 0.0]]]), torch.tensor([0]), "a", cells=24
    )
    assert behind.coordinates.tolist() == [[23, 12, 12]]


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_resampled_clouds_repeat_no_point_before_all_of_them_are_used(random_clouds, sizes, seed):
    clouds = random_clouds([4, 1, 6], (1, 6, 5), seed)
    clouds = clouds.with_coordinates(clouds.coordinates.float())
    result = resampled(clouds, sizes, torch.Generator().manual_seed(seed))
    assert (
        result.sizes.tolist() == sizes
        and torch.equal(result.labels, clouds.labels)
        and result.grid == clouds.grid
    )
    for cloud, size in enumerate(sizes):
        own = {tuple(point) for point in clouds[cloud].tolist()}
        drawn = [tuple(point) for point in result[cloud].tolist()]
        assert set(drawn) <= own and len(set(drawn)) == min(size, len(own))
