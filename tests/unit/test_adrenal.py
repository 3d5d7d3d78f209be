"""AdrenalMNIST3D: files found, downloaded or refused; balanced accuracy; classifiers of grids."""

import dataclasses
import io
import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import shape_samples
import tiny
import torch
from scipy import ndimage
from sklearn.metrics import balanced_accuracy_score

from pcdd_core.data import medmnist
from pcdd_core.data.datasets import Adrenal, load_data
from pcdd_core.engine.lifts import gaussian_occupancy, occupancy
from pcdd_core.errors import InputError
from pcdd_core.experiments import records
from pcdd_core.experiments.config import from_dict, override
from pcdd_core.experiments.presets import preset
from pcdd_core.experiments.report import table
from pcdd_core.experiments.runs import run
from pcdd_core.experiments.scores import score
from pcdd_core.geometry.moves import draw_moves
from pcdd_core.nn.classifiers import ConvNet3D
from pcdd_core.scoring import evaluate as evaluation
from pcdd_core.scoring.augment import augment_grids
from pcdd_core.scoring.baselines import Random
from pcdd_core.scoring.evaluate import STANDARD, Hard, Soft, evaluate
from pcdd_core.seeds import generator

REAL = Path(os.environ.get("PCDD_DATA", "")) / medmnist.FILE
# most tests read made-up volumes in the published format
pytestmark = pytest.mark.filterwarnings("ignore:.*not the original AdrenalMNIST3D:UserWarning")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("medmnist")
    shape_samples.write_adrenal(folder, shape_samples.adrenal_arrays())
    return folder


@pytest.fixture(scope="module")
def small(made_up):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Adrenal().load(made_up)


# --- data -----------------------------------------------------------------------------------------


def test_the_official_splits_are_the_splits(small):
    parts = (small.train, small.validation, small.test)
    for part, (split, count) in zip(parts, shape_samples.ADRENAL_COUNTS.items(), strict=True):
        assert len(part) == count and part.grid == (28, 28, 28)
        assert part.class_names == ("normal", "hyperplasia")
        assert (
            part.labels.tolist() == shape_samples.adrenal_arrays()[f"{split}_labels"][:, 0].tolist()
        )


def test_every_occupied_voxel_is_a_point_at_the_centre_of_its_cell(small):
    volumes = shape_samples.adrenal_arrays()["test_images"]
    assert torch.equal(occupancy(small.test)[:, 0] > 0, torch.from_numpy(volumes > 0))
    assert len(small.test.coordinates) == np.count_nonzero(volumes)
    assert (small.test.coordinates % 1 == 0.5).all()


def test_the_file_is_found_through_the_environment(made_up, monkeypatch):
    monkeypatch.setenv("PCDD_DATA", str(made_up))
    assert len(load_data("adrenal").test) == shape_samples.ADRENAL_COUNTS["test"]


def test_another_set_in_the_same_format_is_read_with_a_warning(made_up):
    with pytest.warns(UserWarning, match="adrenalmnist3d.npz: not the original AdrenalMNIST3D"):
        splits = Adrenal().load(made_up)
    assert len(splits.test) == shape_samples.ADRENAL_COUNTS["test"]


def test_a_validation_fraction_is_refused(made_up):
    with pytest.raises(InputError, match=r"validation_fraction = 0\.2: .*split of its own"):
        Adrenal(validation_fraction=0.2).load(made_up)


def without_volume_4(volumes):
    return np.where((np.arange(len(volumes)) == 4)[:, None, None, None], np.uint8(0), volumes)


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [
        ("val_images", None, "field 'val_images' is missing"),
        ("test_labels", None, "field 'test_labels' is missing"),
        ("train_images", lambda a: a[:, :14], r"\(12, 14, 28, 28\); expected \(volumes, 28"),
        ("train_images", lambda a: a[:, 0], r"\(12, 28, 28\); expected"),
        ("train_images", lambda a: a[:0], r"\(0, 28, 28, 28\); expected"),
        ("val_images", lambda a: a.astype(float), "'val_images' is of type float64"),
        ("test_images", lambda a: a // 2, "'test_images' has the value 127; expected 0"),
        ("test_images", without_volume_4, "volume 4 has no"),
        ("test_labels", lambda a: a[:-1], r"'test_labels' is of shape \(6, 1\); .* of 7 volumes"),
        ("val_labels", lambda a: a + 1, "'val_labels' is 2 at volume 0; expected 0 or 1"),
        ("val_labels", lambda a: a.astype(object), "'val_labels': .*pickle"),
    ],
)
def test_a_field_of_another_format_is_named(tmp_path, field, change, said):
    arrays = shape_samples.adrenal_arrays()
    if change is None:
        del arrays[field]
    else:
        arrays[field] = change(arrays[field])
    shape_samples.write_adrenal(tmp_path, arrays)
    with pytest.raises(InputError, match=f"adrenalmnist3d.npz.*{said}"):
        Adrenal().load(tmp_path)


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"<html>", lambda c: b""])
def test_a_damaged_file_is_named_and_kept(tmp_path, damage):
    path = shape_samples.write_adrenal(tmp_path, shape_samples.adrenal_arrays())
    path.write_bytes(damaged := damage(path.read_bytes()))
    with pytest.raises(InputError, match="adrenalmnist3d.npz: not a readable .npz file"):
        Adrenal().load(tmp_path)
    assert path.read_bytes() == damaged


# --- download -------------------------------------------------------------------------------------


class Answer(io.BytesIO):
    """What `urlopen` returns."""


def serve(monkeypatch, content: bytes) -> list[str]:
    """Let every download give `content`. Returns the list of addresses that were asked for."""
    asked = []
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: asked.append(url) or Answer(content)
    )
    return asked


def test_a_missing_file_is_downloaded_once(tmp_path, monkeypatch):
    content = shape_samples.npz(shape_samples.adrenal_arrays())
    asked = serve(monkeypatch, content)
    monkeypatch.setattr(medmnist, "SHA256", medmnist._sha256(content))
    for _ in range(2):
        assert len(Adrenal().load(tmp_path).train) == shape_samples.ADRENAL_COUNTS["train"]
    assert asked == [medmnist.URL]
    assert (tmp_path / medmnist.FILE).read_bytes() == content


def test_a_download_with_another_checksum_is_refused_and_not_kept(tmp_path, monkeypatch):
    serve(monkeypatch, shape_samples.npz(shape_samples.adrenal_arrays()))
    with pytest.raises(InputError, match="sent another file .*expected 8ffd78c0.*--data DIR"):
        Adrenal().load(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route to host"), TimeoutError("timed out")]
)
def test_without_a_network_one_line_names_the_ways_out(tmp_path, monkeypatch, error):
    def urlopen(url, timeout):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(InputError) as refused:
        Adrenal().load(tmp_path)
    message = str(refused.value)
    assert "\n" not in message and str(tmp_path / medmnist.FILE) in message
    assert "--data" in message and "PCDD_DATA" in message and "network" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REAL.is_file(), reason="PCDD_DATA names no folder with MedMNIST")
def test_real_adrenal_glands():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its checksum is the original's
        real = Adrenal().load(REAL.parents[1])
    sizes = [torch.bincount(part.labels).tolist() for part in vars(real).values()]
    assert sizes == [[929, 259], [76, 22], [229, 69]]
    assert (int(real.train.sizes.min()), int(real.train.sizes.max())) == (36, 1241)
    assert real.train.sizes.median() == 326


# --- balanced accuracy ----------------------------------------------------------------------------


def shares_of(clouds):
    """Return few clouds of class 0 and many of the others."""
    chosen = (clouds.labels != 0) | (torch.arange(len(clouds)) < 6)
    return clouds.select(chosen.nonzero().flatten())


def test_balanced_accuracy_is_that_of_scikit_learn(monkeypatch):
    train, test = tiny.three_solids(), shares_of(tiny.three_solids())
    protocol = dataclasses.replace(STANDARD, networks=3, epochs=20, batch=8)
    given = (train, test, ConvNet3D(4), protocol)
    predictions, new_networks = [], evaluation._new_networks

    def recording(*all):
        networks = new_networks(*all)
        networks.register_forward_hook(
            lambda module, _, logits: (
                predictions.append(logits.argmax(-1)) if not module.training else None
            )
        )
        return networks

    monkeypatch.setattr(evaluation, "_new_networks", recording)
    balanced = evaluate(*given, balanced=True)["standard"]
    predicted = torch.cat(predictions, dim=1)
    expected = [100 * balanced_accuracy_score(test.labels, own) for own in predicted]
    assert balanced.accuracies == pytest.approx(expected)
    assert len({*balanced.accuracies}) > 1  # the networks differ
    assert np.mean(balanced.recalls, axis=1) == pytest.approx(balanced.accuracies)
    plain = evaluate(*given)["standard"]
    assert plain.recalls == ()
    right = (predicted == test.labels).double().mean(1)
    assert plain.accuracies == pytest.approx((100 * right).tolist())
    assert plain.accuracies != pytest.approx(balanced.accuracies)


def test_a_class_without_test_clouds_does_not_count():
    train = tiny.three_solids()
    test = train.select((train.labels != 1).nonzero().flatten())
    protocol = dataclasses.replace(STANDARD, networks=1, epochs=1)
    score = evaluate(train, test, ConvNet3D(4), protocol, balanced=True)["standard"]
    assert len(score.recalls[0]) == 2 and score.mean == pytest.approx(np.mean(score.recalls))


def small_config(**changes):
    """Return the preset with tiny settings."""
    tiny_settings = {
        "clouds.points_per_cloud": 20,
        "network.width": 4,
        "objective.real_batch": 2,
        "schedule.iterations": 2,
        "evaluation.networks": 2,
        "evaluation.epochs": 2,
        "evaluation.classifier.width": 4,
    }
    return override(preset("adrenal").config, {**tiny_settings, **changes})


def test_records_and_tables_say_that_the_accuracy_is_balanced(made_up, tmp_path):
    folder = run(small_config(), "adrenal", tmp_path / "run", made_up, "cpu")
    record = records.read_record(folder)
    assert record["scored_on"] == "adrenal, test split, 7 clouds, balanced accuracy"
    entry = record["scores"]["standard"]
    assert [len(recalls) for recalls in entry["recalls"]] == [2, 2]
    assert entry["mean"] == pytest.approx(np.mean(entry["recalls"]))
    _, baseline = score(Random(), "random-1", small_config(), made_up, "cpu")
    for row in table([record, baseline]):
        assert "standard, balanced" in row and "standard" not in row
    digits = tiny.config(evaluation__protocols=["standard"])
    _, other = score(Random(), "random-1", digits, None, "cpu")
    assert "recalls" not in other["scores"]["standard"] and "balanced" not in other["scored_on"]
    assert "standard" in table([other])[0]


# --- grids as inputs of classifiers ---------------------------------------------------------------


def test_classifiers_of_grids_learn_from_all_cells_and_are_tested_on_occupied_ones(monkeypatch):
    clouds, trained_on = tiny.three_solids(), []
    monkeypatch.setattr(evaluation, "_train", lambda networks, x, *rest: trained_on.append(x))
    protocol = dataclasses.replace(STANDARD, networks=1)
    for projection in (Hard(), Soft(bandwidth=0.4, saturation=20.0)):
        evaluate(clouds, clouds, ConvNet3D(4), protocol, projection)
    assert torch.equal(trained_on[0], occupancy(clouds))
    assert torch.equal(trained_on[1], gaussian_occupancy(clouds, 0.4, 20.0))
    conversion = evaluation._conversion(ConvNet3D(4), Soft(), protocol, clouds.grid)
    assert torch.equal(conversion.test(clouds), occupancy(clouds))
    assert conversion.augment is evaluation.augment_grids


@pytest.mark.parametrize("grid", [(10, 14, 12), (1, 9, 12)])
def test_augmented_grids_are_those_that_scipy_resamples(grid):
    count = 30
    grids = torch.rand(count, 1, *grid, dtype=torch.float64, generator=generator(0))
    augmented = augment_grids(grids, generator(1))
    moves = draw_moves(count, grid, generator(1))
    middle = np.array(grid) / 2 - 0.5
    kinds = set()
    for number in range(count):
        matrix, shift = moves.matrix[number].numpy(), moves.shift[number].numpy()
        kinds.add((bool(shift.any()), bool((matrix == np.diag(np.diag(matrix))).all())))
        inverse = np.linalg.inv(matrix)
        expected = ndimage.affine_transform(
            grids[number, 0].numpy(),
            inverse,
            middle - inverse @ (middle + shift),
            order=1,
            mode="grid-constant",
        )
        assert np.allclose(augmented[number, 0], expected, atol=1e-5)
    assert len(kinds) == 3  # shifts, scales and rotations


def test_each_grid_of_each_network_has_a_move_of_its_own():
    grid = torch.rand(1, 1, 1, 6, 7, 8, generator=generator(0)).expand(3, 5, 1, 6, 7, 8)
    augmented = augment_grids(grid, generator(0))
    assert augmented.shape == grid.shape
    assert len(augmented.flatten(0, 1).flatten(1).unique(dim=0)) == 15


def test_fast_augmentation_of_grids_is_allowed_on_the_test_split():
    fast = {"classifier": {"name": "convnet3d"}, "augmentation": "fast"}
    from_dict({"evaluation": fast}).evaluation.check()
