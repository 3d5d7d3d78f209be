"""The controls of the lab: one for each setting that the panel shows. No front end is needed.

Functions turn values of controls into configurations, and a configuration into a command and a
program.
"""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.distances import DISTANCES
from ..engine.objectives import Objective
from ..errors import InputError
from ..experiments.config import Config, described_settings, override, to_dict
from ..experiments.presets import differences, preset


@dataclass(frozen=True)
class Control:
    """One setting of the panel.

    name: dotted name of the setting
    label: name of the setting in the literature
    choices: entries of a menu
    kind: menu, whole (number), slider (logarithmic) or classes
    least, most: range of a whole number; of a slider, the exponents of 10
    other: the first value of a second run, unless the first run has it
    """

    name: str
    label: str
    kind: str = "menu"
    choices: Collection[str] = ()
    least: float = 1
    most: float = 1
    other: Any = None

    @property
    def tooltip(self) -> str:
        """Help text of the setting, with its dotted name."""
        piece, _, setting = self.name.partition(".")
        whole = Config.settings()[piece][1] if setting == "name" else None
        return f"{self.name}: {whole or described_settings()[self.name][1]}"


CONTROLS = (
    Control("data.name", "Data set", choices=("digits", "mnist", "solids")),
    Control("data.classes", "Classes", "classes"),
    Control("clouds.clouds_per_class", "Clouds per class", "whole", most=50),
    Control("clouds.points_per_cloud", "Points per cloud", "whole", most=2048),
    Control(
        "lift.name", "Lift", choices=("gaussian", "coordinates", "points"), other="coordinates"
    ),
    Control("lift.bandwidth_start", "Bandwidth, start", "slider", least=-1, most=1, other=0.5),
    Control("lift.bandwidth_end", "Bandwidth, end", "slider", least=-2, most=1, other=2.5),
    # the registries, not copies: the menus then list what a notebook adds to them
    Control(
        "objective.name", "Matching loss", choices=Objective.choices, other="distribution_matching"
    ),
    Control("objective.distance", "Distance", choices=DISTANCES, other="sum_of_squares"),
    Control("objective.real_batch", "Real batch", "whole", most=1024, other=4),
    Control("network.name", "Network", choices=("torch", "sparse", "pointnet"), other="sparse"),
    Control("network.layers", "Depth", "whole", most=6, other=1),
    Control("network.width", "Width", "whole", most=1024, other=8),
    Control("network.pooling", "Pooling", choices=("average", "max"), other="max"),
    Control("optimiser.name", "Optimiser", choices=("sgd", "adam"), other="sgd"),
    Control("optimiser.step_size", "Step size", "slider", least=-3, most=3, other=1.0),
    Control("schedule.iterations", "Iterations", "whole", most=10_000),
    Control(
        "schedule.iterations_per_network", "Per network", "whole", least=0, most=10_000,
        other=0,
    ),
    Control("seed", "Seed", "whole", least=0, most=10_000),
)  # fmt: skip
BY_NAME = {control.name: control for control in CONTROLS}
# Settings that a run in progress can change. A change of any other setting begins another run.
LIVE = {"lift.bandwidth_start", "lift.bandwidth_end", "optimiser.step_size"}
# Settings in which a second run can differ. It has the same scatter and runs in step.
COMPARED = tuple(control for control in CONTROLS if control.other is not None)
PRESETS = ("quickstart", "demo", "gaussian", "paper-torch-3-sum-of-squares-small", "solids")


def start_of(name: str, settings: Mapping[str, Any] = {}) -> Config:
    """Return the first configuration of the lab: a preset, with digits in place of MNIST.

    settings: changes of the preset, by dotted name
    """
    config = preset(name).config
    small = {"data.name": "digits"} if config.data.name == "mnist" else {}
    return override(config, {**small, **settings})


def values_of(config: Config) -> dict[str, Any]:
    """Return the settings as a flat dictionary: values by dotted name, of `CONTROLS` only."""
    flat: dict[str, Any] = {}

    def visit(settings: Mapping[str, Any], prefix: str) -> None:
        for key, value in settings.items():
            if isinstance(value, Mapping):
                visit(value, f"{prefix}{key}.")
            elif f"{prefix}{key}" in BY_NAME:
                flat[f"{prefix}{key}"] = value

    visit(to_dict(config), "")
    return flat


def configured(base: Config, values: Mapping[str, Any]) -> Config:
    """Return `base` with these settings. Values that the chosen pieces do not have are left out."""
    chosen = {name: value for name, value in values.items() if name.endswith(".name")}
    config = override(base, chosen)
    has = values_of(config)
    return override(config, {name: value for name, value in values.items() if name in has})


def changed(before: Sequence[Config], after: Sequence[Config]) -> set[str]:
    """Return the names of the settings in which two lists of configurations differ.

    The name "" means that they differ in a setting without a control, or in length.
    """
    if len(before) != len(after):
        return {""}
    names: set[str] = set()
    for one, other in zip(before, after):
        old, new = values_of(one), values_of(other)
        names |= {name for name in {*old, *new} if old.get(name) != new.get(name)}
        if configured(other, old) != one:
            names.add("")
    return names


def second(config: Config, name: str, value: Any) -> Config:
    """Return the configuration of the second run, which differs in one setting.

    Raises InputError if the two runs would be equal, or do not have this setting.
    """
    if name not in values_of(config):
        raise InputError(f"second run: the first run has no setting {name}; choose another setting")
    other = configured(config, {name: value})
    if other == config:
        raise InputError(f"second run: {name} = {value} equals the first run; choose another value")
    return other


def words(value: Any) -> str:
    """Return a value in the form that the command line reads: JSON, or a plain word."""
    return value if isinstance(value, str) else json.dumps(value)


def command(name: str, config: Config, data: str | None = None, device: str | None = None) -> str:
    """Return the `pcdd distill` command of a configuration, for a shell.

    name: name of the preset
    data: folder of the data
    """
    options = [f"--seed={config.seed}"]
    options += [f"--data={data}"] if data else []
    options += [f"--device={device}"] if device else []
    settings = [f"{key}={words(value)}" for key, value in differences(name, config).items()]
    return shlex.join(["pcdd", "distill", f"--preset={name}", *options, *settings])


def program(name: str, config: Config, data: str | None = None, device: str | None = None) -> str:
    """Return a Python program that distils with a configuration and saves the set."""
    settings = {**differences(name, config), "seed": config.seed}
    lines = "".join(f"    {key!r}: {value!r},\n" for key, value in settings.items())
    folder = repr(data) if data else ""
    where = f", {device!r}" if device else ""
    return (
        "import pcdd_core as pcdd\n\n"
        f"settings = {{\n{lines}}}\n"
        f"config = pcdd.override(pcdd.preset({name!r}).config, settings)\n"
        f"real = config.data.load({folder})\n"
        f"for step in config.distill(real.train{where}):\n"
        "    print(step.iteration, sum(step.matching_loss))\n"
        'pcdd.save_clouds(step.clouds, "clouds.npz")\n'
    )


def another(control: Control, value: Any) -> Any:
    """Return a value of a control that differs from `value`."""
    if control.kind == "menu":
        return next(choice for choice in control.choices if choice != value)
    return value * 2 if value else 1
