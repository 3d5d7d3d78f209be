"""Damaged files of runs and exports: each gives the original, or a message in one line."""

import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
import tiny
import torch

from pcdd_core.cli.commands import _config_of_run
from pcdd_core.errors import InputError
from pcdd_core.experiments import checkpoint as checkpoints
from pcdd_core.experiments.records import read_record, read_records, read_trajectory, write_records
from pcdd_core.experiments.scores import finished_scores
from pcdd_core.geometry import storage
from pcdd_core.geometry.export import KINDS as KINDS_OF_EXPORT
from pcdd_core.geometry.export import clouds_from_export, export_clouds
from pcdd_core.geometry.storage import load_clouds, save_clouds

ITERATIONS = 4


class Said:
    """Collect the messages of a run."""

    def __init__(self):
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)


def equal(one, other) -> bool:
    """Return whether two contents are equal, to the last bit of each array."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other


def read_set(folder: Path):
    return vars(load_clouds(folder / "clouds.npz"))


def read_checkpoint(folder: Path):
    kept, damage = checkpoints.load(folder, ITERATIONS)
    assert damage is None
    return vars(kept)


def read_scores(folder: Path):
    said = Said()
    scores = finished_scores(folder / "scores.json", said)
    assert scores or len(said.lines) == 1
    if not scores:
        raise InputError(said.lines[0])
    return scores


KINDS = {
    "clouds.npz": read_set,
    "checkpoint.pt": read_checkpoint,
    "config.json": _config_of_run,
    "record.json": lambda folder: read_record(folder / "record.json"),
    "trajectory.npz": read_trajectory,
    "scores.json": read_scores,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return a finished run whose set has learned labels, the field that a set may lack."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    learning = {
        "objective__name": "unrolled_training",
        "objective__learned_labels": True,
        "objective__unrolled_steps": 2,
        "schedule__iterations": ITERATIONS,
    }
    words = ("--preset", "quickstart", "--quiet", "--output", str(folder))
    assert tiny.pcdd("distill", *words, **learning) == 0
    return folder


@pytest.mark.fuzz
@pytest.mark.parametrize("name", KINDS)
def test_damaged_file_gives_the_content_of_the_original_or_a_message(
    name, run, tmp_path, record_property
):
    content = (run / name).read_bytes()
    (tmp_path / name).write_bytes(content)
    original = KINDS[name](tmp_path)

    def read(spoiled) -> bool:
        (tmp_path / name).write_bytes(spoiled)
        try:
            found = KINDS[name](tmp_path)
        except InputError as error:
            fuzz.assert_clear(error, str(tmp_path / name))
            return False
        assert equal(found, original)
        return True

    counts = fuzz.attack(f"`{name}` of a run", fuzz.mutations([content]), read, record_property)
    assert counts["refused"] > counts["tried"] / 2


@pytest.mark.fuzz
def test_damaged_file_of_records_gives_records_of_the_original_or_a_message(
    run, tmp_path, record_property
):
    """A whole line can be lost or come twice, because each line has its own checksum."""
    path, record = tmp_path / "records.jsonl", read_record(run / "record.json")
    other = {**record, "config": {**record["config"], "seed": 1}}
    write_records([record, other], path)
    content, originals = path.read_bytes(), read_records(path)

    def read(spoiled) -> bool:
        path.write_bytes(spoiled)
        try:
            found = read_records(path)
        except InputError as error:
            fuzz.assert_clear(error, str(path))
            return False
        assert all(any(equal(one, original) for original in originals) for one in found)
        return True

    fuzz.attack("`.jsonl` of records", fuzz.mutations([content]), read, record_property)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """Return an export of every kind. Its grid is flat, as images need."""
    folder = tmp_path_factory.mktemp("fuzz") / "export"
    return export_clouds(load_clouds(run / "clouds.npz"), folder, KINDS_OF_EXPORT)


@pytest.mark.fuzz
@pytest.mark.parametrize("damaged", [*KINDS_OF_EXPORT, "manifest.json"])
def test_damaged_export_is_read_or_refused(damaged, exported, record_property):
    """A changed number is a valid export, because people edit these files."""
    kind = damaged if damaged in KINDS_OF_EXPORT else "csv"
    path = exported / damaged if "." in damaged else next(exported.rglob(f"*.{damaged}"))
    content = path.read_bytes()

    def read(spoiled) -> bool:
        path.write_bytes(spoiled)
        try:
            clouds = clouds_from_export(exported, kind)
        except InputError as error:
            fuzz.assert_clear(error, str(exported))
            return False
        assert bool(clouds.coordinates.isfinite().all())
        assert len(clouds.labels) == len(clouds.offsets) - 1
        return True

    try:
        title = f"`{damaged if damaged == path.name else path.suffix}` of an export"
        fuzz.attack(title, fuzz.mutations([content]), read, record_property)
    finally:
        path.write_bytes(content)


# --- sets that somebody made on purpose -----------------------------------------------------------


@pytest.fixture
def archive(tmp_path) -> Path:
    save_clouds(tiny.three_solids(), tmp_path / "set.npz")
    return tmp_path / "set.npz"


def rewrite(path: Path, **arrays) -> None:
    with np.load(path) as old:
        np.savez_compressed(path, **{**dict(old), **arrays})


def test_other_fields_are_not_unpacked(archive):
    before = load_clouds(archive)
    rewrite(archive, notes=np.zeros(10), objects=np.array([None], dtype=object))
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.npy", bytes(storage.LARGEST_SET + 1))
    assert equal(vars(load_clouds(archive)), vars(before))


def test_sizes_beyond_the_limit_are_refused_before_unpacking(archive):
    rewrite(archive, coordinates=np.zeros((storage.LARGEST_SET // 12 + 1, 3), np.float32))
    with pytest.raises(InputError, match="expected at most [0-9,]+ bytes"):
        load_clouds(archive)


def test_set_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LARGEST_SET", 1000)
    with pytest.raises(InputError, match="expected at most 1000"):
        save_clouds(tiny.three_solids(), tmp_path / "set.npz")
    assert tiny.files(tmp_path) == {}


def test_header_of_an_impossible_shape_is_refused(archive):
    header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["class_names.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    with pytest.raises(InputError, match="elements of 0 bytes; expected at most"):
        load_clouds(archive)


@pytest.mark.parametrize(
    ("point", "shown"),
    [(0x110000, r"U\+110000"), (0xFFFFFFFF, r"U\+FFFFFFFF"), (0xD800, r"U\+D800")],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_code_points_that_are_no_text_are_refused(point, shown, order, archive):
    names = np.array([[ord("a")], [point], [ord("c")]], f"{order}u4").view(f"{order}U1")[:, 0]
    rewrite(archive, class_names=names)
    with pytest.raises(InputError, match=f"class_names'.* {shown}") as refusal:
        load_clouds(archive)
    assert "\n" not in str(refusal.value)


def test_names_of_the_other_byte_order_are_read(archive):
    rewrite(archive, class_names=np.array(["é", "bb", "\U0001f600"], dtype=">U2"))
    assert load_clouds(archive).class_names == ("é", "bb", "\U0001f600")


def test_code_is_feared_of_object_arrays_only(archive):
    rewrite(archive, class_names=np.array([b"pickle", b"b", b"c"]))
    (archive.parent / "pickle.npz").write_bytes(b"no pickle")
    for path in (archive, archive.parent / "pickle.npz"):
        with pytest.raises(InputError) as refusal:
            load_clouds(path)
        reason = str(refusal.value).removeprefix(str(path))
        assert "object" not in reason and "pickl" not in reason
    rewrite(archive, class_names=np.array([None, "b", "c"], dtype=object))
    with pytest.raises(InputError, match="Python objects as a pickle"):
        load_clouds(archive)


def test_learned_labels_that_are_lost_are_missed(run, tmp_path):
    with np.load(run / "clouds.npz") as old:
        arrays = {name: old[name] for name in old.files if name != "label_probabilities"}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match="label_probabilities' is missing"):
        load_clouds(tmp_path / "set.npz")
