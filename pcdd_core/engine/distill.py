"""Distil clouds: move points by gradient descent on the matching loss, within the grid.

`distill` is a generator with one `Step` per iteration. The caller draws pictures, writes
checkpoints or stops.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from math import cos, isfinite, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DistillationFailed, InputError
from ..experiments.config import Config
from ..geometry.clouds import PointClouds, members_per_class, resampled, sample
from ..geometry.grid import boundary_check, known_positions, scatter
from ..geometry.moves import Move, draw_moves, turned
from ..geometry.storage import load_clouds
from ..nn import minkowski, sparse
from ..nn.grid import build_network
from . import lifts, objectives, ranks
from .seeds import generator
from .threads import side_by_side, threads_for


@dataclass(frozen=True)
class Step:
    """Result of one iteration.

    The two means are the paper's signs of health (section 4.3), over all points and all three axes.

    iteration:                  0 for the first update
    matching_loss:              one number per class, before the update
    mean_absolute_gradient:     mean of |gradient|, per cell
    mean_absolute_displacement: mean distance that the optimiser moved a coordinate, cells
    gradient:                   (points, 3), of the summed matching loss with respect to the
                                coordinates, per cell
    clouds:                     after the update and the boundary check; no memory is shared with
                                the run
    """

    iteration: int
    matching_loss: list[float]
    mean_absolute_gradient: float
    mean_absolute_displacement: float
    gradient: torch.Tensor
    clouds: PointClouds
    _state: dict[str, Any] = field(repr=False)

    def state(self) -> dict[str, Any]:
        """Return a copy of all that `distill` needs to continue after this step.

        Contains tensors, numbers, lists and dictionaries only. Call it before the next step, which
        changes the optimiser and the network.
        """
        return {
            key: deepcopy(part.state_dict() if hasattr(part, "state_dict") else part)
            for key, part in self._state.items()
        }


def initial_clouds(config: Config, real: PointClouds) -> PointClouds:
    """Return the synthetic clouds before the first iteration, as `config.clouds` describes them.

    Raises InputError if `config.clouds` does not fit `real`, or if its file is not usable.
    """
    settings, classes = config.clouds, len(real.class_names)
    if settings.initialisation == "file":
        if settings.file is None:
            raise InputError(
                "setting clouds.file = None: clouds.initialisation=file needs a distilled set "
                "(.npz)"
            )
        given = load_clouds(settings.file)
        if given.grid != real.grid or given.class_names != real.class_names:
            raise InputError(
                f"{settings.file}: grid {given.grid} and classes {list(given.class_names)}; "
                f"expected those of the data: {real.grid} and {list(real.class_names)}"
            )
        if missing := set(range(classes)) - set(given.labels.tolist()):
            raise InputError(
                f"{settings.file}: no cloud of class '{given.class_names[min(missing)]}'; every "
                "class needs at least one"
            )
        return given
    if settings.file is not None:
        raise InputError(
            f"setting clouds.file = {settings.file!r}: needs clouds.initialisation=file"
        )

    per_class = _one_per(settings.clouds_per_class, classes, "clouds.clouds_per_class", "class")
    labels = [label for label, count in enumerate(per_class) for _ in range(count)]
    draws = generator(config.seed, "initial clouds")
    if settings.initialisation == "scatter":
        if settings.points_per_cloud is None:
            raise InputError(
                "setting clouds.points_per_cloud = null: clouds.initialisation=scatter needs a "
                "number of points"
            )
        sizes = _one_per(settings.points_per_cloud, len(labels), "clouds.points_per_cloud", "cloud")
        return scatter(sizes, labels, real.grid, real.class_names, draws)

    chosen = sample(members_per_class(real), per_class, draws, real.class_names)
    sampled = known_positions(real.select(chosen))
    sizes = _one_per(
        settings.points_per_cloud or sampled.sizes.tolist(),
        len(labels),
        "clouds.points_per_cloud",
        "cloud",
    )
    return resampled(sampled, sizes, draws)


def distill(
    config: Config,
    real: PointClouds,
    device: torch.device | str = "cpu",
    state: dict[str, Any] | None = None,
) -> Iterator[Step]:
    """Distil `real` into synthetic clouds; yield one `Step` per iteration.

    real: training clouds, on any device
    state: from `Step.state()`, to resume a run of the same configuration; the result equals that of
        an uninterrupted run
    Raises InputError at once if the settings do not fit the data or each other. The iterator raises
    DistillationFailed if a loss, a gradient or a displacement is NaN or infinite.
    """
    synthetic = initial_clouds(config, real)
    if config.objective.augmentation and config.lift.name == "coordinates":
        raise InputError(
            "setting objective.augmentation = true: augmented points may leave the grid, which "
            f"lift.name={config.lift.name} cannot represent; it needs lift.name=gaussian or points"
        )
    if (config.lift.name == "points") != (config.network.backend == "pointnet"):
        raise InputError(
            f"setting network.backend = {config.network.backend!r} with "
            f"lift.name={config.lift.name}: only pointnet takes points, and it takes nothing else; "
            "expected network.backend=pointnet with lift.name=points, or neither"
        )
    if config.optimiser.turn_step_size and min(real.grid) == 1:
        raise InputError(
            f"setting optimiser.turn_step_size = {config.optimiser.turn_step_size}: clouds would "
            f"turn out of the flat grid {real.grid}; it needs a grid with depth, or null"
        )
    if config.objective.name == "sorted_feature_matching" and config.network.backend != "pointnet":
        raise InputError(
            "setting objective.name = 'sorted_feature_matching': it compares features of points; "
            "it needs network.backend=pointnet"
        )
    if config.objective.real_precision != "float32" and config.network.backend not in (
        "torch",
        "pointnet",
    ):
        raise InputError(
            f"setting objective.real_precision = {config.objective.real_precision!r}: "
            f"network.backend={config.network.backend} computes in float32; it needs "
            "network.backend=torch or pointnet"
        )
    if ranks.count() > 1 and config.objective.name not in ranks.INDEPENDENT_CLASSES:
        raise InputError(
            f"setting objective.name = {config.objective.name!r}: its classes cannot be shared "
            f"among {ranks.count()} processes; expected one process, or one of "
            f"{', '.join(ranks.INDEPENDENT_CLASSES)}"
        )
    if ranks.count() > len(real.class_names):
        raise InputError(
            f"{ranks.count()} processes for {len(real.class_names)} classes; expected at most one "
            "for each class"
        )
    if config.network.origin_shift and config.lift.name != "coordinates":
        raise InputError(
            f"setting network.origin_shift = true with lift.name={config.lift.name}: it shifts "
            "occupied cells; it needs lift.name=coordinates"
        )
    if config.objective.real_gradients != "fresh" and (
        needed := _changes_the_real_gradient(config)
    ):
        raise InputError(
            f"setting objective.real_gradients = {config.objective.real_gradients}: a gradient "
            f"pool needs a target that depends on the network only; it needs {needed}"
        )
    if config.objective.learned_labels and config.objective.name != "unrolled_training":
        raise InputError(
            f"setting objective.learned_labels = true: objective.name={config.objective.name} does "
            "not learn labels; it needs objective.name=unrolled_training"
        )
    batch_at(config, real, members_per_class(real), iteration=0)
    draw_network(config, real, number=0)
    return _steps(config, real, synthetic, device, state)


def _steps(
    config: Config,
    real: PointClouds,
    synthetic: PointClouds,
    device: torch.device | str,
    state: dict[str, Any] | None,
) -> Iterator[Step]:
    settings, members = config.schedule, members_per_class(real)
    real = (real if config.lift.name == "coordinates" else known_positions(real)).to(device)
    synthetic = synthetic.to(device)

    coordinates = nn.Parameter(synthetic.coordinates.clone())
    label_logits = (
        nn.Parameter(_initial_logits(synthetic)) if config.objective.learned_labels else None
    )
    turns = (
        nn.Parameter(torch.zeros(len(synthetic), 3, device=device))
        if config.optimiser.turn_step_size
        else None
    )
    own_steps = {coordinates: config.optimiser.step_size}
    if label_logits is not None:
        own_steps[label_logits] = config.optimiser.label_step_size
    if turns is not None:
        own_steps[turns] = config.optimiser.turn_step_size
    learned, optimiser = list(own_steps), _optimiser(config, own_steps)
    first, network, pool = 0, None, None
    if state is not None:
        first = state["iteration"] + 1
        coordinates.data.copy_(state["coordinates"])
        if label_logits is not None:
            label_logits.data.copy_(state["label_logits"])
        optimiser.load_state_dict(deepcopy(state["optimiser"]))

    for iteration in range(first, settings.iterations):
        per_network = settings.iterations_per_network or settings.iterations
        if network is None or iteration % per_network == 0:
            network = draw_network(config, real, number=iteration // per_network)
            network_optimiser = torch.optim.SGD(
                network.parameters(), settings.training_step_size, momentum=0.5
            )
            if config.objective.real_gradients != "fresh":
                pool = GradientPool(config, network, iteration // per_network, real, members)
            if iteration % per_network and state is not None:
                network.load_state_dict(state["network"])
                network_optimiser.load_state_dict(deepcopy(state["network_optimiser"]))

        coordinates.data = boundary_check(coordinates.data, real.grid)
        optimiser.zero_grad()
        own = ranks.own_classes(len(members))
        batch = (
            torch.empty(0, dtype=torch.int64)
            if pool
            else batch_at(config, real, members, iteration)
        )
        real_batch = real.select(batch.to(device))
        if label_logits is not None:
            synthetic = replace(synthetic, label_probabilities=label_logits.softmax(1))
        inputs = synthetic.with_coordinates(coordinates)
        if turns is not None:
            inputs = turned(inputs, turns)
        parts = matching_losses(config, network, real_batch, inputs, iteration, own, pool)

        def descend(
            part: Callable[[], torch.Tensor],
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            losses = part()
            shared = turns is not None  # the graphs of all parts contain the rotation
            return losses.detach(), torch.autograd.grad(
                losses.sum(), learned, allow_unused=True, retain_graph=shared
            )

        with side_by_side(_threads(config, real.device, len(parts))) as calls:
            losses, gradients = zip(*calls(descend, parts))
        for values, terms in zip(learned, zip(*gradients)):
            # A class moves its own points only, so the sum is exact in any order.
            values.grad = None if terms[0] is None else sum(terms)
        losses = torch.zeros(len(members), device=device).index_add(
            0, torch.tensor(own, device=device), torch.cat(losses)
        )
        ranks.sum_over_ranks(
            losses, *(values.grad for values in learned if values.grad is not None)
        )
        losses, gradient = losses.tolist(), coordinates.grad.abs().mean().item()
        _refuse_non_finite(iteration, losses, gradient)

        before = coordinates.detach().clone()
        for group, start in zip(optimiser.param_groups, own_steps.values()):
            group["lr"] = start * _step_fraction_at(config, iteration)
        optimiser.step()
        if turns is not None:  # apply the rotation to the coordinates and reset it
            with torch.no_grad():
                coordinates.copy_(
                    turned(synthetic.with_coordinates(coordinates), turns).coordinates
                )
                turns.zero_()
        displacement = (coordinates.detach() - before).abs().mean().item()
        _refuse_non_finite(iteration, losses, gradient, displacement)
        moved = synthetic.with_coordinates(boundary_check(coordinates.detach(), real.grid))
        if label_logits is not None:
            moved = replace(moved, label_probabilities=label_logits.detach().softmax(1))
        for number in range(settings.training_steps):
            on_synthetic = settings.training_data == "synthetic"
            inputs = moved if on_synthetic else training_batch_at(config, real, iteration, number)
            if config.objective.augmentation:
                inputs = draw_moves(
                    len(inputs), real.grid, generator(config.seed, "training", iteration, number)
                )(inputs)
            network_optimiser.zero_grad()
            F.cross_entropy(
                network(lift_at(config, iteration, real=not on_synthetic)(inputs)), inputs.labels
            ).backward()
            network_optimiser.step()
        live = dict(optimiser=optimiser, network=network, network_optimiser=network_optimiser)
        live |= dict(iteration=iteration, coordinates=coordinates.detach().clone())
        if label_logits is not None:
            live |= dict(label_logits=label_logits.detach().clone())
        yield Step(iteration, losses, gradient, displacement, coordinates.grad.clone(), moved, live)


def matching_losses(
    config: Config,
    network: nn.Module,
    real: PointClouds,
    synthetic: PointClouds,
    iteration: int,
    own_classes: Sequence[int] | None = None,
    pool: "GradientPool | None" = None,
) -> list[Callable[[], torch.Tensor]]:
    """Return functions that compute the parts of the matching loss, (classes,) in total.

    Each call computes one part with its own graph. So the graphs need not be in memory all at once,
    and threads can compute the parts.
    real: the batch of this iteration, from `batch_at`
    synthetic: all synthetic clouds; their coordinates require a gradient
    own_classes: compute these classes only, for objectives that match classes one at a time;
        default: all
    pool: source of real gradients; default: computed on `real`
    """
    settings, classes = config.objective, len(real.class_names)
    lift, lift_real = lift_at(config, iteration), lift_at(config, iteration, real=True)
    draws = generator(config.seed, "augmentation", iteration)
    matching_first = iteration < settings.distribution_matching_until * config.schedule.iterations
    name = "distribution_matching" if matching_first else settings.name
    if name == "feature_regression":
        if settings.augmentation:
            real, synthetic = (
                draw_moves(len(clouds), clouds.grid, draws)(clouds) for clouds in (real, synthetic)
            )
        inputs = lift_real(real), real.labels, lift(synthetic), synthetic.labels
        return [
            lambda: (
                objectives.feature_regression(network, *inputs, classes, settings.ridge)
                .view(classes, -1)
                .mean(1)
            )
        ]
    if name == "unrolled_training":
        members = members_per_class(synthetic)
        counts = [min(settings.unrolled_batch or len(indices), len(indices)) for indices in members]

        def draw_inputs() -> tuple[Any, torch.Tensor]:
            clouds = synthetic
            if settings.unrolled_batch is not None:
                clouds = synthetic.select(
                    sample(members, counts, draws, synthetic.class_names).to(synthetic.device)
                )
            if settings.augmentation:
                clouds = draw_moves(len(clouds), real.grid, draws)(clouds)
            return lift(clouds), clouds.targets

        before = int(torch.randint(settings.unrolled_steps_before + 1, (), generator=draws))
        training = settings.unrolled_steps, settings.unrolled_step_size, before
        return [
            lambda: (
                objectives.unrolled_training(
                    network, lift_real(real), real.labels, draw_inputs, *training
                )
                .view(classes, -1)
                .mean(1)
            )
        ]
    precision, parts = getattr(torch, settings.real_precision), []

    def loss_of_class(
        label: int,
        real_indices: torch.Tensor,
        synthetic_indices: torch.Tensor,
        move: Move | None,
    ) -> torch.Tensor:
        real_clouds, synthetic_clouds = (
            real.select(real_indices),
            synthetic.select(synthetic_indices),
        )
        if move is not None:
            real_clouds, synthetic_clouds = move(real_clouds), move(synthetic_clouds)
        if name != "gradient_matching":
            return getattr(objectives, name)(
                network, lift_real(real_clouds), lift(synthetic_clouds), precision
            )[None]
        if pool:
            target = pool.draw(label, iteration)
        else:
            target = objectives.real_gradients(
                network, lift_real(real_clouds), real_clouds.labels, precision
            )
        distance = objectives.DISTANCES[settings.distance]
        return objectives.match_gradients(
            target, network, lift(synthetic_clouds), synthetic_clouds.labels, distance
        )[None]

    for label, indices in enumerate(zip(members_per_class(real), members_per_class(synthetic))):
        move = draw_moves(1, real.grid, draws) if settings.augmentation else None
        if own_classes is None or label in own_classes:
            parts.append(partial(loss_of_class, label, *indices, move))
    return parts


class GradientPool:
    """Real gradients of one fixed network, on a few batches of each class.

    The expectation of the real gradient is constant for a fixed network, so a few batches estimate
    it. `objective.real_gradients` sets their number. The pool computes each gradient when it is
    first drawn, and stores it. A resumed run computes the same gradients again.
    """

    def __init__(
        self,
        config: Config,
        network: nn.Module,
        number: int,
        real: PointClouds,
        members: Sequence[torch.Tensor],
    ):
        """Allocate the pool.

        number: index of the network in the run, from 0
        real: all training clouds, on the device of the network
        members: indices of the training clouds of each class
        """
        self.config, self.network, self.number, self.real, self.members = (
            config,
            network,
            number,
            real,
            members,
        )
        rows = [objectives.as_rows(parameter) for parameter in network.parameters()]
        self._shapes = [row.shape for row in rows]
        # One block for all gradients: blocks allocated one by one would fragment the memory that
        # each batch frees, and increase the total.
        size = sum(row.numel() for row in rows)
        self._kept = rows[0].new_empty(len(members), config.objective.real_gradients, size)
        self._filled: set[tuple[int, int]] = set()

    def draw(self, label: int, iteration: int) -> list[torch.Tensor]:
        """Return the real gradients of this class at this iteration, on one of its batches.

        The batch is drawn at random. The gradients have the shapes of `objectives.as_rows`.
        """
        config, count = self.config, self.config.objective.real_gradients
        draws = generator(config.seed, "real gradients", iteration)
        batch = int(torch.randint(count, (len(self.members),), generator=draws)[label])
        kept = self._kept[label, batch]
        if (label, batch) not in self._filled:
            batches = batch_at(config, self.real, self.members, self.number * count + batch)
            chosen = batches.split(config.objective.real_batch)[label].to(self.real.device)
            lifted, labels = (
                lift_at(config, 0, real=True)(self.real.select(chosen)),
                self.real.labels[chosen],
            )
            precision = getattr(torch, config.objective.real_precision)
            gradients = objectives.real_gradients(self.network, lifted, labels, precision)
            kept.copy_(torch.cat([gradient.flatten() for gradient in gradients]))
            self._filled.add((label, batch))
        parts = kept.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _changes_the_real_gradient(config: Config) -> str | None:
    """Return a setting that a gradient pool needs and `config` lacks, or None."""
    needs = {
        "objective.name=gradient_matching": config.objective.name == "gradient_matching",
        "objective.distribution_matching_until=0": config.objective.distribution_matching_until
        == 0,
        "objective.augmentation=false": not config.objective.augmentation,
        "lift.name=coordinates or points": config.lift.name != "gaussian",
        "schedule.training_steps=0": config.schedule.training_steps == 0,
    }
    return next((setting for setting, met in needs.items() if not met), None)


def _threads(config: Config, device: torch.device, parts: int) -> int:
    """Return the number of threads for the parts of the loss.

    One for MinkowskiEngine, which parallelises its operations itself and ignores other threads.
    """
    alone = "minkowski" in (config.network.backend, config.network.kernel_maps)
    return 1 if alone else min(threads_for(device), parts)


def _one_per(value: int | Sequence[int], count: int, setting: str, of: str) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise InputError(
            f"setting {setting} has {len(values)} numbers; expected one number, or one per {of}: "
            f"{count}"
        )
    return values


def lift_at(config: Config, iteration: int, real: bool = False) -> Callable[[PointClouds], Any]:
    """Return the lift of this iteration, a function from clouds to inputs of the network.

    real: for real clouds, which `lift.real_bandwidth_end` may make sharper
    """
    if config.lift.name == "coordinates":
        layers = minkowski if config.network.backend == "minkowski" else sparse
        return partial(lifts.coordinates_as_features, from_points=layers.from_points)
    if config.lift.name == "points":
        return lifts.centred_points
    progress = iteration / max(config.schedule.iterations - 1, 1)
    end = (real and config.lift.real_bandwidth_end) or config.lift.bandwidth_end
    bandwidth = lifts.annealed(progress, config.lift.bandwidth_start, end)
    saturation = lifts.annealed(
        progress, config.lift.saturation_start or config.lift.saturation, config.lift.saturation
    )
    hard = iteration >= config.lift.hard_from * config.schedule.iterations
    occupancy = lifts.straight_through_occupancy if hard else lifts.gaussian_occupancy
    return partial(occupancy, bandwidth=bandwidth, saturation=saturation, closed=config.lift.closed)


def draw_network(config: Config, real: PointClouds, number: int) -> nn.Module:
    """Initialise the network with index `number` in the run, on the device of `real`."""
    channels = 3 if config.lift.name == "coordinates" else 1
    draws = generator(config.seed, "network", number)
    return build_network(config.network, channels, real.grid, len(real.class_names), draws).to(
        real.device
    )


def batch_at(
    config: Config, real: PointClouds, members: Sequence[torch.Tensor], iteration: int
) -> torch.Tensor:
    """Return the indices of this iteration's real clouds, sorted by class: int64 (clouds,).

    Each class has `config.objective.real_batch` of them. members: indices of each class's clouds.
    """
    batches = [config.objective.real_batch] * len(members)
    return sample(members, batches, generator(config.seed, "batch", iteration), real.class_names)


def training_batch_at(
    config: Config, real: PointClouds, iteration: int, number: int
) -> PointClouds:
    """Return the real clouds of training step `number` in this iteration, drawn from all classes.

    Clouds are drawn with replacement.
    """
    draws = generator(config.seed, "training batch", iteration, number)
    return real.select(
        torch.randint(len(real), (config.schedule.training_batch,), generator=draws).to(real.device)
    )


def _initial_logits(synthetic: PointClouds) -> torch.Tensor:
    """Return the initial logits of the labels: (clouds, classes).

    Labels learned before keep their probabilities. Otherwise the logit is 5 for the cloud's own
    class and 0 for the others; of ten classes, the own class has probability 0.94.
    """
    if synthetic.label_probabilities is not None:
        return synthetic.label_probabilities.clamp(min=1e-6).log()
    return 5.0 * F.one_hot(synthetic.labels, len(synthetic.class_names))


def _optimiser(config: Config, own_steps: Mapping[nn.Parameter, float]) -> torch.optim.Optimizer:
    """Return the optimiser, with one parameter group per learned tensor.

    own_steps: initial step size of each tensor; `_steps` sets the step sizes at each iteration.
    """
    settings = config.optimiser
    groups = [{"params": [learned], "lr": step_size} for learned, step_size in own_steps.items()]
    if settings.name == "adam":
        return torch.optim.Adam(groups, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(groups, momentum=settings.momentum)


def _step_fraction_at(config: Config, iteration: int) -> float:
    """Return the step size at this iteration, as a fraction of the initial step size.

    Decreases along half a cosine from 1 to `final_step_fraction`.
    """
    lowest = config.optimiser.final_step_fraction
    height = (1 + cos(pi * iteration / config.schedule.iterations)) / 2
    return lowest + (1 - lowest) * height


def _refuse_non_finite(
    iteration: int, losses: list[float], gradient: float, displacement: float = 0.0
) -> None:
    if isfinite(sum(losses)) and isfinite(gradient) and isfinite(displacement):
        return
    if not isfinite(sum(losses)):
        label = next(label for label, loss in enumerate(losses) if not isfinite(loss))
        what = f"the matching loss of class {label} is {losses[label]}"
    elif not isfinite(gradient):
        what = f"the mean absolute gradient is {gradient}"
    else:
        what = f"the mean absolute displacement is {displacement}"
    cause = "the network's training diverged (lower schedule.training_step_size)"
    raise DistillationFailed(
        iteration, what, f"the step size is too large (lower optimiser.step_size), or {cause}"
    )
