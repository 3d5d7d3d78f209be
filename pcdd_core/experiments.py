"""Which runs stand behind each table. A cell is one run: a preset, some settings, a seed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import records, runs
from .config import Config, override, to_dict
from .coresets import BASELINES
from .datasets import IMAGES
from .errors import InputError, nearest_names
from .presets import BACKENDS, BEST, LAYERS, PRESETS, SPLIT_INTO, TABLE_ITERATION, label, preset

STEP_SIZES = (0.1, 1, 10, 100)  # times the preset's


@dataclass(frozen=True)
class Cell:
    """One run: the preset it began as, its settings, or what is scored instead.

    baseline: a key of `coresets.BASELINES`, for as many real clouds as the settings have synthetic ones, `KEY:POINTS` for that many
    points of each of them, or `released:NAME`.
    """

    preset: str
    config: Config
    baseline: str | None = None

    @property
    def name(self) -> str:
        """What its record is called."""
        if not self.baseline:
            return self.preset
        kind, _, detail = self.baseline.partition(":")
        if kind == "released":
            return f"released-{detail}"
        return f"{kind}-{self.config.clouds.clouds_per_class}" + (
            f"-of-{detail}-points" if detail else ""
        )

    @property
    def label(self) -> str:
        """The name with the settings that differ from the preset's."""
        return (
            records.label_of_score(self.name, self.config)
            if self.baseline
            else label(self.preset, self.config)
        )

    @property
    def identity(self) -> str:
        """See `records.identity`."""
        config = to_dict(self.config)
        used = (
            {key: config[key] for key in ("data", "evaluation", "seed")}
            if self.baseline
            else config
        )
        return records.identity({"name": self.name, "config": used})

    @property
    def folder(self) -> str:
        """What its run folder is called."""
        return runs.folder_name(self.name, self.config)


Variants = list[tuple[str, dict[str, Any]]]  # presets, each with settings changed


def _table1(scale: str) -> Variants:
    return [
        (f"paper-{backend}-{layers}-sum-of-squares", {})
        for backend in BACKENDS
        for layers in LAYERS
    ]


def _table2(scale: str) -> Variants:
    """The paper took the depth at which each backend did best; `sparse` as MinkowskiEngine."""
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


# What the why table turns on and off, one network of the paper with all combinations.
WHY_NORM = (None, "instance")
WHY_SHIFT = (True, False)
WHY_BACKENDS = ("minkowski", "sparse")
# Redrawn networks need real gradients of their own: of one batch each, every 25 iterations.
WHY_NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"schedule.iterations_per_network": 25, "objective.real_gradients": 1},
)
# Stop where Table 1 is scored: what comes later is not compared.
UNTIL_TABLE = {
    "schedule.iterations": TABLE_ITERATION,
    "evaluation.iteration": None,
    "evaluation.curve": [],
}
POOL_ITERATIONS = (
    250  # by which points have made most of their way; a fresh iteration costs twenty pooled ones
)


def _why(scale: str) -> Variants:
    """Two MinkowskiEngine layers with each cause on and off. The paper's own setting is Table 1's run."""
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
    """Fresh real gradients against the pool, from the same scatter and weights, over the first iterations."""
    short = UNTIL_TABLE | {"schedule.iterations": POOL_ITERATIONS} if scale == "paper" else {}
    kinds = ({}, {"objective.real_gradients": "fresh"})
    names = ("paper-torch-3-sum-of-squares", "paper-minkowski-2-sum-of-squares")
    return [(name, {**short, **kind}) for name in names for kind in kinds]


def _step_sizes(scale: str) -> Variants:
    """Both distances over four orders of magnitude: what is too little for one is too much for the other."""
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
# What is changed, one thing at a time, in the preset `ingredients-base`.
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
    "networks": (  # random ones, or met while they are trained
        {"schedule.iterations_per_network": 10},
        {
            "schedule.iterations_per_network": 10,
            "schedule.training_steps": 1,
        },  # on the synthetic clouds
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
    "points": (  # their number, and about the same number in several clouds
        {"clouds.points_per_cloud": 10},
        {"clouds.points_per_cloud": 50},
        {"clouds.points_per_cloud": 100},
        {"clouds.points_per_cloud": 500},
        {"clouds.clouds_per_class": 2, "clouds.points_per_cloud": 125},
        {"clouds.clouds_per_class": 4, "clouds.points_per_cloud": 62},
        EIGHT,
    ),
    "several clouds": (  # per class: is it enough that their mean is right?
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
FEWER_POINTS = (256, 128)  # of a cloud than 1024
SHAPES_CHANGED: tuple[dict[str, Any], ...] = (
    {"objective.name": "gradient_matching", "objective.distance": "layerwise_cosine_of_weights"},
    {"objective.name": "distribution_matching"},
    {"objective.name": "sorted_feature_matching", "network.width": 256},
    {"optimiser.turn_step_size": 0.02},
    *(  # by networks on a grid of cells: those that are not empty, and all
        {
            "clouds.points_per_cloud": 384,
            "lift.name": "gaussian",
            "lift.closed": True,
            "lift.bandwidth_start": 6.0,
            "lift.saturation_start": 1.0,
            "network.backend": backend,
            "network.width": 32,
            "network.norm": "instance",
            "network.pooling": "average",
            "schedule.iterations": 300,
        }  # fmt: skip
        for backend in ("sparse", "torch")
    ),
)
OTHER_POINT_NETWORKS = tuple(  # which take longer than PointNet
    {"evaluation.classifier": kind, "evaluation.networks": 1, "evaluation.epochs": 100}
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
    """From scatter, from real clouds, the same points in more clouds, fewer points in as many clouds; for one per class the objectives, clouds that turn, grids."""
    variants = []
    for count in SHAPES_PER_CLASS:
        for name in (f"shapes-{count}", f"shapes-{count}-split"):
            variants += [(name, {}), (name, {"clouds.initialisation": "real"})]
    variants += [
        (f"shapes-{count}", {"clouds.points_per_cloud": few})
        for count in SHAPES_PER_CLASS
        for few in FEWER_POINTS
    ]
    variants += [("shapes-1", changed) for changed in SHAPES_CHANGED]
    return variants + [("shapes-1-split", seen_by) for seen_by in OTHER_POINT_NETWORKS]


def _initialisation(scale: str) -> Variants:
    return [("paper-minkowski-2-sum-of-squares", {}), ("paper-torch-3-sum-of-squares", {})]


SCALES = {"small": "-small", "paper": ""}  # what is added to a preset's name
EXPERIMENTS = {
    "table1": "Table 1: backends and layers, sum of squares",
    "table2": "Table 2: the two distances",
    "ablation": "section 4.4: max against average pooling",
    "why": "two MinkowskiEngine layers with norm, origin shift, second derivatives, redrawn networks on and off",
    "pool": "real gradients of a new batch in every iteration against a pool of 8 batches per class",
    "step-size": "section 4.5: step sizes of a tenth to a hundred times the usual, both distances",
    "ingredients": "our setting with one ingredient changed at a time, on the validation split",
    "architectures": "the released set and real clouds, one per class, scored by classifiers of other kinds",
    "best": "the best of each kind, on the test images (small: on the validation split), with real clouds as many",
    "shapes": "shapes in three dimensions: from scatter and from real ones, with real ones as many (small: on the validation split)",
    "initialisation": "section 4.5: the paper's two best networks from many scatters (try --seeds 10)",
}
VARIANTS: dict[
    str, Callable[[str], Variants]
] = {  # made for a scale; preset names without their ending
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
# The scale of an experiment where none is asked for: the paper's own for its tables.
DEFAULT_SCALE = {"ingredients": "small", "architectures": "small"}
COLUMNS: dict[
    str, dict[str, Callable[[Config], Any]]
] = {  # of a table, besides those of all tables
    "why": {
        "norm": lambda config: config.network.norm,
        "origin shift": lambda config: config.network.origin_shift,
        "second derivatives": lambda config: config.network.backend == "sparse",
        "network": lambda config: "redrawn" if config.schedule.iterations_per_network else "fixed",
    }
}
Beside = tuple[
    tuple[str, dict[str, Any], str | None], ...
]  # rows beside a table's own: preset, settings, baseline
FIVE = {"evaluation.networks": 5}
BESIDE: Beside = (
    ("gaussian", FIVE, None),
    ("gaussian", FIVE, "random"),
    ("gaussian", FIVE, "herding"),
)  # the paper's tables
CORESETS = tuple(baseline for baseline in BASELINES if baseline != "whole")
FEWER = {"resnet18": 2}  # classifiers of it; of the others 5
BESIDE_OTHERS: dict[str, Beside] = {
    "why": (),
    "pool": (),
    "initialisation": (),
    "ingredients": tuple(("ingredients-base", {}, baseline) for baseline in CORESETS),
    "best": (
        *(("mnist-1", {"evaluation.networks": 5}, baseline) for baseline in CORESETS),
        ("mnist-10", {}, "random"),
        ("mnist-10", {}, "herding"),
    ),
    "shapes": (
        *(
            (f"shapes-{count}", {}, baseline)
            for count in SHAPES_PER_CLASS
            for baseline in ("random", "herding", "k_center")
        ),
        *(
            (f"shapes-{count}", {}, f"herding:{few}")
            for count in SHAPES_PER_CLASS
            for few in FEWER_POINTS
        ),
        *(
            (f"shapes-{count}-split", {}, f"random:{1024 // SPLIT_INTO}")
            for count in SHAPES_PER_CLASS
        ),
        *(
            ("shapes-1-split", seen_by, f"random:{1024 // SPLIT_INTO}")
            for seen_by in OTHER_POINT_NETWORKS
        ),
        ("shapes-1", {"evaluation.networks": 1, "evaluation.epochs": 30}, "whole"),
    ),
    "architectures": tuple(
        (
            "mnist-1",
            {"evaluation.classifier": kind, "evaluation.networks": FEWER.get(kind, 5)},
            baseline,
        )
        for kind in ("convnet", "mlp", "lenet", "resnet18", "pointnet", "sparse")
        for baseline in ("released:mnist-1", "class_mean", "random")
    ),
}
DETERMINISTIC = ("herding", "k_center", "class_mean", "whole", "released:mnist-1")
BESIDE_SEEDS = 5  # at most: an experiment with many seeds needs no more of them


def scale_of(name: str) -> str:
    """The scale of an experiment where none is asked for."""
    return DEFAULT_SCALE.get(name, "paper")


def experiment(
    name: str,
    scale: str | None = None,
    seeds: int = 5,
    settings: Mapping[str, Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    beside: bool = True,
) -> list[Cell]:
    """The cells of a table (a key of EXPERIMENTS), or of any preset, with seeds 0 to `seeds` - 1.

    scale: "paper", or "small" for a smoke run; None: `scale_of` the experiment. A preset named in full has its own. settings: changed in every cell,
    by dotted name. vary: for each of these settings, every value, in all combinations. beside: add our own setting and
    the baselines, scored in the same way, to a table. Raises InputError.
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
            f"no experiment or preset is called {name!r}; {nearest_names(name, [*EXPERIMENTS, *PRESETS])}"
        )
    for setting, values in (vary or {}).items():
        variants = [
            (base, {**changed, setting: value}) for base, changed in variants for value in values
        ]
    kinds = [(f"{base}{suffix}", changed, None) for base, changed in variants]
    rows = BESIDE_OTHERS.get(name, BESIDE) if beside else ()
    aside = [(f"{base}{suffix}", changed, baseline) for base, changed, baseline in rows]
    kinds += aside
    cells: dict[str, Cell] = {}
    for seed in range(seeds):
        for base, changed, baseline in kinds:
            config = override(preset(base).config, {**(settings or {}), **changed, "seed": seed})
            chosen_by_network = (
                baseline in ("herding", "k_center") and config.data.name not in IMAGES
            )
            fixed = (
                baseline in DETERMINISTIC and not chosen_by_network
            )  # nothing is random but the classifiers
            if (base, changed, baseline) in aside and seed >= (1 if fixed else BESIDE_SEEDS):
                continue
            cell = Cell(base, config, baseline)
            cells.setdefault(cell.identity, cell)
    return list(cells.values())
