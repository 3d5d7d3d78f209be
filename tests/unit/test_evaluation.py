"""Scores: projection, augmentation, protocols, and baselines."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pcdd_core.errors import EvaluationFailed, InputError
from pcdd_core.experiments.config import Config, Evaluation
from pcdd_core.geometry.clouds import PointClouds, clouds_from_list
from pcdd_core.nn.classifiers import Classifier, ConvNet
from pcdd_core.scoring import augment as augmentation
from pcdd_core.scoring import evaluate as evaluation
from pcdd_core.scoring.augment import (
    CROP,
    ROTATION,
    SCALE,
    AugmentationDraws,
    apply_augmentation,
    augment,
    augment_fast,
    draw_augmentation,
)
from pcdd_core.scoring.baselines import Baseline, herding, random
from pcdd_core.scoring.evaluate import (
    Score,
    project,
    soft_project,
)
from pcdd_core.seeds import generator

DRAWS = 1200
SELECTIONS = [name for name in Baseline.choices if name not in ("class_mean", "whole", "released")]
SQUARE_AND_NOT = pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 40), (44, 26)])


# --- projection -----------------------------------------------------------------------------------


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
    image = project(clouds_from_list([points], [0], (4, 3, 4), ["only"]))
    assert image.nonzero().tolist() == [[0, 0, 0, 3], [0, 0, 1, 2]]


@pytest.mark.parametrize("real", [tiny.three_digits, tiny.three_solids])
def test_soft_projection_becomes_the_hard_one_as_its_spots_shrink(real):
    clouds = real()
    narrow = soft_project(clouds, 0.05, 6.0)
    torch.testing.assert_close(narrow, project(clouds), atol=3e-3, rtol=0)  # exp(-6) is not 0
    wide = soft_project(clouds, 0.7, 6.0)
    assert ((wide > 0.05) & (wide < 0.9)).any() and wide.shape == project(clouds).shape


def test_classifiers_learn_from_the_projection_asked_for(monkeypatch):
    clouds, trained_on = tiny.three_digits(), []
    monkeypatch.setattr(
        evaluation, "_train", lambda ensemble, images, *rest: trained_on.append(images)
    )
    spots = {"bandwidth": 0.4, "saturation": 20.0}
    for projection in ("hard", {"name": "soft", **spots}):
        scored(clouds, tiny.three_digits(), settings(projection=projection), 0)
    assert torch.equal(trained_on[0], project(clouds))
    assert torch.equal(trained_on[1], soft_project(clouds, 0.4, 20.0))


# --- augmentation as published --------------------------------------------------------------------


def literal(images: torch.Tensor, drawn: AugmentationDraws) -> torch.Tensor:
    """Augment a batch (batch, 1, height, width) image by image, as the code of DC does."""
    height, width = images.shape[-2:]
    mean = float(torch.mean(images[:, 0]))
    augmented = images.clone()
    for number, image in enumerate(images):
        if drawn.kind[number] == CROP:
            frame = torch.full((1, height + 8, width + 8), mean)
            frame[:, 4 : 4 + height, 4 : 4 + width] = image
            r, c = drawn.offset[number].tolist()
        elif drawn.kind[number] == SCALE:
            h, w = drawn.size[number].tolist()
            side = max(h, w, height, width)
            frame = torch.zeros(1, side, side)
            r, c = int((side - h) / 2), int((side - w) / 2)
            frame[:, r : r + h, c : c + w] = F.interpolate(image[None], [h, w])[0]
            r, c = int((side - height) / 2), int((side - width) / 2)
        else:
            angle = int(drawn.angle[number])
            frame = ndimage.rotate(image.numpy(), angle=angle, axes=(-2, -1), cval=mean)
            frame = torch.tensor(frame)
            r, c = int((frame.shape[-2] - height) / 2), int((frame.shape[-1] - width) / 2)
        augmented[number] = frame[:, r : r + height, c : c + width]
    return augmented


def binary_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(shape, generator=generator(seed, "images")) < 0.3).float()


def draws_of(kind: int, values: torch.Tensor) -> AugmentationDraws:
    """Return draws of one kind with one value per image; the draws of other kinds are 1."""
    count, unused = len(values), torch.ones(len(values), 2, dtype=torch.int64)
    return AugmentationDraws(
        torch.full((count,), kind),
        values if kind == CROP else unused,
        values if kind == SCALE else unused,
        values if kind == ROTATION else unused[:, 0],
    )


@pytest.mark.parametrize("side", [28, 20, 27])
def test_every_image_is_what_the_published_loop_makes_of_it(side):
    networks, batch = 3, 150
    images = binary_images(networks, batch, 1, side, side)
    images[1] *= binary_images(batch, 1, side, side, seed=1)  # gives this batch another mean
    drawn = draw_augmentation(networks * batch, side, generator(0))
    augmented = apply_augmentation(images, drawn)
    for network in range(networks):
        rows = slice(network * batch, (network + 1) * batch)
        own = AugmentationDraws(*(part[rows] for part in vars(drawn).values()))
        expected, exact = literal(images[network], own), own.kind != ROTATION
        assert torch.equal(augmented[network][exact], expected[exact])
        torch.testing.assert_close(augmented[network], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [28, 27, 8])
def test_crop_at_every_offset_is_the_published_one(side):
    drawn = draws_of(CROP, torch.cartesian_prod(torch.arange(8), torch.arange(8)))
    images = binary_images(64, 1, side, side)
    assert torch.equal(apply_augmentation(images, drawn), literal(images, drawn))


def test_scale_to_every_size_is_the_published_one():
    for side in (*range(4, 41), 64):
        sizes = torch.arange(int(0.8 * side), int(1.2 * side) + 1)
        others = sizes[torch.randperm(len(sizes), generator=generator(0))[:4]]
        pairs = torch.cartesian_prod(sizes, others)
        drawn = draws_of(SCALE, torch.cat([pairs, pairs.flip(1)]))
        images = torch.rand(len(drawn.kind), 1, side, side, generator=generator(1))
        assert torch.equal(apply_augmentation(images, drawn), literal(images, drawn)), side


@pytest.mark.parametrize("side", [28, 27, 8])
def test_rotation_by_every_angle_is_the_published_one_beyond_0_and_1(side):
    drawn = draws_of(ROTATION, torch.arange(-45, 45))
    images = binary_images(90, 1, side, side)
    rotated = apply_augmentation(images, drawn)
    torch.testing.assert_close(rotated, literal(images, drawn), rtol=0, atol=1e-6)
    assert rotated.min() < -0.05 and rotated.max() > 1.05


def frequencies(values: torch.Tensor) -> dict[int, float]:
    distinct, counts = values.unique(return_counts=True)
    return dict(zip(distinct.tolist(), (counts / values.numel()).tolist(), strict=True))


@pytest.mark.parametrize("side", [28, 20, 27])
def test_draws_have_the_published_ranges_and_probabilities(side):
    drawn = draw_augmentation(100_000, side, generator(0))
    edges = {size: (max(size, 0.8 * side), min(size + 1, 1.2 * side)) for size in range(side * 2)}
    sizes = {size: (to - begin) / (0.4 * side) for size, (begin, to) in edges.items()}
    sizes = {size: share for size, share in sizes.items() if share > 1e-9}
    for values, expected in (
        (drawn.kind, dict.fromkeys((CROP, SCALE, ROTATION), 1 / 3)),
        (drawn.offset[:, 0], dict.fromkeys(range(8), 1 / 8)),
        (drawn.offset[:, 1], dict.fromkeys(range(8), 1 / 8)),
        (drawn.size[:, 0], sizes),
        (drawn.size[:, 1], sizes),
        (drawn.angle, dict.fromkeys(range(-45, 45), 1 / 90)),
    ):
        assert frequencies(values) == pytest.approx(expected, abs=0.006)


def test_draws_are_independent_of_each_other():
    drawn = draw_augmentation(20_000, 28, generator(0))
    one_of_three = F.one_hot(drawn.kind)[:, :2]  # these determine the third
    table = torch.cat([one_of_three, drawn.offset, drawn.size, drawn.angle[:, None]], dim=1)
    related = torch.corrcoef(table.T.double())
    related[0, 1] = related[1, 0] = 0  # the kinds exclude each other
    assert (related - torch.eye(len(related))).abs().max() < 0.03


def test_augmentation_fills_with_the_mean_of_the_network_s_own_batch():
    images = torch.stack([torch.ones(60, 1, 12, 12), torch.zeros(60, 1, 12, 12)])
    drawn = draw_augmentation(120, 12, generator(0))
    filled = (drawn.kind != SCALE).view(2, 60)
    augmented = apply_augmentation(images, drawn)
    torch.testing.assert_close(augmented[filled], images[filled], rtol=0, atol=1e-5)
    smaller = apply_augmentation(
        torch.ones(1, 1, 12, 12), draws_of(SCALE, torch.tensor([[10, 10]]))
    )
    assert smaller.sum() == 100  # zeros around it


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (9, 7)])
def test_images_that_are_not_square_keep_their_shape(size):
    images = torch.ones(90, 1, *size)
    rotated = apply_augmentation(images, draws_of(ROTATION, torch.arange(-45, 45)))
    torch.testing.assert_close(rotated, images, rtol=0, atol=1e-5)
    assert augment(images, generator(0)).shape == images.shape


def test_augmentation_draws_from_its_generator_only_and_leaves_its_input():
    images = binary_images(2, 50, 1, 12, 12)
    given, before = images.clone(), (torch.get_rng_state(), np.random.get_state())
    augmented = augment(images, generator(0))
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(images, given)
    after = np.random.get_state()
    assert np.array_equal(after[1], before[1][1]) and after[2:] == before[1][2:]
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(augment(images, generator(0)), augmented)


# --- both forms of augmentation -------------------------------------------------------------------

BOTH = pytest.mark.parametrize("change", [augment, augment_fast])


@BOTH
def test_augmentation_is_a_function_of_its_draws(change):
    images = binary_images(50, 1, 12, 12)
    once, again, other = (change(images, generator(seed, "augmentation")) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


@BOTH
def test_every_image_of_every_network_is_augmented_by_a_draw_of_its_own(change):
    image = torch.rand(1, 1, 1, 16, 16, generator=generator(1)).expand(4, 60, 1, 16, 16)
    augmented = change(image, generator(0)).flatten(0, 1).flatten(1)
    # A third of 240 images share 64 crops, and a third share 90 angles or 49 sizes.
    assert len(torch.unique(augmented, dim=0)) > 130


# --- fast augmentation ----------------------------------------------------------------------------


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([(28, 28), (20, 40), (9, 7)]),
    st.integers(0, 2**31),
)
def test_fast_augmentation_keeps_shape_and_range(networks, images, size, seed):
    draws = torch.Generator().manual_seed(seed)
    given = torch.rand(networks, images, 1, *size, generator=draws)
    augmented = augment_fast(given, torch.Generator().manual_seed(seed))
    assert augmented.shape == given.shape and augmented.dtype == given.dtype
    assert augmented.min() >= 0 and augmented.max() <= 1 + 1e-5


def bump(height: int, width: int, y: float, x: float, sd_y=2.0, sd_x=2.0) -> torch.Tensor:
    """Return an image of a Gaussian bump, centred (y, x) pixels off the middle of the image."""
    rows = torch.arange(height) + 0.5 - height / 2
    columns = torch.arange(width) + 0.5 - width / 2
    return torch.exp(-(((rows - y) / sd_y) ** 2)[:, None] / 2 - ((columns - x) / sd_x) ** 2 / 2)


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """Return the centre of the bump in `image`: (y, x) pixels off the middle of the image."""
    height, width = image.shape
    rows = torch.arange(height) + 0.5 - height / 2
    columns = torch.arange(width) + 0.5 - width / 2
    share = image / image.sum()
    return float((share.sum(1) * rows).sum()), float((share.sum(0) * columns).sum())


@functools.cache
def sorted_by_kind(height: int, width: int) -> dict[str, list]:
    """Augment a bump DRAWS times and sort the images: {kind: parameters of its images}.

    An image is of the kind that explains it best: a bump drawn at the place to which that kind
    moves it equals the image. The implementation is not used.
    """
    # off the middle, at different distances along the axes, and far from the borders
    y, x = 2.5, 4.5
    many = bump(height, width, y, x).expand(DRAWS, 1, height, width)
    images = augment_fast(many, generator(0))[:, 0]
    kinds = {"shift": [], "rotation": [], "scale": [], "none": []}
    for image in images:
        at_y, at_x = centroid(image)
        shift = (round(at_y - y), round(at_x - x))
        angle = math.atan2(at_y, at_x) - math.atan2(y, x)
        cos, sin = math.cos(angle), math.sin(angle)
        scale = (at_y / y, at_x / x)
        scaled = bump(height, width, y * scale[0], x * scale[1], *(2 * abs(s) for s in scale))
        candidates = {
            "shift": (shift, bump(height, width, y + shift[0], x + shift[1])),
            "rotation": (angle, bump(height, width, x * sin + y * cos, x * cos - y * sin)),
            "scale": (scale, scaled),
        }
        errors = {kind: float((image - own).abs().max()) for kind, (_, own) in candidates.items()}
        kind = min(errors, key=errors.get)
        # a shift is exact; the other kinds interpolate
        tolerance = 1e-3 if kind == "shift" else 0.08
        kinds[kind if errors[kind] < tolerance else "none"].append(candidates[kind][0])
    return kinds


@SQUARE_AND_NOT
def test_fast_augmentation_shifts_rotates_or_scales_each_in_a_third_of_the_cases(height, width):
    kinds = sorted_by_kind(height, width)
    assert not kinds["none"]
    for kind in kinds.keys() - {"none"}:
        cases = kinds[kind]
        assert 0.28 * DRAWS < len(cases) < 0.39 * DRAWS, kind


@SQUARE_AND_NOT
def test_fast_rotations_keep_the_shape_and_reach_45_degrees_either_way(height, width):
    angles = torch.tensor(sorted_by_kind(height, width)["rotation"]).rad2deg()
    assert len(angles) > 0.28 * DRAWS
    assert -46 < angles.min() < -40 and 40 < angles.max() < 46


@SQUARE_AND_NOT
def test_fast_scales_lie_within_a_fifth_on_either_axis_independently(height, width):
    factors = torch.tensor(sorted_by_kind(height, width)["scale"])
    assert 0.79 < factors.min() < 0.83 and 1.17 < factors.max() < 1.21
    assert torch.corrcoef(factors.T)[0, 1].abs() < 0.2


@SQUARE_AND_NOT
def test_fast_shifts_are_whole_pixels_that_bring_in_zeros(height, width):
    image = torch.rand(height, width, generator=generator(1))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    shifted = {
        (dy, dx): padded[4 - dy : 4 - dy + height, 4 - dx : 4 - dx + width]
        for dy in range(-4, 5)
        for dx in range(-4, 5)
    }
    augmented = augment_fast(image.expand(DRAWS, 1, height, width), generator(0))[:, 0]
    shifts = []
    for (dy, dx), expected in shifted.items():
        count = int(((augmented - expected).abs().amax((1, 2)) < 1e-3).sum())
        shifts += [(dy, dx)] * count
    assert 0.28 * DRAWS < len(shifts) < 0.39 * DRAWS
    for axis in range(2):  # the usual crop of a padded image has 8 places along each axis
        assert sorted({shift[axis] for shift in shifts}) == list(range(-3, 5))
    assert len(set(shifts)) > 55  # of 64


# --- scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_test_clouds() -> PointClouds:
    return tiny.digits().test.select(torch.arange(60))


def settings(classifier: str = "convnet", width: int = 4, **changes) -> Evaluation:
    """Return tiny settings; `width` counts for classifiers that have this setting."""
    choice = Classifier.choices[classifier]
    chosen = choice(width=width) if "width" in choice.settings() else choice()
    return Evaluation(**{"classifier": chosen, "networks": 2, "epochs": 2, **changes})


def scored(clouds, test, scoring: Evaluation, seed: int, **options) -> dict[str, Score]:
    return Config(evaluation=scoring, seed=seed).evaluate(clouds, test, **options)


@pytest.fixture(scope="module")
def one_per_class() -> PointClouds:
    return random(tiny.digits().train, 1, 0)


def test_same_seed_same_scores(one_per_class, real_test_clouds):
    once, again = (scored(one_per_class, real_test_clouds, settings(), 3) for _ in range(2))
    assert once == again


def test_other_seed_other_scores(one_per_class, real_test_clouds):
    once, other = (
        scored(one_per_class, real_test_clouds, settings(networks=4), seed) for seed in (3, 4)
    )
    assert once["standard"].accuracies != other["standard"].accuracies


def test_scores_do_not_depend_on_torch_s_own_random_numbers(one_per_class, real_test_clouds):
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scores.append(scored(one_per_class, real_test_clouds, settings(), 0))
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_real_clouds_rank_above_label_shuffled_ones(real_test_clouds):
    real = random(tiny.digits().train, 5, 0)
    wrong = PointClouds(
        real.coordinates, real.offsets, (real.labels + 1) % 10, real.grid, real.class_names
    )
    long = settings(epochs=40, width=8, protocols=("standard",))
    right, shuffled = (
        scored(clouds, real_test_clouds, long, 0)["standard"].mean for clouds in (real, wrong)
    )
    assert right > 35 and shuffled < 10


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4, 4, 2]), (10, [10]), (256, [10])])
def test_classifiers_learn_from_so_many_clouds_at_a_time(batch, sizes, one_per_class, monkeypatch):
    batch_sizes, real_augment = [], evaluation.augment
    monkeypatch.setattr(
        evaluation,
        "augment",
        lambda images, draws: batch_sizes.append(images.shape[1]) or real_augment(images, draws),
    )
    once = settings(epochs=1, batch=batch, protocols=("standard",))
    scored(one_per_class, one_per_class, once, 0)
    assert batch_sizes == sizes


@pytest.fixture
def threads():
    """Return a function that sets the number of threads; restore it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3])
def test_classifiers_trained_side_by_side_are_bit_for_bit_those_trained_in_turn(
    count, threads, one_per_class, monkeypatch
):
    trained, train = [], evaluation._train
    monkeypatch.setattr(
        evaluation, "_train", lambda shares, *rest: (train(shares, *rest), trained.append(shares))
    )
    for number in (1, count):
        threads(number)
        scored(one_per_class, one_per_class, settings(networks=5), 0)
        assert torch.get_num_threads() == number
    alone, together = trained
    assert len(alone) == 1 and len(together) == count
    for expected, *parts in zip(
        alone[0].parameters(), *(share.parameters() for share in together), strict=True
    ):
        assert torch.equal(torch.cat(parts), expected)


def test_an_error_in_a_thread_is_raised_and_threads_are_as_before(
    threads, one_per_class, monkeypatch
):
    threads(2)
    monkeypatch.setattr(evaluation, "augment", lambda images, draws: images[..., :20])
    with pytest.raises(RuntimeError):
        scored(one_per_class, one_per_class, settings(networks=2), 0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("networks", [1, 3])
def test_training_that_diverges_is_refused_in_its_epoch_instead_of_scored(
    networks, threads, one_per_class, monkeypatch
):
    threads(2)
    build, begun = ConvNet.build, []

    def last_one_explodes(*arguments):
        network = build(*arguments)
        begun.append(network)
        with torch.no_grad():
            for parameter in network.parameters() if len(begun) == networks else ():
                parameter.mul_(1e30)
        return network

    monkeypatch.setattr(ConvNet, "build", last_one_explodes)
    says = r"epoch 0 of training classifiers: the classifier computes (nan|inf).*diverged"
    with pytest.raises(EvaluationFailed, match=says):
        scored(one_per_class, one_per_class, settings(networks=networks), 0)


def test_scores_that_are_no_numbers_are_refused(one_per_class, monkeypatch):
    def last_step_explodes(shares, *rest):
        shares[0].stacked[0].data.fill_(float("nan"))

    monkeypatch.setattr(evaluation, "_train", last_step_explodes)
    says = "^scoring: the classifier computes nan"
    with pytest.raises(EvaluationFailed, match=says):
        scored(one_per_class, one_per_class, settings(networks=1), 0)


def test_learned_labels_are_what_classifiers_learn(real_test_clouds):
    right = random(tiny.digits().train, 5, 0)
    wrong = replace(right, labels=(right.labels + 1) % 10)
    certain = torch.nn.functional.one_hot(right.labels, 10).float()
    long = settings(epochs=12, width=8, protocols=("standard",))
    by_labels, by_probabilities = (
        scored(clouds, real_test_clouds, long, 0)["standard"].accuracies
        for clouds in (right, replace(wrong, label_probabilities=certain))
    )
    assert by_probabilities == pytest.approx(by_labels, abs=2)  # the same loss with other rounding


def test_protocols_have_their_own_numbers_of_classifiers(one_per_class, real_test_clouds):
    scores = scored(one_per_class, real_test_clouds, settings(networks=None, epochs=1), 0)
    counts = {name: len(score.accuracies) for name, score in scores.items()}
    assert counts == {"standard": 20, "paper": 5}
    for name, score in scores.items():
        assert score.protocol == name


def test_number_of_classifiers_can_be_scaled_down(one_per_class, real_test_clouds):
    scores = scored(one_per_class, real_test_clouds, settings(networks=3), 0)
    assert [len(score.accuracies) for score in scores.values()] == [3, 3]


def test_standard_score_is_the_same_with_and_without_the_paper_s(one_per_class, real_test_clouds):
    once = settings(networks=None, epochs=1)
    both = scored(one_per_class, real_test_clouds, once, 0)
    alone = scored(one_per_class, real_test_clouds, replace(once, protocols=("standard",)), 0)
    assert list(alone) == ["standard"] and alone["standard"] == both["standard"]


@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_each_score_is_the_same_alone_where_the_number_of_classifiers_is_set(
    protocol, one_per_class, real_test_clouds
):
    alone = scored(one_per_class, real_test_clouds, settings(protocols=(protocol,)), 0)
    assert alone[protocol] == scored(one_per_class, real_test_clouds, settings(), 0)[protocol]


def test_only_the_paper_s_protocol_augments_test_images(
    one_per_class, real_test_clouds, monkeypatch
):
    shapes = []
    real_augment = evaluation.augment
    monkeypatch.setattr(
        evaluation,
        "augment",
        lambda images, draws: shapes.append(images.shape[:2]) or real_augment(images, draws),
    )
    scored(one_per_class, real_test_clouds, settings(protocols=("standard",)), 0)
    assert set(shapes) == {(2, 10)}  # only the 10 training images of 2 networks
    shapes.clear()
    scored(one_per_class, real_test_clouds, settings(protocols=("paper",)), 0)
    assert set(shapes) == {(2, 10), (2, 60)}


@pytest.mark.parametrize("batch", [256, 100])
def test_paper_protocol_augments_test_images_in_batches_in_their_order(
    batch, one_per_class, monkeypatch
):
    test, drawn, tested = tiny.digits().test, [], []
    draw, forward = draw_augmentation, evaluation.Ensemble.forward

    def spied_draw(*given):
        drawn.append(draw(*given))
        return drawn[-1]

    def spied_forward(ensemble, inputs):
        if not torch.is_grad_enabled():  # testing
            tested.append(inputs)
        return forward(ensemble, inputs)

    monkeypatch.setattr(augmentation, "draw_augmentation", spied_draw)
    monkeypatch.setattr(evaluation.Ensemble, "forward", spied_forward)
    changes = {} if batch == 256 else {"batch": batch}  # 256 is the default
    scored(one_per_class, test, settings(epochs=1, width=1, protocols=("paper",), **changes), 0)
    batches = project(test).split(batch)
    assert len(batches) > 1 and len(batches[-1]) < batch
    expected = []
    for images, both in zip(batches, drawn[1:], strict=True):  # the first draws are for training
        for rows in (slice(len(images)), slice(len(images), 2 * len(images))):
            own = AugmentationDraws(*(part[rows] for part in vars(both).values()))
            expected.append(literal(images, own))
    tested, expected = torch.cat(tested, 1), [torch.cat(expected[number::2]) for number in range(2)]
    torch.testing.assert_close(tested, torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "stages"),
    [(1001, [502, 499]), (10, [6, 4]), (5, [4, 1]), (4, [3, 1]), (1, [1])],
)
def test_training_has_the_published_step_sizes_in_two_stages(
    epochs, stages, one_per_class, monkeypatch
):
    optimisers = []

    class Spied(torch.optim.SGD):
        def __init__(self, *given, **settings):
            super().__init__(*given, **settings)
            self.steps = 0
            optimisers.append(self)

        def step(self):
            self.steps += 1
            super().step()

    monkeypatch.setattr(torch.optim, "SGD", Spied)
    monkeypatch.setattr(evaluation, "augment", lambda images, draws: images)
    few = settings(classifier="mlp", networks=1, epochs=epochs, protocols=("standard",))
    scored(one_per_class, one_per_class, few, 0)
    assert [optimiser.steps for optimiser in optimisers] == stages
    assert [optimiser.defaults["lr"] for optimiser in optimisers] == [0.01, 0.001][: len(stages)]
    assert {optimiser.defaults["momentum"] for optimiser in optimisers} == {0.9}
    assert {optimiser.defaults["weight_decay"] for optimiser in optimisers} == {5e-4}


@pytest.mark.parametrize("classifier", ["convnet", "mlp"])
def test_fast_augmentation_of_images_is_refused_on_the_test_split(
    classifier, one_per_class, monkeypatch
):
    monkeypatch.setattr(evaluation, "_train", None)  # training would fail
    wrong = settings(classifier=classifier, augmentation="fast", split="test")
    with pytest.raises(InputError) as error:
        scored(one_per_class, one_per_class, wrong, 0)
    assert str(error.value) == (
        "setting evaluation.augmentation = 'fast': allowed for evaluation.split = 'validation' "
        "only; use 'published' to score on the test split"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split": "test"}, {"augment"}),
        ({"split": "validation"}, {"augment"}),
        ({"split": "validation", "augmentation": "published"}, {"augment"}),
        ({"split": "validation", "augmentation": "fast"}, {"augment_fast"}),
        ({"split": "validation", "augmentation": "fast", "projection": "soft"}, {"augment_fast"}),
        ({"projection": "soft"}, {"augment"}),
        ({"split": "test", "augmentation": "fast", "classifier": "pointnet"}, {"augment_points"}),
        ({"split": "test", "classifier": "pointnet"}, {"augment_points"}),
    ],
)
def test_inputs_are_augmented_as_the_setting_says(changes, expected, one_per_class, monkeypatch):
    called = set()
    for name in ("augment", "augment_fast", "augment_points"):

        def spied(*given, name=name, inner=getattr(evaluation, name)):
            called.add(name)
            return inner(*given)

        monkeypatch.setattr(evaluation, name, spied)
    scored(one_per_class, one_per_class, settings(epochs=1, **changes), 0)
    assert called == expected


def test_every_test_cloud_counts_once(one_per_class, monkeypatch, real_test_clouds):
    monkeypatch.setattr(evaluation, "CPU_CHUNK", 7)  # 60 is not a multiple of 7
    in_parts = scored(one_per_class, real_test_clouds, settings(), 0)
    monkeypatch.undo()
    assert in_parts == scored(one_per_class, real_test_clouds, settings(), 0)


def test_accuracies_are_percentages_of_the_test_clouds(one_per_class, real_test_clouds):
    scores = scored(one_per_class, real_test_clouds, settings(networks=5), 0)
    for accuracy in scores["standard"].accuracies:
        assert accuracy * 60 / 100 == pytest.approx(round(accuracy * 60 / 100), abs=1e-4)


def test_mean_and_standard_deviation_are_over_the_classifiers():
    score = Score("standard", (10.0, 20.0, 60.0))
    assert score.mean == pytest.approx(30)
    assert score.standard_deviation == pytest.approx((1400 / 3) ** 0.5)


def test_progress_reaches_the_end_of_training_and_of_testing(one_per_class, real_test_clouds):
    ends = {}  # the last fraction of every stage

    def progress(fraction, text):
        ends[text] = fraction

    scored(one_per_class, real_test_clouds, settings(), 0, progress=progress)
    assert len(ends) == 3 and set(ends.values()) == {1.0}


# --- baselines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("count", [1, 3])
def test_baseline_has_so_many_different_training_clouds_of_every_class(name, count):
    real = tiny.three_digits()
    chosen = Baseline.choices[name].select(real, count, 0)
    assert chosen.labels.tolist() == [label for label in range(3) for _ in range(count)]
    sources = [
        (n, int(label))
        for cloud, label in enumerate(chosen.labels)
        for n in range(len(real))
        if torch.equal(real[n], chosen[cloud])
    ]
    assert len(set(sources)) == len(chosen)
    assert all(real.labels[n] == label for n, label in sources)


def test_random_picks_differ_by_seed_and_only_by_seed():
    once, again, other = (
        random(tiny.digits().train, 2, seed).coordinates.tolist() for seed in (0, 0, 1)
    )
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
            distances = [float((own - mean).norm()) for own in means]
            chosen.append(left[distances.index(min(distances))])
            assert torch.equal(picks[label * count + place], real[chosen[-1]])


def test_herding_picks_no_cloud_twice_even_where_that_would_be_nearest():
    # this cloud taken twice would be nearer to the mean than any pair
    core = torch.tensor([[0.0, 0.0, column] for column in range(9)])
    clouds = [core] + [torch.cat([core, torch.tensor([[0.0, row, 0.0]])]) for row in range(1, 8)]
    picks = herding(clouds_from_list(clouds, [0] * 8, (1, 9, 9), ["only"]), 8, 0)
    assert picks.sizes[0] == 9 and len({tuple(picks[n].flatten().tolist()) for n in range(8)}) == 8


@pytest.mark.parametrize("name", SELECTIONS)
def test_baseline_refuses_more_clouds_than_a_class_has(name):
    with pytest.raises(InputError, match="class '0' has 8 clouds"):
        Baseline.choices[name].select(tiny.three_digits(), 9, 0)
