"""Distil clouds: move points by gradient descent on the matching loss, within the grid.

`distill` is a generator with one `Step` per iteration. The caller draws pictures, writes
checkpoints or stops.
"""

from collections.abc import Callable, Generator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ranks
from ..errors import DistillationFailed, InputError
from ..geometry.clouds import PointClouds, members_per_class
from ..geometry.moves import draw_moves, rotated
from ..nn.grid import Network
from ..seeds import generator
from ..threads import side_by_side, threads_for
from .distances import as_rows
from .lifts import Lift
from .method import Method
from .objectives import Batch, GradientMatching, Objective
from .optimisers import Optimiser, Schedule


@dataclass(frozen=True)
class Step:
    """Result of one iteration.

    The paper judges a run by the two means (section 4.3), over all points and all three axes.

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


def distill(
    real: PointClouds,
    start: PointClouds,
    lift: Lift = Method.lift,
    network: Network = Method.network,
    objective: Objective = Method.objective,
    optimiser: Optimiser = Method.optimiser,
    schedule: Schedule = Method.schedule,
    seed: int = 0,
    device: torch.device | str = "cpu",
    state: dict[str, Any] | None = None,
) -> Generator[Step, None, None]:
    """Distil `real` into synthetic clouds; yield one `Step` per iteration.

    real: training clouds, on any device
    start: synthetic clouds before the first iteration, for instance from `scatter`
    lift, network, objective, optimiser, schedule: pieces of the method, see their classes
    seed: of all random draws. torch's global generator is neither used nor changed.
    state: from `Step.state()`, to resume a run of the same settings; the result equals that of an
        uninterrupted run
    Raises InputError at once if the pieces do not fit the data or each other. The iterator raises
    InputError before its first step if `state` does not fit them, and DistillationFailed if a loss,
    a gradient or a displacement is NaN or infinite.
    """
    method = Method(lift, network, objective, optimiser, schedule, seed)
    method.check(real)
    return _steps(method, real, start, device, state)


def _restore(part: str, load: Callable[[Any], object], state: dict[str, Any]) -> None:
    """Load a part of a state. Raises InputError if it is not of the same settings."""
    try:
        load(deepcopy(state[part]))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"state to resume from: '{part}' does not fit these settings "
            f"({type(error).__name__}: {reason:.100}); restart the run"
        ) from None


def _steps(
    method: Method,
    real: PointClouds,
    synthetic: PointClouds,
    device: torch.device | str,
    state: dict[str, Any] | None,
) -> Generator[Step, None, None]:
    schedule, members = method.schedule, members_per_class(real)
    real, synthetic = real.to(device), synthetic.to(device)

    coordinates = nn.Parameter(synthetic.coordinates.clone())
    own_steps: dict[nn.Parameter, float] = {coordinates: method.optimiser.step_size}
    label_logits = turns = None
    if method.learns_labels:
        label_logits = nn.Parameter(_initial_logits(synthetic))
        own_steps[label_logits] = method.optimiser.label_step_size
    if turn_step_size := method.optimiser.turn_step_size:
        turns = nn.Parameter(torch.zeros(len(synthetic), 3, device=device))
        own_steps[turns] = turn_step_size
    learned = list(own_steps)
    optimiser = method.optimiser.make(
        [{"params": [values], "lr": step_size} for values, step_size in own_steps.items()]
    )
    first, pool = 0, None
    if state is not None:
        first = state["iteration"] + 1
        _restore("coordinates", coordinates.data.copy_, state)
        if label_logits is not None:
            _restore("label_logits", label_logits.data.copy_, state)
        _restore("optimiser", optimiser.load_state_dict, state)
    per_network = schedule.iterations_per_network or schedule.iterations

    for iteration in range(first, schedule.iterations):
        if iteration == first or iteration % per_network == 0:
            network = method.draw_network(real, number=iteration // per_network)
            weights, step_size = network.parameters(), schedule.training_step_size
            network_optimiser = torch.optim.SGD(weights, step_size, momentum=0.5)
            if method.stored_gradients:
                pool = GradientPool(method, network, iteration // per_network, real, members)
            if iteration % per_network and state is not None:
                _restore("network", network.load_state_dict, state)
                _restore("network_optimiser", network_optimiser.load_state_dict, state)

        coordinates.data = method.lift.bounded(coordinates.data, real.grid)
        optimiser.zero_grad()
        own = ranks.own_classes(len(members))
        nothing = torch.empty(0, dtype=torch.int64)
        batch = nothing if pool is not None else method.batch_at(real, members, iteration)
        real_batch = real.select(batch.to(device))
        if label_logits is not None:
            synthetic = replace(synthetic, label_probabilities=label_logits.softmax(1))
        inputs = synthetic.with_coordinates(coordinates)
        if turns is not None:
            inputs = rotated(inputs, turns)
        parts = matching_losses(method, network, real_batch, inputs, iteration, own, pool)

        def descend(part: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            losses = part()
            shared = turns is not None  # the graphs of all parts contain the rotation
            return losses.detach(), torch.autograd.grad(
                losses.sum(), learned, allow_unused=True, retain_graph=shared
            )

        with side_by_side(_threads(method, real.device, len(parts))) as calls:
            parts_of_loss, gradients = zip(*calls(descend, parts))
        for values, terms in zip(learned, zip(*gradients)):
            # A class moves its own points only, so the sum is exact in any order.
            values.grad = None if terms[0] is None else cast(Tensor, sum(terms))
        of_classes = torch.zeros(len(members), device=device).index_add(
            0, torch.tensor(own, device=device), torch.cat(parts_of_loss)
        )
        coordinate_gradient = cast(Tensor, coordinates.grad)
        all_gradients = [values.grad for values in learned if values.grad is not None]
        ranks.sum_over_ranks(of_classes, *all_gradients)
        losses, gradient = of_classes.tolist(), coordinate_gradient.abs().mean().item()
        _refuse_non_finite(iteration, losses, gradient)

        before = coordinates.detach().clone()
        for group, step_size in zip(optimiser.param_groups, own_steps.values()):
            fraction = method.optimiser.step_fraction(iteration / schedule.iterations)
            group["lr"] = step_size * fraction
        optimiser.step()
        if turns is not None:  # apply the rotation to the coordinates and reset it
            with torch.no_grad():
                clouds = synthetic.with_coordinates(coordinates)
                coordinates.copy_(rotated(clouds, turns).coordinates)
                turns.zero_()
        displacement = (coordinates.detach() - before).abs().mean().item()
        _refuse_non_finite(iteration, losses, gradient, displacement)
        moved = synthetic.with_coordinates(method.lift.bounded(coordinates.detach(), real.grid))
        if label_logits is not None:
            moved = replace(moved, label_probabilities=label_logits.detach().softmax(1))
        for number in range(schedule.training_steps):
            on_synthetic = schedule.training_data == "synthetic"
            inputs = moved if on_synthetic else method.training_batch_at(real, iteration, number)
            if method.objective.augmentation:
                inputs = draw_moves(
                    len(inputs), real.grid, generator(method.seed, "training", iteration, number)
                )(inputs)
            network_optimiser.zero_grad()
            F.cross_entropy(
                network(method.lift_at(iteration, real=not on_synthetic)(inputs)), inputs.labels
            ).backward()
            network_optimiser.step()
        current = dict(optimiser=optimiser, network=network, network_optimiser=network_optimiser)
        current |= dict(iteration=iteration, coordinates=coordinates.detach().clone())
        if label_logits is not None:
            current |= dict(label_logits=label_logits.detach().clone())
        yield Step(
            iteration, losses, gradient, displacement, coordinate_gradient.clone(), moved, current
        )


def matching_losses(
    method: Method,
    network: nn.Module,
    real: PointClouds,
    synthetic: PointClouds,
    iteration: int,
    own_classes: Sequence[int] | None = None,
    pool: "RealGradients | None" = None,
) -> list[Callable[[], Tensor]]:
    """Return functions that compute the parts of the matching loss, (classes,) in total.

    Each call computes one part with its own graph. So the graphs need not be in memory all at once,
    and threads can compute the parts.
    real: the batch of this iteration, from `Method.batch_at`
    synthetic: all synthetic clouds; their coordinates require a gradient
    own_classes: compute these classes only, for objectives that match classes one at a time;
        default: all
    pool: source of real gradients; default: computed on `real`
    """
    objective, classes = method.objective_at(iteration), len(real.class_names)
    lift, lift_real = method.lift_at(iteration), method.lift_at(iteration, real=True)
    draws = generator(method.seed, "augmentation", iteration)
    if not objective.per_class:

        def of_all_classes() -> Tensor:
            target, own = Batch(real, lift_real, draws), Batch(synthetic, lift, draws)
            loss = objective.loss(network, target, own)
            if loss.dim() == 0:
                return loss.expand(classes) / classes
            return loss.view(classes, -1).mean(1)

        return [of_all_classes]

    def of_class(
        label: int, real_indices: Tensor, synthetic_indices: Tensor, move: Callable | None
    ) -> Tensor:
        own_draws = generator(method.seed, "objective", iteration, label)
        chosen, own = real.select(real_indices), synthetic.select(synthetic_indices)
        if move is not None:
            chosen, own = move(chosen), move(own)
        batch = Batch(own, lift, own_draws)
        if pool is not None:
            target = pool.draw(label, iteration)
            return cast(GradientMatching, objective).compare(target, network, batch)[None]
        return objective.loss(network, Batch(chosen, lift_real, own_draws), batch)[None]

    parts = []
    for label, indices in enumerate(zip(members_per_class(real), members_per_class(synthetic))):
        move = draw_moves(1, real.grid, draws) if objective.augmentation else None
        if own_classes is None or label in own_classes:
            parts.append(partial(of_class, label, *indices, move))
    return parts


class RealGradients(Protocol):
    """A source of real gradients."""

    def draw(self, label: int, iteration: int) -> list[Tensor]:
        """Return the real gradients of this class at this iteration, in shapes of `as_rows`."""
        ...


class GradientPool:
    """Real gradients of one fixed network, on a few batches of each class.

    The expectation of the real gradient is constant for a fixed network, so a few batches estimate
    it. `objective.real_gradients` sets their number. The pool computes each gradient when it is
    first drawn, and stores it. A resumed run computes the same gradients again.
    """

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        number: int,
        real: PointClouds,
        members: Sequence[Tensor],
    ):
        """Allocate the pool.

        number: index of the network in the run, from 0
        real: all training clouds, on the device of the network
        members: indices of the training clouds of each class
        """
        self.method, self.network, self.number = method, network, number
        self.real, self.members = real, members
        rows = [as_rows(parameter) for parameter in network.parameters()]
        self._shapes = [row.shape for row in rows]
        # One block for all gradients: blocks allocated one by one would fragment the memory that
        # each batch frees, and increase the total.
        size = sum(row.numel() for row in rows)
        self._kept = rows[0].new_empty(len(members), method.stored_gradients, size)
        self._filled: set[tuple[int, int]] = set()

    def draw(self, label: int, iteration: int) -> list[Tensor]:
        """Return the real gradients of this class at this iteration, on one of its batches.

        The batch is drawn at random. The gradients have the shapes of `as_rows`.
        """
        method, count = self.method, self.method.stored_gradients
        draws = generator(method.seed, "real gradients", iteration)
        batch = int(torch.randint(count, (len(self.members),), generator=draws)[label])
        kept = self._kept[label, batch]
        if (label, batch) not in self._filled:
            batches = method.batch_at(self.real, self.members, self.number * count + batch)
            chosen = batches.split(method.objective.real_batch)[label].to(self.real.device)
            clouds = Batch(self.real.select(chosen), method.lift_at(0, real=True), draws)
            gradients = cast(GradientMatching, method.objective).target(self.network, clouds)
            kept.copy_(torch.cat([gradient.flatten() for gradient in gradients]))
            self._filled.add((label, batch))
        # A copy: another thread may fill the block while the graph of this class needs its part.
        parts = kept.clone().split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _threads(method: Method, device: torch.device, parts: int) -> int:
    """Return the number of threads for the parts of the loss.

    One for layers that use all cores by themselves and ignore other threads.
    """
    kernel_maps = getattr(method.network, "kernel_maps", "torch")
    alone = method.network.own_threads or kernel_maps == "minkowski"
    return 1 if alone else min(threads_for(device), parts)


def _initial_logits(synthetic: PointClouds) -> torch.Tensor:
    """Return the initial logits of the labels: (clouds, classes).

    Labels learned before keep their probabilities. Otherwise the logit is 5 for the cloud's own
    class and 0 for the others; with ten classes, it has probability 0.94.
    """
    if synthetic.label_probabilities is not None:
        return synthetic.label_probabilities.clamp(min=1e-6).log()
    return 5.0 * F.one_hot(synthetic.labels, len(synthetic.class_names))


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
