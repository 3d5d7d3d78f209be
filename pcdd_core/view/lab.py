"""The lab: a panel of settings around the live view, two runs side by side, scores during runs."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.datasets import Splits
from ..errors import InputError, extra_missing
from ..experiments.config import Config
from .control_widgets import button, fit, read_value, set_value, short, widget_of
from .controls import (
    BY_NAME,
    COMPARED,
    CONTROLS,
    LIVE,
    PRESETS,
    another,
    changed,
    command,
    configured,
    program,
    second,
    start_of,
    values_of,
)
from .live import LiveDistillation, replacing
from .page import save_player
from .scorer import Scorer
from .session import Session
from .session_view import SessionView
from .widget import close_all

try:
    import ipywidgets as widgets
except ImportError as missing:
    raise extra_missing(missing.name or "ipywidgets", "notebooks") from None


def lab(
    preset: str = "quickstart",
    settings: Mapping[str, Any] | None = None,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
) -> "Lab":
    """Return a lab: a live view with a panel of settings. A notebook cell displays it.

    Without a front end, `lab` returns when the distillation is finished, see `watch`.

    preset: name of the first preset; the digits of scikit-learn replace MNIST
    settings: changes of the preset, by dotted name, for instance {"data.name": "mnist"}
    data: folder of the data, see `DataSet.load`
    device: see `machine.choose_device`
    Raises InputError if a setting is unknown or does not fit the data.
    """
    given = preset, dict(settings or {}), str(data) if data else None
    return replacing(lambda: Lab(*given, device))


class Lab(LiveDistillation):
    """A lab, see `lab`. Its buttons are also methods, see `LiveDistillation`."""

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
    """State of the panel: the preset, its configuration, the data and the configurations in use."""

    preset: str
    base: Config
    splits: Splits
    data: str | None
    device: str | None
    configs: list[Config] = field(default_factory=list)

    def __post_init__(self):
        self.configs = self.configs or [self.base]

    def load(self, config: Config) -> Splits:
        """Return the data of a configuration. Data in use are not read again."""
        if config.data == self.configs[0].data:
            return self.splits
        return config.data.load(self.data)


class LabView(SessionView):
    """The panel and the player of a session."""

    def __init__(self, session: Session, desk: Desk):
        self.desk = desk
        self.quiet = False  # the program sets the widgets, so their events are ignored
        self.scorer: Scorer | None = None
        self.controls = {control.name: widget_of(control) for control in CONTROLS}
        self.preset = widgets.Dropdown(
            options=list(dict.fromkeys((desk.preset, *PRESETS))),
            value=desk.preset,
            description="Preset",
            tooltip="settings at the beginning",
        )
        self.reset_button = button("Reset", "set all settings to their first values")
        self.copy_button = button("Copy settings", "as a command and as Python, to the clipboard")
        self.copied = widgets.Textarea(
            layout={"display": "none", "width": "100%", "height": "16em"}
        )
        self.compare = widgets.Dropdown(
            options=[("none", ""), *((control.label, control.name) for control in COMPARED)],
            description="Second run",
            tooltip="a second run beside the first, which differs in one setting",
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
            fit(control)
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

    # Settings and messages.

    def read(self) -> list[Config]:
        """Return the configurations of one or two runs.

        Raises InputError if the settings contradict each other.
        """
        values = {name: read_value(widget) for name, widget in self.controls.items()}
        first = configured(self.desk.base, values)
        if not self.compare.value:
            return [first]
        return [first, second(first, self.compare.value, read_value(self.other.children[0]))]

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
                    set_value(widget, values[name])
                widget.disabled = name not in values
        finally:
            self.quiet = False

    def say_message(self, text: str, wrong: bool = False) -> None:
        """Show a line between the panel and the player."""
        sign = "⚠ " if wrong else ""
        self.message.value = html.escape(sign + text)

    # Events of the panel.

    def _changed(self, _change: Any = None) -> None:
        """Apply a change of a control to the run, or make another run."""
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
            which = ", ".join(f"{BY_NAME[name].label} {short(values.get(name))}" for name in names)
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
            widget = fit(widget_of(control))
            widget.description = "with"
            current = values_of(self.desk.configs[0]).get(control.name)
            set_value(widget, control.other)
            if current == control.other:
                set_value(widget, another(control, current))
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
        """Return the command and the program of each run."""
        desk = self.desk
        where = desk.data, desk.device
        return [
            f"{command(desk.preset, config, *where)}\n\n{program(desk.preset, config, *where)}"
            for config in desk.configs
        ]

    # Calls of the session and of the scorer.

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
