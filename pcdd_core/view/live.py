"""Watch a distillation in JupyterLab: start, pause, step, stop and restart while points move.

`watch` returns a `LiveDistillation`. Its session iterates in a thread, so the kernel stays free.
Buttons act at the end of the current iteration. The kernel sends frames to player.js in the
browser, at most SENT_PER_SECOND times a second. The settings of the view (class, colours, trails,
frame) are in the browser and need no kernel.

Without a front end (papermill, nbconvert, scripts) `watch` runs to the end at once, and a picture
replaces the view.
"""

import base64
import io
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image as pillow

from ..engine.lifts import occupancy
from ..errors import extra_missing
from ..experiments.config import Config
from ..geometry.clouds import PointClouds, members_per_class
from . import kernel, page
from .kernel import has_screen
from .recording import Recording
from .session import Run, Session, sessions, stop_all

try:
    import anywidget
    import traitlets
    from IPython.display import HTML, DisplayHandle, Image, display
    from ipywidgets import DOMWidget, Widget
except ImportError as missing:
    raise extra_missing(missing.name or "anywidget", "notebooks") from None

# the buttons of a run, and the states in which they can be pressed
ORDERS = {
    "Start": ("ready", "paused", "pausing"),
    "Pause": ("running",),
    "Step": ("ready", "paused"),
    "Stop": ("ready", "running", "paused", "pausing"),
    "Restart": ("running", "pausing", "paused", "stopping", "stopped", "finished", "failed"),
}
# the energy map of a point: cells in each direction, samples along each axis
MAP_REACH, MAP_SIDE = 4.0, 13
SENT_PER_SECOND = 15  # largest number of frames per second to the browser


def watch(
    config: Config, real: PointClouds, device: torch.device | str | None = None
) -> "LiveDistillation":
    """Return a live distillation. As the last expression of a notebook cell it is displayed.

    In JupyterLab it waits for its start. Without a front end it is finished when `watch` returns.
    An interrupt of the kernel stops it.

    A view that is replaced ends: its run stops after the current iteration, its widget is closed,
    and `Out` forgets it. JupyterLab and VS Code send the id of the executed cell. There a view
    replaces those that earlier executions of the same cell made. Other front ends send no id. There
    a view replaces all views whose LiveDistillation no variable refers to when the cell has ended.

    real: training clouds
    device: see `machine.choose_device`
    Raises InputError if the settings do not fit the data.
    """
    return replacing(lambda: LiveDistillation(config, real, device))


Live = TypeVar("Live", bound="LiveDistillation")


def replacing(make: Callable[[], Live]) -> Live:
    """Return the live distillation of `make`, in place of those that `watch` describes."""
    cell, execution = kernel.request()
    if cell:
        for session in list(sessions):
            if session.cell == cell and session.execution != execution:
                session.close(cleared=True)
                _forget(session)
    live = make()
    live._session.cell, live._session.execution = cell, execution
    if has_screen():
        kernel.after_each_cell(_after_cell)
    else:
        live.finish()
    return live


def show(recording: Recording) -> Any:
    """Return a notebook display of a recording: the player, or a picture without front end.

    A saved notebook shows no widget unless JupyterLab saves its state. So the player is also below
    the widget, folded, as HTML.
    """
    return _Shown(recording) if has_screen() else _png(recording)


class PlayerWidget(anywidget.AnyWidget):
    """player.js as a widget. A notebook that is saved with widget state contains `recording`.

    recording: result of `page.encode`
    status:    state of the run in one line; empty for a recording
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
    """The player of a recording as a widget, and folded below it as HTML."""

    def __init__(self, recording: Recording):
        super().__init__(recording=page.encode(recording))
        self._html = page.folded(recording)

    def _ipython_display_(self) -> None:
        bundle: Any = self._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        display(bundle, raw=True)
        display(HTML(self._html))


class LiveDistillation:
    """A distillation that runs in the background. Its buttons are also methods; see `watch`.

    `start`, `pause`, `step`, `stop`, `restart` and `close` return at once. `wait` returns when the
    last of them has taken effect.
    """

    _make_view: Callable[[Session], "SessionView"]

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None = None):
        self._make_view = SessionView
        # The thread and the view refer to the session only. So this object is referenced by the
        # user's variables, and dies with them.
        self._session = Session([config], real, device)
        self._session.handle = weakref.ref(self)

    def start(self) -> None:
        """Run to the end, from the start or from a pause."""
        self._session.start()

    def pause(self) -> None:
        """Pause after the current iteration."""
        self._session.pause()

    def step(self) -> None:
        """Make one iteration, then pause."""
        self._session.step()

    def stop(self) -> None:
        """End the run after the current iteration. The recording is kept."""
        self._session.stop()

    def restart(self) -> None:
        """Start again from the beginning and run. The recording is dropped."""
        self._session.restart()

    def close(self) -> None:
        """End the run and close the view. Its picture and the recording are kept."""
        self._session.close()

    def wait(self) -> None:
        """Wait until the run is paused, stopped or finished.

        Raises the exception of the run if it has failed. Buttons have no effect while a notebook
        cell waits.
        """
        self._session.wait()

    def finish(self) -> Recording:
        """Run to the end, wait, and return the recording. An interrupt stops the run."""
        self.start()
        try:
            self.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
        return self.recording

    @property
    def recording(self) -> Recording:
        """Recording up to the latest update."""
        return self._session.recording()

    @property
    def status(self) -> str:
        """State of the run and number of updates, in one line."""
        return self._session.status()

    def _ipython_display_(self) -> None:
        session = self._session
        if session.closed or not has_screen():
            display(_png(self.recording))
            return
        session.view = session.view or self._make_view(session)
        session.view.display()


class SessionView:
    """The widget of a session, and below it what viewers without widgets show: see `_kept`.

    names: what tells the tracks of the session apart
    """

    def __init__(self, session: Session, names: Sequence[str] = ("",)):
        self.session, self.names = session, names
        self.forces = False  # the front end draws forces
        self.told: Any = None  # the run and the update whose forces were sent last
        self.player = PlayerWidget(recording=self.encoded())
        self.player.on_msg(lambda _widget, message, _buffers: self.obey(message))
        # the outputs of the widget and of the picture; None before they are displayed
        self.output: DisplayHandle | None = None
        self.picture: DisplayHandle | None = None
        self.say()

    @property
    def widget(self) -> DOMWidget:
        """What is displayed."""
        return self.player

    def encoded(self) -> bytes:
        """Return the recordings up to the latest update, for the player."""
        return page.encode(*self.session.recordings(), names=self.names)

    def obey(self, message: dict[str, Any]) -> None:
        """Follow the order of a button, or answer a question of the player.

        A press that comes too late has no effect.
        """
        name, asked = message.get("order", ""), message.get("ask")
        if [name, True] in [[order, enabled] for order, _, enabled in self.player.orders]:
            getattr(self.session, name.lower())()
        elif asked == "recording" and self.session.run.tracks[0].updates:
            self.reset()
        elif asked == "means":
            self.player.send({"kind": "means"}, [class_means(self.session.run.tracks[0].real)])
        elif asked == "forces":
            self.forces, self.told = bool(message.get("on")), None
            self.tell_forces(self.session.run)
        elif asked == "map":
            self.tell_map(self.session.run, int(message["point"]))

    def tell_forces(self, run: Run) -> None:
        """Send the forces of the next update, if they are wanted and the run rests."""
        # Several questions about one moment have one answer.
        now = weakref.ref(run), run.tracks[0].updates
        if self.forces and run.resting and run.ended != "failed" and now != self.told:
            self.told = now
            self.session.help(lambda: self.answer(run, forces_of, "forces"))

    def tell_map(self, run: Run, point: int) -> None:
        """Send the energy around a point, if the run rests."""
        if run.resting and 0 <= point < sum(
            len(track.recorder.clouds.coordinates) for track in run.tracks
        ):
            self.session.help(lambda: self.answer(run, partial(map_of, point=point), "map"))

    def answer(
        self, run: Run, compute: Callable[..., tuple[dict, bytes] | None], kind: str
    ) -> None:
        """Send what `compute` returns, unless the run has gone on. Called in a thread."""
        updates = run.tracks[0].updates

        def stale() -> bool:
            gone = run is not self.session.run or not run.resting or self.session.ending
            return gone or run.tracks[0].updates != updates

        result = compute(run, stale)
        with self.session.changed:
            if result and not stale() and self.player.comm is not None:
                message, values = result
                self.player.send({"kind": kind, "update": updates, **message}, [values])

    def display(self) -> None:
        """Display the widget, and the picture below it."""
        bundle: Any = self.widget._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        self.output, self.picture = self.output or DisplayHandle(), self.picture or DisplayHandle()
        text = {"text/plain": "Live view: open it in JupyterLab."}
        self.output.display(bundle | text, raw=True)
        self.picture.display(_kept(self.session.recordings(), self.names), raw=True)

    def reset(self) -> None:
        """Show the recording of the session from its beginning."""
        self.player.recording = self.encoded()

    def close(self, recordings: Sequence[Recording]) -> None:
        """Close the widget.

        recordings: if any, the picture shows them, and a line replaces the widget
        """
        if recordings and self.output and self.picture:
            self.output.update({"text/plain": "Live view (closed)."}, raw=True)
            self.picture.update(_kept(recordings, self.names), raw=True)
        close_all(self.widget)

    def say(self) -> None:
        """Update the status and the buttons."""
        with self.session.changed:  # two threads update one after the other; the later one wins
            if self.player.comm is None:  # closed
                return
            state = self.session.state()
            self.player.status = self.session.status()
            # the docstrings of the methods are the tooltips
            self.player.orders = [
                [name, getattr(LiveDistillation, name.lower()).__doc__, state in states]
                for name, states in ORDERS.items()
            ]

    def send(self, run: Run) -> None:
        """Send the latest frame and new values of the curves, unless another run has started."""
        with self.session.changed:
            if run is not self.session.run or self.player.comm is None:
                return
            recorders, first = [track.recorder for track in run.tracks], run.sent
            update = recorders[0].frames[-1][0]
            message = {
                "kind": "add",
                "update": update,
                "stride": recorders[0].stride,
                "first": first,
                "loss": [recorder.matching_loss[first:] for recorder in recorders],
                "mean_gradient": [
                    recorder.mean_absolute_gradient[first:] for recorder in recorders
                ],
                "final": run.resting,
            }
            coordinates, gradients = (
                np.concatenate([recorder.frames[-1][part] for recorder in recorders])
                for part in (1, 2)
            )
            places = page.quantised(coordinates, recorders[0].clouds.grid)
            buffers = [places.tobytes(), page.gradient_levels(gradients).tobytes()]
            steps = [track.last for track in run.tracks]
            if self.forces and not run.resting and None not in steps:
                buffers.append(_columns([-step.gradient for step in steps if step]))
            self.player.send(message, buffers)
            pause = 1 / SENT_PER_SECOND
            # after a late frame the next one may follow sooner
            run.due = max(run.due, time.monotonic() - pause) + pause
            run.sent = update
        self.say()
        self.tell_forces(run)

    def keep(self, run: Run) -> None:
        """Update the widget state and the picture for a saved notebook, if the run still rests."""

        def rests() -> bool:
            return run.resting and run is self.session.run and self.session.view is self

        with self.session.changed:
            if not rests():
                return
            recordings = self.session.recordings()
        encoded = page.encode(*recordings, names=self.names)
        picture = _kept(recordings, self.names)
        with self.session.changed:
            if not rests():
                return
            self.player.recording = encoded
            if self.picture:
                self.picture.update(picture, raw=True)


def close_all(widget: Widget) -> None:
    """Close a widget with its children, layout and style, which the kernel would keep for ever."""
    for name in ("layout", "style"):
        if part := getattr(widget, name, None):
            part.close()
    for child in getattr(widget, "children", ()):
        close_all(child)
    widget.close()


def class_means(real: PointClouds) -> bytes:
    """Return the share of each class's clouds that occupy each cell, as bytes 0 to 255."""
    means = [occupancy(real.select(chosen)).mean(0) for chosen in members_per_class(real)]
    return (torch.stack(means) * 255).round().byte().cpu().numpy().tobytes()


def forces_of(run: Run, stale: Callable[[], bool]) -> tuple[dict, bytes] | None:
    """Return the forces of the next update on the points of all tracks: ({}, (3, points))."""
    return {}, _columns([track.energy().forces() for track in run.tracks])


def map_of(run: Run, stale: Callable[[], bool], point: int) -> tuple[dict, bytes] | None:
    """Return the energy with one point moved along height and width: (message, (side, side)).

    None: no longer wanted.
    """
    sizes = [len(track.recorder.clouds.coordinates) for track in run.tracks]
    track, of_track = divmod(point, sizes[0])
    energy = run.tracks[track].energy()
    place = energy.clouds.coordinates[of_track]
    offsets = torch.linspace(-MAP_REACH, MAP_REACH, MAP_SIDE)
    values = []
    for height in offsets:
        for width in offsets:
            if stale():
                return None
            moved = place + torch.stack([torch.zeros(()), height, width]).to(place)
            values.append(energy.with_point_at(of_track, moved))
    about = {"point": point, "place": place.tolist(), "reach": MAP_REACH, "side": MAP_SIDE}
    return about, np.array(values, np.float32).tobytes()


def _columns(vectors: Sequence[torch.Tensor]) -> bytes:
    """Return the vectors of all points, (points, 3), as float32 (3, points)."""
    return torch.cat(list(vectors)).T.float().cpu().contiguous().numpy().tobytes()


def _after_cell(result: Any) -> None:
    """Stop all runs if the cell was interrupted. End views that a view of the cell replaces."""
    if isinstance(result.error_in_exec, KeyboardInterrupt):
        stop_all()
    _, execution = kernel.request()
    if any(session.execution == execution and session.cell is None for session in list(sessions)):
        for session in [session for session in sessions if session.execution != execution]:
            _forget(session)
            if session.handle is None or session.handle() is None:
                session.close()


def _forget(session: Session) -> None:
    """Remove the LiveDistillation of a session from IPython's history of results."""
    live = session.handle and session.handle()
    if live is not None:
        kernel.forget(live)


def _kept(recordings: Sequence[Recording], names: Sequence[str]) -> dict[str, str]:
    """Return an output that needs no kernel: a picture and, folded below it, the player."""
    picture = base64.b64encode(_picture(recordings, names)).decode()
    kept = {"image/png": picture, "text/plain": "Picture of a recording."}
    if len(recordings[0]) > 1:
        image = f'<img src="data:image/png;base64,{picture}" alt="the recording over time">'
        kept["text/html"] = image + page.folded(*recordings, names=names)
    return kept


def _png(recording: Recording) -> Image:
    return Image(_picture([recording], [""]))


def _picture(recordings: Sequence[Recording], names: Sequence[str]) -> bytes:
    """Return a PNG of the recordings, one below the other, each below its name."""
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
