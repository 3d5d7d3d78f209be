"""The runs of each table. A `Cell` is one run: a preset, changed settings and a seed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.datasets import Images
from ..errors import InputError, nearest_names
from ..scoring.baselines import (
    Baseline,
    ClassMean,
    Craig,
    Forgetting,
    Herding,
    KCenter,
    Random,
    Released,
    Whole,
)
from . import records, runs
from .config import Config, override, to_dict
from .presets import BACKENDS, BEST, LAYERS, PRESETS, SPLIT_INTO, TABLE_ITERATION, label, preset

STEP_SIZES = (0.1, 1, 10, 100)  # factors of the preset's step size


@dataclass(frozen=True)
class Cell:
    """One run, or one baseline to score.

    preset: name of the preset that the configuration starts from
    config: the configuration with all changes
    baseline: None for a distillation, else the set to score
    """

    preset: str
    config: Config
    baseline: Baseline | None = None

    @property
    def name(self) -> str:
        """Name of the run in its record."""
        return self.baseline.label if self.baseline else self.preset

    @property
    def label(self) -> str:
        """Name, followed by the settings that differ from the preset."""
        return (
            records.label_of_score(self.name, self.config)
            if self.baseline
            else label(self.preset, self.config)
        )

    @property
    def identity(self) -> str:
        """Identity of the run, see `records.identity`."""
        used = to_dict(self.config)
        if self.baseline:
            used = {key: used[key] for key in ("data", "evaluation", "seed")}
            used["baseline"] = self.baseline.to_dict()
        return records.identity({"name": self.name, "config": used})

    @property
    def folder(self) -> str:
        """Name of the run folder."""
        return runs.folder_name(self.name, self.config)


Variants = list[tuple[str, dict[str, Any]]]  # (preset, changed settings)


def _table1(scale: str) -> Variants:
    return [
        (f"paper-{backend}-{layers}-sum-of-squares", {})
        for backend in BACKENDS
        for layers in LAYERS
    ]


def _table2(scale: str) -> Variants:
    """Table 2: each backend at its best depth, as in the paper; `sparse` at MinkowskiEngine's."""
    networks = ("minkowski-2", "torch-3", "sparse-2")
    return [
        (f"paper-{network}-{distance}", {})
        for network in networks
        for distance in ("layerwise-cosine", "sum-of-squares")
    ]


def _ablation(scale: str) -> Variants:
    return [
        (f"paper-{backend}-{layers}-{kind}", {})
        for backend in BACKENDS
        for layers in (2, 3)
        for kind in ("sum-of-squares", "average-pooling")
    ]


# The factors of the experiment `why`: all combinations, for one network of the paper.
WHY_NORM = (None, "instance")
WHY_SHIFT = (True, False)
WHY_BACKENDS = ("minkowski", "sparse")
# A new network needs new real gradients: from one batch for each network, every 25 iterations.
WHY_NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"schedule.iterations_per_network": 25, "objective.real_gradients": 1},
)
# Stop at the iteration that Table 1 scores. Later iterations are not compared.
UNTIL_TABLE = {
    "schedule.iterations": TABLE_ITERATION,
    "evaluation.iteration": None,
    "evaluation.curve": [],
}
# By then points have moved most of the way, and fresh gradients take many times as long.
POOL_ITERATIONS = 250


def _why(scale: str) -> Variants:
    """Two MinkowskiEngine layers with each factor on and off.

    The paper's own setting is the run of Table 1.
    """
    variants = []
    for norm, shift, backend, network in itertools.product(
        WHY_NORM, WHY_SHIFT, WHY_BACKENDS, WHY_NETWORKS
    ):
        changed = dict(network)
        if norm:
            changed["network.norm"] = norm
        if not shift:
            changed["network.origin_shift"] = shift
        if changed and scale == "paper":
            changed |= UNTIL_TABLE
        variants.append((f"paper-{backend}-2-sum-of-squares", changed))
    return variants


def _pool(scale: str) -> Variants:
    """Fresh real gradients against the pool, over the first iterations.

    Both start from the same scatter and the same weights.
    """
    short = UNTIL_TABLE | {"schedule.iterations": POOL_ITERATIONS} if scale == "paper" else {}
    kinds = ({}, {"objective.real_gradients": "fresh"})
    names = ("paper-torch-3-sum-of-squares", "paper-minkowski-2-sum-of-squares")
    return [(name, {**short, **kind}) for name in names for kind in kinds]


def _step_sizes(scale: str) -> Variants:
    """Step sizes over four orders of magnitude, because the two distances need different ones."""
    variants = []
    for name in (
        "torch-3-sum-of-squares",
        "torch-3-layerwise-cosine",
        "minkowski-2-layerwise-cosine",
    ):
        usual = preset(f"paper-{name}{SCALES[scale]}").config.optimiser.step_size
        variants += [
            (f"paper-{name}", {"optimiser.step_size": usual * factor}) for factor in STEP_SIZES
        ]
    return variants


EIGHT = {"clouds.clouds_per_class": 8, "clouds.points_per_cloud": 31}
TEN = {"clouds.clouds_per_class": 10, "clouds.points_per_cloud": 150}
# Changes of the preset `ingredients-base`, one at a time.
INGREDIENTS: dict[str, tuple[dict[str, Any], ...]] = {
    "objective": (
        {"objective.name": "distribution_matching"},
        {"objective.name": "maximum_mean_discrepancy"},
        {"objective.name": "feature_regression"},
        {"objective.name": "feature_regression", "objective.augmentation": False},
        {"objective.name": "unrolled_training"},
        {"objective.distance": "sum_of_squares"},
        {"objective.distance": "layerwise_cosine"},
        {"objective.distance": "mean_squared_error"},
        {"objective.distance": "global_cosine"},
        {"objective.augmentation": False},
        {"objective.real_batch": 64},
    ),
    "lift": (
        {"lift.bandwidth_end": 0.5},
        {"lift.bandwidth_end": 0.12},
        {"lift.bandwidth_start": 0.25},
        {"lift.saturation": 3.0},
        {"lift.saturation_start": 1.0},
        {"lift.hard_from": 0.5},
    ),
    "networks": (  # random networks, or networks at several stages of training
        {"schedule.iterations_per_network": 10},
        # trained on the synthetic clouds
        {"schedule.iterations_per_network": 10, "schedule.training_steps": 1},
        {
            "schedule.iterations_per_network": 10,
            "schedule.training_steps": 1,
            "schedule.training_data": "real",
        },
        {"network.width": 16},
        {"network.layers": 2},
        {"network.padding": 3},
    ),
    "steps": (
        {"optimiser.step_size": 0.1},
        {"optimiser.final_step_fraction": 1.0},
        {"schedule.iterations": 1200},
    ),
    "points": (  # number of points, and about the same number in several clouds
        {"clouds.points_per_cloud": 10},
        {"clouds.points_per_cloud": 50},
        {"clouds.points_per_cloud": 100},
        {"clouds.points_per_cloud": 500},
        {"clouds.clouds_per_class": 2, "clouds.points_per_cloud": 125},
        {"clouds.clouds_per_class": 4, "clouds.points_per_cloud": 62},
        EIGHT,
    ),
    "several clouds": (  # per class: does matching the mean suffice?
        *(
            {**EIGHT, "objective.name": name}
            for name in ("distribution_matching", "maximum_mean_discrepancy")
        ),
        TEN,
        *(
            {**TEN, "objective.name": name}
            for name in ("distribution_matching", "maximum_mean_discrepancy")
        ),
    ),
}


SHAPES_PER_CLASS = (1, 3, 10)
FEWER_POINTS = (256, 128)  # points per cloud instead of 1024
SHAPES_CHANGED: tuple[dict[str, Any], ...] = (
    {"objective.name": "gradient_matching", "objective.distance": "layerwise_cosine_of_weights"},
    {"objective.name": "distribution_matching"},
    {"objective.name": "sorted_feature_matching", "network.width": 256},
    {"optimiser.turn_step_size": 0.02},
    *(  # networks on a grid: occupied cells only (sparse), or all cells (torch)
        {
            "clouds.points_per_cloud": 384,
            "lift.name": "gaussian",
            "lift.closed": True,
            "lift.bandwidth_start": 6.0,
            "lift.saturation_start": 1.0,
            "lift.saturation": 3.0,
            "network.name": backend,
            "network.width": 32,
            "network.norm": "instance",
            "network.pooling": "average",
            "schedule.iterations": 300,
        }
        for backend in ("sparse", "torch")
    ),
)
OTHER_POINT_NETWORKS = tuple(  # one classifier each, because they take longer than PointNet
    {"evaluation.classifier.name": kind, "evaluation.networks": 1, "evaluation.epochs": 100}
    for kind in ("pointnet++", "dgcnn")
)


def _ingredients(scale: str) -> Variants:
    changes = [{}, *(changed for group in INGREDIENTS.values() for changed in group)]
    return [("ingredients-base", changed) for changed in changes]


def _none(scale: str) -> Variants:
    return []


def _best(scale: str) -> Variants:
    return [(name, {}) for name in BEST]


def _shapes(scale: str) -> Variants:
    """Shapes from scatter and from real clouds, with the points in one cloud or in several.

    Also fewer points in the same number of clouds. For one cloud per class also the other
    objectives, clouds that rotate, and networks on grids.
    """
    variants = []
    for count in SHAPES_PER_CLASS:
        for name in (f"shapes-{count}", f"shapes-{count}-split"):
            variants += [(name, {}), (name, {"clouds.name": "real"})]
    variants += [
        (f"shapes-{count}", {"clouds.points_per_cloud": few})
        for count in SHAPES_PER_CLASS
        for few in FEWER_POINTS
    ]
    variants += [("shapes-1", changed) for changed in SHAPES_CHANGED]
    return variants + [("shapes-1-split", changed) for changed in OTHER_POINT_NETWORKS]


def _initialisation(scale: str) -> Variants:
    return [("paper-minkowski-2-sum-of-squares", {}), ("paper-torch-3-sum-of-squares", {})]


SCALES = {"small": "-small", "paper": ""}  # suffix of the preset name
EXPERIMENTS = {
    "table1": "Table 1: backends and layers, sum of squares",
    "table2": "Table 2: the two distances",
    "ablation": "section 4.4: max against average pooling",
    "why": "two MinkowskiEngine layers with norm, origin shift, second derivatives and new "
    "networks, each on and off",
    "pool": "fresh real gradients in every iteration against a pool of 8 batches per class",
    "step-size": "section 4.5: 0.1 to 100 times the usual step size, both distances",
    "ingredients": "our setting with one ingredient changed at a time, on the validation split",
    "architectures": "the released set and real clouds, one per class, scored by other classifiers",
    "best": "the best of each kind beside as many real clouds, on the test images (small: on the "
    "validation split)",
    "shapes": "shapes in three dimensions, from scatter and from real clouds, beside as many real "
    "clouds (small: on the validation split)",
    "initialisation": "section 4.5: the paper's two best networks from many scatters "
    "(try --seeds 10)",
}
# Functions from the scale to variants. Preset names are without the suffix of the scale.
VARIANTS: dict[str, Callable[[str], Variants]] = {
    "table1": _table1,
    "table2": _table2,
    "ablation": _ablation,
    "why": _why,
    "pool": _pool,
    "step-size": _step_sizes,
    "ingredients": _ingredients,
    "architectures": _none,
    "best": _best,
    "shapes": _shapes,
    "initialisation": _initialisation,
}
# Default scales that are not "paper".
DEFAULT_SCALE = {"ingredients": "small", "architectures": "small"}
# Additional columns of a table, as functions of the configuration.
COLUMNS: dict[str, dict[str, Callable[[Config], Any]]] = {
    "why": {
        "norm": lambda config: getattr(config.network, "norm", ""),
        "origin shift": lambda config: getattr(config.network, "origin_shift", ""),
        "second derivatives": lambda config: config.network.second_order,
        "network": lambda config: "redrawn" if config.schedule.iterations_per_network else "fixed",
    }
}
# Rows for comparison below the rows of a table: (preset, changed settings, baseline).
Beside = tuple[tuple[str, dict[str, Any], Baseline | None], ...]
FIVE = {"evaluation.networks": 5}
# For the paper's tables.
BESIDE: Beside = (
    ("gaussian", FIVE, None),
    ("gaussian", FIVE, Random()),
    ("gaussian", FIVE, Herding()),
)
CORESETS = (Random(), Herding(), KCenter(), ClassMean(), Forgetting(), Craig())
FEWER = {"resnet18": 2}  # number of classifiers; other kinds have 5
BESIDE_OTHERS: dict[str, Beside] = {
    "why": (),
    "pool": (),
    "initialisation": (),
    "ingredients": tuple(("ingredients-base", {}, baseline) for baseline in CORESETS),
    "best": (
        *(("mnist-1", {"evaluation.networks": 5}, baseline) for baseline in CORESETS),
        ("mnist-10", {}, Random()),
        ("mnist-10", {}, Herding()),
    ),
    "shapes": (
        *(
            (f"shapes-{count}", {}, baseline)
            for count in SHAPES_PER_CLASS
            for baseline in (Random(), Herding(), KCenter())
        ),
        *(
            (f"shapes-{count}", {}, Herding(points=few))
            for count in SHAPES_PER_CLASS
            for few in FEWER_POINTS
        ),
        *(
            (f"shapes-{count}-split", {}, Random(points=1024 // SPLIT_INTO))
            for count in SHAPES_PER_CLASS
        ),
        *(
            ("shapes-1-split", changed, Random(points=1024 // SPLIT_INTO))
            for changed in OTHER_POINT_NETWORKS
        ),
        ("shapes-1", {"evaluation.networks": 1, "evaluation.epochs": 30}, Whole()),
    ),
    "architectures": tuple(
        (
            "mnist-1",
            {"evaluation.classifier.name": kind, "evaluation.networks": FEWER.get(kind, 5)},
            baseline,
        )
        for kind in ("convnet", "mlp", "lenet", "resnet18", "pointnet", "sparse")
        for baseline in (Released(file="mnist-1"), ClassMean(), Random())
    ),
}
BESIDE_SEEDS = 5  # largest number of seeds of the rows for comparison


def scale_of(name: str) -> str:
    """Return the default scale of an experiment."""
    return DEFAULT_SCALE.get(name, "paper")


def experiment(
    name: str,
    scale: str | None = None,
    seeds: int = 5,
    settings: Mapping[str, Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    beside: bool = True,
) -> list[Cell]:
    """List the runs of a table (a key of EXPERIMENTS) or of a preset, with seeds 0 to `seeds` - 1.

    scale: "paper", or "small" for a smoke run; None: `scale_of` the experiment; a preset ignores it
    settings: changes of every run, by dotted name
    vary: values of settings by dotted name; there is a run for each combination
    beside: add rows for comparison to a table: our setting and baselines, scored in the same way
    Raises InputError if a name or a value is not valid.
    """
    scale = scale or scale_of(name)
    if scale not in SCALES:
        raise InputError(f"scale {scale!r}: expected one of {', '.join(SCALES)}")
    if seeds < 1:
        raise InputError(f"seeds = {seeds}: expected 1 or more")
    if name in PRESETS:
        variants, suffix, beside = [(name, {})], "", False
    elif name in EXPERIMENTS:
        variants, suffix = VARIANTS[name](scale), SCALES[scale]
    else:
        raise InputError(
            f"no experiment or preset is called {name!r}; "
            f"{nearest_names(name, [*EXPERIMENTS, *PRESETS])}"
        )
    for setting, values in (vary or {}).items():
        variants = [
            (base, {**changed, setting: value}) for base, changed in variants for value in values
        ]
    kinds = [(f"{base}{suffix}", changed, None, False) for base, changed in variants]
    rows = BESIDE_OTHERS.get(name, BESIDE) if beside else ()
    kinds += [(f"{base}{suffix}", changed, baseline, True) for base, changed, baseline in rows]
    cells: dict[str, Cell] = {}
    for seed in range(seeds):
        for base, changed, baseline, beside_row in kinds:
            config = override(preset(base).config, {**(settings or {}), **changed, "seed": seed})
            enough = BESIDE_SEEDS if beside_row else seeds
            if baseline:
                per_class = getattr(config.clouds, "clouds_per_class", None)
                if not isinstance(per_class, int):
                    raise InputError(
                        f"setting clouds.name = {config.clouds.name!r}: the rows for comparison of "
                        f"the table {name!r} need one number clouds.clouds_per_class, not "
                        f"{per_class!r}; take a preset, which has none, or beside=False in Python"
                    )
                baseline = replace(baseline, clouds_per_class=per_class)
                # A network chooses herding's and k-center's shapes. Else only the classifiers are
                # random, so one seed is enough.
                chosen_by_network = isinstance(baseline, (Herding, KCenter)) and not isinstance(
                    config.data, Images
                )
                enough = 1 if baseline.fixed and not chosen_by_network else BESIDE_SEEDS
            if seed >= enough:
                continue
            cell = Cell(base, config, baseline)
            cells.setdefault(cell.identity, cell)
    return list(cells.values())
