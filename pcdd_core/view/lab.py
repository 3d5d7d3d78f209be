"""The lab: a panel of settings around the live view, two runs side by side, scores while they run.

The functions at the top turn values of the panel into configurations, and configurations into a
command and a program. They need no front end.
"""

import html
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.datasets import Splits
from ..engine.distances import DISTANCES
from ..errors import InputError, extra_missing
from ..experiments.config import Config, described_settings, override, to_dict
from ..experiments.presets import differences, preset
from .live import LiveDistillation, SessionView, close_all, replacing
from .page import save_player
from .scorer import Scorer
from .session import Session

try:
    import ipywidgets as widgets
except ImportError as missing:
    raise extra_missing(missing.name or "ipywidgets", "notebooks") from None


@dataclass(frozen=True)
class Control:
    """One setting of the panel.

    name: dotted name of the setting
    label: the name that the field uses
    choices: of a menu; empty: a number from `least` to `most`
    kind: menu, whole, slider (logarithmic) or classes
    other: the value that a second run gets first, if the first run does not have it
    """

    name: str
    label: str
    kind: str = "menu"
    choices: tuple[str, ...] = ()
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
    Control(
        "objective.name",
        "Matching loss",
        choices=(
            "gradient_matching",
            "distribution_matching",
            "maximum_mean_discrepancy",
            "sorted_feature_matching",
            "feature_regression",
            "unrolled_training",
        ),
        other="distribution_matching",
    ),
    Control(
        "objective.distance", "Distance", choices=tuple(DISTANCES), other="sum_of_squares"
    ),
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
# Settings in which a second run may differ: it has the same scatter, and goes in step.
COMPARED = tuple(control for control in CONTROLS if control.other is not None)
PRESETS = ("quickstart", "demo", "gaussian", "paper-torch-3-sum-of-squares-small", "solids")


def start_of(name: str, settings: Mapping[str, Any] = {}) -> Config:
    """Return the configuration that the lab begins with: a preset, with digits in place of MNIST.

    settings: changes of it, by dotted name
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

    "" stands for a difference in a setting that has no control, or in their number.
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
    """Return the configuration of the second run: one setting apart.

    Raises InputError if the two runs would be equal, or do not have this setting.
    """
    if name not in values_of(config):
        raise InputError(f"second run: {name} is no setting of the first run; choose another one")
    other = configured(config, {name: value})
    if other == config:
        raise InputError(f"second run: {name} = {value} is what the first run has; change one")
    return other


def words(value: Any) -> str:
    """Return a value as the command line takes it: JSON, or a plain word."""
    return value if isinstance(value, str) else json.dumps(value)


def command(name: str, config: Config, data: str | None = None, device: str | None = None) -> str:
    """Return the `pcdd distill` command of a configuration, for a shell.

    name: of a preset
    data: folder of the data
    """
    options = [f"--seed={config.seed}"]
    options += [f"--data={data}"] if data else []
    options += [f"--device={device}"] if device else []
    settings = [f"{key}={words(value)}" for key, value in differences(name, config).items()]
    return shlex.join(["pcdd", "distill", f"--preset={name}", *options, *settings])


def program(name: str, config: Config, data: str | None = None, device: str | None = None) -> str:
    """Return a Python program that distils with a configuration, and saves the set."""
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


def lab(
    preset: str = "quickstart",
    settings: Mapping[str, Any] | None = None,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
) -> "Lab":
    """Return a lab: a live view with a panel of settings. A notebook cell displays it.

    Without a front end it is a live distillation that is finished when `lab` returns, see `watch`.

    preset: name of the preset to begin with; MNIST is replaced by the digits of scikit-learn
    settings: changes of the preset, by dotted name, for instance {"data.name": "mnist"}
    data: folder of the data, see `DataSet.load`
    device: see `machine.choose_device`
    Raises InputError if a setting is unknown or does not fit the data.
    """
    given = preset, dict(settings or {}), str(data) if data else None
    return replacing(lambda: Lab(*given, device))


class Lab(LiveDistillation):
    """A lab, see `lab`. Its buttons are also methods, those of `LiveDistillation`."""

    def __init__(
        self,
        preset: str,
        settings: Mapping[str, Any],
        data: str | None = None,
        device: torch.device | str | None = None,
    ):
        config = start_of(preset, settings)
        splits = config.data.load(data)
        super().__init__(config, splits.train, device)
        desk = Desk(preset, config, splits, data, str(device) if device else None)
        self._make_view = lambda session: LabView(session, desk)

    def save(self, path: Path | str) -> None:
        """Write an HTML page that plays the recording, two runs side by side.

        Raises InputError as `save_player` does.
        """
        first, *others = self._session.recordings()
        view = self._session.view
        save_player(first, path, *others, names=view.names if isinstance(view, LabView) else [""])


@dataclass
class Desk:
    """What the panel works on: the preset, its configuration and the data."""

    preset: str
    base: Config
    splits: Splits
    data: str | None
    device: str | None
    configs: list[Config] = field(default_factory=list)

    def __post_init__(self):
        self.configs = self.configs or [self.base]

    def load(self, config: Config) -> Splits:
        """Return the data of a configuration. Those in use are not read again."""
        if config.data == self.configs[0].data:
            return self.splits
        return config.data.load(self.data)


class LabView(SessionView):
    """The panel and the player of a session."""

    def __init__(self, session: Session, desk: Desk):
        self.desk = desk
        self.quiet = False  # widgets change by program
        self.scorer: Scorer | None = None
        self.controls = {control.name: _widget(control) for control in CONTROLS}
        self.preset = widgets.Dropdown(
            options=list(dict.fromkeys((desk.preset, *PRESETS))),
            value=desk.preset,
            description="Preset",
            tooltip="settings to begin with",
        )
        self.reset_button = _button("Reset", "all settings as the lab began with them")
        self.copy_button = _button("Copy settings", "as a command and as Python, to the clipboard")
        self.copied = widgets.Textarea(
            layout={"display": "none", "width": "100%", "height": "16em"}
        )
        self.compare = widgets.Dropdown(
            options=[("none", ""), *((control.label, control.name) for control in COMPARED)],
            description="Second run",
            tooltip="a second run beside the first: same scatter and seed, one setting apart",
        )
        self.other = widgets.HBox()
        self.delay = widgets.FloatSlider(
            max=2, step=0.1, description="Pause (s)", continuous_update=False,
            tooltip="seconds between iterations",
        )  # fmt: skip
        self.every = widgets.BoundedIntText(
            value=25, min=0, max=10_000, description="Score every",
            tooltip="updates between scores on validation clouds; 0: none",
        )  # fmt: skip
        self.message = widgets.HTML()
        self.message.add_class("pcdd-message")
        super().__init__(session)
        self.panel = widgets.VBox(self._rows())
        self.panel.add_class("pcdd-lab")
        self._show(desk.base)
        self._listen()
        self._new_scorer()

    @property
    def widget(self) -> widgets.DOMWidget:
        """The panel with the player."""
        return self.panel

    def _rows(self) -> list[widgets.Widget]:
        grid = widgets.GridBox(
            [*self.controls.values()],
            layout={
                "grid_template_columns": "repeat(auto-fill, minmax(245px, 1fr))",
                "grid_gap": "2px 12px",
            },
        )
        wrap = {"flex_flow": "row wrap"}
        top = widgets.HBox([self.preset, self.reset_button, self.copy_button], layout=wrap)
        below = widgets.HBox([self.compare, self.other, self.delay, self.every], layout=wrap)
        for control in (*self.controls.values(), self.preset, self.compare, self.delay, self.every):
            _fit(control)
        return [top, grid, below, self.message, self.copied, self.player]

    def _listen(self) -> None:
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.compare.observe(self._compare, "value")
        self.preset.observe(self._preset, "value")
        self.delay.observe(self._delay, "value")
        self.every.observe(self._every, "value")
        self.reset_button.on_click(lambda _: self._begin_with(self.desk.base))
        self.copy_button.on_click(lambda _: self._copy())

    # What the panel says.

    def read(self) -> list[Config]:
        """Return the configurations of one or two runs.

        Raises InputError if the settings contradict each other.
        """
        values = {name: _value(widget) for name, widget in self.controls.items()}
        first = configured(self.desk.base, values)
        if not self.compare.value:
            return [first]
        return [first, second(first, self.compare.value, _value(self.other.children[0]))]

    def _names(self, configs: Sequence[Config]) -> list[str]:
        if len(configs) == 1:
            return [""]
        name = str(self.compare.value)
        return [f"{BY_NAME[name].label}: {values_of(config)[name]}" for config in configs]

    def _show(self, config: Config) -> None:
        """Set the controls to a configuration, and disable those that it does not have."""
        self.quiet = True
        try:
            values = values_of(config)
            for name, widget in self.controls.items():
                if name in values:
                    _set(widget, values[name])
                widget.disabled = name not in values
        finally:
            self.quiet = False

    def say_message(self, text: str, wrong: bool = False) -> None:
        """Show a line between the panel and the player."""
        sign = "⚠ " if wrong else ""
        self.message.value = html.escape(sign + text)

    # What the panel does.

    def _changed(self, _change: Any = None) -> None:
        """Follow a change of a control, at once or with another run."""
        if self.quiet:
            return
        try:
            configs = self.read()
            self._take(configs)
        except InputError as error:
            self.say_message(str(error), wrong=True)

    def _take(self, configs: list[Config]) -> None:
        desk, session = self.desk, self.session
        names = changed(desk.configs, configs)
        if not names:
            self.say_message("")
            return
        if names <= LIVE:
            session.change(configs)
            desk.configs = configs
            values = values_of(configs[0])
            which = ", ".join(f"{BY_NAME[name].label} {_short(values.get(name))}" for name in names)
            update = session.run.tracks[0].updates + 1
            since = "after Restart" if session.run.ended else f"from update {update} on"
            self.say_message(f"{which}, {since}.")
            return
        splits = desk.load(configs[0])
        runs = session.state() == "running"
        with session.changed:  # the names change with the run
            before, self.names = self.names, self._names(configs)
            try:
                session.replace(configs, splits.train)
            except InputError:
                self.names = before
                raise
        desk.configs, desk.splits = configs, splits
        self._show(configs[0])
        self._new_scorer()
        self.say_message("Another run, from the same scatter." if runs else "")
        if runs:
            session.start()

    def _compare(self, _change: Any = None) -> None:
        former = self.other.children
        self.other.children = ()
        for widget in former:
            close_all(widget)
        if self.compare.value:
            control = BY_NAME[self.compare.value]
            widget = _fit(_widget(control))
            widget.description = "with"
            current = values_of(self.desk.configs[0]).get(control.name)
            _set(widget, control.other)
            if current == control.other:
                _set(widget, _another(control, current))
            widget.observe(self._changed, "value")
            self.other.children = (widget,)
        self._changed()

    def _preset(self, _change: Any = None) -> None:
        if not self.quiet:
            self.desk.preset = str(self.preset.value)
            self.desk.base = start_of(self.desk.preset)
            self._begin_with(self.desk.base)

    def _begin_with(self, config: Config) -> None:
        self.quiet = True
        self.compare.value = ""
        self.quiet = False
        self._show(config)
        self._changed()

    def _delay(self, _change: Any = None) -> None:
        self.session.delay = self.delay.value

    def _every(self, _change: Any = None) -> None:
        if self.scorer:
            self.scorer.every = self.every.value
            if not self.session.run.resting:
                self.scorer.start()

    def _copy(self) -> None:
        text = "\n\n".join(self.copies())
        self.copied.value = text
        self.copied.layout.display = ""
        self.player.send({"kind": "copy", "text": text})
        self.say_message("Settings copied.")

    def copies(self) -> list[str]:
        """Return command and program of each run."""
        desk = self.desk
        where = desk.data, desk.device
        return [
            f"{command(desk.preset, config, *where)}\n\n{program(desk.preset, config, *where)}"
            for config in desk.configs
        ]

    # What the session does.

    def say(self) -> None:
        """Update the status and the buttons, and start to score when points begin to move."""
        super().say()
        if self.scorer and not self.session.run.resting:
            self.scorer.start()

    def reset(self) -> None:
        """Show the recordings from their beginning."""
        super().reset()
        if self.scorer and self.scorer.run is not self.session.run:
            self._new_scorer()

    def _new_scorer(self) -> None:
        def tell(scores: dict) -> None:
            with self.session.changed:
                if scorer is self.scorer and self.player.comm is not None:
                    self.player.scores = json.loads(json.dumps(scores))  # a copy: it is compared

        scorer = Scorer(self.session, self.desk.splits, self.every.value, tell)
        self.scorer = scorer
        self.player.scores = json.loads(json.dumps(scorer.scores))


def _widget(control: Control) -> Any:
    shared = {"description": control.label, "tooltip": control.tooltip}
    if control.kind == "menu":
        return widgets.Dropdown(options=control.choices, **shared)
    if control.kind == "classes":
        return widgets.Text(value="all", continuous_update=False, **shared)
    if control.kind == "slider":
        return widgets.FloatLogSlider(
            value=1, min=control.least, max=control.most, step=0.05, continuous_update=False,
            readout_format=".3g", **shared,
        )  # fmt: skip
    return widgets.BoundedIntText(
        value=int(control.least), min=int(control.least), max=int(control.most), **shared
    )


def _fit(widget: Any) -> Any:
    """Give the label of a widget the room that the longest label needs."""
    widget.style.description_width = "9.5em"
    widget.layout.width = "auto"
    widget.layout.min_width = "245px"
    return widget


def _button(text: str, tooltip: str) -> widgets.Button:
    return widgets.Button(description=text, tooltip=tooltip)


def _value(widget: Any) -> Any:
    """Return the value of a control as a setting."""
    if isinstance(widget, widgets.Text):
        names = [name.strip() for name in widget.value.split(",") if name.strip()]
        return None if names in ([], ["all"]) else names
    return float(_short(widget.value)) if isinstance(widget.value, float) else widget.value


def _set(widget: Any, value: Any) -> None:
    """Set a control to the value of a setting. A value outside of its range extends the range."""
    if isinstance(widget, widgets.Text):
        widget.value = "all" if value is None else ", ".join(value)
    elif isinstance(widget, widgets.Dropdown):
        if value not in widget.options:
            widget.options = [*widget.options, value]
        widget.value = value
    elif isinstance(widget, widgets.FloatLogSlider):
        widget.min = min(widget.min, math.floor(math.log10(value)))
        widget.max = max(widget.max, math.ceil(math.log10(value)))
        widget.value = value
    else:
        widget.max = max(widget.max, value)
        widget.value = value


def _another(control: Control, value: Any) -> Any:
    """Return another value of a control."""
    if control.kind == "menu":
        return next(choice for choice in control.choices if choice != value)
    return value * 2 if value else 1


def _short(value: Any) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
