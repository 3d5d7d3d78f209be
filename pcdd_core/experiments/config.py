"""Define all settings of a run.

Presets, notebooks and the command line change these settings, and records store them. Pydantic
checks them. A setting that does not exist, has the wrong type or is out of range raises an
InputError that names the setting and the valid alternatives. `pcdd distill --help` prints the help
text that each field declares.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from ..errors import InputError, nearest_names

checked = checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def setting(default: Any, text: str) -> Any:
    """Return a dataclass field with this default and help text."""
    return dataclasses.field(default=default, metadata={"help": text})


@checked
class DataConfig:
    """Real clouds: data set and preparation."""

    name: Literal[
        "mnist", "digits", "solids", "folder", "modelnet10", "modelnet40", "shapenetcore",
        "shapenetpart", "scanobjectnn", "modelnet10-voxels24",
    ] = setting(
        "mnist",
        "images: mnist; digits (scikit-learn's handwritten digits, no files needed). Shapes: "
        "solids (generated, no files needed); folder (your own files, in `folder`); or a published "
        "data set, see pcdd_core/data/shape_files.py. modelnet10-voxels24 is ModelNet10 reduced to "
        "occupancy grids of 24^3 cells",
    )  # fmt: skip
    threshold: Fraction = setting(
        75 / 255, "images: a cell is occupied above this fraction of full brightness"
    )
    max_points: Count | None = setting(
        None, "images: keep the first points of each training cloud in raster order; null: all"
    )
    points: Count = setting(1024, "shapes: points per shape, sampled on its surface")
    cells: Annotated[int, Field(ge=4)] = setting(24, "shapes: cells of the grid along each axis")
    folder: str | None = setting(
        None,
        "name=folder: a folder of classes with .off, .ply, .xyz, .txt, .npy or .npz files",
    )
    validation_fraction: Fraction = setting(
        0.1, "fraction of the training set in the validation split; make every choice on that split"
    )


@checked
class CloudsConfig:
    """Initial synthetic clouds."""

    initialisation: Literal["scatter", "real", "file"] = setting(
        "scatter",
        "scatter: points uniform in the grid; real: random training clouds; "
        "file: the distilled set in `file`",
    )
    clouds_per_class: Count | tuple[Count, ...] = setting(
        1, "clouds per class: one number, or a list with one number per class"
    )
    points_per_cloud: Count | tuple[Count, ...] | None = setting(
        250,
        "points per cloud: one number, or a list with one number per cloud; null: as many as in "
        "the real cloud",
    )
    file: str | None = setting(None, "initialisation=file: a distilled set (.npz) to start from")


@checked
class LiftConfig:
    """Conversion of points to the input of the network."""

    name: Literal["coordinates", "gaussian", "points"] = setting(
        "coordinates",
        "coordinates: raw coordinates as features of cells (the paper); gaussian: differentiable "
        "occupancy; points: the points themselves, for network.backend=pointnet",
    )
    bandwidth_start: Positive = setting(
        2.5, "gaussian: standard deviation at the first iteration, in cells"
    )
    bandwidth_end: Positive = setting(
        0.5, "gaussian: standard deviation at the last iteration, in cells"
    )
    real_bandwidth_end: Positive | None = setting(
        None,
        "gaussian: bandwidth_end for real clouds, in cells; smaller values make them sharper than "
        "synthetic clouds; null: as bandwidth_end",
    )
    saturation: Positive = setting(
        3.0,
        "gaussian: a cell with mass m has the value 1 - exp(-saturation m); at the last iteration",
    )
    saturation_start: Positive | None = setting(
        None,
        "gaussian: saturation at the first iteration; null: as saturation. Near 1, the values of "
        "a wide point sum to about one cell. At 6 they sum to several cells; this excess "
        "disappears as points become narrow, and leaves holes",
    )
    closed: bool = setting(
        False,
        "gaussian: true: a point's mass beyond the grid counts in the outermost cells; false: it "
        "is lost, and unneeded points collect at the edge of the grid, where they have little "
        "mass, above all in the corners of 3D grids",
    )
    hard_from: Annotated[float, Field(ge=0, le=1)] = setting(
        1.0,
        "gaussian: from this fraction of the run on, cells have the values 0 or 1, as in the "
        "evaluation, with the gradient of the Gaussian occupancy; 1: never",
    )


@checked
class NetworkConfig:
    """Distillation network: layers of [convolution, norm, ReLU, pooling] and a linear head."""

    backend: Literal["torch", "sparse", "minkowski", "pointnet"] = setting(
        "torch",
        "torch: dense Conv3d; sparse: generalised sparse convolution, twice differentiable; "
        "minkowski: the same with MinkowskiEngine's layers, which lose second derivatives (needs "
        "`make minkowski`); pointnet: takes points instead of a grid and has its own layers; "
        "`width` sets the channels of the last layer before its maximum",
    )
    layers: Count = setting(3, "number of layers; each halves the grid")
    width: Count = setting(128, "channels of each layer")
    pooling: Literal["max", "average"] = setting("max", "pooling over blocks of 2 cells per axis")
    norm: Literal["none", "instance", "batch"] = setting(
        "none", "normalisation after each convolution"
    )
    padding: Count = setting(
        1,
        "torch: padding of the first convolution, in cells; 3 turns 28 x 28 cells into 32 x 32, "
        "which halve evenly, as in the classifiers",
    )
    weights: Literal["default", "kaiming_normal"] = setting(
        "default",
        "initial weights: default: as in the layer library; kaiming_normal: Kaiming normal with "
        "fan out for convolutions",
    )
    paper_layout: bool = setting(
        False,
        "use the layout of the paper's code: torch pads and pools the depth axis of a flat grid "
        "too; sparse and minkowski pass the full grid to the linear head with only a corner filled",
    )
    origin_shift: bool = setting(
        False,
        "subtract the smallest occupied cell of the whole batch, as the paper's code does: torch "
        "before the first convolution, sparse and minkowski before the linear head; needs "
        "lift.name=coordinates",
    )
    kernel_maps: Literal["torch", "minkowski"] = setting(
        "torch",
        "backend=sparse: library that finds neighbouring cells: torch (faster) or minkowski",
    )


@checked
class ObjectiveConfig:
    """Loss to minimise."""

    name: Literal[
        "gradient_matching",
        "distribution_matching",
        "maximum_mean_discrepancy",
        "sorted_feature_matching",
        "feature_regression",
        "unrolled_training",
    ] = setting(
        "gradient_matching",
        "gradient_matching: distance between gradients (the paper); distribution_matching: "
        "distance between mean features; maximum_mean_discrepancy: distance between the "
        "distributions of features, for several clouds per class; sorted_feature_matching: the "
        "same for the sorted features of all points, for network.backend=pointnet; "
        "feature_regression: error on real clouds of a linear fit to the features of synthetic "
        "clouds; unrolled_training: cross-entropy on real clouds after some steps of training on "
        "synthetic clouds",
    )
    distribution_matching_until: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0,
        "minimise distribution_matching, which is cheap, until this fraction of the run, and "
        "objective.name after it; the first places the points, the second refines them; 0: never",
    )
    distance: Literal[
        "sum_of_squares",
        "layerwise_cosine",
        "layerwise_cosine_of_weights",
        "mean_squared_error",
        "global_cosine",
    ] = setting(
        "sum_of_squares",
        "gradient_matching: distance between real and synthetic gradients, see "
        "pcdd_core.objectives",
    )
    ridge: Positive = setting(
        1e-3,
        "feature_regression: ridge regularisation, in units of the mean squared length of features",
    )
    unrolled_steps: Count = setting(
        50, "unrolled_training: differentiated training steps; memory grows with their number"
    )
    unrolled_steps_before: NonNegative = setting(
        0,
        "unrolled_training: a random number of steps, at most this, comes first and is not "
        "differentiated",
    )
    unrolled_step_size: Positive = setting(
        0.01,
        "unrolled_training: step size of the training (SGD, momentum 0.9, as in the evaluation)",
    )
    unrolled_batch: Count | None = setting(
        None,
        "unrolled_training: synthetic clouds per class in each training step, a new random "
        "subsample for each step; null: all clouds",
    )
    learned_labels: bool = setting(
        False,
        "unrolled_training: learn the label of each cloud too, as class probabilities; of ten "
        "classes, a cloud's own class starts at 0.94",
    )
    real_batch: Count = setting(256, "real clouds per class and iteration")
    real_gradients: Literal["fresh"] | Count = setting(
        "fresh",
        "gradient_matching: fresh: compute real gradients on a new batch in each iteration (the "
        "paper); a number: compute them on that many batches per class, once for each network, "
        "and sample one batch in each iteration",
    )
    real_precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "precision of the network's passes on real clouds (mixed precision): bfloat16 is faster "
        "on processors that support it, and its error is a fraction of the difference between two "
        "batches; for backends torch and pointnet, and for matching objectives only",
    )
    augmentation: bool = setting(
        False,
        "shift, scale or rotate real and synthetic clouds before each comparison: all clouds of a "
        "class by the same random move (DSA); feature_regression: each cloud by its own move; "
        "unrolled_training: synthetic clouds only, before each step",
    )


@checked
class OptimiserConfig:
    """Optimiser of the coordinates."""

    name: Literal["sgd", "adam"] = setting(
        "sgd", "sgd: moves by step_size x gradient; adam: moves by about step_size"
    )
    step_size: Positive = setting(0.1, "sgd: cells per unit of gradient; adam: cells per iteration")
    label_step_size: Positive = setting(
        0.02, "objective.learned_labels: step size of the logits of the labels"
    )
    turn_step_size: Positive | None = setting(
        None,
        "grids with depth: also rotate each cloud as a whole, as SADM does, with this step size "
        "(sgd: radians per unit of gradient; adam: radians per iteration); null: do not rotate",
    )
    momentum: Fraction = setting(0.5, "sgd: momentum; adam: beta 1, decay of the first moment")
    final_step_fraction: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0,
        "decrease the step size along a cosine to this fraction of its initial value; 1: constant",
    )


@checked
class ScheduleConfig:
    """Length of the run and changes of the network."""

    iterations: Count = setting(2500, "updates of the coordinates")
    iterations_per_network: NonNegative = setting(
        0,
        "initialise a new random network after this many iterations (DC's outer loop); 0: one "
        "network for the whole run (the paper)",
    )
    training_steps: NonNegative = setting(
        0,
        "train the network for this many steps after each iteration (DC's inner loop), so that "
        "points are matched at many stages of its training",
    )
    training_data: Literal["synthetic", "real"] = setting(
        "synthetic",
        "data for training_steps: the synthetic clouds (DC), or `training_batch` real clouds (IDC)",
    )
    training_batch: Count = setting(
        64, "training_data=real: real clouds per training step, of all classes"
    )
    training_step_size: Positive = setting(0.01, "step size of training_steps (SGD, momentum 0.5)")
    snapshots: Count = setting(
        60, "number of evenly spaced snapshots of the coordinates, for pictures"
    )


@checked
class EvaluationConfig:
    """Scoring of the result; the defaults are the numbers of the published protocols."""

    protocols: Annotated[tuple[Literal["paper", "standard"], ...], Field(min_length=1)] = setting(
        ("standard", "paper"),
        "standard: 20 networks, the usual protocol of the field; paper: 5 networks, test images "
        "augmented too",
    )
    split: Literal["test", "validation"] = setting(
        "test",
        "split to score on; make choices on validation, the held-out part of the training set, "
        "never on test",
    )
    classifier: Literal[
        "convnet", "mlp", "lenet", "resnet18", "sparse", "pointnet", "pointnet++", "dgcnn"
    ] = setting(
        "convnet",
        "classifier to train on the set; of images: convnet: ConvNet-3 (the protocols' own), mlp, "
        "lenet, resnet18, or sparse: 3 layers of sparse convolution; of points: pointnet, "
        "pointnet++, dgcnn, with points at the centres of their cells (projection=soft: at their "
        "exact positions)",
    )
    projection: Literal["hard", "soft"] = setting(
        "hard",
        "input of classifiers in training: hard: binary images (the paper); soft: grey images, "
        "every point a spot; test images are always hard",
    )
    projection_bandwidth: Positive = setting(
        0.5, "projection=soft: standard deviation of the spots, in cells"
    )
    projection_saturation: Positive = setting(
        6.0, "projection=soft: as lift.saturation; large values turn spots into white discs"
    )
    iteration: NonNegative | None = setting(
        None, "score the clouds before this iteration; null: after the last iteration"
    )
    curve: tuple[NonNegative, ...] = setting(
        (),
        "also score the clouds before these iterations, for a curve over the run, with smaller "
        "classifiers (5 of width 32, 300 epochs); the paper's code scores before 0, 250, 625, "
        "1250, 1875 and 2499",
    )
    networks: Count | None = setting(
        None, "number of classifiers to train; null: the protocol's number"
    )
    epochs: Count = setting(
        1001,
        "epochs per classifier, 1001 in DC's code; the step size falls to a tenth after "
        "(epochs - 1) // 2 + 2 epochs",
    )
    batch: Count = setting(
        256,
        "clouds per training step of a classifier; paper protocol: also test clouds per augmented "
        "batch",
    )
    augmentation: Literal["published", "fast"] = setting(
        "published",
        "augmentation of images: published: as in DC's code, a crop padded with the batch mean, "
        "a nearest-neighbour scale or a cubic-spline rotation; fast: one bilinear affine "
        "resampling on an empty background, for split=validation only",
    )
    width: Count = setting(
        128, "convnet, sparse: channels of each classifier; other classifiers have fixed channels"
    )


@checked
class Config:
    """All settings of a run."""

    data: DataConfig = setting(DataConfig(), "")
    clouds: CloudsConfig = setting(CloudsConfig(), "")
    lift: LiftConfig = setting(LiftConfig(), "")
    network: NetworkConfig = setting(NetworkConfig(), "")
    objective: ObjectiveConfig = setting(ObjectiveConfig(), "")
    optimiser: OptimiserConfig = setting(OptimiserConfig(), "")
    schedule: ScheduleConfig = setting(ScheduleConfig(), "")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "")
    seed: NonNegative = setting(0, "seed of all random draws; each use derives its own generator")


def to_dict(config: Config) -> dict:
    """Return the settings as nested dictionaries that JSON can store."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(settings: dict) -> Config:
    """Return the configuration with these settings and defaults for the rest.

    Raises InputError if a setting is unknown or its value is invalid.
    """
    _refuse_unknown(settings, Config, "")
    try:
        return pydantic.TypeAdapter(Config).validate_json(
            json.dumps(settings, default=_plain), strict=True
        )
    except pydantic.ValidationError as error:
        # For a union, pydantic reports an error per member. The longest location matches best.
        first = max(error.errors(), key=lambda entry: len(entry["loc"]))
        where = [part for part in first["loc"] if part in _all_names()]
        value = functools.reduce(lambda section, name: section[name], where, settings)
        raise InputError(f"setting {'.'.join(where)} = {value!r}: {first['msg']}") from None


def override(config: Config, settings: dict[str, Any]) -> Config:
    """Return `config` with some settings changed.

    settings: values by dotted name, for instance `{"network.layers": 2}`
    Raises InputError if a setting is unknown or its value is invalid.
    """
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
    """Return a hash of all settings: eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def described_settings() -> dict[str, tuple[Any, str]]:
    """Return all settings: {dotted name: (default, help text)}."""
    described = {}
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default):
            for field in dataclasses.fields(section.default):
                described[f"{section.name}.{field.name}"] = (field.default, field.metadata["help"])
        else:
            described[section.name] = (section.default, section.metadata["help"])
    return described


def _plain(value: Any) -> Any:
    """Return a NumPy or torch scalar as a Python number.

    Raises InputError for any other value.
    """
    if hasattr(value, "item"):
        return value.item()
    raise InputError(
        f"value {value!r} cannot be the value of a setting; expected a number, a word, true, "
        "false, null or a list"
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
