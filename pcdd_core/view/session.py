"""Distillations that iterate in a thread, and follow orders at the end of each iteration.

`Session` has the orders: start, pause, step, stop, restart, change and close. It calls its view
after each change. `session_view.py` has the view, `live.py` the handle for users.
"""

import atexit
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import torch

from ..engine.distill import Step
from ..errors import InputError
from ..experiments import machine
from ..experiments.config import Config
from ..geometry.clouds import PointClouds
from . import kernel
from .forces import Energy, next_energy
from .recording import Recorder, Recording

# Seconds of rest before the saved view and the picture are updated. The update takes a second.
REST = 0.7
CLOSED = "this live view is closed; watch() makes another one"
# All sessions. The LiveDistillation, the thread and the displayed view of a session refer to it.
sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


class Track:
    """One distillation: its settings, its steps and its recorder."""

    def __init__(self, config: Config, real: PointClouds, device: torch.device):
        self.config, self.real, self.device = config, real, device
        self.steps: Generator[Step, None, None] = config.distill(real, device)
        self.recorder = Recorder(config.start(real), config.schedule.iterations)
        self.last: Step | None = None
        self.next_config: Config | None = None  # settings from the next iteration on

    @property
    def updates(self) -> int:
        """Number of finished iterations."""
        return len(self.recorder.matching_loss)

    def energy(self) -> Energy:
        """Return the energy of the next iteration. Call it while the run rests."""
        config = self.next_config or self.config
        start = config.start(self.real).to(self.device)
        return next_energy(config.method, self.real, start, self.last)

    def advance(self) -> Step | None:
        """Make one iteration, with the settings of `next_config` if there are any.

        Returns None after the last iteration.
        """
        config, self.next_config = self.next_config, None
        if config is not None:
            # A resumed run equals an uninterrupted one, so only what differs in `config` changes.
            state = self.last.state() if self.last else None
            self.steps.close()
            self.steps = config.distill(self.real, self.device, state)
            self.config = config
        step = next(self.steps, None)
        self.last = step or self.last
        return step


class Run:
    """Tracks from their start, one iteration of each in turn.

    configs: the settings of each track; all have equal numbers of iterations
    before: the run that this one replaces; its last iteration ends before the first of this run
    """

    def __init__(
        self,
        configs: Sequence[Config],
        real: PointClouds,
        device: torch.device,
        before: "Run | None" = None,
    ):
        self.before = before.thread if before else None
        self.tracks = [Track(config, real, device) for config in configs]
        self.allowed: float = 0  # number of iterations; infinite: run to the end
        self.ended = ""  # "finished", "stopped" or "failed"
        self.error: Exception | None = None
        self.thread: threading.Thread | None = None
        self.resting = True  # no iteration is in progress, and none will start
        # number of updates whose curves the browser has, and earliest time of the next message
        self.sent, self.due = 0, 0.0

    @property
    def recorder(self) -> Recorder:
        """Recorder of the first track."""
        return self.tracks[0].recorder

    def close(self) -> None:
        """Free the networks and the real clouds."""
        for track in self.tracks:
            track.steps.close()

    def advance(self) -> list[Step | None]:
        """Make one iteration of each track, and return the steps. None: there are no more."""
        try:
            return [track.advance() for track in self.tracks]
        except Exception as error:  # `wait` raises it in the thread of the caller
            self.error = error
            return []

    def record(self, steps: Sequence[Step | None]) -> None:
        """Record the steps of `advance`."""
        for track, step in zip(self.tracks, steps):
            if step is not None:
                track.recorder.add(step)
        if self.error:
            self.ended = self.ended or "failed"
        elif None in steps or self.tracks[0].updates >= self.recorder.iterations:
            self.ended = "finished"


class View(Protocol):
    """The methods of a view that a session calls, `send` and `keep` in the thread of the run."""

    def display(self) -> None:
        """Display the view."""

    def say(self) -> None:
        """Show the status of the session."""

    def send(self, run: Run) -> None:
        """Show the latest step of the run."""

    def keep(self, run: Run) -> None:
        """Update the outputs that a saved notebook contains."""

    def reset(self) -> None:
        """Show the recording of the session from its beginning."""

    def close(self, recordings: Sequence[Recording]) -> None:
        """End the view. If there are recordings, a picture of them remains."""


class Session:
    """The work of a LiveDistillation: a run, its thread and its view.

    The orders return at once. The docstrings of the buttons' orders are their tooltips. The view
    reads `run` and `recording` while it holds `changed`.
    """

    def __init__(
        self, configs: Sequence[Config], real: PointClouds, device: torch.device | str | None
    ):
        settings = configs, real, machine.choose_device(str(device) if device else None)
        # None after `close`
        self._settings: tuple[Sequence[Config], PointClouds, torch.device] | None = settings
        machine.keep_freed_memory()
        # guards the attributes below, which the thread and the callers of methods share
        self.changed = threading.Condition()
        self.run = Run(*settings)
        self.view: View | None = None
        self.closed = False
        self.delay = 0.0  # seconds between iterations
        self._helpers: set[threading.Thread] = set()
        self._leaving = False  # Python exits, so the session sends and draws nothing
        self.handle: weakref.ref[Any] | None = None
        # the cell and the execution that called `watch`
        self.cell: str | None = None
        self.execution: str | None = None
        sessions.add(self)

    def start(self) -> None:
        """Run to the end, from the start or from a pause."""
        self._allow(math.inf)

    def pause(self) -> None:
        """Pause after the current iteration."""
        with self.changed:
            self.run.allowed = 0
            self.changed.notify_all()
        self.say()

    def step(self) -> None:
        """Make one iteration, then pause."""
        with self.changed:
            allowed = self.run.allowed
            self._allow(1 if allowed == math.inf else allowed + 1)

    def stop(self) -> None:
        """End the run after the current iteration. The recording is kept."""
        with self.changed:
            self.run.allowed = 0
            self.run.ended = self.run.ended or "stopped"
            self.changed.notify_all()
        self.say()

    def restart(self) -> None:
        """Start again from the beginning and run. The recording is dropped."""
        self._refuse_if_closed()
        assert self._settings
        self.replace(*self._settings[:2])
        self.start()

    def replace(self, configs: Sequence[Config], real: PointClouds) -> None:
        """End the run, and make another one ready, with these settings.

        Raises InputError if the settings do not fit the data. The run then goes on.
        """
        self._refuse_if_closed()
        assert self._settings
        settings = configs, real, self._settings[2]
        fresh = Run(*settings, before=self.run)
        with self.changed:
            before, self.run = self.run, fresh
            self._settings = settings
            if before.thread is None:  # else the thread notices, and ends after its iteration
                before.close()
            self.changed.notify_all()
        if self.view:
            self.view.reset()
        self.say()

    def change(self, configs: Sequence[Config]) -> None:
        """Use these settings from the next iteration on.

        configs: differ from the settings of the run in values that a resumed run can change
        Raises InputError if they do not fit the data.
        """
        self._refuse_if_closed()
        assert self._settings
        for config in configs:
            config.method.check(self._settings[1])
        with self.changed:
            self._settings = (configs, *self._settings[1:])
            for track, config in zip(self.run.tracks, configs, strict=True):
                track.next_config = config

    def wait(self) -> None:
        """Wait until the run rests. Raises the exception of the run if it has failed."""
        with self.changed:
            self.changed.wait_for(lambda: self.run.resting)
            error = self.run.error
        if error:
            raise error

    def close(self, cleared: bool = False) -> None:
        """Stop the run, close the view, and free the memory of the run.

        cleared: the front end has removed the outputs, so the picture needs no update
        """
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self.stop()
            run, view, self.view = self.run, self.view, None
            self._settings = None
            if run.thread is None:  # else the thread drops them
                run.close()
        if view:
            view.close([] if cleared else self.recordings())

    def leave(self) -> None:
        """Stop the run, send nothing to the front end, and wait for all threads."""
        with self.changed:
            self._leaving = True
            self.view = None
            self.stop()
            threads = [self.run.thread, *self._helpers]
        for thread in threads:
            if thread:
                thread.join()

    def help(self, work: Callable[[], None]) -> None:
        """Call `work` in another thread. It should return soon when `ending` is true."""

        def helper() -> None:
            try:
                work()
            finally:
                self._helpers.discard(threading.current_thread())

        thread = threading.Thread(target=helper, name="distillation helper", daemon=True)
        with self.changed:
            if self.ending:
                return
            self._helpers.add(thread)
        thread.start()

    @property
    def busy(self) -> bool:
        """Return whether points move, or more than one helper works."""
        return not self.run.resting or len(self._helpers) > 1

    @property
    def ending(self) -> bool:
        """Return whether the session is closed, or Python exits."""
        return self.closed or self._leaving

    # State.

    def recording(self) -> Recording:
        """Return the recording of the first track, up to the latest update."""
        with self.changed:
            return self.run.recorder.recording()

    def recordings(self) -> list[Recording]:
        """Return the recording of each track, up to the same update."""
        with self.changed:
            return [track.recorder.recording() for track in self.run.tracks]

    def state(self) -> str:
        """Return ready, running, pausing, paused, stopping, stopped, finished or failed."""
        with self.changed:
            run = self.run
            if run.error:
                return "failed"
            if run.resting:
                return run.ended or ("paused" if run.tracks[0].updates else "ready")
            if run.allowed or run.ended == "finished":
                return "running"
            return "stopping" if run.ended else "pausing"

    def status(self) -> str:
        """Return the state of the run and the number of updates, in one line."""
        with self.changed:
            run = self.run
            if run.error:
                return f"failed: {run.error}"
            return f"{self.state()}, update {run.tracks[0].updates} of {run.recorder.iterations}"

    def running(self) -> bool:
        """Return whether the run is in progress."""
        with self.changed:
            return not self.run.resting

    # Thread.

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise InputError(CLOSED)

    def _allow(self, iterations: float) -> None:
        self._refuse_if_closed()
        with self.changed:
            run = self.run
            if run.ended:
                raise InputError(
                    f"this run is {self.status()}; restart() starts again from the beginning"
                )
            run.allowed, run.resting = iterations, False
            self.changed.notify_all()
            if run.thread is None or not run.thread.is_alive():
                run.thread = threading.Thread(
                    target=self._work, args=(run,), name="distillation", daemon=True
                )
                run.thread.start()
        kernel.on_interrupt(stop_all)
        self.say()

    def _work(self, run: Run) -> None:
        """Make iterations while they are allowed. Returns at the end or after a rest."""
        if run.before:
            run.before.join()
            run.before = None
        while self._may_go_on(run):
            steps = run.advance()
            with self.changed:
                run.record(steps)
            view = self.view  # a caller can close it at any moment
            if view and time.monotonic() >= run.due:
                view.send(run)
            if self.delay:
                with self.changed:
                    self.changed.wait_for(
                        lambda: run is not self.run or run.ended or not run.allowed, self.delay
                    )
        if run.ended or run is not self.run:
            run.close()

    def _may_go_on(self, run: Run) -> bool:
        """Return whether to make another iteration.

        If none is allowed, the run rests first. A new order during the rest continues the run.
        """
        with self.changed:
            if run is not self.run:
                return False
            if run.allowed > 0 and not run.ended:
                run.allowed -= 1
                return True
            run.resting = True
            self.changed.notify_all()
            view = self.view

        def called() -> bool:
            return not run.resting or run is not self.run

        if view:
            view.send(run)
            with self.changed:
                self.changed.wait_for(lambda: called() or self.ending, timeout=REST)
            view.keep(run)
        with self.changed:
            if not called() or run is not self.run:
                run.thread = None
                return False
        return self._may_go_on(run)

    def say(self) -> None:
        """Show the status and the buttons in the view, if there is one."""
        view = self.view
        if view:
            view.say()


def stop_all() -> None:
    """Stop the runs of all sessions after their current iterations."""
    for session in list(sessions):
        if session.running():
            session.stop()


@atexit.register
def leave_all() -> None:
    """End the threads before Python ends. A thread that is in torch then would abort Python."""
    for session in list(sessions):
        session.leave()
