"""Named configurations: every entry of the paper's tables, and our own settings.

Each has the paper's scale and a small scale for two CPU cores. `label` lists the settings in which
a configuration differs from its preset.
"""

import json
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, nearest_names
from .config import KINDS, Config, from_dict, to_dict
from .shape_settings import (
    ADRENAL,
    ADRENAL_DEMO,
    ADRENAL_SMALL,
    SHAPES,
    SHAPES_SMALL,
    SOLIDS,
    SPLIT_INTO,
)


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    config: the configuration
    text: one line for `pcdd presets`
    paper_accuracy: accuracy in the paper, in percent; None if the paper states none
    """

    config: Config
    text: str
    paper_accuracy: float | None = None


# (backend, layers, distance): Table 1 for the sum of squares, Table 2 for the layerwise cosine.
PAPER_ACCURACY = {
    ("minkowski", 2, "sum_of_squares"): 33.9,
    ("minkowski", 3, "sum_of_squares"): 12.78,
    ("minkowski", 4, "sum_of_squares"): 10.48,
    ("torch", 2, "sum_of_squares"): 25.69,
    ("torch", 3, "sum_of_squares"): 30.22,
    ("torch", 4, "sum_of_squares"): 17.43,
    ("minkowski", 2, "layerwise_cosine"): 11.37,
    ("torch", 3, "layerwise_cosine"): 10.23,
}
BACKENDS = ("torch", "minkowski", "sparse")
LAYERS = (2, 3, 4)
# For smoke runs. Everything is smaller, so scores say nothing about the paper's scores.
SMALL = {
    "network": {"width": 32},
    "objective": {"real_batch": 32},
    "optimiser": {"step_size": 0.5},
    "schedule": {"iterations": 300},
    "evaluation": {
        "networks": 5,
        "epochs": 300,
        "classifier": {"name": "convnet", "width": 32},
        "iteration": None,
        "curve": (),
    },
}
PAPER_ITERATIONS = (0, 250, 625, 1250, 1875, 2499)  # the paper's code scores before these
# Batches per class in the pool of real gradients. The PyTorch network shifts each batch by whole
# cells before its first convolution, so the real gradient depends on the extremes of the batch
# more than on anything else, and 8 batches estimate its mean badly (docs/paper.md). The other two
# shift in steps of 4 cells or more, and their gradients take five times the memory.
STORED_BATCHES = {"torch": 32, "minkowski": 8, "sparse": 8}
TABLE_ITERATION = 1250  # scored for our tables, because Table 2 averages over 1,250 iterations


def preset(name: str) -> Preset:
    """Return a preset by name. Raises InputError with the nearest names if there is none."""
    if name not in PRESETS:
        raise InputError(f"no preset is called {name!r}; {nearest_names(name, PRESETS)}")
    return PRESETS[name]


def label(name: str, config: Config) -> str:
    """Return the preset name, followed by the settings in which `config` differs from the preset.

    The seed does not count.
    """
    if name not in PRESETS:
        return name
    changed = differences(name, config)
    return " ".join([name, *(f"{key}={json.dumps(value)}" for key, value in changed.items())])


def differences(name: str, config: Config) -> dict[str, Any]:
    """Return the settings, by dotted name, in which `config` differs from a preset.

    The seed does not count. Raises InputError if there is no such preset.
    """
    return _differences(to_dict(config), to_dict(preset(name).config), KINDS)


def _differences(settings: dict, before: dict, kinds: dict, prefix: str = "") -> dict[str, Any]:
    """Return the settings, by dotted name, that differ from those of the preset.

    For a setting that the preset's piece does not have, the default is what it differs from.
    """
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            own = before.get(key, {})
            if value.get("name") != own.get("name"):
                changed[f"{name}.name"] = value["name"]
            choice = kinds[name].choice(value.get("name", ""))
            default = {field: entry[0] for field, entry in choice.settings().items()}
            rest = {field: part for field, part in value.items() if field != "name"}
            changed |= _differences(rest, default | own, kinds, f"{name}.")
        elif value != before.get(key) and name != "seed":
            changed[name] = value
    return changed


def _paper_settings(backend: str, layers: int, distance: str) -> dict:
    """Return the paper's experiment as its code ran it for the tables (state of 2023-09-04).

    There is one difference: real gradients come from a pool of `STORED_BATCHES`. This saves nine
    tenths of the time. `objective.real_gradients=fresh` undoes it.
    """
    network = {"name": backend, "layers": layers, "width": 128, "pooling": "max", "norm": "none"}
    network |= {"paper_layout": True, "origin_shift": True}
    if backend != "torch":
        network |= {"weights": "kaiming_normal"}
    return {
        "data": {"name": "mnist", "max_points": 250, "validation_fraction": 0.0},
        "clouds": {"points_per_cloud": 250},
        "lift": {"name": "coordinates"},
        "network": network,
        "objective": {
            "name": "gradient_matching",
            "distance": distance,
            "real_batch": 256,
            "real_gradients": STORED_BATCHES[backend],
        },
        "optimiser": {"name": "sgd", "step_size": 0.1, "momentum": 0.5},
        "schedule": {"iterations": 2500, "iterations_per_network": 0},
        "evaluation": {"iteration": TABLE_ITERATION, "curve": PAPER_ITERATIONS, "networks": 5},
    }


def _merged(*settings: dict) -> dict:
    """Merge the sections. If a setting has several values, the last one wins.

    A new name of a piece keeps the settings that the new piece has too.
    """
    merged: dict[str, dict] = {}
    for part in settings:
        for section, values in part.items():
            before = merged.get(section, {})
            if values.get("name", before.get("name")) != before.get("name"):
                has = KINDS[section].choice(values["name"]).settings()
                before = {key: value for key, value in before.items() if key in has}
            merged[section] = {**before, **values}
    return merged


def _paper_presets() -> dict[str, Preset]:
    presets = {}

    def add(name: str, settings: dict, text: str, stated: float | None = None) -> None:
        presets[name] = Preset(from_dict(settings), text, stated)
        presets[f"{name}-small"] = Preset(
            from_dict(_merged(settings, SMALL)), f"{text}; minutes on 2 cores", stated
        )

    # Table 2 and section 4.4 compare runs at one iteration. Later iterations would double the cost.
    until_table = {
        "schedule": {"iterations": TABLE_ITERATION},
        "evaluation": {"iteration": None, "curve": ()},
    }
    for distance in ("sum_of_squares", "layerwise_cosine"):
        for backend in BACKENDS:
            for layers in LAYERS:
                stated = PAPER_ACCURACY.get((backend, layers, distance))
                table = "Table 1" if distance == "sum_of_squares" else "Table 2"
                where = table if stated else f"as {table}, not stated there"
                if backend == "sparse":
                    where = f"as {table}'s MinkowskiEngine, with all second derivatives"
                text = f"{where}: {backend}, {layers} layers, {distance.replace('_', ' ')}"
                settings = _paper_settings(backend, layers, distance)
                add(
                    f"paper-{backend}-{layers}-{distance.replace('_', '-')}",
                    _merged(settings, until_table) if table == "Table 2" else settings,
                    text,
                    stated,
                )
    for backend in BACKENDS:
        for layers in LAYERS:
            average = {"network": {"pooling": "average"}}
            settings = _merged(
                _paper_settings(backend, layers, "sum_of_squares"), average, until_table
            )
            text = (
                "section 4.4's ablation, described in words there: "
                f"{backend}, {layers} layers, average pooling"
            )
            add(f"paper-{backend}-{layers}-average-pooling", settings, text)
    return presets


GAUSSIAN = {
    "clouds": {"points_per_cloud": 250},
    "lift": {"name": "gaussian", "bandwidth_start": 2.5, "bandwidth_end": 0.5, "saturation": 6.0},
    "network": {
        "name": "torch",
        "layers": 3,
        "width": 32,
        "norm": "instance",
        "pooling": "average",
    },
    "objective": {
        "name": "gradient_matching",
        "distance": "layerwise_cosine_of_weights",
        "real_batch": 32,
    },
    "optimiser": {"name": "adam", "step_size": 0.3, "final_step_fraction": 0.1},
    "schedule": {"iterations": 600, "iterations_per_network": 1},
}
# Base of the experiment `ingredients`: narrower Gaussians at the end, and augmentation by moves of
# whole clouds.
INGREDIENTS = _merged(
    GAUSSIAN,
    {
        "lift": {"bandwidth_end": 0.25},
        "objective": {"augmentation": True},
        "evaluation": {"split": "validation", "protocols": ["standard"], "augmentation": "fast"},
    },
)
SMALL_CHOICE = {
    "evaluation": {
        "networks": 5,
        "epochs": 500,
        "classifier": {"name": "convnet", "width": 64},
    }
}
# The best of each kind, as changes of `INGREDIENTS`. Chosen on the validation split, then scored
# once with all classifiers of full size.
GRADIENT = {"lift": {"saturation_start": 1.0}, "optimiser": {"step_size": 0.1}}
SPLIT = {
    "lift": {"saturation_start": 1.0},
    "objective": {"name": "maximum_mean_discrepancy", "real_batch": 64},
    "schedule": {"iterations": 900},
}
# 150 points: about the number of occupied cells of a digit
SEVERAL = _merged(SPLIT, {"clouds": {"points_per_cloud": 150}, "lift": {"saturation": 3.0}})
UNROLLED = {
    # Narrower than in other presets. Unrolled training would make use of grey cells, but scored
    # images are 0 or 1.
    "lift": {"bandwidth_end": 0.06},
    "network": {"padding": 3},
    "objective": {
        "name": "unrolled_training",
        "real_batch": 26,
        "distribution_matching_until": 0.5,
    },
    "schedule": {"iterations": 1200},
}
BEST: dict[str, tuple[dict, str]] = {
    "mnist-1-gradient": (GRADIENT, "1 cloud per class by gradient matching"),
    "mnist-1": (UNROLLED, "1 cloud per class by distribution matching, then unrolled training"),
    "mnist-1-labels": (
        _merged(UNROLLED, {"objective": {"learned_labels": True}, "evaluation": {"networks": 5}}),
        "the same with learned labels",
    ),
    "mnist-1-soft": (
        _merged(
            UNROLLED,
            {
                "lift": {"bandwidth_end": 0.12, "real_bandwidth_end": 0.06},
                "evaluation": {"projection": {"name": "soft", "bandwidth": 0.12}, "networks": 5},
            },
        ),
        "the same, scored as grey images, points as narrow spots",
    ),
    "mnist-1-split": (
        _merged(
            SPLIT,
            {
                "clouds": {"clouds_per_class": 8, "points_per_cloud": 31},
                "evaluation": {"networks": 5},
            },
        ),
        "the points of 1 cloud per class in 8 clouds of 31, by maximum mean discrepancy",
    ),
    "mnist-10": (
        _merged(SEVERAL, {"clouds": {"clouds_per_class": 10}, "evaluation": {"networks": 3}}),
        "10 clouds per class by maximum mean discrepancy",
    ),
    "mnist-50": (
        _merged(SEVERAL, {"clouds": {"clouds_per_class": 50}, "evaluation": {"networks": 1}}),
        "50 clouds per class by maximum mean discrepancy",
    ),
}
LARGE = {
    "network": {"width": 128},
    "objective": {"real_batch": 256},
    "schedule": {"iterations": 2000},
}
QUICKSTART = _merged(
    GAUSSIAN,
    {
        "schedule": {"iterations": 300},
        "evaluation": {
            "networks": 3,
            "epochs": 200,
            "classifier": {"name": "convnet", "width": 32},
        },
    },
)

# About the number of points of a real cloud of `digits`. Such a cloud takes the 98 bytes of a
# bitmap (`packed_bytes`), so two whole real clouds per class have the same number of clouds and
# bytes.
DEMO = _merged(
    GAUSSIAN,
    {
        "clouds": {"clouds_per_class": 2, "points_per_cloud": 150},
        "lift": {
            "bandwidth_end": 0.25,
            "saturation": 3.0,
            "saturation_start": 1.0,
            "closed": True,
        },
        "objective": {
            "name": "maximum_mean_discrepancy",
            "real_batch": 24,
            "augmentation": True,
        },
        "optimiser": {"step_size": 0.35},
        "schedule": {"iterations": 200},
        "evaluation": {
            "networks": 2,
            "epochs": 100,
            "classifier": {"name": "convnet", "width": 16},
            "protocols": ["standard"],
        },
    },
)


def _best_presets() -> dict[str, Preset]:
    full = {"split": "test", "protocols": ["standard", "paper"], "augmentation": "published"}
    presets, in_full = {}, {"evaluation": full}
    for name, (changes, text) in BEST.items():
        small = _merged(INGREDIENTS, changes, SMALL_CHOICE)
        presets[name] = Preset(
            from_dict(_merged(INGREDIENTS, in_full, changes)), f"our best: {text}"
        )
        presets[f"{name}-small"] = Preset(
            from_dict(small),
            f"{text}; scored on the validation split by fewer, smaller classifiers",
        )
    return presets


def _shape_presets() -> dict[str, Preset]:
    presets = {
        "solids": Preset(
            from_dict(_merged(SHAPES, SOLIDS)),
            "simple solids, without data files; a minute on 2 cores",
        )
    }
    for count in (1, 3, 10):
        kinds = {
            f"shapes-{count}": (count, 1024, f"{count} per class"),
            f"shapes-{count}-split": (
                count * SPLIT_INTO,
                1024 // SPLIT_INTO,
                f"as many points as with {count} per class, in {SPLIT_INTO} times as many clouds",
            ),
        }
        for name, (clouds, points, words) in kinds.items():
            settings = _merged(
                SHAPES, {"clouds": {"clouds_per_class": clouds, "points_per_cloud": points}}
            )
            text = f"ModelNet10, by PointNets: {words}"
            presets[name] = Preset(from_dict(settings), text)
            presets[f"{name}-small"] = Preset(
                from_dict(_merged(settings, SHAPES_SMALL)),
                f"{text}; scored on the validation split by one classifier",
            )
    return presets


def _adrenal_presets() -> dict[str, Preset]:
    presets = {}
    networks = {
        "adrenal": ("torch", "all cells"),
        "adrenal-sparse": ("sparse", "occupied cells only"),
        "adrenal-minkowski": ("minkowski", "occupied cells only, by MinkowskiEngine"),
    }
    for name, (network, words) in networks.items():
        settings = _merged(GAUSSIAN, ADRENAL, {"network": {"name": network}})
        text = f"AdrenalMNIST3D, by networks on {words}; minutes on a CPU"
        presets[name] = Preset(from_dict(settings), text)
        presets[f"{name}-small"] = Preset(
            from_dict(_merged(settings, ADRENAL_SMALL)),
            f"{text}; scored on the validation split by one classifier",
        )
    presets["adrenal-demo"] = Preset(
        from_dict(_merged(GAUSSIAN, ADRENAL, ADRENAL_DEMO)),
        "for `make demo DATASET=adrenal`: `adrenal`, scored by one classifier",
    )
    return presets


PRESETS: dict[str, Preset] = {
    **_paper_presets(),
    **_best_presets(),
    **_shape_presets(),
    **_adrenal_presets(),
    "gaussian": Preset(
        from_dict(GAUSSIAN),
        "ours: Gaussian occupancy, layerwise cosine, new network every iteration, steps in cells",
    ),
    "gaussian-small": Preset(
        from_dict({**GAUSSIAN, "evaluation": SMALL["evaluation"]}),
        "`gaussian`, scored like the small presets of the paper",
    ),
    "ingredients-base": Preset(
        from_dict(_merged(INGREDIENTS, LARGE)),
        "base of the experiment `ingredients`, scored on the validation split",
    ),
    "ingredients-base-small": Preset(
        from_dict(_merged(INGREDIENTS, SMALL_CHOICE)),
        "the same; minutes on 2 cores, scored by fewer, smaller classifiers",
    ),
    "demo": Preset(
        from_dict(DEMO),
        "for `make demo`: 2 clouds of 150 points per class by maximum mean discrepancy",
    ),
    "quickstart": Preset(
        from_dict(QUICKSTART),
        "for the quickstart notebook: `gaussian`, scored by fewer, smaller classifiers",
    ),
}
