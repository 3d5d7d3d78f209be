"""What a set of clouds is worth: classifiers trained from scratch on it, scored on real data under a named protocol."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import lifts
from .augmentation import draw_moves
from .classifiers import OF_NEIGHBOURHOODS, OF_POINTS, Ensemble, build_classifier
from .clouds import Grid, PointClouds, cell_centres, known_positions, resampled
from .config import EvaluationConfig
from .errors import EvaluationFailed
from .randomness import generator
from .threads import side_by_side, threads_for


@dataclass(frozen=True)
class Protocol:
    """How a score is made. Both protocols augment the training inputs and report the last epoch.

    networks:     independent classifiers averaged over
    augment_test: whether the test inputs are augmented as well
    """

    networks: int
    augment_test: bool


PROTOCOLS = {
    "standard": Protocol(networks=20, augment_test=False),  # Zhao et al. 2021 and all that followed
    "paper": Protocol(networks=5, augment_test=True),  # the paper's code
}
TEST_BATCH = 100  # clouds at once per network: larger ones leave the CPU caches


@dataclass(frozen=True)
class View:
    """How a classifier sees clouds.

    training, test: what it sees of clouds to learn from, and of those to score on: float32 (clouds, ...)
    augment:        inputs (..., clouds, ...) of several networks, augmented with a draw for each; same shape
    """

    training: Callable[[PointClouds], Tensor]
    test: Callable[[PointClouds], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Score:
    """Accuracies in percent, one per classifier."""

    protocol: str
    accuracies: tuple[float, ...]
    epochs: int
    width: int

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def standard_deviation(self) -> float:
        """Over the classifiers, dividing by their number as the field's code does."""
        return torch.tensor(self.accuracies, dtype=torch.float64).std(correction=0).item()


def evaluate(
    training: PointClouds,
    test: PointClouds,
    settings: EvaluationConfig,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> dict[str, Score]:
    """Score `training` on `test` under each protocol of `settings`: {protocol: Score}.

    The protocols differ only after training, so they share the classifiers: each takes as many as it asks for. Classifiers of
    neighbourhoods, which reach less far where points are dense, see no more points of a test cloud, drawn at random, than the
    largest training cloud has.
    progress is called with the fraction done and what is being done. Raises EvaluationFailed if a classifier's training diverges.
    """
    wanted = {name: settings.networks or PROTOCOLS[name].networks for name in settings.protocols}
    count = max(wanted.values())
    view = _view(settings, training.grid)
    if settings.classifier in OF_NEIGHBOURHOODS:
        test = resampled(test, test.sizes.clamp(max=int(training.sizes.max())).tolist(), generator(seed, "points of test clouds"))
    inputs, labels = view.training(training).to(device), training.targets.to(device)
    test_inputs, test_labels = view.test(test), test.labels
    ensemble = _new_ensemble(count, training, settings, seed).to(device)
    shares = ensemble.split(threads_for(inputs.device))
    _train(shares, inputs, labels, view.augment, settings, seed, lambda f: progress(f, "training classifiers"))
    scores = {}
    for name, networks in wanted.items():
        correct = torch.zeros(networks, device=device)
        for batch, chosen in enumerate(torch.arange(len(test)).split(TEST_BATCH)):
            seen = test_inputs[chosen].to(device)
            shown = seen.expand(networks, *seen.shape)
            if PROTOCOLS[name].augment_test:
                shown = view.augment(shown, generator(seed, "test augmentation", batch))
            with torch.no_grad():
                logits = ensemble(shown)
            _refuse_non_finite(logits, "scoring", settings)  # whose largest would else be the first class
            predicted = logits.argmax(-1)
            correct += (predicted == test_labels[chosen].to(device)).sum(1)
            progress(min((batch + 1) * TEST_BATCH / len(test), 1.0), f"testing ({name} protocol)")
        accuracies = (100 * correct / len(test)).tolist()
        scores[name] = Score(name, tuple(accuracies), settings.epochs, settings.width)
    return scores


def project(clouds: PointClouds) -> Tensor:
    """Binary images of the clouds, seen along the depth axis: float32 (clouds, 1, height, width).

    The paper's projection: coordinates cut to integers, the cell set to 1.
    """
    return lifts.occupancy(clouds).amax(dim=2)


def soft_project(clouds: PointClouds, bandwidth: float, saturation: float) -> Tensor:
    """Grey images of the clouds, values in [0, 1]: float32 (clouds, 1, height, width).

    Points are Gaussian spots, as in `lifts.gaussian_occupancy`, seen along the depth axis: a point shows where in its cell
    it lies, and may be in several cells in part.
    """
    return lifts.gaussian_occupancy(clouds, bandwidth, saturation).amax(dim=2)


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """One random choice per image of crop, scale or rotation (Zhao et al. 2021); (..., 1, height, width), same shape out.

    crop: shifted by -4 to 3 pixels along each axis; scale: each axis by 0.8 to 1.2; rotation: by -45 to 45 degrees.
    Done in one affine resampling (bilinear; empty space is background, 0).
    """
    flat = images.flatten(0, -4)
    count, (height, width) = len(flat), flat.shape[-2:]
    choice = torch.randint(3, (count,), generator=draws)
    shift = torch.randint(-4, 4, (count, 2), generator=draws) * (choice == 0)[:, None]
    scale = torch.where((choice == 1)[:, None], torch.rand(count, 2, generator=draws) * 0.4 + 0.8, 1.0)
    angle = torch.where(choice == 2, (torch.rand(count, generator=draws) * 2 - 1) * torch.pi / 4, 0.0)
    size = torch.tensor([width, height])
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    matrix = matrix * (size / size[:, None]) / scale[:, None, :]  # grid coordinates run from -1 to 1 on either axis
    affine = torch.cat([matrix, (2 * shift / size)[:, :, None]], dim=2).to(flat)
    grid = F.affine_grid(affine, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view(images.shape)


def augment_points(points: Tensor, grid: Grid, draws: torch.Generator) -> Tensor:
    """One random move per cloud (`augmentation.draw_moves`) of what `lifts.centred_points` made, (..., clouds, most points, 3 or 4).

    Same shape out. Points may leave the grid.
    """
    flat = points.flatten(0, -3)
    moves = draw_moves(len(flat), grid, draws)
    matrix, shift = moves.matrix.to(flat), moves.shift.to(flat) / (max(grid) / 2)
    coordinates, present = flat[..., :3], flat[..., 3:]
    moved = coordinates @ matrix.transpose(1, 2) + shift[:, None]
    if present.shape[-1]:
        moved = torch.cat([moved * present, present], dim=-1)
    return moved.view(points.shape)


def _view(settings: EvaluationConfig, grid: Grid) -> View:
    if settings.classifier in OF_POINTS:
        # half a cell's difference between real points and those of a set would cost accuracy
        def as_known(clouds: PointClouds) -> Tensor:
            return lifts.centred_points(known_positions(clouds))

        def at_cells(clouds: PointClouds) -> Tensor:
            return lifts.centred_points(cell_centres(clouds))

        training = as_known if settings.projection == "soft" else at_cells
        return View(training, as_known, lambda points, draws: augment_points(points, grid, draws))
    if settings.projection == "soft":
        spots = settings.projection_bandwidth, settings.projection_saturation
        return View(lambda clouds: soft_project(clouds, *spots), project, augment)
    return View(project, project, augment)


def _new_ensemble(count: int, clouds: PointClouds, settings: EvaluationConfig, seed: int) -> Ensemble:
    height, width = clouds.grid[1:]
    kind = (settings.classifier, height, width, len(clouds.class_names), settings.width)
    return Ensemble([build_classifier(*kind, generator(seed, "classifier", number)) for number in range(count)])


def _train(
    shares: list[Ensemble],
    inputs: Tensor,
    labels: Tensor,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    settings: EvaluationConfig,
    seed: int,
    progress: Callable[[float], None],
) -> None:
    """SGD 0.01, momentum 0.9, weight decay 5e-4; a tenth of the step size, with fresh momentum, after half the epochs."""
    sizes = [len(share.stacked[0]) for share in shares]

    def step(number: int, seen: Tensor, right: Tensor) -> Tensor:
        loss = F.cross_entropy(shares[number](seen).flatten(0, 1), right.flatten(0, 1), reduction="sum") / seen.shape[1]
        optimisers[number].zero_grad()
        loss.backward()
        optimisers[number].step()
        return loss.detach()

    with side_by_side(len(shares)) as calls:
        for epoch in range(settings.epochs):
            if epoch in (0, settings.epochs // 2 + 1):
                descent = {"lr": 0.01 if epoch == 0 else 0.001, "momentum": 0.9, "weight_decay": 5e-4}
                optimisers = [torch.optim.SGD(share.parameters(), **descent) for share in shares]
            draws = generator(seed, "evaluation epoch", epoch)
            order = torch.rand(sum(sizes), len(inputs), generator=draws).argsort(1).to(inputs.device)
            for chosen in order.split(settings.batch, dim=1):
                seen, right = augment(inputs[chosen], draws), labels[chosen]
                losses = calls(step, range(len(shares)), seen.split(sizes), right.split(sizes))
            _refuse_non_finite(torch.stack(losses), f"epoch {epoch} of training classifiers", settings)
            progress((epoch + 1) / settings.epochs)


def _refuse_non_finite(values: Tensor, when: str, settings: EvaluationConfig) -> None:
    if not values.isfinite().all():
        raise EvaluationFailed(
            f"{when}: what the classifier '{settings.classifier}' computes is {values[~values.isfinite()][0]}; likely cause: its "
            "training diverged on these clouds (another evaluation.classifier may not)"
        )
