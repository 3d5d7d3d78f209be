"""Every setting of a run, in one place. Presets name these, notebooks and the command line set them, records keep them.

A setting that does not exist, has the wrong type or lies out of range is an InputError that names the nearest valid one.
Checked by pydantic; fields are documented where they are declared, and `pcdd distill --help` prints that text.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from .errors import InputError, nearest_names

checked = checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def setting(default: Any, text: str) -> Any:
    """A field with its explanation."""
    return dataclasses.field(default=default, metadata={"help": text})


@checked
class DataConfig:
    """Which real clouds."""

    name: Literal[
        "mnist", "digits", "solids", "folder", "modelnet10", "modelnet40", "shapenetcore", "shapenetpart", "scanobjectnn",
        "modelnet10-voxels24",
    ] = setting(
        "mnist",
        "images: mnist; digits: scikit-learn's embedded handwritten ones. Shapes: solids, made of nothing; folder, your own, at "
        "`folder`; or a published set, see pcdd_core/shapes.py; modelnet10-voxels24 is ModelNet10 as far as 24^3 grids keep it",
    )  # fmt: skip
    threshold: Fraction = setting(
        75 / 255, "images: a cell is occupied above this fraction of full brightness"
    )
    max_points: Count | None = setting(
        None, "images: keep the first so many points of a training cloud in raster order; null: all"
    )
    points: Count = setting(1024, "shapes: points of each, drawn on its surface")
    cells: Annotated[int, Field(ge=4)] = setting(24, "shapes: of the grid along each axis")
    folder: str | None = setting(
        None, "name=folder: a folder of classes of .off, .ply, .xyz, .txt, .npy or .npz files"
    )
    validation_fraction: Fraction = setting(
        0.1, "part of the training set held out; every choice is made on it"
    )


@checked
class CloudsConfig:
    """Which synthetic clouds to start from."""

    initialisation: Literal["scatter", "real", "file"] = setting(
        "scatter",
        "scatter: uniform in the grid; real: random training clouds; file: the set at `file`",
    )
    clouds_per_class: Count | tuple[Count, ...] = setting(
        1, "clouds of every class, or a list with one number per class"
    )
    points_per_cloud: Count | tuple[Count, ...] | None = setting(
        250,
        "points of every cloud, or a list with one number per cloud; null: as many as the real cloud has",
    )
    file: str | None = setting(
        None, "a distilled set (.npz) to start from, with initialisation=file"
    )


@checked
class LiftConfig:
    """How points become a network's input."""

    name: Literal["coordinates", "gaussian", "points"] = setting(
        "coordinates",
        "coordinates: raw coordinates as features of cells (the paper); gaussian: differentiable occupancy; points: themselves, "
        "for network.backend=pointnet",
    )
    bandwidth_start: Positive = setting(
        2.5, "gaussian: standard deviation in cells at the first iteration"
    )
    bandwidth_end: Positive = setting(
        0.5, "gaussian: standard deviation in cells at the last iteration"
    )
    real_bandwidth_end: Positive | None = setting(
        None,
        "gaussian: the same for real clouds, where they shall be sharper than synthetic ones; null: as these",
    )
    saturation: Positive = setting(
        3.0, "gaussian: a cell with mass m shows 1 - exp(-saturation m), at the last iteration"
    )
    saturation_start: Positive | None = setting(
        None,
        "gaussian: the same at the first iteration; null: as at the last. Near 1 a wide point shows about as much as one "
        "cell; at 6 several times as much, which is lost when points become narrow, and leaves holes",
    )
    closed: bool = setting(
        False,
        "gaussian: what of a point would lie beyond the grid is in its outermost cells; else it is lost, and points that are "
        "not wanted hide at the grid's edge, above all in the corners of three dimensions",
    )
    hard_from: Annotated[float, Field(ge=0, le=1)] = setting(
        1.0,
        "gaussian: from this fraction of the run on, cells show 0 or 1, as they are scored, with the Gaussian's gradient; "
        "1: never",
    )


@checked
class NetworkConfig:
    """The network whose gradients are matched: layers of [convolution, norm, ReLU, pooling] and a linear head."""

    backend: Literal["torch", "sparse", "minkowski", "pointnet"] = setting(
        "torch",
        "torch: dense Conv3d; sparse: generalised sparse convolution, twice differentiable; minkowski: the same by "
        "MinkowskiEngine's own layers, which lose second derivatives (needs `make minkowski`); pointnet: sees points, not a grid, "
        "and has its own layers, of which `width` is the last in front of the maximum",
    )
    layers: Count = setting(3, "how many layers; each halves the grid")
    width: Count = setting(128, "channels of every layer")
    pooling: Literal["max", "average"] = setting("max", "pooling over blocks of 2 cells per axis")
    norm: Literal["none", "instance", "batch"] = setting(
        "none", "normalisation after each convolution"
    )
    padding: Count = setting(
        1,
        "torch: empty cells put around the grid before the first convolution; 3 makes 28 x 28 into 32 x 32, which halves "
        "evenly, as the classifiers do",
    )
    weights: Literal["default", "kaiming_normal"] = setting(
        "default",
        "initial weights: the layer library's default, or Kaiming normal with fan out for convolutions",
    )
    paper_layout: bool = setting(
        False,
        "lay the network out as the paper's code did: torch pads and pools the depth axis of a flat grid too; "
        "sparse and minkowski hand their linear head the full grid with only a corner filled",
    )
    origin_shift: bool = setting(
        False,
        "subtract the smallest occupied cell of the whole batch, as the paper's code did: torch before "
        "the first convolution, sparse and minkowski before the linear head; needs lift.name=coordinates",
    )
    kernel_maps: Literal["torch", "minkowski"] = setting(
        "torch",
        "who looks up neighbouring cells for backend sparse: torch (the faster), or minkowski",
    )


@checked
class ObjectiveConfig:
    """What is minimised."""

    name: Literal[
        "gradient_matching",
        "distribution_matching",
        "maximum_mean_discrepancy",
        "sorted_feature_matching",
        "feature_regression",
        "unrolled_training",
    ] = setting(
        "gradient_matching",
        "gradient_matching: distance between gradients (the paper); distribution_matching: distance between mean features; "
        "maximum_mean_discrepancy: distance between the features' distributions, for several clouds per class; "
        "sorted_feature_matching: the same of all points' features, sorted, for network.backend=pointnet; "
        "feature_regression: error on real clouds of the linear fit to the synthetic clouds' features; unrolled_training: "
        "cross-entropy on real clouds after some steps of training on the synthetic ones",
    )
    distribution_matching_until: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0,
        "until this fraction of the run minimise distribution_matching instead, which is cheap: points find their places "
        "by it, and the objective proper only finishes; 0: never",
    )
    distance: Literal[
        "sum_of_squares",
        "layerwise_cosine",
        "layerwise_cosine_of_weights",
        "mean_squared_error",
        "global_cosine",
    ] = setting(
        "sum_of_squares",
        "gradient_matching: distance between real and synthetic gradients, see pcdd_core.objectives",
    )
    ridge: Positive = setting(
        1e-3, "feature_regression: ridge, in units of the features' mean squared length"
    )
    unrolled_steps: Count = setting(50, "unrolled_training: how many steps; memory grows with them")
    unrolled_steps_before: NonNegative = setting(
        0,
        "unrolled_training: a random number of steps up to this comes before, through which nothing is differentiated",
    )
    unrolled_step_size: Positive = setting(
        0.01, "unrolled_training: step size of these (SGD, momentum 0.9, as evaluation's)"
    )
    unrolled_batch: Count | None = setting(
        None,
        "unrolled_training: synthetic clouds of each class in a step, drawn anew for each; null: all of them",
    )
    learned_labels: bool = setting(
        False,
        "unrolled_training: learn each cloud's label too, as probabilities of the classes, beginning at 0.94 for its own",
    )
    real_batch: Count = setting(256, "real clouds per class and iteration")
    real_gradients: Literal["fresh"] | Count = setting(
        "fresh",
        "gradient_matching: fresh: of a new batch in every iteration (the paper); a number: of so many "
        "batches per class, computed once for each network, one of them drawn in each iteration",
    )
    real_precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "in what the network sees the real clouds (mixed precision): bfloat16 is faster where the processor knows it, "
        "and its error a fraction of the difference between two batches; for backend torch, matching objectives only",
    )
    augmentation: bool = setting(
        False,
        "shift, scale or turn real and synthetic clouds before each comparison: those of a class by the same random move "
        "(DSA), in feature_regression each by its own; unrolled_training moves the synthetic ones only, before every step",
    )


@checked
class OptimiserConfig:
    """How points are moved."""

    name: Literal["sgd", "adam"] = setting(
        "sgd", "sgd moves by step_size x gradient; adam by about step_size"
    )
    step_size: Positive = setting(0.1, "sgd: cells per unit of gradient; adam: cells per iteration")
    label_step_size: Positive = setting(
        0.02, "objective.learned_labels: the same for the labels' logits"
    )
    turn_step_size: Positive | None = setting(
        None,
        "for grids with depth: each cloud is turned as a whole too, radians as step_size is in cells; null: it is not (SADM does)",
    )
    momentum: Fraction = setting(0.5, "of sgd; of adam's first moment")
    final_step_fraction: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0, "the step size falls along a cosine to this fraction of itself; 1 keeps it constant"
    )


@checked
class ScheduleConfig:
    """How long, and when the network changes."""

    iterations: Count = setting(2500, "updates of the coordinates")
    iterations_per_network: NonNegative = setting(
        0,
        "draw a new random network after so many iterations (DC's outer loop); 0: one network for the whole run (paper)",
    )
    training_steps: NonNegative = setting(
        0,
        "train the network so many steps after each iteration (DC's inner loop), so that points meet it at many stages",
    )
    training_data: Literal["synthetic", "real"] = setting(
        "synthetic", "what on: the synthetic clouds (DC), or `training_batch` real ones (IDC)"
    )
    training_batch: Count = setting(64, "real clouds of such a step, of all classes")
    training_step_size: Positive = setting(0.01, "step size of that training (SGD, momentum 0.5)")
    snapshots: Count = setting(
        60, "how many times in the run, evenly spaced, the coordinates are kept for pictures"
    )


@checked
class EvaluationConfig:
    """How the result is scored; the protocols' own numbers unless they are scaled down here."""

    protocols: Annotated[tuple[Literal["paper", "standard"], ...], Field(min_length=1)] = setting(
        ("standard", "paper"),
        "standard: the field's, 20 networks; paper: 5 networks, test images augmented too",
    )
    split: Literal["test", "validation"] = setting(
        "test",
        "what to score on; choose by `validation`, the held-out part of the training set, never by test",
    )
    classifier: Literal[
        "convnet", "mlp", "lenet", "resnet18", "sparse", "pointnet", "pointnet++", "dgcnn"
    ] = setting(
        "convnet",
        "what learns from the set: of images: convnet: ConvNet-3 (the protocols' own), mlp, lenet, resnet18, or sparse: 3 "
        "layers of sparse convolution; of points, at the centres of their cells (soft: where they are): pointnet, pointnet++, dgcnn",
    )
    projection: Literal["hard", "soft"] = setting(
        "hard",
        "what classifiers learn from: hard: binary images (paper); soft: every point a spot, grey. Test images are hard",
    )
    projection_bandwidth: Positive = setting(0.5, "soft: standard deviation of the spots in cells")
    projection_saturation: Positive = setting(
        6.0, "soft: as lift.saturation; large: spots become white discs"
    )
    iteration: NonNegative | None = setting(
        None, "score the clouds as they are before this iteration; null: after the last one"
    )
    curve: tuple[NonNegative, ...] = setting(
        (),
        "also score the clouds before these iterations, for a curve over the run, by smaller classifiers "
        "(5 of width 32, 300 epochs); the paper's code scores before 0, 250, 625, 1250, 1875 and 2499",
    )
    networks: Count | None = setting(None, "classifiers trained; null: the protocol's number")
    epochs: Count = setting(
        1001,
        "epochs of each classifier, 1001 in DC's code; the step size falls to a tenth after "
        "(epochs - 1) // 2 + 2 of them",
    )
    batch: Count = setting(
        256,
        "clouds per step of their training; paper protocol: also test clouds per augmented batch",
    )
    augmentation: Literal["published", "fast"] = setting(
        "published",
        "of images: published: as DC's code, whose functions are a crop padded by the batch mean, "
        "a nearest-neighbour scale and a cubic-spline rotation; fast: one bilinear affine "
        "resampling on an empty background, for split=validation only",
    )
    width: Count = setting(
        128, "convnet, sparse: channels of each classifier; the others have their own"
    )


@checked
class Config:
    """A whole run."""

    data: DataConfig = setting(DataConfig(), "")
    clouds: CloudsConfig = setting(CloudsConfig(), "")
    lift: LiftConfig = setting(LiftConfig(), "")
    network: NetworkConfig = setting(NetworkConfig(), "")
    objective: ObjectiveConfig = setting(ObjectiveConfig(), "")
    optimiser: OptimiserConfig = setting(OptimiserConfig(), "")
    schedule: ScheduleConfig = setting(ScheduleConfig(), "")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "")
    seed: NonNegative = setting(0, "of every random draw; one seed, split per use")


def to_dict(config: Config) -> dict:
    """The settings as plain nested dictionaries, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(settings: dict) -> Config:
    """The configuration with these settings; the rest have their defaults. Raises InputError."""
    _refuse_unknown(settings, Config, "")
    try:
        return pydantic.TypeAdapter(Config).validate_json(
            json.dumps(settings, default=_plain), strict=True
        )
    except pydantic.ValidationError as error:
        first = max(
            error.errors(), key=lambda found: len(found["loc"])
        )  # of a choice of types, the closest
        where = [part for part in first["loc"] if part in _all_names()]
        value = functools.reduce(lambda section, name: section[name], where, settings)
        raise InputError(f"setting {'.'.join(where)} = {value!r}: {first['msg']}") from None


def override(config: Config, settings: dict[str, Any]) -> Config:
    """`config` with some settings changed, by dotted name: `override(config, {"network.layers": 2})`."""
    changed = to_dict(config)
    for name, value in settings.items():
        *sections, last = name.split(".")
        place = changed
        for section in sections:
            if not isinstance(place.get(section), dict):
                raise _unknown(name)
            place = place[section]
        if last not in place or isinstance(place[last], dict):
            raise _unknown(name)
        place[last] = value
    return from_dict(changed)


def identity(config: Config) -> str:
    """Eight hexadecimal digits that differ when any setting does."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def described_settings() -> dict[str, tuple[Any, str]]:
    """Every setting by dotted name, with its default and its explanation."""
    found = {}
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default):
            for field in dataclasses.fields(section.default):
                found[f"{section.name}.{field.name}"] = (field.default, field.metadata["help"])
        else:
            found[section.name] = (section.default, section.metadata["help"])
    return found


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own."""
    if hasattr(value, "item"):
        return value.item()
    raise InputError(
        f"value {value!r} is no setting: expected a number, a word, true, false, null or a list"
    )


def _all_names() -> set[str]:
    return {part for name in described_settings() for part in name.split(".")}


def _unknown(name: str) -> InputError:
    return InputError(f"no setting is called {name!r}; {nearest_names(name, described_settings())}")


def _refuse_unknown(settings: dict, kind: type, prefix: str) -> None:
    types = get_type_hints(kind)
    for name, value in settings.items():
        if name not in types:
            raise _unknown(prefix + name)
        if dataclasses.is_dataclass(types[name]) and isinstance(value, dict):
            _refuse_unknown(value, types[name], f"{prefix}{name}.")
