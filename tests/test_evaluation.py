"""Scores: projection, augmentation, protocols, and the baselines that are scored beside distilled sets."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcdd_core import evaluation
from pcdd_core.clouds import PointClouds, cell_centres, from_list
from pcdd_core.config import EvaluationConfig
from pcdd_core.coresets import BASELINES, herding, random
from pcdd_core.errors import EvaluationFailed, InputError
from pcdd_core.evaluation import PROTOCOLS, Score, augment, evaluate, project, soft_project
from pcdd_core.randomness import generator

DRAWS = 1200
SELECTIONS = [name for name in BASELINES if name not in ("class_mean", "whole")]
SQUARE_AND_NOT = pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 40), (44, 26)])


# --- projection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [tiny.three_digits, tiny.three_solids])
def test_projection_equals_a_loop_over_points(real):
    clouds = real()
    expected = torch.zeros(len(clouds), 1, *clouds.grid[1:])
    for cloud in range(len(clouds)):
        for _, height, width in clouds[cloud].tolist():
            expected[cloud, 0, int(height), int(width)] = 1
    assert torch.equal(project(clouds), expected)


def test_projection_cuts_coordinates_to_integers_and_looks_along_the_depth():
    points = torch.tensor([[0.9, 1.999, 2.0], [3.2, 1.0, 2.999], [0.0, 0.0, 3.0]])
    image = project(from_list([points], [0], (4, 3, 4), ["only"]))
    assert image.nonzero().tolist() == [[0, 0, 0, 3], [0, 0, 1, 2]]


@pytest.mark.parametrize("real", [tiny.three_digits, tiny.three_solids])
def test_soft_projection_becomes_the_hard_one_as_its_spots_shrink(real):
    clouds = cell_centres(real())
    torch.testing.assert_close(soft_project(clouds, 0.05, 6.0), project(clouds), atol=3e-3, rtol=0)  # exp(-6) is not 0
    wide = soft_project(clouds, 0.7, 6.0)
    assert ((wide > 0.05) & (wide < 0.9)).any() and wide.shape == project(clouds).shape


def test_classifiers_learn_from_the_projection_asked_for(monkeypatch):
    clouds, seen = cell_centres(tiny.three_digits()), []
    monkeypatch.setattr(evaluation, "_train", lambda ensemble, images, *rest: seen.append(images))
    spots = {"evaluation__projection_bandwidth": 0.4, "evaluation__projection_saturation": 20.0}
    for change in ({}, {"evaluation__projection": "soft", **spots}):
        evaluate(clouds, tiny.three_digits(), tiny.config(**change).evaluation, 0)
    assert torch.equal(seen[0], project(clouds)) and torch.equal(seen[1], soft_project(clouds, 0.4, 20.0))


# --- augmentation -------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([(28, 28), (20, 40), (9, 7)]), st.integers(0, 2**31))
def test_augmentation_keeps_shape_and_range(networks, images, size, seed):
    given = torch.rand(networks, images, 1, *size, generator=torch.Generator().manual_seed(seed))
    shown = augment(given, torch.Generator().manual_seed(seed))
    assert shown.shape == given.shape and shown.dtype == given.dtype
    assert shown.min() >= 0 and shown.max() <= 1 + 1e-5


def test_augmentation_is_a_function_of_its_draws():
    images = torch.rand(50, 1, 12, 12)
    once, again, other = (augment(images, generator(seed, "augmentation")) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_every_image_of_every_network_is_augmented_by_a_draw_of_its_own():
    image = torch.rand(1, 1, 1, 16, 16).expand(4, 30, 1, 16, 16)
    shown = augment(image, generator(0)).flatten(0, 1).flatten(1)
    assert len(torch.unique(shown, dim=0)) > 80  # 64 shifts are shared by a third of 120 images; all others are unique


def bump(height: int, width: int, y: float, x: float, sd_y: float = 2.0, sd_x: float = 2.0) -> torch.Tensor:
    """A Gaussian bump (height, width) with its centre (y, x) pixels off the middle of the image."""
    rows = torch.arange(height) + 0.5 - height / 2
    columns = torch.arange(width) + 0.5 - width / 2
    return torch.exp(-(((rows - y) / sd_y) ** 2)[:, None] / 2 - ((columns - x) / sd_x) ** 2 / 2)


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """Where the bump in `image` is: (y, x) off the middle of the image."""
    height, width = image.shape
    rows = torch.arange(height) + 0.5 - height / 2
    columns = torch.arange(width) + 0.5 - width / 2
    return float((image.sum(1) * rows).sum() / image.sum()), float((image.sum(0) * columns).sum() / image.sum())


def sorted_by_kind(height: int, width: int) -> dict[str, list]:
    """What became of a bump in DRAWS augmentations: for every kind the parameters of the images that are of that kind.

    An image is of a kind if the bump, drawn anew where that kind with some parameters within its limits would have put
    it, gives the same image. Nothing is taken from the implementation.
    """
    y, x = 2.5, 4.5  # off the middle, at different distances along the axes, and far from the borders
    images = augment(bump(height, width, y, x).expand(DRAWS, 1, height, width), generator(0))[:, 0]
    kinds = {"shift": [], "rotation": [], "scale": [], "none": []}
    for image in images:
        at_y, at_x = centroid(image)
        shift = (round(at_y - y), round(at_x - x))
        angle = float(
            torch.atan2(torch.tensor(at_y), torch.tensor(at_x)) - torch.atan2(torch.tensor(y), torch.tensor(x))
        )
        cos, sin = float(torch.tensor(angle).cos()), float(torch.tensor(angle).sin())
        scale = (at_y / y, at_x / x)
        candidates = {
            "shift": (shift, bump(height, width, y + shift[0], x + shift[1])),
            "rotation": (angle, bump(height, width, x * sin + y * cos, x * cos - y * sin)),
            "scale": (scale, bump(height, width, y * scale[0], x * scale[1], 2 * abs(scale[0]), 2 * abs(scale[1]))),
        }
        errors = {kind: float((image - expected).abs().max()) for kind, (_, expected) in candidates.items()}
        kind = min(errors, key=errors.get)
        tolerance = 1e-3 if kind == "shift" else 0.08  # whole pixels are exact, the others are interpolated
        kinds[kind if errors[kind] < tolerance else "none"].append(candidates[kind][0])
    return kinds


@SQUARE_AND_NOT
def test_every_image_is_shifted_or_rotated_or_scaled_and_each_in_a_third_of_the_cases(height, width):
    kinds = sorted_by_kind(height, width)
    assert not kinds.pop("none")
    for kind, found in kinds.items():
        assert 0.28 * DRAWS < len(found) < 0.39 * DRAWS, kind


@SQUARE_AND_NOT
def test_rotations_keep_the_shape_and_reach_45_degrees_either_way(height, width):
    angles = torch.tensor(sorted_by_kind(height, width)["rotation"]).rad2deg()
    assert len(angles) > 0.28 * DRAWS
    assert -46 < angles.min() < -40 and 40 < angles.max() < 46


@SQUARE_AND_NOT
def test_scales_lie_within_a_fifth_on_either_axis_independently(height, width):
    factors = torch.tensor(sorted_by_kind(height, width)["scale"])
    assert 0.79 < factors.min() < 0.83 and 1.17 < factors.max() < 1.21
    assert torch.corrcoef(factors.T)[0, 1].abs() < 0.2


@SQUARE_AND_NOT
def test_shifts_are_whole_pixels_that_bring_in_zeros(height, width):
    image = torch.rand(height, width, generator=generator(1))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    shifted = {
        (dy, dx): padded[4 - dy : 4 - dy + height, 4 - dx : 4 - dx + width]
        for dy in range(-4, 5)
        for dx in range(-4, 5)
    }
    shown = augment(image.expand(DRAWS, 1, height, width), generator(0))[:, 0]
    found = []
    for (dy, dx), expected in shifted.items():
        count = int(((shown - expected).abs().amax((1, 2)) < 1e-3).sum())
        found += [(dy, dx)] * count
    assert 0.28 * DRAWS < len(found) < 0.39 * DRAWS
    for axis in range(2):  # the field's crop out of a padded image has 8 places along each axis
        assert sorted({shift[axis] for shift in found}) == list(range(-3, 5))
    assert len(set(found)) > 55  # of 64


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_test_clouds() -> PointClouds:
    return tiny.digits().test.select(torch.arange(60))


def settings(**changes) -> EvaluationConfig:
    return EvaluationConfig(**{"networks": 2, "epochs": 2, "width": 4, **changes})


@pytest.fixture(scope="module")
def one_per_class() -> PointClouds:
    return random(tiny.digits().train, 1, 0)


def test_same_seed_same_scores(one_per_class, real_test_clouds):
    once, again = (evaluate(one_per_class, real_test_clouds, settings(), 3) for _ in range(2))
    assert once == again


def test_other_seed_other_scores(one_per_class, real_test_clouds):
    once, other = (evaluate(one_per_class, real_test_clouds, settings(networks=4), seed) for seed in (3, 4))
    assert once["standard"].accuracies != other["standard"].accuracies


def test_scores_do_not_depend_on_torch_s_own_random_numbers(one_per_class, real_test_clouds):
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scores.append(evaluate(one_per_class, real_test_clouds, settings(), 0))
    assert scores[0] == scores[1]


def test_real_clouds_rank_above_label_shuffled_ones(real_test_clouds):
    real = random(tiny.digits().train, 5, 0)
    wrong = PointClouds(real.coordinates, real.offsets, (real.labels + 1) % 10, real.grid, real.class_names)
    long = settings(epochs=40, width=8, protocols=("standard",))
    right, shuffled = (evaluate(clouds, real_test_clouds, long, 0)["standard"].mean for clouds in (real, wrong))
    assert right > 35 and shuffled < 10


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4, 4, 2]), (10, [10]), (256, [10])])
def test_classifiers_learn_from_so_many_clouds_at_a_time(batch, sizes, one_per_class, monkeypatch):
    seen, in_turn = [], evaluation.augment
    monkeypatch.setattr(evaluation, "augment", lambda images, draws: (seen.append(images.shape[1]), in_turn(images, draws))[1])
    evaluate(one_per_class, one_per_class, settings(epochs=1, batch=batch, protocols=["standard"]), 0)
    assert seen == sizes


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3])
def test_classifiers_trained_side_by_side_are_bit_for_bit_those_trained_in_turn(count, threads, one_per_class, monkeypatch):
    trained, train = [], evaluation._train
    monkeypatch.setattr(evaluation, "_train", lambda shares, *rest: (train(shares, *rest), trained.append(shares)))
    for number in (1, count):
        threads(number)
        evaluate(one_per_class, one_per_class, settings(networks=5), 0)
        assert torch.get_num_threads() == number
    alone, together = trained
    assert len(alone) == 1 and len(together) == count
    for expected, *parts in zip(alone[0].parameters(), *(share.parameters() for share in together), strict=True):
        assert torch.equal(torch.cat(parts), expected)


def test_an_error_in_a_thread_is_raised_and_threads_are_as_before(threads, one_per_class, monkeypatch):
    threads(2)
    monkeypatch.setattr(evaluation, "augment", lambda images, draws: images[..., :20])
    with pytest.raises(RuntimeError):
        evaluate(one_per_class, one_per_class, settings(networks=2), 0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("networks", [1, 3])
def test_training_that_diverges_is_refused_in_its_epoch_instead_of_scored(networks, threads, one_per_class, monkeypatch):
    threads(2)
    build, begun = evaluation.build_classifier, []

    def last_one_explodes(*kind):
        network = build(*kind)
        begun.append(network)
        with torch.no_grad():
            for parameter in network.parameters() if len(begun) == networks else ():
                parameter.mul_(1e30)
        return network

    monkeypatch.setattr(evaluation, "build_classifier", last_one_explodes)
    with pytest.raises(EvaluationFailed, match=r"epoch 0 of training.*'convnet' computes is (nan|inf).*diverged"):
        evaluate(one_per_class, one_per_class, settings(networks=networks), 0)


def test_scores_that_are_no_numbers_are_refused(one_per_class, monkeypatch):
    def last_step_explodes(shares, *rest):
        shares[0].stacked[0].data.fill_(float("nan"))

    monkeypatch.setattr(evaluation, "_train", last_step_explodes)
    with pytest.raises(EvaluationFailed, match="^scoring: what the classifier 'convnet' computes is nan"):
        evaluate(one_per_class, one_per_class, settings(networks=1), 0)


def test_learned_labels_are_what_classifiers_learn(real_test_clouds):
    right = random(tiny.digits().train, 5, 0)
    wrong = replace(right, labels=(right.labels + 1) % 10)
    certain = torch.nn.functional.one_hot(right.labels, 10).float()
    long = settings(epochs=40, width=8, protocols=("standard",))
    by_labels, by_probabilities = (
        evaluate(clouds, real_test_clouds, long, 0)["standard"].accuracies
        for clouds in (right, replace(wrong, label_probabilities=certain))
    )
    assert by_probabilities == pytest.approx(by_labels, abs=2)  # the same loss, rounded otherwise


def test_protocols_have_their_own_numbers_of_classifiers(one_per_class, real_test_clouds):
    scores = evaluate(one_per_class, real_test_clouds, settings(networks=None, epochs=1), 0)
    assert {name: len(score.accuracies) for name, score in scores.items()} == {"standard": 20, "paper": 5}
    assert {name: (score.protocol, score.epochs, score.width) for name, score in scores.items()} == {
        "standard": ("standard", 1, 4), "paper": ("paper", 1, 4),
    }  # fmt: skip


def test_number_of_classifiers_can_be_scaled_down(one_per_class, real_test_clouds):
    scores = evaluate(one_per_class, real_test_clouds, settings(networks=3), 0)
    assert [len(score.accuracies) for score in scores.values()] == [3, 3]


def test_standard_score_is_the_same_with_and_without_the_paper_s(one_per_class, real_test_clouds):
    alone = evaluate(one_per_class, real_test_clouds, settings(networks=None, epochs=1, protocols=("standard",)), 0)
    both = evaluate(one_per_class, real_test_clouds, settings(networks=None, epochs=1), 0)
    assert list(alone) == ["standard"] and alone["standard"] == both["standard"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_score_is_the_same_alone_where_the_number_of_classifiers_is_set(protocol, one_per_class, real_test_clouds):
    alone = evaluate(one_per_class, real_test_clouds, settings(protocols=(protocol,)), 0)
    assert alone[protocol] == evaluate(one_per_class, real_test_clouds, settings(), 0)[protocol]


def test_only_the_paper_s_protocol_augments_test_images(one_per_class, real_test_clouds, monkeypatch):
    shapes = []
    real_augment = evaluation.augment
    monkeypatch.setattr(
        evaluation, "augment", lambda images, draws: shapes.append(images.shape[:2]) or real_augment(images, draws)
    )
    evaluate(one_per_class, real_test_clouds, settings(protocols=("standard",)), 0)
    assert set(shapes) == {(2, 10)}  # 2 networks, 10 training images: nothing else
    shapes.clear()
    evaluate(one_per_class, real_test_clouds, settings(protocols=("paper",)), 0)
    assert set(shapes) == {(2, 10), (2, 60)}


def test_every_test_cloud_counts_once(one_per_class, monkeypatch, real_test_clouds):
    monkeypatch.setattr(evaluation, "TEST_BATCH", 7)  # 60 is no multiple of it
    in_parts = evaluate(one_per_class, real_test_clouds, settings(protocols=("standard",)), 0)
    monkeypatch.undo()
    assert in_parts == evaluate(one_per_class, real_test_clouds, settings(protocols=("standard",)), 0)


def test_accuracies_are_percentages_of_the_test_clouds(one_per_class, real_test_clouds):
    for accuracy in evaluate(one_per_class, real_test_clouds, settings(networks=5), 0)["standard"].accuracies:
        assert accuracy * 60 / 100 == pytest.approx(round(accuracy * 60 / 100), abs=1e-4)


def test_mean_and_standard_deviation_are_over_the_classifiers():
    score = Score("standard", (10.0, 20.0, 60.0), 1, 4)
    assert score.mean == pytest.approx(30) and score.standard_deviation == pytest.approx((1400 / 3) ** 0.5)


def test_progress_reaches_the_end_of_training_and_of_testing(one_per_class, real_test_clouds):
    told = []
    evaluate(one_per_class, real_test_clouds, settings(), 0, progress=lambda fraction, text: told.append((text, fraction)))
    ends = dict(told)  # the last fraction of every stage
    assert len(ends) == 3 and set(ends.values()) == {1.0}


# --- baselines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("count", [1, 3])
def test_baseline_has_so_many_different_training_clouds_of_every_class(name, count):
    real = tiny.three_digits()
    chosen = BASELINES[name](real, count, 0)
    assert chosen.labels.tolist() == [label for label in range(3) for _ in range(count)]
    sources = [
        (n, int(label)) for cloud, label in enumerate(chosen.labels) for n in range(len(real))
        if torch.equal(real[n], chosen[cloud])
    ]  # fmt: skip
    assert len(set(sources)) == len(chosen)
    assert all(real.labels[n] == label for n, label in sources)


def test_random_picks_differ_by_seed_and_only_by_seed():
    once, again, other = (random(tiny.digits().train, 2, seed).coordinates.tolist() for seed in (0, 0, 1))
    assert once == again and once != other


def test_herding_does_not_depend_on_the_seed():
    real = tiny.three_digits()
    assert torch.equal(herding(real, 2, 0).coordinates, herding(real, 2, 1).coordinates)


@pytest.mark.parametrize("label", range(3))
def test_herding_s_first_pick_is_the_nearest_to_the_class_mean(label):
    real = tiny.three_digits()
    members = (real.labels == label).nonzero().flatten()
    images = [project(real.select(member[None])).flatten() for member in members]
    mean = sum(images) / len(images)
    nearest = min(range(len(images)), key=lambda n: float((images[n] - mean).square().sum()))
    assert torch.equal(herding(real, 1, 0)[label], real[int(members[nearest])])


def test_herding_s_later_picks_equal_a_naive_loop():
    real, count = tiny.three_digits(), 5
    picks = herding(real, count, 0)
    for label in range(3):
        members = (real.labels == label).nonzero().flatten().tolist()
        images = {n: project(real.select(torch.tensor([n]))).flatten().double() for n in members}
        mean, chosen = sum(images.values()) / len(images), []
        for place in range(count):
            left = [n for n in members if n not in chosen]
            means = [sum(images[m] for m in [*chosen, n]) / (place + 1) for n in left]
            chosen.append(min(zip(means, left, strict=True), key=lambda pair, to=mean: float((pair[0] - to).norm()))[1])
            assert torch.equal(picks[label * count + place], real[chosen[-1]])


def test_herding_picks_no_cloud_twice_even_where_that_would_be_nearest():
    core = torch.tensor(
        [[0.0, 0.0, column] for column in range(9)]
    )  # its double is nearer to the mean than any other pair
    clouds = [core] + [torch.cat([core, torch.tensor([[0.0, row, 0.0]])]) for row in range(1, 8)]
    picks = herding(from_list(clouds, [0] * 8, (1, 9, 9), ["only"]), 8, 0)
    assert picks.sizes[0] == 9 and len({tuple(picks[n].flatten().tolist()) for n in range(8)}) == 8


@pytest.mark.parametrize("name", SELECTIONS)
def test_baseline_refuses_more_clouds_than_a_class_has(name):
    with pytest.raises(InputError, match="class '0' has 8 clouds"):
        BASELINES[name](tiny.three_digits(), 9, 0)
