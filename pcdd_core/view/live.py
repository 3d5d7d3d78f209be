"""Watch a distillation in JupyterLab: start, pause, step, stop and restart while points move.

`watch` returns a `LiveDistillation`. Its session iterates in a thread, so the kernel stays free.
Buttons act at the end of the current iteration. The kernel sends frames to player.js in the
browser, at most SENT_PER_SECOND times a second. The settings of the view (class, colours, trails,
frame) are in the browser and need no kernel.

Without a front end (papermill, nbconvert, scripts) `watch` runs to the end at once, and a picture
replaces the view.
"""

import io
import time
import weakref
from typing import Any

import torch

from ..errors import extra_missing
from ..experiments.config import Config
from ..geometry.clouds import PointClouds
from . import kernel, page
from .kernel import has_screen
from .recording import Recording
from .session import Run, Session, sessions, stop_all

try:
    import anywidget
    import traitlets
    from IPython.display import DisplayHandle, Image, display
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
    cell, execution = kernel.request()
    if cell:
        for session in list(sessions):
            if session.cell == cell and session.execution != execution:
                session.close(cleared=True)
                _forget(session)
    live = LiveDistillation(config, real, device)
    live._session.cell, live._session.execution = cell, execution
    if has_screen():
        kernel.after_each_cell(_after_cell)
    else:
        live.finish()
    return live


def show(recording: Recording) -> Any:
    """Return a notebook display of a recording: the player, or a picture without front end."""
    return PlayerWidget(recording=page.encode(recording)) if has_screen() else _png(recording)


class PlayerWidget(anywidget.AnyWidget):
    """player.js as a widget. A notebook that is saved with widget state contains `recording`.

    recording: result of `page.encode`
    status:    state of the run in one line; empty for a recording
    orders:    buttons of the run, [name, tooltip, enabled] each. A press sends {"order": name}.
    """

    # The text, not the path: for a path anywidget keeps every widget for ever, to update it.
    _esm = page.SCRIPT.read_text(encoding="utf-8")
    recording = traitlets.Bytes(b"").tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    orders = traitlets.List().tag(sync=True)


class LiveDistillation:
    """A distillation that runs in the background. Its buttons are also methods; see `watch`.

    `start`, `pause`, `step`, `stop`, `restart` and `close` return at once. `wait` returns when the
    last of them has taken effect.
    """

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None = None):
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
        session.view = session.view or _View(session)
        session.view.display()


class _View:
    """The widget of a session, and below it a picture for viewers without widgets."""

    def __init__(self, session: Session):
        self.session = session
        self.player = PlayerWidget(recording=page.encode(session.recording()))
        self.player.on_msg(lambda _widget, message, _buffers: self.obey(message))
        # the outputs of the widget and of the picture; None before they are displayed
        self.output: DisplayHandle | None = None
        self.picture: DisplayHandle | None = None
        self.say()

    def obey(self, message: dict[str, Any]) -> None:
        """Follow the order of a button. A press that comes too late has no effect."""
        name = message.get("order", "")
        if [name, True] in [[order, enabled] for order, _, enabled in self.player.orders]:
            getattr(self.session, name.lower())()

    def display(self) -> None:
        """Display the widget, and the picture below it."""
        bundle = self.player._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        self.output, self.picture = self.output or DisplayHandle(), self.picture or DisplayHandle()
        text = {"text/plain": "Live view: open it in JupyterLab."}
        self.output.display(bundle | text, raw=True)
        self.picture.display(_png(self.session.recording()))

    def reset(self) -> None:
        """Show the recording of the session from its beginning."""
        self.player.recording = page.encode(self.session.recording())

    def close(self, recording: Recording | None) -> None:
        """Close the widget.

        recording: if not None, the picture shows its last frames, and a line replaces the widget
        """
        if recording and self.output and self.picture:
            self.output.update({"text/plain": "Live view (closed)."}, raw=True)
            self.picture.update(_png(recording))
        layout = self.player.layout
        self.player.close()
        layout.close()

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
            recorder, first = run.recorder, run.sent
            update, coordinates, gradients = recorder.frames[-1]
            message = {
                "update": update,
                "stride": recorder.stride,
                "first": first,
                "loss": recorder.matching_loss[first:],
                "mean_gradient": recorder.mean_absolute_gradient[first:],
                "final": run.resting,
            }
            places = page.quantised(coordinates, recorder.clouds.grid)
            self.player.send(message, [places.tobytes(), page.gradient_levels(gradients).tobytes()])
            pause = 1 / SENT_PER_SECOND
            # after a late frame the next one may follow sooner
            run.due = max(run.due, time.monotonic() - pause) + pause
            run.sent = len(recorder.matching_loss)
        self.say()

    def keep(self, run: Run) -> None:
        """Update the widget state and the picture for a saved notebook, if the run still rests."""

        def rests() -> bool:
            return run.resting and run is self.session.run and self.session.view is self

        with self.session.changed:
            if not rests():
                return
            recording = run.recorder.recording()
        encoded, picture = page.encode(recording), _png(recording)
        with self.session.changed:
            if not rests():
                return
            self.player.recording = encoded
            if self.picture:
                self.picture.update(picture)


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


def _png(recording: Recording) -> Image:
    file = io.BytesIO()
    recording.picture().savefig(file, format="png", dpi=90)
    return Image(file.getvalue())
