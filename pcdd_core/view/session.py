"""A distillation that iterates in a thread, and follows orders at the end of each iteration.

`Session` has the orders: start, pause, step, stop, restart and close. It tells its view what
changes. `live.py` has the view and the handle for users.
"""

import atexit
import math
import threading
import time
import weakref
from collections.abc import Generator
from typing import Any, Protocol

import torch

from ..engine.distill import Step
from ..errors import InputError
from ..experiments import machine
from ..experiments.config import Config
from ..geometry.clouds import PointClouds
from . import kernel
from .recording import Recorder, Recording

# Seconds of rest before the saved view and the picture are updated. The update takes a second.
REST = 0.7
CLOSED = "this live view is closed; watch() makes another one"
# All runs that exist. A run is kept by its LiveDistillation, its thread and its displayed view.
sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


class Run:
    """One run from its start: its steps, its recorder, and the number of iterations it may make."""

    def __init__(
        self, config: Config, real: PointClouds, device: torch.device, before: "Run | None" = None
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


class View(Protocol):
    """What a session needs of its view. `send` and `keep` are called in the run's thread."""

    def display(self) -> None:
        """Display the view."""

    def say(self) -> None:
        """Show the status of the session."""

    def send(self, run: Run) -> None:
        """Show the latest step of the run."""

    def keep(self, run: Run) -> None:
        """Save what a reader of the notebook sees later."""

    def reset(self) -> None:
        """Show the recording of the session from its beginning."""

    def close(self, recording: Recording | None) -> None:
        """End the view; `recording`, if any, is what is left to see."""


class Session:
    """The work behind a LiveDistillation: a run, its thread and its view.

    The orders return at once; `LiveDistillation` describes them. Its view reads `run` and
    `recording` while it holds `changed`.
    """

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None):
        settings = config, real, machine.choose_device(str(device) if device else None)
        # None after `close`
        self._settings: tuple[Config, PointClouds, torch.device] | None = settings
        machine.keep_freed_memory()
        # guards the attributes below, which the thread and the callers of methods share
        self.changed = threading.Condition()
        self.run = Run(*settings)
        self.view: View | None = None
        self.closed = False
        self._leaving = False  # Python exits: nothing is sent or drawn any more
        self.handle: weakref.ref[Any] | None = None
        # the cell and the execution that called `watch`
        self.cell: str | None = None
        self.execution: str | None = None
        sessions.add(self)

    def start(self) -> None:
        self._allow(math.inf)

    def pause(self) -> None:
        with self.changed:
            self.run.allowed = 0
        self.say()

    def step(self) -> None:
        with self.changed:
            allowed = self.run.allowed
            self._allow(1 if allowed == math.inf else allowed + 1)

    def stop(self) -> None:
        with self.changed:
            self.run.allowed = 0
            self.run.ended = self.run.ended or "stopped"
            self.changed.notify_all()
        self.say()

    def restart(self) -> None:
        settings = self._settings
        if settings is None:
            raise InputError(CLOSED)
        fresh = Run(*settings, before=self.run)
        with self.changed:
            self.run = fresh  # the thread of the old run notices, and ends after its iteration
            self.changed.notify_all()
        if self.view:
            self.view.reset()
        self.start()

    def wait(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.run.resting)
            error = self.run.error
        if error:
            raise error

    def close(self, cleared: bool = False) -> None:
        """Stop the run and close the view. Drop what only a run needs.

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
                run.steps.close()
        if view:
            view.close(None if cleared else run.recorder.recording())

    def leave(self) -> None:
        """Stop the run without a word to the front end, and wait for its thread."""
        with self.changed:
            self._leaving = True
            self.view = None
            self.stop()
            thread = self.run.thread
        if thread:
            thread.join()

    # State.

    def recording(self) -> Recording:
        with self.changed:
            return self.run.recorder.recording()

    def status(self) -> str:
        with self.changed:
            run = self.run
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
            try:
                step = next(run.steps, None)
            except Exception as error:  # `wait` raises it in the thread of the caller
                step, run.error = None, error
            with self.changed:
                if step is None:
                    run.ended = run.ended or ("failed" if run.error else "finished")
                else:
                    run.recorder.add(step)
                    if step.iteration + 1 == run.recorder.iterations:
                        run.ended = "finished"
            view = self.view  # a caller can close it at any moment
            if view and time.monotonic() >= run.due:
                view.send(run)
        if run.ended or run is not self.run:
            run.steps.close()  # frees the networks and the real clouds

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
                self.changed.wait_for(
                    lambda: called() or self.closed or self._leaving, timeout=REST
                )
            view.keep(run)
        with self.changed:
            if not called() or run is not self.run:
                run.thread = None
                return False
        return self._may_go_on(run)

    def say(self) -> None:
        view = self.view
        if view:
            view.say()


def stop_all() -> None:
    for session in list(sessions):
        if session.running():
            session.stop()


@atexit.register
def leave_all() -> None:
    """End the threads before Python ends. A thread that is in torch then would abort Python."""
    for session in list(sessions):
        session.leave()
