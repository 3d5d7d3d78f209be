"""Watch a distillation in JupyterLab: start, pause, step, stop and restart while points move.

`watch` returns a `LiveDistillation`. It iterates over `distillation.distill` in a thread, so the
kernel stays free. Buttons act at the end of the current iteration. The kernel sends frames to
player.js in the browser, at most SENT_PER_SECOND times a second. The settings of the view (class,
colours, trails, frame) are in the browser and need no kernel.

Without a front end (papermill, nbconvert, scripts) `watch` runs to the end at once, and a picture
replaces the view.
"""

import io
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from ..engine.distill import Step
from ..errors import InputError, extra_missing
from ..experiments import machine
from ..experiments.config import Config
from ..geometry.clouds import PointClouds
from . import recording as player
from .recording import Recorder, Recording

try:
    import anywidget
    import ipywidgets
    import traitlets
    from IPython import get_ipython
    from IPython.display import DisplayHandle, Image, display
except ImportError as missing:
    raise extra_missing(missing.name or "ipywidgets", "notebooks") from None

SENT_PER_SECOND = 15  # largest number of frames per second to the browser
# Seconds of rest before the saved view and the picture are updated. The update takes a second.
REST = 0.7


def watch(
    config: Config, real: PointClouds, device: torch.device | str | None = None
) -> "LiveDistillation":
    """Return a live distillation. As the last expression of a notebook cell it is displayed.

    In JupyterLab it waits for its start. Without a front end it is finished when `watch` returns.
    real: training clouds
    device: see `machine.choose_device`
    Raises InputError if the settings do not fit the data.
    """
    live = LiveDistillation(config, real, device)
    if not has_screen():
        live.finish()
    return live


def show(recording: Recording) -> Any:
    """Return a notebook display of a recording: the player, or a picture without front end."""
    return PlayerWidget(recording=player.encode(recording)) if has_screen() else _png(recording)


def has_screen() -> bool:
    """Return whether a front end displays widgets and sends their events.

    Jupyter has no query for this. But an execution request states whether input can be requested
    from a user. JupyterLab and similar front ends allow it. papermill and nbconvert, which both use
    nbclient, do not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


class PlayerWidget(anywidget.AnyWidget):
    """player.js as a widget. A notebook that is saved with widget state contains `recording`.

    recording: result of `player.encode`
    """

    _esm = player.SCRIPT
    recording = traitlets.Bytes(b"").tag(sync=True)


class _Run:
    """One run from its start: its steps, its recorder, and the number of iterations it may make."""

    def __init__(
        self, config: Config, real: PointClouds, device: torch.device, before: "_Run | None" = None
    ):
        # The first iteration of this run waits for the last iteration of the previous run.
        self.before = before.thread if before else None
        self.steps: Iterator[Step] = config.distill(real, device)
        self.recorder = Recorder(config.start(real), config.schedule.iterations)
        self.allowed: float = 0  # number of iterations; infinite: run to the end
        self.ended = ""  # "finished", "stopped" or "failed"
        self.error: Exception | None = None
        self.thread: threading.Thread | None = None
        self.resting = True  # no iteration is in progress, and none will start
        # number of updates whose curves the browser has, and earliest time of the next message
        self.sent, self.due = 0, 0.0


class LiveDistillation:
    """A distillation that runs in the background. Its buttons are also methods; see `watch`.

    `start`, `pause`, `step`, `stop` and `restart` return at once. `wait` returns when the last of
    them has taken effect.
    """

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None = None):
        self._settings = config, real, machine.choose_device(str(device) if device else None)
        machine.keep_freed_memory()
        # guards the attributes below, which the thread and the callers of methods share
        self._changed = threading.Condition()
        self._run = _Run(*self._settings)
        self._view: _View | None = None

    # Controls. Their docstrings are the tooltips of the buttons.

    def start(self) -> None:
        """Run to the end, from the start or from a pause."""
        self._allow(math.inf)

    def pause(self) -> None:
        """Pause after the current iteration."""
        with self._changed:
            self._run.allowed = 0
        self._say()

    def step(self) -> None:
        """Make one iteration, then pause."""
        with self._changed:
            allowed = self._run.allowed
            self._allow(1 if allowed == math.inf else allowed + 1)

    def stop(self) -> None:
        """End the run after the current iteration. The recording is kept."""
        with self._changed:
            self._run.allowed = 0
            self._run.ended = self._run.ended or "stopped"
            self._changed.notify_all()
        self._say()

    def restart(self) -> None:
        """Start again from the beginning and run. The recording is dropped."""
        fresh = _Run(*self._settings, before=self._run)
        with self._changed:
            self._run = fresh  # the thread of the old run notices, and ends after its iteration
            self._changed.notify_all()
        if self._view:
            self._view.player.recording = player.encode(self.recording)
        self.start()

    def wait(self) -> None:
        """Wait until the run is paused, stopped or finished.

        Raises the exception of the run if it has failed. Buttons have no effect while a notebook
        cell waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._run.resting)
            error = self._run.error
        if error:
            raise error

    def finish(self) -> Recording:
        """Run to the end, wait, and return the recording. An interrupt stops the run."""
        self.start()
        try:
            self.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
        return self.recording

    # State.

    @property
    def recording(self) -> Recording:
        """Recording up to the latest update."""
        with self._changed:
            return self._run.recorder.recording()

    @property
    def status(self) -> str:
        """State of the run and number of updates, in one line."""
        with self._changed:
            run = self._run
            done, total = len(run.recorder.matching_loss), run.recorder.iterations
            if run.error:
                return f"failed: {run.error}"
            if not run.resting:
                doing = (
                    "running"
                    if run.allowed or run.ended == "finished"
                    else "stopping"
                    if run.ended
                    else "pausing"
                )
            else:
                doing = run.ended or ("paused" if done else "ready")
            return f"{doing}, update {done} of {total}"

    def _ipython_display_(self) -> None:
        if not has_screen():
            display(_png(self.recording))
            return
        self._view = self._view or _View(self)
        self._view.display()

    # Thread.

    def _allow(self, iterations: float) -> None:
        with self._changed:
            run = self._run
            if run.ended:
                raise InputError(
                    f"this run is {self.status}; restart() starts again from the beginning"
                )
            run.allowed, run.resting = iterations, False
            self._changed.notify_all()
            if run.thread is None or not run.thread.is_alive():
                run.thread = threading.Thread(
                    target=self._work, args=(run,), name="distillation", daemon=True
                )
                run.thread.start()
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
                    run.ended = "failed" if run.error else "finished"
                else:
                    run.recorder.add(step)
                    if step.iteration + 1 == run.recorder.iterations:
                        run.ended = "finished"
            if self._view and time.monotonic() >= run.due:
                self._view.send(run)

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
        if self._view:
            self._view.send(run)
            with self._changed:
                self._changed.wait_for(
                    lambda: not run.resting or run is not self._run, timeout=REST
                )
            self._view.keep(run)
        with self._changed:
            if run.resting or run is not self._run:
                run.thread = None
                return False
        return self._may_go_on(run)

    def _say(self) -> None:
        if self._view:
            self._view.say()


class _View:
    """Widgets of a live distillation, and below them a picture for viewers without widgets."""

    def __init__(self, live: LiveDistillation):
        self.live = live
        orders = {
            "Start": ("play", live.start),
            "Pause": ("pause", live.pause),
            "Step": ("step-forward", live.step),
            "Stop": ("stop", live.stop),
            "Restart": ("refresh", live.restart),
        }
        self.buttons = {}
        for name, (icon, order) in orders.items():
            button = ipywidgets.Button(description=name, icon=icon, tooltip=order.__doc__)
            button.layout.width = "6.5em"
            button.on_click(lambda _, order=order: order())
            self.buttons[name] = button
        self.status = ipywidgets.Label()
        self.player = PlayerWidget(recording=player.encode(live.recording))
        self.picture: DisplayHandle | None = None
        controls = ipywidgets.HBox([*self.buttons.values(), self.status])
        controls.layout.flex_flow = "row wrap"
        self.widget = ipywidgets.VBox([controls, self.player])
        self.say()

    def display(self) -> None:
        """Display the widgets, and the picture below them."""
        bundle = self.widget._repr_mimebundle_()
        display(bundle | {"text/plain": "Live view: open it in JupyterLab."}, raw=True)
        self.picture = display(_png(self.live.recording), display_id=True)

    def say(self) -> None:
        """Update the status and the buttons."""
        with self.live._changed:  # two threads update one after the other, so the later one wins
            self.status.value = self.live.status
            doing = self.status.value.split(",")[0].split(":")[0]
            for name, enabled in {
                "Start": doing in ("ready", "paused", "pausing"),
                "Pause": doing == "running",
                "Step": doing in ("ready", "paused"),
                "Stop": doing in ("ready", "running", "paused", "pausing"),
                "Restart": doing != "ready",
            }.items():
                self.buttons[name].disabled = not enabled

    def send(self, run: _Run) -> None:
        """Send the latest frame and new values of the curves, unless another run has started."""
        with self.live._changed:
            if run is not self.live._run:
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
            places = player.quantised(coordinates, recorder.clouds.grid)
            self.player.send(
                message, [places.tobytes(), player.gradient_levels(gradients).tobytes()]
            )
            pause = 1 / SENT_PER_SECOND
            # after a late frame the next one may follow sooner
            run.due = max(run.due, time.monotonic() - pause) + pause
            run.sent = len(recorder.matching_loss)
        self.say()

    def keep(self, run: _Run) -> None:
        """Update the widget state and the picture for a saved notebook, if the run still rests."""

        def rests() -> bool:
            return run.resting and run is self.live._run

        with self.live._changed:
            if not rests():
                return
            recording = run.recorder.recording()
        encoded, picture = player.encode(recording), _png(recording)
        with self.live._changed:
            if not rests():
                return
            self.player.recording = encoded
            if self.picture:
                self.picture.update(picture)


def _png(recording: Recording) -> Image:
    file = io.BytesIO()
    recording.picture().savefig(file, format="png", dpi=90)
    return Image(file.getvalue())
