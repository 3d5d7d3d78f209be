"""List the runs of an experiment. A `PlannedRun` is one: a preset, changed settings, a seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.datasets import Images
from ..errors import InputError, nearest_names
from ..scoring.baselines import Baseline, Herding, KCenter
from . import records, runs
from .config import Config, override, to_dict
from .presets import PRESETS, label, preset
from .variants import BESIDE, BESIDE_OTHERS, SCALES, VARIANTS

EXPERIMENTS = {
    "table1": "Table 1: backends and layers, sum of squares",
    "table2": "Table 2: the two distances",
    "ablation": "section 4.4: max against average pooling",
    "why": "two MinkowskiEngine layers with norm, origin shift, second derivatives and new "
    "networks, each on and off",
    "pool": "fresh real gradients in every iteration against pools of batches",
    "step-size": "section 4.5: 0.1 to 100 times the usual step size, both distances",
    "ingredients": "our setting with one ingredient changed at a time, on the validation split",
    "architectures": "the released set and real clouds, one per class, scored by other classifiers",
    "best": "the best of each kind beside as many real clouds, on the test images (small: on the "
    "validation split)",
    "frontier": "accuracy against bytes: our sets with hard labels beside real ones of many sizes",
    "modelnet10": "ModelNet10, from scatter and from real clouds, beside as many real clouds "
    "(small: on the validation split)",
    "modelnet40": "ModelNet40, one cloud per class and its points in several clouds, likewise",
    "adrenal": "AdrenalMNIST3D by dense and sparse networks and MinkowskiEngine, beside as many "
    "real clouds of as many points (small: on the validation split)",
    "initialisation": "section 4.5: the paper's two best networks from many scatters "
    "(try --seeds 10)",
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
BESIDE_SEEDS = 5  # largest number of seeds of the rows for comparison


@dataclass(frozen=True)
class PlannedRun:
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
) -> list[PlannedRun]:
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
    if name in EXPERIMENTS:  # a preset can have the same name: it is one of the rows
        variants, suffix = VARIANTS[name](scale), SCALES[scale]
    elif name in PRESETS:
        variants, suffix, beside = [(name, {})], "", False
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
    plans: dict[str, PlannedRun] = {}
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
            plan = PlannedRun(base, config, baseline)
            plans.setdefault(plan.identity, plan)
    return list(plans.values())
