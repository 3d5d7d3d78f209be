"""The loop: what moves and what must not, resume, initialisation, failure and health."""

import copy
import io
import itertools

import pytest
import tiny
import torch
from tiny import distill

from pcdd_core.engine import distill as distillation
from pcdd_core.engine import lifts, objectives
from pcdd_core.engine.distances import DISTANCES
from pcdd_core.engine.losses import gradient_matching
from pcdd_core.errors import DistillationFailed, InputError
from pcdd_core.experiments.config import override
from pcdd_core.experiments.health import STUCK_BELOW, WINDOW, Finding, Health
from pcdd_core.geometry.clouds import PointClouds
from pcdd_core.geometry.grid import at_lower_corners
from pcdd_core.geometry.storage import save_clouds
from pcdd_core.seeds import generator


def run(config, real=None, state=None) -> list:
    return list(config.distill(real or tiny.three_digits(), state=state))


def last_coordinates(config, **more) -> torch.Tensor:
    return run(config, **more)[-1].clouds.coordinates


def assert_well_formed(step, grid):
    """Assert finite numbers, and points inside the grid."""
    numbers = [*step.matching_loss, step.mean_absolute_gradient, step.mean_absolute_displacement]
    assert torch.tensor(numbers).isfinite().all()
    coordinates = step.clouds.coordinates
    assert coordinates.isfinite().all()
    assert (coordinates >= 0).all() and (coordinates < torch.tensor(grid)).all()


# --- steps ----------------------------------------------------------------------------------------


# an optimiser sees the gradient of the points and nothing of what made it: both see every backend,
# lift and distance, not every combination of them
COMBINATIONS = [
    (*combination, ("sgd", "adam")[number % 2])
    for number, combination in enumerate(
        itertools.product(["torch", "sparse"], ["coordinates", "gaussian"], DISTANCES)
    )
]


@pytest.mark.parametrize(("backend", "lift", "distance", "optimiser"), COMBINATIONS)
def test_every_combination_moves_points_inside_the_flat_grid(backend, lift, distance, optimiser):
    config = tiny.config(
        network__name=backend,
        lift__name=lift,
        objective__distance=distance,
        optimiser__name=optimiser,
        schedule__iterations=2,
    )
    start, steps = config.start(tiny.three_digits()), run(config)
    assert [step.iteration for step in steps] == [0, 1]
    for step in steps:
        assert_well_formed(step, (1, 28, 28))
        assert (step.clouds.coordinates[:, 0] == (0 if lift == "coordinates" else 0.5)).all()
        assert len(step.matching_loss) == 3
    assert not torch.equal(steps[-1].clouds.coordinates, start.coordinates)


@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_points_move_along_all_three_axes_of_a_solid_grid(backend, lift):
    config = tiny.config(network__name=backend, lift__name=lift, optimiser__name="adam")
    start, steps = config.start(tiny.three_solids()), run(config, tiny.three_solids())
    for step in steps:
        assert_well_formed(step, (6, 6, 6))
    assert ((steps[-1].clouds.coordinates - start.coordinates).abs() > 1e-4).any(0).all()


@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_unequal_clouds_keep_their_numbers_and_sizes(backend, lift):
    config = tiny.config(
        network__name=backend,
        lift__name=lift,
        clouds__clouds_per_class=[1, 3, 2],
        clouds__points_per_cloud=[5, 6, 7, 8, 9, 1],
    )
    for step in run(config):
        assert step.clouds.labels.tolist() == [0, 1, 1, 1, 2, 2]
        assert step.clouds.sizes.tolist() == [5, 6, 7, 8, 9, 1]
        assert_well_formed(step, (1, 28, 28))


def test_steps_share_no_memory_with_the_run():
    steps = distill(tiny.config(), tiny.three_digits())
    first = next(steps)
    kept = first.clouds.coordinates.clone()
    next(steps)
    assert torch.equal(first.clouds.coordinates, kept)


def test_same_seed_same_run():
    assert torch.equal(last_coordinates(tiny.config(seed=1)), last_coordinates(tiny.config(seed=1)))


@pytest.mark.parametrize("initialisation", ["scatter", "real"])
def test_other_seed_other_run(initialisation):
    config = {"clouds__name": initialisation}
    assert not torch.equal(
        last_coordinates(tiny.config(seed=1, **config)),
        last_coordinates(tiny.config(seed=2, **config)),
    )


def test_run_does_not_depend_on_torch_s_own_random_numbers():
    coordinates = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        coordinates.append(last_coordinates(tiny.config(schedule__training_steps=1)))
    assert torch.equal(*coordinates)


@pytest.mark.parametrize(
    ("iterations_per_network", "drawn_at"), [(0, [0]), (1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])]
)
def test_network_is_drawn_anew_as_often_as_asked(iterations_per_network, drawn_at):
    weights = [torch.zeros(0)]
    for step in distill(
        tiny.config(
            schedule__iterations_per_network=iterations_per_network, schedule__iterations=7
        ),
        tiny.three_digits(),
    ):
        weights.append(step.state()["network"]["head.weight"].clone())
    assert [n for n in range(7) if not torch.equal(weights[n], weights[n + 1])] == drawn_at
    assert len({tuple(weight.flatten().tolist()) for weight in weights[1:]}) == len(drawn_at)


def test_training_moves_the_network_and_no_training_leaves_it():
    for training_steps in (0, 2):
        config = tiny.config(
            schedule__iterations_per_network=0, schedule__training_steps=training_steps
        )
        steps = config.distill(tiny.three_digits())
        first, second = (next(steps).state()["network"]["head.weight"].clone() for _ in range(2))
        assert torch.equal(first, second) == (training_steps == 0)


@pytest.mark.parametrize(("real_batch", "different"), [(3, 4), (8, 1)])
def test_real_clouds_are_drawn_anew_in_every_iteration(real_batch, different):
    # only the batches change, so the losses differ if the batches differ; a batch of all 8 clouds
    # is always the same
    config = tiny.config(
        objective__real_batch=real_batch,
        optimiser__name="sgd",
        optimiser__step_size=1e-12,
        schedule__iterations=4,
        schedule__iterations_per_network=0,
        lift__bandwidth_start=1.5,
        lift__bandwidth_end=1.5,
    )
    assert len({f"{sum(step.matching_loss):.4g}" for step in run(config)}) == different


# --- objectives -----------------------------------------------------------------------------------

OBJECTIVES = [
    "gradient_matching",
    "distribution_matching",
    "maximum_mean_discrepancy",
    "feature_regression",
    "unrolled_training",
]


@pytest.mark.parametrize("augmentation", [False, True])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_moves_points_and_gives_a_loss_per_class(objective, backend, augmentation):
    config = tiny.config(
        objective__name=objective,
        network__name=backend,
        objective__augmentation=augmentation,
        clouds__clouds_per_class=[1, 3, 2],
        schedule__iterations=2,
        objective__unrolled_steps=2,
        objective__unrolled_steps_before=1,
    )
    steps = run(config)
    for step in steps:
        assert_well_formed(step, (1, 28, 28))
        assert len(step.matching_loss) == 3 and min(step.matching_loss) > 0
    assert (
        (steps[-1].clouds.coordinates - config.start(tiny.three_digits()).coordinates) != 0
    ).any()


# the loss of unrolled training is never 0
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "unrolled_training"])
def test_clouds_equal_to_the_real_ones_leave_little_to_match(objective, tmp_path):
    """Take all 24 real clouds as synthetic clouds and as batch, augmented by the same move."""
    real = tiny.three_digits()
    save_clouds(real, tmp_path / "real.npz")
    settings = {
        "objective__name": objective,
        "objective__real_batch": 8,
        "objective__ridge": 1e-6,
        "schedule__iterations": 1,
        "objective__augmentation": objective != "feature_regression",
        "objective__distance": "sum_of_squares",
    }
    scattered = sum(run(tiny.config(**settings))[0].matching_loss)
    same = tiny.config(**settings, clouds__name="file", clouds__file=str(tmp_path / "real.npz"))
    assert sum(run(same)[0].matching_loss) < 1e-3 * scattered


def test_augmentation_changes_what_is_compared_and_is_drawn_anew():
    settings = {
        "objective__real_batch": 8,
        "optimiser__name": "sgd",
        "optimiser__step_size": 1e-12,
        "schedule__iterations": 4,
        "schedule__iterations_per_network": 0,
        "lift__bandwidth_start": 1.5,
        "lift__bandwidth_end": 1.5,
    }
    losses = {
        f"{sum(step.matching_loss):.4g}"
        for step in run(tiny.config(**settings, objective__augmentation=True))
    }
    # without augmentation all losses are the same: see
    # test_real_clouds_are_drawn_anew_in_every_iteration
    assert len(losses) == 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resume_holds_for_every_objective_with_augmentation_and_real_training(objective):
    config = tiny.config(
        objective__name=objective,
        objective__augmentation=True,
        schedule__training_data="real",
        lift__hard_from=0.5,
        schedule__training_steps=2,
        schedule__training_batch=5,
        schedule__iterations_per_network=3,
        objective__unrolled_steps=4,
        objective__unrolled_steps_before=3,
    )
    state = through_a_file(
        next(itertools.islice(config.distill(tiny.three_digits()), 1, None)).state()
    )
    assert torch.equal(last_coordinates(config, state=state), last_coordinates(config))


@pytest.mark.parametrize("objective", OBJECTIVES[:3])
def test_real_clouds_in_less_precision_move_points_nearly_alike(objective):
    settings = dict(
        objective__name=objective,
        schedule__iterations=1,
        network__width=8,
        objective__distance="sum_of_squares",
    )
    (exact,), (less,) = (
        run(tiny.config(**settings, objective__real_precision=kind))
        for kind in ("float32", "bfloat16")
    )
    assert less.matching_loss != exact.matching_loss == pytest.approx(less.matching_loss, rel=0.05)
    assert torch.cosine_similarity(less.gradient.flatten(), exact.gradient.flatten(), dim=0) > 0.999


def test_distribution_matching_comes_first_where_asked_for():
    settings = dict(schedule__iterations=5, objective__unrolled_steps=3)
    first = tiny.config(
        **settings, objective__name="unrolled_training", objective__distribution_matching_until=0.6
    )
    only = run(tiny.config(**settings, objective__name="distribution_matching"))
    steps = run(first)
    assert [step.matching_loss == other.matching_loss for step, other in zip(steps, only)] == [
        True
    ] * 3 + [False] * 2
    state = through_a_file(
        next(itertools.islice(first.distill(tiny.three_digits()), 1, None)).state()
    )
    assert torch.equal(last_coordinates(first, state=state), steps[-1].clouds.coordinates)


def test_labels_wait_where_distribution_matching_comes_first():
    labels = [
        step.clouds.label_probabilities
        for step in run(learning_labels(objective__distribution_matching_until=0.6))
    ]
    assert torch.equal(labels[0], labels[2]) and not torch.equal(labels[2], labels[4])


def test_a_step_of_unrolled_training_takes_so_many_clouds_of_each_class(monkeypatch):
    batches = []

    def unrolled_training(network, real, real_labels, synthetic, steps, step_size, steps_before):
        assert steps_before == 0
        batches.extend(synthetic() for _ in range(steps))
        return batches[-1][0].mean() * torch.ones(len(real_labels))

    monkeypatch.setattr(objectives, "unrolled_training", unrolled_training)
    settings = dict(
        objective__name="unrolled_training",
        objective__unrolled_steps=9,
        clouds__clouds_per_class=[1, 4, 2],
    )
    run(tiny.config(**settings, objective__unrolled_batch=2, schedule__iterations=1))
    assert [labels.tolist() for _, labels in batches] == 9 * [[0, 1, 1, 2, 2]]
    # of the 12 ways to draw 2 of 4 clouds
    assert len({lifted[1:3].sum().item() for lifted, _ in batches}) > 2
    batches.clear()
    run(tiny.config(**settings, schedule__iterations=1))
    assert [labels.tolist() for _, labels in batches] == 9 * [[0, 1, 1, 1, 1, 2, 2]]


def learning_labels(**more):
    return tiny.config(
        objective__name="unrolled_training",
        objective__learned_labels=True,
        objective__unrolled_steps=4,
        clouds__clouds_per_class=[1, 3, 2],
        optimiser__label_step_size=0.1,
        optimiser__final_step_fraction=1.0,
        **more,
    )


def test_labels_are_learned_from_their_own_class_on_at_their_own_step_size():
    steps = run(learning_labels())
    learned = torch.stack([step.clouds.label_probabilities for step in steps])
    labels = steps[0].clouds.labels
    assert learned.shape == (5, 6, 3) and not learned.requires_grad
    assert torch.allclose(learned.sum(2), torch.ones(5, 6))
    assert (learned.argmax(2) == labels).all()
    # the moves, up to a constant of each cloud
    moves = learned[0].log() - 5.0 * torch.nn.functional.one_hot(labels, 3)
    # the first step of Adam is 0.1 in either direction
    assert (moves.amax(1) - moves.amin(1)).max().item() == pytest.approx(0.2, abs=1e-3)
    assert (learned[-1] - learned[0]).abs().max() > 1e-3


def test_labels_stay_certain_where_they_are_not_to_be_learned():
    step = run(
        tiny.config(
            objective__name="unrolled_training", objective__unrolled_steps=2, schedule__iterations=1
        )
    )[-1]
    assert step.clouds.label_probabilities is None


def test_learned_labels_of_a_set_are_where_further_learning_begins(tmp_path):
    first = run(learning_labels())[-1].clouds
    save_clouds(first, tmp_path / "first.npz")
    further = learning_labels(clouds__name="file", clouds__file=str(tmp_path / "first.npz"))
    still = run(override(further, {"optimiser.label_step_size": 1e-9, "schedule.iterations": 1}))[
        -1
    ].clouds
    assert torch.allclose(still.label_probabilities, first.label_probabilities, atol=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_resume_holds_for_learned_labels(optimiser):
    config = learning_labels(optimiser__name=optimiser)
    state = through_a_file(
        next(itertools.islice(config.distill(tiny.three_digits()), 1, None)).state()
    )
    resumed, unbroken = run(config, state=state)[-1].clouds, run(config)[-1].clouds
    assert torch.equal(resumed.coordinates, unbroken.coordinates)
    assert torch.equal(resumed.label_probabilities, unbroken.label_probabilities)


@pytest.mark.slow
def test_training_on_real_clouds_teaches_the_network_the_real_classes():
    config = tiny.config(
        schedule__training_data="real",
        schedule__training_steps=30,
        schedule__training_batch=24,
        schedule__training_step_size=0.02,
        schedule__iterations_per_network=0,
        schedule__iterations=3,
        network__width=8,
    )
    real = tiny.three_digits()
    network = config.network.new(1, real.grid, 3, generator(0))
    network.load_state_dict(run(config)[-1].state()["network"])
    inputs = lifts.gaussian_occupancy(real, config.lift.bandwidth_end, config.lift.saturation)
    assert (network(inputs).argmax(1) == real.labels).float().mean() > 0.9


def test_cells_are_shown_hard_from_the_moment_asked_for():
    config = tiny.config(lift__hard_from=0.6, schedule__iterations=5)
    clouds = config.start(tiny.three_digits())
    hard = [
        set(config.method.lift_at(iteration)(clouds).unique().tolist()) <= {0.0, 1.0}
        for iteration in range(5)
    ]
    assert hard == [False, False, False, True, True]


def test_saturation_goes_from_its_start_to_its_end():
    config = tiny.config(lift__saturation_start=1.0, lift__saturation=4.0, schedule__iterations=5)
    clouds = tiny.three_digits()
    bandwidths = config.lift.bandwidth_start, config.lift.bandwidth_end
    for iteration, progress, saturation in ((0, 0.0, 1.0), (2, 0.5, 2.0), (4, 1.0, 4.0)):
        expected = lifts.gaussian_occupancy(
            clouds, lifts.annealed(progress, *bandwidths), saturation
        )
        assert torch.allclose(config.method.lift_at(iteration)(clouds), expected), iteration


def test_real_and_synthetic_clouds_are_seen_on_a_closed_grid_if_asked_for():
    config = tiny.config(lift__closed=True, lift__bandwidth_start=3.0)
    clouds = tiny.three_digits()
    expected = lifts.gaussian_occupancy(clouds, 3.0, config.lift.saturation, closed=True)
    assert not torch.allclose(
        tiny.config(lift__bandwidth_start=3.0).method.lift_at(0)(clouds), expected
    )
    for real in (False, True):
        assert torch.equal(config.method.lift_at(0, real=real)(clouds), expected)


def test_real_clouds_may_end_sharper_than_synthetic_ones():
    config = tiny.config(lift__real_bandwidth_end=0.3, schedule__iterations=5)
    clouds = tiny.three_digits()
    saturation, start, end = (
        config.lift.saturation,
        config.lift.bandwidth_start,
        config.lift.bandwidth_end,
    )
    for iteration, real, bandwidth in (
        (0, True, start),
        (0, False, start),
        (4, True, 0.3),
        (4, False, end),
    ):
        expected = lifts.gaussian_occupancy(clouds, bandwidth, saturation)
        assert torch.equal(config.method.lift_at(iteration, real=real)(clouds), expected), (
            iteration,
            real,
        )
    assert end != 0.3
    as_synthetic = tiny.config(lift__real_bandwidth_end=end, schedule__iterations=5)
    left_open = tiny.config(schedule__iterations=5)
    sharper, same, usual = (
        run(each)[-1].clouds.coordinates for each in (config, as_synthetic, left_open)
    )
    assert torch.equal(same, usual) and not torch.equal(sharper, usual)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lift", ["coordinates", "gaussian"])
@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_first_step_follows_the_gradient_computed_by_hand(backend, lift):
    real = tiny.three_digits()
    # the batch has all 8 clouds of a class, so the draw does not matter
    config = tiny.config(
        network__name=backend,
        lift__name=lift,
        objective__real_batch=8,
        optimiser__name="sgd",
        optimiser__step_size=1e-3,
    )
    step = next(config.distill(real))
    channels = 3 if lift == "coordinates" else 1
    network = config.network.new(channels, real.grid, 3, generator(0))
    network.load_state_dict(step.state()["network"])

    def lifted(clouds: PointClouds):
        if lift == "coordinates":
            return lifts.coordinates_as_features(clouds)
        return lifts.gaussian_occupancy(clouds, config.lift.bandwidth_start, config.lift.saturation)

    start = config.start(real)
    coordinates = config.lift.bounded(start.coordinates, real.grid).requires_grad_()
    real_clouds = at_lower_corners(real) if lift == "coordinates" else real
    losses = []
    for label in range(3):
        synthetic = start.with_coordinates(coordinates).select(torch.tensor([label]))
        same = real_clouds.select((real.labels == label).nonzero().flatten())
        distance = config.objective.distance
        losses.append(
            gradient_matching(
                network, lifted(same), same.labels, lifted(synthetic), synthetic.labels, distance
            )
        )
    (gradient,) = torch.autograd.grad(sum(losses), coordinates)
    assert step.matching_loss == pytest.approx([loss.item() for loss in losses], rel=1e-4)
    torch.testing.assert_close(step.gradient, gradient, rtol=1e-3, atol=1e-5)
    assert step.mean_absolute_gradient == pytest.approx(gradient.abs().mean().item(), rel=1e-3)
    assert step.mean_absolute_displacement == pytest.approx(
        1e-3 * gradient.abs().mean().item(), rel=1e-2
    )
    moved = coordinates.detach() - 1e-3 * gradient
    expected = config.lift.bounded(moved, real.grid)
    torch.testing.assert_close(step.clouds.coordinates, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_matching_loss_falls_where_network_batch_and_bandwidth_stay_the_same(backend):
    config = tiny.config(
        network__name=backend,
        objective__real_batch=8,
        lift__bandwidth_start=1.5,
        lift__bandwidth_end=1.5,
        schedule__iterations_per_network=0,
        schedule__iterations=20,
        optimiser__name="adam",
        optimiser__step_size=0.2,
    )
    losses = [sum(step.matching_loss) for step in run(config)]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_step_size_falls_to_its_final_fraction():
    falling = tiny.config(
        optimiser__name="adam",
        optimiser__step_size=0.1,
        optimiser__momentum=0.0,
        optimiser__final_step_fraction=0.01,
        schedule__iterations=12,
    )
    moves = [step.mean_absolute_displacement for step in run(falling)]
    assert moves[-1] < 0.2 * moves[0]


# --- resume ---------------------------------------------------------------------------------------


def through_a_file(state: dict) -> dict:
    """Save and load the state, as a checkpoint does."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize(  # every pair of values
    ("optimiser", "iterations_per_network", "training_steps"),
    [
        ("sgd", 0, 0),
        pytest.param("sgd", 1, 2, marks=pytest.mark.slow),
        pytest.param("sgd", 3, 2, marks=pytest.mark.slow),
        pytest.param("adam", 0, 2, marks=pytest.mark.slow),
        ("adam", 1, 0),
        pytest.param("adam", 3, 0, marks=pytest.mark.slow),
    ],
)
def test_resumed_run_equals_the_unbroken_one(optimiser, iterations_per_network, training_steps):
    config = tiny.config(
        optimiser__name=optimiser,
        schedule__iterations_per_network=iterations_per_network,
        schedule__training_steps=training_steps,
        schedule__iterations=6,
    )
    unbroken, states = [], {}
    for step in config.distill(tiny.three_digits()):
        unbroken.append(step)
        if step.iteration in (0, 2, 3):  # 3 of 6 iterations are done before a new network
            states[step.iteration + 1] = through_a_file(step.state())
    for done, state in states.items():
        resumed = run(config, state=state)
        assert [step.iteration for step in resumed] == list(range(done, 6))
        for step, expected in zip(resumed, unbroken[done:]):
            assert torch.equal(step.clouds.coordinates, expected.clouds.coordinates)
            assert step.matching_loss == expected.matching_loss


@pytest.mark.parametrize("backend", ["torch", "sparse"])
def test_resume_holds_for_the_paper_s_lift_too(backend):
    config = tiny.config(
        network__name=backend, lift__name="coordinates", schedule__iterations_per_network=0
    )
    state = through_a_file(
        next(itertools.islice(config.distill(tiny.three_digits()), 2, None)).state()
    )
    assert torch.equal(last_coordinates(config, state=state), last_coordinates(config))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_state_that_is_kept_does_not_change_while_the_run_goes_on(optimiser):
    config = tiny.config(
        optimiser__name=optimiser, schedule__training_steps=1, schedule__iterations_per_network=0
    )
    steps = config.distill(tiny.three_digits())
    state = next(steps).state()
    on_the_spot = copy.deepcopy(state)
    unbroken = list(steps)[-1].clouds.coordinates
    assert torch.equal(last_coordinates(config, state=on_the_spot), unbroken)
    assert torch.equal(last_coordinates(config, state=state), unbroken)


def test_state_of_the_last_step_leaves_nothing_to_do():
    config = tiny.config()
    assert run(config, state=run(config)[-1].state()) == []


# --- initialisation -------------------------------------------------------------------------------


def test_scatter_fills_the_whole_box():
    config = tiny.config(clouds__points_per_cloud=300)
    clouds = config.start(tiny.three_solids())
    assert (
        clouds.coordinates.min(0).values.max() < 0.5
        and clouds.coordinates.max(0).values.min() > 4.5
    )
    assert clouds.labels.tolist() == [0, 1, 2] and clouds.sizes.tolist() == [300] * 3


@pytest.mark.parametrize("grid", ["flat", "solid"])
def test_real_initialisation_takes_clouds_of_the_right_class(grid):
    real = tiny.three_digits() if grid == "flat" else tiny.three_solids()
    config = tiny.config(
        clouds__name="real",
        clouds__points_per_cloud=None,
        clouds__clouds_per_class=[1, 2, 3],
    )
    start = config.start(real)
    assert start.labels.tolist() == [0, 1, 1, 2, 2, 2]
    sources = []
    for cloud in range(len(start)):
        matches = [n for n in range(len(real)) if torch.equal(real[n], start[cloud])]
        assert len(matches) == 1 and real.labels[matches[0]] == start.labels[cloud]
        sources += matches
    assert len(set(sources)) == 6


@pytest.mark.parametrize("size", [3, 60, 500])
def test_real_initialisation_is_resampled_to_the_size_asked_for(size):
    config = tiny.config(clouds__name="real", clouds__points_per_cloud=size)
    whole = tiny.config(clouds__name="real", clouds__points_per_cloud=None)
    resampled, source = (
        config.start(tiny.three_digits()),
        whole.start(tiny.three_digits()),
    )
    assert resampled.sizes.tolist() == [size] * 3
    for cloud in range(3):
        points, origin = (set(map(tuple, clouds[cloud].tolist())) for clouds in (resampled, source))
        assert points <= origin
        # no point occurs twice before every point occurs once
        assert len(points) == min(size, len(origin))


def test_file_initialisation_starts_where_the_set_is(tmp_path):
    clouds = last_coordinates_as_set(tmp_path / "set.npz")
    config = tiny.config(
        clouds__name="file",
        clouds__file=str(tmp_path / "set.npz"),
        optimiser__step_size=1e-6,
    )
    assert torch.equal(config.start(tiny.three_digits()).coordinates, clouds.coordinates)
    torch.testing.assert_close(last_coordinates(config), clouds.coordinates, atol=1e-4, rtol=0)


def last_coordinates_as_set(path) -> PointClouds:
    clouds = run(tiny.config(clouds__points_per_cloud=[4, 5, 6]))[-1].clouds
    save_clouds(clouds, path)
    return clouds


def test_file_of_another_grid_is_refused(tmp_path):
    save_clouds(tiny.three_solids(), tmp_path / "solids.npz")
    config = tiny.config(clouds__name="file", clouds__file=str(tmp_path / "solids.npz"))
    with pytest.raises(InputError, match=r"solids\.npz.*\(6, 6, 6\).*\(1, 28, 28\)"):
        config.distill(tiny.three_digits())


def test_file_that_lacks_a_class_is_refused(tmp_path):
    save_clouds(tiny.three_digits().select(torch.arange(16)), tmp_path / "two.npz")
    config = tiny.config(clouds__name="file", clouds__file=str(tmp_path / "two.npz"))
    with pytest.raises(InputError, match=r"two\.npz.*'2'"):
        config.distill(tiny.three_digits())


# --- settings that do not fit the data ------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective__augmentation": True, "lift__name": "coordinates"},
            "objective.augmentation = true.*gaussian",
        ),
        (
            {"objective__real_precision": "bfloat16", "network__name": "sparse"},
            'real_precision = "bfloat16".*sparse.*name=torch',
        ),
        ({"objective__real_batch": 9}, "class '0' has 8 clouds.*9 were asked for"),
        (
            {"clouds__name": "real", "clouds__clouds_per_class": 9},
            "class '0' has 8 clouds.*9 were asked for",
        ),
        (
            {"clouds__clouds_per_class": [1, 2]},
            "clouds_per_class has 2 numbers; expected.*per class: 3",
        ),
        (
            {"clouds__points_per_cloud": [1, 2]},
            "points_per_cloud has 2 numbers; expected.*per cloud: 3",
        ),
        ({"clouds__points_per_cloud": None}, "points_per_cloud = None"),
        ({"clouds__name": "file"}, "clouds.file"),
        (
            {"clouds__name": "file", "clouds__file": "nowhere.npz"},
            "nowhere.npz: no such file",
        ),
        ({"network__layers": 5}, "network.layers = 5.*at most 4"),
        ({"network__layers": 5, "network__name": "sparse"}, "network.layers = 5.*at most 4"),
        ({"network__paper_layout": True, "network__norm": "instance"}, "paper_layout"),
        (
            {"objective__name": "maximum_mean_discrepancy", "objective__real_batch": 1},
            "objective.real_batch = 1: .*maximum_mean_discrepancy.* needs 2 or more",
        ),
    ],
)
def test_setting_that_does_not_fit_is_refused_before_the_first_step(settings, message):
    with pytest.raises(InputError, match=message):
        distill(tiny.config(**settings), tiny.three_digits())


# --- failure and health ---------------------------------------------------------------------------


def test_nan_is_reported_with_iteration_class_and_likely_cause(monkeypatch):
    calls = itertools.count()

    def broken(real, synthetic):
        # 3 classes per iteration: call 7 is class 1 of iteration 2
        factor = float("nan") if next(calls) == 7 else 1.0
        return factor * sum(s.square().sum() for s in synthetic)

    broken.__name__ = "sum_of_squares"
    monkeypatch.setitem(DISTANCES, "sum_of_squares", broken)
    steps = distill(tiny.config(objective__distance="sum_of_squares"), tiny.three_digits())
    assert [next(steps).iteration, next(steps).iteration] == [0, 1]
    with pytest.raises(
        DistillationFailed, match=r"iteration 2.*class 1 is nan.*lower optimiser\.step_size"
    ) as failure:
        next(steps)
    assert failure.value.iteration == 2


def test_infinite_gradient_of_a_finite_loss_is_reported(monkeypatch):
    def steep(real, synthetic):  # the root of 0 is finite and has an infinite derivative
        return sum((s - s.detach()).abs().sum().sqrt() for s in synthetic)

    steep.__name__ = "sum_of_squares"
    monkeypatch.setitem(DISTANCES, "sum_of_squares", steep)
    with pytest.raises(
        DistillationFailed, match="iteration 0: the mean absolute gradient is (nan|inf)"
    ):
        run(tiny.config(objective__distance="sum_of_squares"))


def watched(config) -> list[Finding | None]:
    """Return the finding of the health check after each iteration."""
    health, findings = Health(), []
    for step in config.distill(tiny.three_digits()):
        health.watch(step)
        findings.append(health.finding)
    return findings


def test_stuck_run_is_reported_with_iteration_and_cause():
    config = tiny.config(
        objective__name="feature_regression",  # all classes at once, so iterations are short
        optimiser__name="sgd",
        optimiser__step_size=1e-9,
        schedule__iterations=WINDOW + 1,
    )
    findings = watched(config)
    assert set(findings[: WINDOW - 1]) == {None}
    for finding in findings[WINDOW - 1 :]:
        assert (finding.state, finding.iteration) == ("stopped moving", 0)
        assert str(finding).startswith("stopped moving at iteration 0: ")
        assert "optimiser.step_size" in finding.reason and "gradient" in finding.reason


def test_run_that_moves_again_is_no_longer_stuck():
    health = Health(still=WINDOW, finding=Finding("stopped moving", 0, "too slow"))
    step = next(distill(tiny.config(optimiser__name="adam"), tiny.three_digits()))
    assert step.mean_absolute_displacement > STUCK_BELOW
    health.watch(step)
    assert health.finding is None and health.still == 0


def test_points_piled_up_on_the_border_are_reported_with_iteration_and_cause():
    findings = watched(
        tiny.config(optimiser__name="adam", optimiser__step_size=1000.0, schedule__iterations=2)
    )
    assert (findings[0].state, findings[0].iteration) == ("diverged", 0)
    assert "border" in findings[0].reason and "lower optimiser.step_size" in findings[0].reason


def test_healthy_run_is_not_reported():
    assert watched(tiny.config(optimiser__name="adam")) == [None] * 5


@pytest.mark.parametrize(
    "changes", [{}, {"objective__augmentation": True}, {"objective__name": "distribution_matching"}]
)
def test_classes_matched_side_by_side_give_bit_for_bit_what_they_give_in_turn(changes, monkeypatch):
    config, before, results = tiny.config(**changes), torch.get_num_threads(), []
    torch.set_num_threads(1)  # two threads within an operation would sum in another order
    try:
        for count in (1, 3):
            monkeypatch.setattr(distillation, "threads_for", lambda device, count=count: count)
            results.append(list(config.distill(tiny.three_digits())))
    finally:
        torch.set_num_threads(before)
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone.clouds.coordinates, together.clouds.coordinates)
        assert alone.matching_loss == together.matching_loss and torch.equal(
            alone.gradient, together.gradient
        )


@pytest.mark.parametrize("part", ["coordinates", "optimiser", "network", "network_optimiser"])
@pytest.mark.parametrize("wrong", [None, {"a": torch.zeros(3)}], ids=["missing", "other"])
def test_a_state_of_other_settings_is_refused_before_the_first_step(part, wrong):
    config = tiny.config(schedule__iterations_per_network=5, schedule__training_steps=1)
    state = next(config.distill(tiny.three_digits())).state()
    state = {name: value for name, value in state.items() if name != part}
    if wrong is not None:
        state[part] = wrong
    with pytest.raises(InputError, match=f"^state to resume from: '{part}' does not fit") as error:
        next(config.distill(tiny.three_digits(), state=state))
    assert "\n" not in str(error.value)
