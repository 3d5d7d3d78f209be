"""Distillation to look on at, in JupyterLab: start, pause, step, stop and restart, while points move.

`watch` returns a `LiveDistillation`. It iterates over `distillation.distill` in a thread, so the kernel stays free:
buttons act at the end of the iteration in progress. What is to be seen goes to player.js in the browser, at most
SENT_PER_SECOND times a second; how it is seen (class, colours, trails, the moment) is chosen there and needs no kernel.

Where nobody looks on (papermill, nbconvert, scripts) `watch` runs to the end at once, and a picture stands for the
view.
"""

import io
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from . import machine, player
from .clouds import PointClouds
from .config import Config
from .distillation import Step, distill, initial_clouds
from .errors import InputError, extra_missing
from .player import Recorder, Recording

try:
    import anywidget
    import ipywidgets
    import traitlets
    from IPython import get_ipython
    from IPython.display import DisplayHandle, Image, display
except ImportError as missing:
    raise extra_missing(missing.name or "ipywidgets", "notebooks") from None

SENT_PER_SECOND = 15  # frames to the browser, at most
REST = 0.7  # seconds that a run stands still before the saved view and the picture are renewed; they take a second


def watch(
    config: Config, real: PointClouds, device: torch.device | str | None = None
) -> "LiveDistillation":
    """A distillation of `real` (training clouds) to look on at; the last expression of a cell shows it.

    In JupyterLab it stands at its start until it is started. Without a front end it has run to its end when this
    returns. device: see `machine.choose_device`. Raises InputError if the settings do not fit the data.
    """
    live = LiveDistillation(config, real, device)
    if not has_screen():
        live.finish()
    return live


def show(recording: Recording) -> Any:
    """What shows a recording in a notebook: the player, or a picture where there is no front end."""
    return PlayerWidget(recording=player.encode(recording)) if has_screen() else _png(recording)


def has_screen() -> bool:
    """Is there a front end that shows widgets and lets them answer?

    Jupyter has no question for that. But whoever executes a cell says whether a human can be asked for input:
    JupyterLab and its kin say yes, papermill and nbconvert (both by nbclient) say no.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


class PlayerWidget(anywidget.AnyWidget):
    """player.js in a notebook. A notebook saved with its widgets' state keeps `recording` (from `player.encode`)."""

    _esm = player.SCRIPT
    recording = traitlets.Bytes(b"").tag(sync=True)


class _Run:
    """One run from its start: what makes its steps, what is recorded, and how many more iterations it may make."""

    def __init__(
        self, config: Config, real: PointClouds, device: torch.device, before: "_Run | None" = None
    ):
        self.before = (
            before.thread if before else None
        )  # its last iteration ends before this run's first begins
        self.steps: Iterator[Step] = distill(config, real, device)
        self.recorder = Recorder(initial_clouds(config, real), config.schedule.iterations)
        self.allowed: float = 0  # iterations; infinite to run to the end
        self.ended = ""  # "finished", "stopped" or "failed"
        self.error: Exception | None = None
        self.thread: threading.Thread | None = None
        self.resting = True  # no iteration is in progress and none will begin
        self.sent, self.due = (
            0,
            0.0,
        )  # updates the browser knows the curves of, and when it is to be told of more


class LiveDistillation:
    """A distillation that runs in the background, with buttons that are methods too; see `watch`.

    Methods that give orders return at once; `wait` waits until the last one has been carried out.
    """

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None = None):
        self._settings = config, real, machine.choose_device(str(device) if device else None)
        machine.keep_freed_memory()
        self._changed = (
            threading.Condition()
        )  # holds what follows, between the thread and whoever gives orders
        self._run = _Run(*self._settings)
        self._view: _View | None = None

    # Orders.

    def start(self) -> None:
        """Run, or go on after a pause, to the end."""
        self._allow(math.inf)

    def pause(self) -> None:
        """Stand still after the iteration in progress."""
        with self._changed:
            self._run.allowed = 0
        self._say()

    def step(self) -> None:
        """Make one iteration, then stand still."""
        with self._changed:
            allowed = self._run.allowed
            self._allow(1 if allowed == math.inf else allowed + 1)

    def stop(self) -> None:
        """End the run after the iteration in progress; what was recorded is kept."""
        with self._changed:
            self._run.allowed = 0
            self._run.ended = self._run.ended or "stopped"
            self._changed.notify_all()
        self._say()

    def restart(self) -> None:
        """Begin again from the start, and run. What was recorded is dropped."""
        fresh = _Run(*self._settings, before=self._run)
        with self._changed:
            self._run = fresh  # the thread of the old one sees that, and ends after its iteration
            self._changed.notify_all()
        if self._view:
            self._view.player.recording = player.encode(self.recording)
        self.start()

    def wait(self) -> None:
        """Return once nothing is in progress: paused, stopped, finished.

        If the run has failed, raises what it failed with. In a notebook buttons do not act while a cell waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._run.resting)
            error = self._run.error
        if error:
            raise error

    def finish(self) -> Recording:
        """Run to the end and wait for it; returns the recording. Interrupting it stops the run."""
        self.start()
        try:
            self.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
        return self.recording

    # What there is to see.

    @property
    def recording(self) -> Recording:
        """What has been recorded so far."""
        with self._changed:
            return self._run.recorder.recording()

    @property
    def status(self) -> str:
        """One line: what the run is doing, and how far it is."""
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

    # The thread.

    def _allow(self, iterations: float) -> None:
        with self._changed:
            run = self._run
            if run.ended:
                raise InputError(
                    f"this run is {self.status}; restart() begins again from the start"
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
        """Make iterations while they are allowed. Ends with the run, or when it has stood still for a while."""
        if run.before:
            run.before.join()
            run.before = None
        while self._may_go_on(run):
            try:
                step = next(run.steps, None)
            except Exception as error:  # whatever it is, `wait` raises it where it can be seen
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
        """Whether another iteration is to be made; if not, the run comes to rest first, and may be woken from it."""
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
    """The widgets of a live distillation, and the picture below them that viewers without widgets show."""

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
        """Show the widgets, and below them the picture."""
        bundle = self.widget._repr_mimebundle_()
        display(bundle | {"text/plain": "Live view: JupyterLab shows it."}, raw=True)
        self.picture = display(_png(self.live.recording), display_id=True)

    def say(self) -> None:
        """Bring the status and the buttons up to date."""
        with self.live._changed:  # so that of two threads the later one has the last word
            self.status.value = self.live.status
            doing = self.status.value.split(",")[0].split(":")[0]
            for name, there in {
                "Start": doing in ("ready", "paused", "pausing"),
                "Pause": doing == "running",
                "Step": doing in ("ready", "paused"),
                "Stop": doing in ("ready", "running", "paused", "pausing"),
                "Restart": doing != "ready",
            }.items():
                self.buttons[name].disabled = not there

    def send(self, run: _Run) -> None:
        """Send the newest frame, and what was added to the curves, unless another run has begun."""
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
            run.due = (
                max(run.due, time.monotonic() - pause) + pause
            )  # a frame that came late may be followed sooner
            run.sent = len(recorder.matching_loss)
        self.say()

    def keep(self, run: _Run) -> None:
        """If the run still rests, put it into the widget's state and draw the picture anew, for a saved notebook."""

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
