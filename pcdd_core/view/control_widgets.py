"""Widgets of the controls: make one, and read and set its value."""

import math
from typing import Any

from ..errors import extra_missing
from .controls import Control

try:
    import ipywidgets as widgets
except ImportError as missing:
    raise extra_missing(missing.name or "ipywidgets", "notebooks") from None


def widget_of(control: Control) -> Any:
    """Return a new widget for a control."""
    shared = {"description": control.label, "tooltip": control.tooltip}
    if control.kind == "menu":
        return widgets.Dropdown(options=tuple(control.choices), **shared)
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


def fit(widget: Any) -> Any:
    """Make the label of a widget as wide as the longest label. Returns the widget."""
    widget.style.description_width = "9.5em"
    widget.layout.width = "auto"
    widget.layout.min_width = "245px"
    return widget


def button(text: str, tooltip: str) -> widgets.Button:
    """Return a button with this text."""
    return widgets.Button(description=text, tooltip=tooltip)


def read_value(widget: Any) -> Any:
    """Return the value of a widget as the value of its setting."""
    if isinstance(widget, widgets.Text):
        names = [name.strip() for name in widget.value.split(",") if name.strip()]
        return None if names in ([], ["all"]) else names
    return float(short(widget.value)) if isinstance(widget.value, float) else widget.value


def set_value(widget: Any, value: Any) -> None:
    """Set a widget to the value of its setting. A value outside of the range extends the range."""
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


def short(value: Any) -> str:
    """Return a number as text, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
