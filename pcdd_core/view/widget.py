"""The player as a Jupyter widget, and the pictures and HTML that replace it without a kernel."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image as pillow

from ..errors import extra_missing
from . import page
from .kernel import has_screen
from .recording import Recording

try:
    import anywidget
    import traitlets
    from IPython.display import HTML, Image, display
    from ipywidgets import Widget
except ImportError as missing:
    raise extra_missing(missing.name or "anywidget", "notebooks") from None


def show(recording: Recording) -> Any:
    """Return a notebook display of a recording: the player, or a picture without a front end.

    A saved notebook shows a widget only if JupyterLab has saved its state. So the output also
    contains the player as folded HTML.
    """
    return _Shown(recording) if has_screen() else png(recording)


class PlayerWidget(anywidget.AnyWidget):
    """player.js as a widget. A notebook that is saved with widget state contains `recording`.

    recording: result of `page.encode`
    status:    state of the run in one line; "" for a recording
    orders:    buttons of the run, [name, tooltip, enabled] each. A press sends {"order": name}.
    scores:    accuracies during the run, see `score` in player.js
    """

    # The text, not the path: for a path anywidget keeps every widget for ever, to update it.
    _esm = page.SCRIPT.read_text(encoding="utf-8")
    recording = traitlets.Bytes(b"").tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    orders = traitlets.List().tag(sync=True)
    scores = traitlets.Dict().tag(sync=True)


class _Shown(PlayerWidget):
    """The player of a recording as a widget, followed by the player as folded HTML."""

    def __init__(self, recording: Recording):
        super().__init__(recording=page.encode(recording))
        self._html = page.folded(recording)

    def _ipython_display_(self) -> None:
        bundle: Any = self._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        display(bundle, raw=True)
        display(HTML(self._html))


def close_all(widget: Widget) -> None:
    """Close a widget with its children, layout and style, which the kernel would keep for ever."""
    for name in ("layout", "style"):
        if part := getattr(widget, name, None):
            part.close()
    for child in getattr(widget, "children", ()):
        close_all(child)
    widget.close()


def kept(recordings: Sequence[Recording], names: Sequence[str]) -> dict[str, str]:
    """Return an output that needs no kernel: a picture, and the player as folded HTML below it."""
    picture = base64.b64encode(_picture(recordings, names)).decode()
    output = {"image/png": picture, "text/plain": "Picture of a recording."}
    if len(recordings[0]) > 1:
        image = f'<img src="data:image/png;base64,{picture}" alt="the recording over time">'
        output["text/html"] = image + page.folded(*recordings, names=names)
    return output


def png(recording: Recording) -> Image:
    """Return a picture of a recording, for display in a notebook."""
    return Image(_picture([recording], [""]))


def _picture(recordings: Sequence[Recording], names: Sequence[str]) -> bytes:
    """Return a PNG file of the recordings, stacked vertically, each below its name."""
    parts = []
    for recording, name in zip(recordings, names, strict=True):
        figure, file = recording.picture(), io.BytesIO()
        figure.suptitle(name, fontsize=9)
        figure.savefig(file, format="png", dpi=90)
        parts.append(pillow.open(file))
    whole = pillow.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    file = io.BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()
