"""Score clouds in the background while they move, at a bounded cost for the run."""

import dataclasses
import time
from collections.abc import Callable

import torch

from ..data.datasets import Splits
from ..errors import EvaluationFailed
from ..experiments.config import Config
from ..geometry.clouds import PointClouds, members_per_class
from ..nn.classifiers import ConvNet, ConvNet3D
from ..scoring import baselines
from ..scoring.evaluate import Protocol, evaluate
from .session import Run, Session

# Largest share of the time in which the scorer works while points move. If the run stood still in
# this time, it would take 1 / (1 - SHARE) of its time: 11 % more.
SHARE = 0.1
WIDTH, EPOCHS = 16, 100  # of the classifier
MOST_VALIDATION, MOST_PER_CLASS = 500, 100  # clouds that scores and baselines use
BASELINES = {
    "random": baselines.random,
    "herding": baselines.herding,
    "class mean": lambda real, count, seed: baselines.class_mean(real, 1, seed),
}


class Stopped(Exception):
    """The score is no longer wanted."""


@dataclasses.dataclass
class Throttle:
    """Rest between slices of work, so that work takes at most SHARE of the time.

    Calls divide the work into slices: pass it as `progress` of `evaluate`.
    busy: whether others need the processor; else there is no rest
    stopped: whether the work is no longer wanted; a call then raises Stopped
    """

    busy: Callable[[], bool]
    stopped: Callable[[], bool]
    resumed: float = dataclasses.field(default_factory=lambda: time.monotonic())

    def __call__(self, fraction: float = 0.0, text: str = "") -> None:
        """End a slice, and rest."""
        now = time.monotonic()
        end = now + (now - self.resumed) * (1 / SHARE - 1)
        while not self.stopped() and self.busy() and time.monotonic() < end:
            time.sleep(min(0.05, max(end - time.monotonic(), 0)))
        if self.stopped():
            raise Stopped
        self.resumed = time.monotonic()


class Scorer:
    """Score the clouds of a run every `every` updates, and after its end, in a helper thread.

    every: updates between scores; 0: none. It can be changed at any time.
    tell: called with `scores` when there is a new one
    """

    def __init__(self, session: Session, splits: Splits, every: int, tell: Callable[[dict], None]):
        self.session, self.every, self.tell = session, every, tell
        self.run: Run = session.run
        self.config: Config = self.run.tracks[0].config
        self.train = splits.train
        self.validation = _at_most(splits.validation, MOST_VALIDATION)
        self.curves: list[list[list[float]]] = [[] for _ in self.run.tracks]
        self.baselines: dict[str, float] = {}
        self.begun = False

    @property
    def scores(self) -> dict:
        """What the player shows, see `score` in player.js."""
        return {"runs": self.curves, "baselines": self.baselines, "note": self.note}

    @property
    def note(self) -> str:
        """Describe the score and its cost."""
        classifier = self._classifier()
        width = f" of width {WIDTH}" if isinstance(classifier, ConvNet | ConvNet3D) else ""
        return (
            f"One {classifier.name}{width}, {EPOCHS} epochs, on {len(self.validation)} validation "
            f"clouds. Scoring takes at most {SHARE:.0%} of the time while points move."
        )

    def start(self) -> None:
        """Start the thread, if there is none yet. It ends with the run."""
        if not self.begun and self.every:
            self.begun = True
            self.session.help(self._work)

    def _stopped(self) -> bool:
        return self.session.ending or self.run is not self.session.run

    def _work(self) -> None:
        throttle = Throttle(lambda: self.session.busy, self._stopped)
        try:
            self._score_baselines(throttle)
            while self._wait():
                self._score_tracks(throttle)
        except Stopped:
            pass

    def _wait(self) -> bool:
        """Wait until a score is due. Returns False if none will be."""
        while True:
            if self._stopped():
                return False
            last = self.curves[-1][-1][0] if self.curves[-1] else 0
            done, ended = self.run.tracks[0].updates, bool(self.run.ended) and self.run.resting
            due = self.every and (done >= last + self.every or (ended and done > last))
            if due or ended:
                return bool(due) and self.run.ended != "failed"
            with self.session.changed:
                self.session.changed.wait(0.2)

    def _score_baselines(self, throttle: Throttle) -> None:
        few = self.train.select(
            torch.cat([members[:MOST_PER_CLASS] for members in members_per_class(self.train)])
        )
        count = max(1, len(self.run.recorder.clouds) // len(few.class_names))
        for name, choose in BASELINES.items():
            if name == "herding" and min(few.grid) > 1:
                continue  # it trains a network there
            throttle()
            self.baselines[name] = self.accuracy(choose(few, count, self.config.seed), throttle)
            self.tell(self.scores)

    def _score_tracks(self, throttle: Throttle) -> None:
        with self.session.changed:
            update = self.run.tracks[0].updates
            clouds = [track.recorder.clouds for track in self.run.tracks]
        throttle()
        for curve, of_track in zip(self.curves, clouds):
            curve.append([update, self.accuracy(of_track, throttle)])
            self.tell(self.scores)

    def accuracy(self, clouds: PointClouds, progress: Callable[[float, str], None]) -> float:
        """Return the accuracy of one small classifier on validation clouds, in percent.

        A training that diverges scores 0.
        """
        protocol = Protocol(networks=1, epochs=EPOCHS, augmentation="fast")
        evaluation, seed = self.config.evaluation, self.config.seed
        pieces = self._classifier(), protocol, evaluation.projection, seed
        try:
            scores = evaluate(
                clouds,
                self.validation,
                *pieces,
                progress=progress,
                balanced=self.config.data.balanced,
            )
            return scores["standard"].mean
        except EvaluationFailed:
            return 0.0

    def _classifier(self):
        chosen = self.config.evaluation.classifier
        if chosen.of_grids:
            return ConvNet3D(WIDTH)
        return chosen if chosen.of_points else ConvNet(WIDTH)


def _at_most(clouds: PointClouds, count: int) -> PointClouds:
    """Return at most `count` clouds, evenly spaced."""
    if len(clouds) <= count:
        return clouds
    return clouds.select((torch.arange(count) * len(clouds)) // count)
