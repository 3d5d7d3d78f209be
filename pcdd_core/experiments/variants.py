"""The presets and changed settings of each experiment, and the rows for comparison."""

import itertools
from collections.abc import Callable
from typing import Any

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
from .presets import BACKENDS, BEST, LAYERS, TABLE_ITERATION, preset
from .shape_settings import ADRENAL, SPLIT_INTO

SCALES = {"small": "-small", "paper": ""}  # suffix of the preset name
STEP_SIZES = (0.1, 1, 10, 100)  # factors of the preset's step size
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
# The third iteration that the paper's code scores. A run with fresh gradients takes over an hour.
POOL_ITERATIONS = {"paper": 625, "small": 100}


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
    """Pools of two sizes over whole runs, and pools against fresh real gradients over short ones.

    All start from the same scatter and the same weights.
    """
    kinds_of_run = [f"{layers}-sum-of-squares" for layers in LAYERS]
    kinds_of_run += ["3-layerwise-cosine", "3-average-pooling"]
    sizes: tuple[dict[str, Any], ...] = ({}, {"objective.real_gradients": 8})
    short = {"schedule.iterations": POOL_ITERATIONS[scale]}
    if scale == "paper":
        short = UNTIL_TABLE | short
    kinds: tuple[dict[str, Any], ...] = ({}, {"objective.real_gradients": "fresh"})
    compared = ("paper-torch-3-sum-of-squares", "paper-minkowski-2-sum-of-squares")
    variants = [(f"paper-torch-{kind}", {**size}) for kind in kinds_of_run for size in sizes]
    return variants + [(name, {**short, **kind}) for name in compared for kind in kinds]


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
SHAPES_CHANGED: tuple[dict[str, Any], ...] = (
    {"objective.name": "gradient_matching", "objective.distance": "layerwise_cosine_of_weights"},
    {"objective.name": "distribution_matching"},
    {"objective.name": "sorted_feature_matching", "network.width": 256},
    {"optimiser.turn_step_size": 0.02},
)
# One classifier each, because they take longer than PointNet. `sadm` has a PointNet of its own.
OTHER_POINT_NETWORKS = tuple(
    {
        "evaluation.classifier.name": kind,
        "evaluation.networks": 1,
        "evaluation.epochs": 100,
        "evaluation.protocols": ["standard"],
    }
    for kind in ("pointnet++", "dgcnn")
)
MODELNET40 = {"data.name": "modelnet40"}


def _ingredients(scale: str) -> Variants:
    changes = [{}, *(changed for group in INGREDIENTS.values() for changed in group)]
    return [("ingredients-base", changed) for changed in changes]


def _none(scale: str) -> Variants:
    return []


def _best(scale: str) -> Variants:
    return [(name, {}) for name in BEST]


def _frontier(scale: str) -> Variants:
    """The best sets that are scored as occupied cells, with hard labels."""
    return [(name, {}) for name in BEST if name not in ("mnist-1-labels", "mnist-1-soft")]


def _scatter_and_real(count: int, changed: dict[str, Any]) -> Variants:
    """Points in `count` clouds per class or in several times as many, from scatter or real ones."""
    return [
        (name, {**changed, **start})
        for name in (f"shapes-{count}", f"shapes-{count}-split")
        for start in ({}, {"clouds.name": "real"})
    ]


def _modelnet10(scale: str) -> Variants:
    """All budgets; for one cloud per class also the other objectives and clouds that rotate."""
    variants = [row for count in SHAPES_PER_CLASS for row in _scatter_and_real(count, {})]
    variants += [("shapes-1", changed) for changed in SHAPES_CHANGED]
    return variants + [("shapes-1-split", changed) for changed in OTHER_POINT_NETWORKS]


def _modelnet40(scale: str) -> Variants:
    return _scatter_and_real(1, MODELNET40)


def _adrenal(scale: str) -> Variants:
    """Dense and sparse networks, each by features and by gradients.

    Only gradients need the second derivatives that MinkowskiEngine lacks.
    """
    gradients = {
        "objective.name": "gradient_matching",
        "objective.distance": "layerwise_cosine_of_weights",
    }
    names = ("adrenal", "adrenal-sparse", "adrenal-minkowski")
    return [(name, changed) for changed in ({}, gradients) for name in names]


def _initialisation(scale: str) -> Variants:
    return [("paper-minkowski-2-sum-of-squares", {}), ("paper-torch-3-sum-of-squares", {})]


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
    "frontier": _frontier,
    "modelnet10": _modelnet10,
    "modelnet40": _modelnet40,
    "adrenal": _adrenal,
    "initialisation": _initialisation,
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
OF_A_SPLIT = Random(points=1024 // SPLIT_INTO)


def _real_shapes(count: int, changed: dict[str, Any]) -> Beside:
    """As many real shapes, and as many random ones as a split has clouds, of as many points."""
    chosen = [(f"shapes-{count}", changed, kind) for kind in (Random(), Herding(), KCenter())]
    return (*chosen, (f"shapes-{count}-split", changed, OF_A_SPLIT))


# Real clouds per class, and the preset whose number of classifiers scores them.
FRONTIER_REAL = {1: "mnist-1", 2: "mnist-10", 4: "mnist-10", 10: "mnist-10", 20: "mnist-10"}
FRONTIER_REAL |= {50: "mnist-50", 100: "mnist-50"}


def _real_images(count: int, base: str) -> Beside:
    """Real images of one size, as the experiment `best` scores them."""
    changed = {"clouds.clouds_per_class": count} | (
        {"evaluation.networks": 5} if count == 1 else {}
    )
    means = (ClassMean(),) if count == 1 else ()
    return tuple((base, changed, kind) for kind in (Random(), Herding(), *means))


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
    "frontier": tuple(
        row for count, base in FRONTIER_REAL.items() for row in _real_images(count, base)
    ),
    "modelnet10": (
        *(row for count in SHAPES_PER_CLASS for row in _real_shapes(count, {})),
        *(("shapes-1-split", changed, OF_A_SPLIT) for changed in OTHER_POINT_NETWORKS),
        (
            "shapes-1",
            {
                "evaluation.networks": 1,
                "evaluation.epochs": 30,
                "evaluation.protocols": ["standard"],
            },
            Whole(),
        ),
    ),
    "modelnet40": _real_shapes(1, MODELNET40),
    "adrenal": (
        *(
            ("adrenal", {}, kind(points=ADRENAL["clouds"]["points_per_cloud"]))
            for kind in (Random, Herding, KCenter)
        ),
        ("adrenal", {"evaluation.networks": 1, "evaluation.epochs": 15}, Whole()),
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
