"""The view of a session: the player with its buttons, frames, forces and energy maps."""

import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..engine.lifts import occupancy
from ..errors import extra_missing
from ..geometry.clouds import PointClouds, members_per_class
from . import page
from .recording import Recording
from .session import Run, Session
from .widget import PlayerWidget, close_all, kept

try:
    from IPython.display import DisplayHandle
    from ipywidgets import DOMWidget
except ImportError as missing:
    raise extra_missing(missing.name or "ipywidgets", "notebooks") from None

# the buttons of a run, and the states of the session in which they are enabled
ORDERS = {
    "Start": ("ready", "paused", "pausing"),
    "Pause": ("running",),
    "Step": ("ready", "paused"),
    "Stop": ("ready", "running", "paused", "pausing"),
    "Restart": ("running", "pausing", "paused", "stopping", "stopped", "finished", "failed"),
}
# energy map of a point: its reach in each direction (cells), and samples along each axis
MAP_REACH, MAP_SIDE = 4.0, 13
SENT_PER_SECOND = 15  # largest number of frames per second to the browser


class SessionView:
    """The widget of a session, and below it the output for viewers without widgets (`kept`).

    names: a name for each track of the session
    """

    def __init__(self, session: Session, names: Sequence[str] = ("",)):
        self.session, self.names = session, names
        self.forces = False  # the front end draws forces
        self.told: Any = None  # the run and the update of the latest forces that were sent
        self.player = PlayerWidget(recording=self.encoded())
        self.player.on_msg(lambda _widget, message, _buffers: self.obey(message))
        # the outputs of the widget and of the picture; None before they are displayed
        self.output: DisplayHandle | None = None
        self.picture: DisplayHandle | None = None
        self.say()

    @property
    def widget(self) -> DOMWidget:
        """The widget to display."""
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
        """Send the forces of the next update, if the player draws forces and the run rests."""
        # Send the forces of an update only once.
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
        """Send the result of `compute`, unless the run has gone on. Called in a thread."""
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
        self.picture.display(kept(self.session.recordings(), self.names), raw=True)

    def reset(self) -> None:
        """Show the recording of the session from its beginning."""
        self.player.recording = self.encoded()

    def close(self, recordings: Sequence[Recording]) -> None:
        """Close the widget.

        recordings: if any, the picture shows them, and a line replaces the widget
        """
        if recordings and self.output and self.picture:
            self.output.update({"text/plain": "Live view (closed)."}, raw=True)
            self.picture.update(kept(recordings, self.names), raw=True)
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
                [name, getattr(Session, name.lower()).__doc__, state in states]
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
        picture = kept(recordings, self.names)
        with self.session.changed:
            if not rests():
                return
            self.player.recording = encoded
            if self.picture:
                self.picture.update(picture, raw=True)


def class_means(real: PointClouds) -> bytes:
    """Return the share of each class's clouds that occupy each cell, as bytes 0 to 255."""
    means = [occupancy(real.select(chosen)).mean(0) for chosen in members_per_class(real)]
    return (torch.stack(means) * 255).round().byte().cpu().numpy().tobytes()


def forces_of(run: Run, stale: Callable[[], bool]) -> tuple[dict, bytes] | None:
    """Return the forces of the next update on the points of all tracks: ({}, (3, points))."""
    return {}, _columns([track.energy().forces() for track in run.tracks])


def map_of(run: Run, stale: Callable[[], bool], point: int) -> tuple[dict, bytes] | None:
    """Return the energy with one point moved along height and width: (message, (side, side)).

    Returns None if `stale` becomes true before the end.
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
