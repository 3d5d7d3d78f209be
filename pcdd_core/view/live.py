"""Watch a distillation in JupyterLab: start, pause, step, stop and restart while points move.

`watch` returns a `LiveDistillation`. It iterates over `distillation.distill` in a thread, so the
kernel stays free. Buttons act at the end of the current iteration. The kernel sends frames to
player.js in the browser, at most SENT_PER_SECOND times a second. The settings of the view (class,
colours, trails, frame) are in the browser and need no kernel.

Without a front end (papermill, nbconvert, scripts) `watch` runs to the end at once, and a picture
replaces the view.
"""

import atexit
import base64
import io
import math
import re
import threading
import time
import weakref
from collections.abc import Generator
from typing import Any

import torch

from ..engine.distill import Step
from ..errors import InputError, extra_missing
from ..experiments import machine
from ..experiments.config import Config
from ..geometry.clouds import PointClouds
from . import page
from .recording import Recorder, Recording

try:
    import anywidget
    import traitlets
    from IPython import get_ipython
    from IPython.display import HTML, DisplayHandle, Image, display
except ImportError as missing:
    raise extra_missing(missing.name or "anywidget", "notebooks") from None

SENT_PER_SECOND = 15  # largest number of frames per second to the browser
# Seconds of rest before the saved view and the picture are updated. The update takes a second.
REST = 0.7
CLOSED = "this live view is closed; watch() makes another one"
# All runs that exist. A run is kept by its LiveDistillation, its thread and its displayed view.
_sessions: "weakref.WeakSet[_Session]" = weakref.WeakSet()


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
    cell, execution = _request()
    if cell:
        for session in list(_sessions):
            if session.cell == cell and session.execution != execution:
                session.close(cleared=True)
                _forget(session)
    live = LiveDistillation(config, real, device)
    live._session.cell, live._session.execution = cell, execution
    if has_screen():
        _observe_cells()
    else:
        live.finish()
    return live


def show(recording: Recording) -> Any:
    """Return a notebook display of a recording: the player, or a picture without front end.

    A saved notebook shows no widget unless JupyterLab saves its state. So the player is also below
    the widget, folded, as HTML.
    """
    return _Shown(recording) if has_screen() else _png(recording)


def has_screen() -> bool:
    """Return whether a front end displays widgets and sends their events.

    Jupyter has no query for this. But an execution request states whether input can be requested
    from a user. JupyterLab and similar front ends allow it. papermill and nbconvert, which both use
    nbclient, do not.
    """
    return bool(getattr(_kernel(), "_allow_stdin", False))


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


class _Shown(PlayerWidget):
    """The player of a recording as a widget, and folded below it as HTML."""

    def __init__(self, recording: Recording):
        super().__init__(recording=page.encode(recording))
        self._html = page.folded(recording)

    def _ipython_display_(self) -> None:
        bundle = self._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        display(bundle, raw=True)
        display(HTML(self._html))


class LiveDistillation:
    """A distillation that runs in the background. Its buttons are also methods; see `watch`.

    `start`, `pause`, `step`, `stop`, `restart` and `close` return at once. `wait` returns when the
    last of them has taken effect.
    """

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None = None):
        # The thread and the view refer to the session only. So this object is referenced by the
        # user's variables, and dies with them.
        self._session = _Session(config, real, device)
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
        self._session.display()


class _Run:
    """One run from its start: its steps, its recorder, and the number of iterations it may make."""

    def __init__(
        self, config: Config, real: PointClouds, device: torch.device, before: "_Run | None" = None
    ):
        # The first iteration of this run waits for the last iteration of the previous run.
        self.before = before.thread if before else None
        self.steps: Generator[Step, None, None] = config.distill(real, device)
        self.recorder = Recorder(config.start(real), config.schedule.iterations)
        self.allowed: float = 0  # number of iterations; infinite: run to the end
        self.ended = ""  # "finished", "stopped" or "failed"
        self.error: Exception | None = None
        self.thread: threading.Thread | None = None
        self.resting = True  # no iteration is in progress, and none will start
        # number of updates whose curves the browser has, and earliest time of the next message
        self.sent, self.due = 0, 0.0


class _Session:
    """The work behind a LiveDistillation: a run, its thread and its view."""

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None):
        settings = config, real, machine.choose_device(str(device) if device else None)
        # None after `close`
        self._settings: tuple[Config, PointClouds, torch.device] | None = settings
        machine.keep_freed_memory()
        # guards the attributes below, which the thread and the callers of methods share
        self._changed = threading.Condition()
        self._run = _Run(*settings)
        self._view: _View | None = None
        self._closed = False
        self._leaving = False  # Python exits: nothing is sent or drawn any more
        self.handle: weakref.ref[LiveDistillation] | None = None
        # the cell and the execution that called `watch`
        self.cell: str | None = None
        self.execution: str | None = None
        _sessions.add(self)

    def start(self) -> None:
        self._allow(math.inf)

    def pause(self) -> None:
        with self._changed:
            self._run.allowed = 0
        self._say()

    def step(self) -> None:
        with self._changed:
            allowed = self._run.allowed
            self._allow(1 if allowed == math.inf else allowed + 1)

    def stop(self) -> None:
        with self._changed:
            self._run.allowed = 0
            self._run.ended = self._run.ended or "stopped"
            self._changed.notify_all()
        self._say()

    def restart(self) -> None:
        settings = self._settings
        if settings is None:
            raise InputError(CLOSED)
        fresh = _Run(*settings, before=self._run)
        with self._changed:
            self._run = fresh  # the thread of the old run notices, and ends after its iteration
            self._changed.notify_all()
        if self._view:
            self._view.player.recording = page.encode(self.recording())
        self.start()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._run.resting)
            error = self._run.error
        if error:
            raise error

    def close(self, cleared: bool = False) -> None:
        """Stop the run and close the view. Drop what only a run needs.

        cleared: the front end has removed the outputs, so the picture needs no update
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self.stop()
            run, view, self._view = self._run, self._view, None
            self._settings = None
            if run.thread is None:  # else the thread drops them
                run.steps.close()
        if view:
            view.close(None if cleared else run.recorder.recording())

    def leave(self) -> None:
        """Stop the run without a word to the front end, and wait for its thread."""
        with self._changed:
            self._leaving = True
            self._view = None
            self.stop()
            thread = self._run.thread
        if thread:
            thread.join()

    # State.

    def recording(self) -> Recording:
        with self._changed:
            return self._run.recorder.recording()

    def status(self) -> str:
        with self._changed:
            run = self._run
            done, total = len(run.recorder.matching_loss), run.recorder.iterations
            if run.error:
                return f"failed: {run.error}"
            if run.resting:
                doing = run.ended or ("paused" if done else "ready")
            elif run.allowed or run.ended == "finished":
                doing = "running"
            else:
                doing = "stopping" if run.ended else "pausing"
            return f"{doing}, update {done} of {total}"

    def running(self) -> bool:
        with self._changed:
            return not self._run.resting

    def display(self) -> None:
        if self._closed or not has_screen():
            display(_png(self.recording()))
            return
        self._view = self._view or _View(self)
        self._view.display()

    # Thread.

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise InputError(CLOSED)

    def _allow(self, iterations: float) -> None:
        self._refuse_if_closed()
        with self._changed:
            run = self._run
            if run.ended:
                raise InputError(
                    f"this run is {self.status()}; restart() starts again from the beginning"
                )
            run.allowed, run.resting = iterations, False
            self._changed.notify_all()
            if run.thread is None or not run.thread.is_alive():
                run.thread = threading.Thread(
                    target=self._work, args=(run,), name="distillation", daemon=True
                )
                run.thread.start()
        _listen_for_interrupts()
        self._say()

    def _work(self, run: _Run) -> None:
        """Make iterations while they are allowed. Returns at the end or after a rest."""
        if run.before:
            run.before.join()
            run.before = None
        while self._may_go_on(run):
            try:
                step = next(run.steps, None)
            except Exception as error:  # `wait` raises it in the thread of the caller
                step, run.error = None, error
            with self._changed:
                if step is None:
                    run.ended = run.ended or ("failed" if run.error else "finished")
                else:
                    run.recorder.add(step)
                    if step.iteration + 1 == run.recorder.iterations:
                        run.ended = "finished"
            view = self._view  # a caller can close it at any moment
            if view and time.monotonic() >= run.due:
                view.send(run)
        if run.ended or run is not self._run:
            run.steps.close()  # frees the networks and the real clouds

    def _may_go_on(self, run: _Run) -> bool:
        """Return whether to make another iteration.

        If none is allowed, the run rests first. A new order during the rest continues the run.
        """
        with self._changed:
            if run is not self._run:
                return False
            if run.allowed > 0 and not run.ended:
                run.allowed -= 1
                return True
            run.resting = True
            self._changed.notify_all()
            view = self._view

        def called() -> bool:
            return not run.resting or run is not self._run

        if view:
            view.send(run)
            with self._changed:
                self._changed.wait_for(
                    lambda: called() or self._closed or self._leaving, timeout=REST
                )
            view.keep(run)
        with self._changed:
            if not called() or run is not self._run:
                run.thread = None
                return False
        return self._may_go_on(run)

    def _say(self) -> None:
        view = self._view
        if view:
            view.say()


class _View:
    """The widget of a session, and below it what viewers without widgets show: see `_kept`."""

    def __init__(self, session: _Session):
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
        self.picture.display(_kept(self.session.recording()), raw=True)

    def close(self, recording: Recording | None) -> None:
        """Close the widget.

        recording: if not None, the picture shows its last frames, and a line replaces the widget
        """
        if recording and self.output and self.picture:
            self.output.update({"text/plain": "Live view (closed)."}, raw=True)
            self.picture.update(_kept(recording), raw=True)
        layout = self.player.layout
        self.player.close()
        layout.close()

    def say(self) -> None:
        """Update the status and the buttons."""
        with self.session._changed:  # two threads update one after the other; the later one wins
            if self.player.comm is None:  # closed
                return
            status = self.session.status()
            doing = status.split(",")[0].split(":")[0]
            enabled = {
                "Start": doing in ("ready", "paused", "pausing"),
                "Pause": doing == "running",
                "Step": doing in ("ready", "paused"),
                "Stop": doing in ("ready", "running", "paused", "pausing"),
                "Restart": doing != "ready",
            }
            self.player.status = status
            # the docstrings of the methods are the tooltips
            self.player.orders = [
                [name, getattr(LiveDistillation, name.lower()).__doc__, enabled[name]]
                for name in enabled
            ]

    def send(self, run: _Run) -> None:
        """Send the latest frame and new values of the curves, unless another run has started."""
        with self.session._changed:
            if run is not self.session._run or self.player.comm is None:
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

    def keep(self, run: _Run) -> None:
        """Update the widget state and the picture for a saved notebook, if the run still rests."""

        def rests() -> bool:
            return run.resting and run is self.session._run and self.session._view is self

        with self.session._changed:
            if not rests():
                return
            recording = run.recorder.recording()
        encoded, picture = page.encode(recording), _kept(recording)
        with self.session._changed:
            if not rests():
                return
            self.player.recording = encoded
            if self.picture:
                self.picture.update(picture, raw=True)


# --- the kernel -----------------------------------------------------------------------------------


def _shell() -> Any:
    """Return IPython's shell, or None."""
    return get_ipython()


def _kernel() -> Any:
    """Return the Jupyter kernel of this process, or None."""
    return getattr(_shell(), "kernel", None)


def _request() -> tuple[str | None, str | None]:
    """Return the ids of the cell and of the execution in progress. None: the front end sends none.

    A cell that calls `watch` twice has one id. The id of the execution tells that from a second
    execution.
    """
    if _kernel() is None:
        return None, None
    request = _shell().get_parent()
    cell = request.get("metadata", {}).get("cellId")
    return cell, request.get("header", {}).get("msg_id")


def _observe_cells() -> None:
    events = _shell().events
    if _after_cell not in events.callbacks["post_run_cell"]:
        events.register("post_run_cell", _after_cell)


def _after_cell(result: Any) -> None:
    """Stop all runs if the cell was interrupted. End views that a view of the cell replaces."""
    if isinstance(result.error_in_exec, KeyboardInterrupt):
        _stop_all()
    _, execution = _request()
    if any(session.execution == execution and session.cell is None for session in list(_sessions)):
        for session in [session for session in _sessions if session.execution != execution]:
            _forget(session)
            if session.handle is None or session.handle() is None:
                session.close()


def _forget(session: _Session) -> None:
    """Remove a LiveDistillation from IPython's history of results: Out, _, __, ___ and _12."""
    live = session.handle and session.handle()
    if live is None:
        return
    shell = _shell()
    for number in [number for number, value in shell.user_ns["_oh"].items() if value is live]:
        del shell.user_ns["_oh"][number]
    for names in (shell.user_ns, shell.user_ns_hidden):
        for name in [name for name, value in names.items() if value is live]:
            if re.fullmatch(r"_\d+|_{1,3}", name):
                del names[name]
    for name in ("_", "__", "___"):
        if getattr(shell.displayhook, name) is live:
            setattr(shell.displayhook, name, None)


def _listen_for_interrupts() -> None:
    """Make an interrupt of the idle kernel stop all runs. ipykernel ignores it otherwise.

    ipykernel sets this handler when a request has been handled. During a cell an interrupt is a
    KeyboardInterrupt; see `_after_cell`.
    """
    kernel = _kernel()
    if kernel is not None:
        # not in the handler itself, which interrupts the main thread at any line
        kernel.saved_sigint_handler = lambda *_: kernel.io_loop.add_callback(_stop_all)


def _stop_all() -> None:
    for session in list(_sessions):
        if session.running():
            session.stop()


@atexit.register
def _leave_all() -> None:
    """End the threads before Python ends. A thread that is in torch then would abort Python."""
    for session in list(_sessions):
        session.leave()


def _kept(recording: Recording) -> dict[str, str]:
    """Return an output that needs no kernel: a picture and, folded below it, the player."""
    picture = base64.b64encode(_picture(recording)).decode()
    kept = {"image/png": picture, "text/plain": "Picture of a recording."}
    if len(recording) > 1:
        image = f'<img src="data:image/png;base64,{picture}" alt="the recording over time">'
        kept["text/html"] = image + page.folded(recording)
    return kept


def _png(recording: Recording) -> Image:
    return Image(_picture(recording))


def _picture(recording: Recording) -> bytes:
    file = io.BytesIO()
    recording.picture().savefig(file, format="png", dpi=90)
    return file.getvalue()
