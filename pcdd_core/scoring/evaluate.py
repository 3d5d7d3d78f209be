"""Score a set of clouds: train classifiers on it from scratch and test them on real clouds.

Images are augmented as in the published code of DC (Zhao et al. 2021), points and grids by moves in
the same ranges. Classifiers are trained with its step sizes.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine import lifts
from ..errors import EvaluationFailed, InputError
from ..geometry.clouds import Grid, PointClouds, resampled
from ..geometry.grid import cell_centres
from ..nn.classifiers import (
    Classifier,
    ConvNet,
    Ensemble,
    PublishedPointNetClassifier,
    Separate,
)
from ..pieces import Count, Networks, Piece, Positive, setting
from ..seeds import generator
from ..threads import side_by_side, threads_for
from .augment import augment, augment_fast, augment_grids, augment_points


class Protocol(Piece):
    """A scoring protocol. Training inputs are augmented, and the last epoch is scored."""

    label: str = setting(default="standard", help="its name in scores and records")
    networks: Networks = setting(default=20, help="number of independent classifiers, averaged")
    epochs: Count = setting(
        default=1001,
        help="epochs per classifier, 1001 in DC's code; the step size falls to a tenth after "
        "(epochs - 1) // 2 + 2 epochs",
    )
    batch: Count = setting(
        default=256,
        help="clouds per training step of a classifier; also test clouds per augmented batch",
    )
    augment_test: bool = setting(default=False, help="augment the test inputs as well")
    augmentation: Literal["published", "fast", "none"] = setting(
        default="published",
        help="augmentation of images: published: as in DC's code, a crop padded with the batch "
        "mean, a nearest-neighbour scale or a cubic-spline rotation; fast: one bilinear affine "
        "resampling on an empty background, for the validation split only; none: of no input, "
        "images or points",
    )
    classifier: Classifier | None = setting(
        default=None, help="its classifier; null: the chosen classifier"
    )
    normalise: bool = setting(
        default=False, help="bring each cloud to zero mean and the unit sphere first"
    )


STANDARD = Protocol()  # Zhao et al. 2021, and later work
PAPER = Protocol("paper", networks=5, augment_test=True)  # the paper's code
SADM = Protocol(  # Yim et al. 2025, github.com/donguk071/SADM, for 3D clouds
    "sadm",
    networks=10,
    epochs=501,
    batch=8,
    augmentation="none",
    classifier=PublishedPointNetClassifier(),
    normalise=True,
)
PROTOCOLS = {protocol.label: protocol for protocol in (STANDARD, PAPER, SADM)}
# Test inputs per network in one forward pass. A larger chunk does not fit the caches of a CPU.
CPU_CHUNK, GPU_CHUNK = 32, 128


class Projection(Piece):
    """A kind of training input. Test inputs are always hard, or points as they are."""

    @abstractmethod
    def grid(self, clouds: PointClouds) -> Tensor:
        """Return the values of all cells: float32 (clouds, 1, depth, height, width)."""

    def image(self, clouds: PointClouds) -> Tensor:
        """Project clouds along the depth axis: float32 (clouds, 1, height, width)."""
        return self.grid(clouds).amax(dim=2)

    @abstractmethod
    def points(self, clouds: PointClouds) -> PointClouds:
        """Return the clouds at the positions that classifiers of points are trained on."""


class Hard(Projection, name="hard"):
    """Binary cells and images (the paper), and points at the centres of their cells."""

    def grid(self, clouds: PointClouds) -> Tensor:
        """Return `lifts.occupancy` of the clouds."""
        return lifts.occupancy(clouds)

    def points(self, clouds: PointClouds) -> PointClouds:
        """Return the clouds at cell centres."""
        return cell_centres(clouds)


class Soft(Projection, name="soft"):
    """Grey cells and images in which each point is a spot, and points at their exact positions."""

    bandwidth: Positive = setting(default=0.5, help="standard deviation of the spots, in cells")
    saturation: Positive = setting(
        default=6.0, help="as lift.saturation; large values turn spots into white discs"
    )

    def grid(self, clouds: PointClouds) -> Tensor:
        """Return `lifts.gaussian_occupancy` of the clouds."""
        return lifts.gaussian_occupancy(clouds, self.bandwidth, self.saturation)

    def points(self, clouds: PointClouds) -> PointClouds:
        """Return the clouds as they are."""
        return clouds


@dataclass(frozen=True)
class Conversion:
    """Conversion of clouds to the inputs of a classifier.

    training: converts clouds to training inputs, float32 (clouds, ...)
    test:     converts clouds to test inputs, float32 (clouds, ...)
    augment:  augments inputs (networks, clouds, ...), with one draw per input; same shape
    """

    training: Callable[[PointClouds], Tensor]
    test: Callable[[PointClouds], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Score:
    """Accuracies in percent, one per classifier.

    recalls: percentage of the test clouds of each class that is recognised, one tuple per
        classifier. Accuracies are then balanced, the means of these. (): accuracies are plain.
    """

    protocol: str
    accuracies: tuple[float, ...]
    recalls: tuple[tuple[float, ...], ...] = ()

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation over the classifiers, divided by their number as in DC's code."""
        return torch.tensor(self.accuracies, dtype=torch.float64).std(correction=0).item()


def evaluate(
    clouds: PointClouds,
    test: PointClouds,
    classifier: Classifier = ConvNet(),
    protocol: Protocol | Sequence[Protocol] = STANDARD,
    projection: Projection = Hard(),
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[float, str], None] = lambda fraction, text: None,
    balanced: bool = False,
) -> dict[str, Score]:
    """Train classifiers on `clouds` and score them on `test`: {label of the protocol: Score}.

    classifier: of the protocols that have none of their own
    protocol: one or several. Protocols that differ in `networks` and `augment_test` only have the
        same training, so they share the classifiers: each uses the first ones.
    projection: training inputs
    seed: of all random draws. torch's global generator is neither used nor changed.
    progress: called with the fraction done and the name of the stage
    balanced: accuracy is the mean recall of the classes in `test`, for classes of unequal sizes

    Classifiers of neighbourhoods cover a smaller distance where points are dense. Their test clouds
    are random subsamples with at most as many points as the largest training cloud. Raises
    InputError if a classifier cannot be trained on the set, and EvaluationFailed if training
    diverges.
    """
    protocols = [protocol] if isinstance(protocol, Protocol) else list(protocol)
    groups: dict[tuple[Any, ...], list[Protocol]] = {}
    for each in protocols:
        training = (each.classifier or classifier, each.epochs, each.batch)
        groups.setdefault((*training, each.augmentation, each.normalise), []).append(each)
    scores: dict[str, Score] = {}
    for (chosen, *_), group in groups.items():
        scores |= _evaluate(
            clouds, test, chosen, group, projection, seed, device, progress, balanced
        )
    return {each.label: scores[each.label] for each in protocols}


def _evaluate(
    clouds: PointClouds,
    test: PointClouds,
    classifier: Classifier,
    protocols: list[Protocol],
    projection: Projection,
    seed: int,
    device: torch.device | str,
    progress: Callable[[float, str], None],
    balanced: bool,
) -> dict[str, Score]:
    """Return the scores of protocols with the same training, see `evaluate`."""
    first = protocols[0]
    _refuse_unfit(clouds, test, classifier)
    conversion = _conversion(classifier, projection, first, clouds.grid)
    if classifier.neighbours:
        sizes = test.sizes.clamp(max=int(clouds.sizes.max())).tolist()
        test = resampled(test, sizes, generator(seed, "points of test clouds"))
    inputs, labels = conversion.training(clouds).to(device), clouds.targets.to(device)
    test_inputs, test_labels = conversion.test(test), test.labels
    most = max(each.networks for each in protocols)
    networks = _new_networks(most, clouds, classifier, seed).to(device)
    shares = networks.split(threads_for(inputs.device))
    _train(
        shares, inputs, labels, conversion.augment, first, seed,
        lambda fraction: progress(fraction, "training classifiers"),
    )  # fmt: skip
    networks.eval()
    chunk = GPU_CHUNK if inputs.is_cuda else CPU_CHUNK
    scores = {}
    for each in protocols:
        correct = torch.zeros(each.networks, len(test.class_names), device=device)
        batches = torch.arange(len(test)).split(each.batch if each.augment_test else chunk)
        for number, chosen in enumerate(batches):
            batch = test_inputs[chosen].to(device)
            copies = batch.expand(each.networks, *batch.shape)
            if each.augment_test:
                copies = conversion.augment(copies, generator(seed, "test augmentation", number))
            with torch.no_grad():
                logits = torch.cat([networks(part) for part in copies.split(chunk, dim=1)], dim=1)
            _refuse_non_finite(logits, "scoring")  # argmax would return the first class
            expected = test_labels[chosen].to(device)
            correct.index_add_(1, expected, (logits.argmax(-1) == expected).to(correct))
            progress((int(chosen[-1]) + 1) / len(test), f"testing ({each.label} protocol)")
        scores[each.label] = _score(each.label, correct.cpu(), test, balanced)
    return scores


def _score(protocol: str, correct: Tensor, test: PointClouds, balanced: bool) -> Score:
    """Return the score of classifiers. correct: right answers (networks, classes)."""
    if not balanced:
        return Score(protocol, tuple((100 * correct.sum(1) / len(test)).tolist()))
    sizes = torch.bincount(test.labels.cpu(), minlength=correct.shape[1])
    recalls = 100 * correct[:, sizes > 0].double() / sizes[sizes > 0]
    return Score(protocol, tuple(recalls.mean(1).tolist()), tuple(map(tuple, recalls.tolist())))


def project(clouds: PointClouds) -> Tensor:
    """Project clouds along the depth axis to binary images: float32 (clouds, 1, height, width).

    This is the paper's projection. It truncates coordinates to integers and sets these cells to 1.
    """
    return lifts.occupancy(clouds).amax(dim=2)


def soft_project(clouds: PointClouds, bandwidth: float, saturation: float) -> Tensor:
    """Project clouds along the depth axis to grey images: float32 (clouds, 1, height, width).

    Values lie in [0, 1]. Each point is a Gaussian spot, as in `lifts.gaussian_occupancy`. The spot
    depends on the position of the point in its cell and may cover parts of several cells.
    bandwidth: standard deviation, cells
    saturation: a cell with mass m has the value 1 - exp(-saturation m)
    """
    return lifts.gaussian_occupancy(clouds, bandwidth, saturation).amax(dim=2)


def _refuse_unfit(clouds: PointClouds, test: PointClouds, classifier: Classifier) -> None:
    """Raise InputError if a classifier with batch norm cannot be trained on the clouds."""
    if not classifier.own_state:
        return
    if len(clouds) < 2:
        raise InputError(
            f"evaluation by {classifier.name!r}: batch norm needs two clouds or more, not 1"
        )
    for part, name in ((clouds, "set"), (test, "test clouds")):
        if int(part.sizes.min()) != int(part.sizes.max()):
            raise InputError(
                f"evaluation by {classifier.name!r}: the {name} have {part.sizes.min()} to "
                f"{part.sizes.max()} points; expected clouds of equal sizes"
            )


def _conversion(
    classifier: Classifier, projection: Projection, protocol: Protocol, grid: Grid
) -> Conversion:
    augmentations: dict[str, Callable[[Tensor, torch.Generator], Tensor]]
    if classifier.of_points:
        # Half a cell of difference between training and test points would cost accuracy.
        augmentations = dict.fromkeys(
            ("published", "fast"), lambda points, draws: augment_points(points, grid, draws)
        )
        place = in_unit_sphere if protocol.normalise else lifts.centred_points
        training, test = (lambda clouds: place(projection.points(clouds))), place
    elif classifier.of_grids:
        augmentations = dict.fromkeys(("published", "fast"), augment_grids)
        training, test = projection.grid, lifts.occupancy
    else:
        augmentations = {"published": augment, "fast": augment_fast}
        training, test = projection.image, project
    augmentations["none"] = lambda inputs, draws: inputs
    return Conversion(training, test, augmentations[protocol.augmentation])


def in_unit_sphere(clouds: PointClouds) -> Tensor:
    """Return clouds of equal sizes with mean 0 and largest distance 1: (clouds, points, 3)."""
    points = lifts.centred_points(clouds)
    centred = points - points.mean(1, keepdim=True)
    return centred / centred.norm(dim=2).amax(1)[:, None, None]


def _new_networks(
    count: int, clouds: PointClouds, classifier: Classifier, seed: int
) -> Ensemble | Separate:
    classes = len(clouds.class_names)
    networks = [
        classifier.new(clouds.grid, classes, generator(seed, "classifier", number))
        for number in range(count)
    ]
    if classifier.own_state:
        return Separate(networks)
    return Ensemble(networks, classifier.one_by_one)


def _train(
    shares: Sequence[Ensemble | Separate],
    inputs: Tensor,
    labels: Tensor,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    protocol: Protocol,
    seed: int,
    progress: Callable[[float], None],
) -> None:
    """Train by SGD with step size 0.01, then 0.001; momentum 0.9 and weight decay 5e-4.

    The second stage starts with fresh momentum. DC's code trains epochs 0 to n and starts the
    second stage after epoch n // 2 + 1. Of 1,001 epochs the first stage has 502.
    """
    sizes = [len(share) for share in shares]
    first_stage = (protocol.epochs - 1) // 2 + 2

    def step(number: int, batch: Tensor, targets: Tensor) -> Tensor:
        logits = shares[number](batch).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(0, 1), reduction="sum") / batch.shape[1]
        optimisers[number].zero_grad()
        loss.backward()
        optimisers[number].step()
        return loss.detach()

    with side_by_side(len(shares)) as calls:
        for epoch in range(protocol.epochs):
            if epoch in (0, first_stage):
                step_size = 0.01 if epoch == 0 else 0.001
                optimisers = [
                    torch.optim.SGD(share.parameters(), step_size, momentum=0.9, weight_decay=5e-4)
                    for share in shares
                ]
            draws = generator(seed, "evaluation epoch", epoch)
            order = torch.rand(sum(sizes), len(inputs), generator=draws).argsort(1)
            for chosen in _batches(order.to(inputs.device), protocol.batch, shares[0]):
                batch, targets = augment(inputs[chosen], draws), labels[chosen]
                losses = calls(step, range(len(shares)), batch.split(sizes), targets.split(sizes))
            when = f"epoch {epoch} of training classifiers"
            _refuse_non_finite(torch.stack(losses), when)
            progress((epoch + 1) / protocol.epochs)


def _batches(order: Tensor, size: int, networks: Ensemble | Separate) -> list[Tensor]:
    """Split the order of the clouds into batches. The last one may be smaller.

    order: (networks, clouds). For batch norm, a last batch of one cloud joins the one before.
    """
    count = order.shape[1]
    sizes = [size] * (count // size) + [count % size] * (count % size > 0)
    if isinstance(networks, Separate) and sizes[-1] == 1 and len(sizes) > 1:
        sizes[-2:] = [size + 1]
    return list(order.split(sizes, dim=1))


def _refuse_non_finite(values: Tensor, when: str) -> None:
    if not values.isfinite().all():
        raise EvaluationFailed(
            f"{when}: the classifier computes {values[~values.isfinite()][0]}; likely cause: its "
            "training diverged on these clouds (try another evaluation.classifier)"
        )
