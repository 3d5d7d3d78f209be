"""Watch a distillation in JupyterLab: start, pause, step, stop and restart while points move.

`watch` returns a `LiveDistillation`. Its session iterates in a thread, so the kernel stays free.
Buttons act at the end of the current iteration. Its view (`session_view.py`) sends frames to
player.js in the browser. The settings of the view (class, colours, trails, frame) are in the
browser and need no kernel.

Without a front end (papermill, nbconvert, scripts) `watch` runs to the end at once, and a picture
replaces the view.
"""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..experiments.config import Config
from ..geometry.clouds import PointClouds
from . import kernel
from .kernel import has_screen
from .recording import Recording
from .session import Session, sessions, stop_all
from .session_view import SessionView
from .widget import png


def watch(
    config: Config, real: PointClouds, device: torch.device | str | None = None
) -> "LiveDistillation":
    """Return a live distillation. As the last expression of a notebook cell it is displayed.

    In JupyterLab it waits for its start. Without a front end, `watch` returns when it is finished.
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
    """Return the live distillation of `make`, and end those that it replaces, see `watch`."""
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


class LiveDistillation:
    """A distillation that runs in the background. Its buttons are also methods; see `watch`.

    `start`, `pause`, `step`, `stop`, `restart` and `close` return at once. `wait` returns when the
    last of them has taken effect.
    """

    _make_view: Callable[[Session], SessionView]

    def __init__(self, config: Config, real: PointClouds, device: torch.device | str | None = None):
        self._make_view = SessionView
        # The thread and the view refer to the session only. Python deletes this object with the
        # last variable of the user that refers to it.
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
        from IPython.display import display  # IPython calls this method

        session = self._session
        if session.closed or not has_screen():
            display(png(self.recording))
            return
        session.view = session.view or self._make_view(session)
        session.view.display()


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
