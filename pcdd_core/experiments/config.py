"""All settings of a run: one piece for each part, as JSON and by dotted name.

Presets, notebooks and the command line change these settings, and records store them. A setting
that does not exist, has the wrong type or is out of range raises an InputError that names the
setting and the valid alternatives. `pcdd distill --help` prints the help text of each setting.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ..data.datasets import DataSet, Mnist
from ..engine.distill import Step, distill
from ..engine.lifts import GaussianOccupancy, Lift
from ..engine.method import Method
from ..engine.objectives import GradientMatching, Objective
from ..engine.optimisers import Adam, Optimiser, Schedule
from ..errors import InputError, nearest_names
from ..geometry.clouds import PointClouds
from ..geometry.start import Scatter, Start
from ..nn.classifiers import Classifier, ConvNet
from ..nn.grid import GridNetwork, Network
from ..pieces import Count, Networks, NonNegative, Piece, setting
from ..scoring.evaluate import PROTOCOLS, STANDARD, Hard, Projection, Protocol, Score, evaluate

PROTOCOL_HELP = {name: help for name, (_, help) in Protocol.settings().items()}


class Evaluation(Piece):
    """Scoring of the result. The defaults are the numbers of the published protocols."""

    protocols: Annotated[tuple[Literal["paper", "sadm", "standard"], ...], Field(min_length=1)] = (
        setting(
            default=("standard", "paper"),
            help="standard: 20 networks, the usual protocol of the field; paper: 5 networks, test "
            "images augmented too; sadm: for 3D clouds of equal sizes, 10 PointNets with batch "
            "norm, no augmentation, as in the published code of SADM",
        )
    )
    split: Literal["test", "validation"] = setting(
        default="test",
        help="split to score on; make choices on validation, the held-out part of the training "
        "set, never on test",
    )
    classifier: Classifier = setting(default=ConvNet(), help="classifier to train on the set")
    projection: Projection = setting(
        default=Hard(), help="input of classifiers in training; test images are always hard"
    )
    iteration: NonNegative | None = setting(
        default=None, help="score the clouds before this iteration; null: after the last iteration"
    )
    curve: tuple[NonNegative, ...] = setting(
        default=(),
        help="also score the clouds before these iterations, for a curve over the run, with "
        "smaller classifiers (5 of width 32, 300 epochs); the paper's code scores before 0, 250, "
        "625, 1250, 1875 and 2499",
    )
    networks: Networks | None = setting(
        default=None, help="number of classifiers to train; null: the protocol's number"
    )
    epochs: Count = setting(default=STANDARD.epochs, help=PROTOCOL_HELP["epochs"])
    batch: Count = setting(default=STANDARD.batch, help=PROTOCOL_HELP["batch"])
    augmentation: Literal["published", "fast", "none"] = setting(
        default=STANDARD.augmentation, help=PROTOCOL_HELP["augmentation"]
    )

    def chosen_protocols(self) -> list[Protocol]:
        """Return the protocols, with the changes that these settings make.

        A setting at its default, or null, leaves each protocol its own number.
        """
        changed = {
            name: value
            for name in ("networks", "epochs", "batch", "augmentation")
            if (value := getattr(self, name)) != self.settings()[name][0]
        }
        return [dataclasses.replace(PROTOCOLS[name], **changed) for name in self.protocols]

    def check(self) -> None:
        """Raise InputError if test images would be scored after the fast augmentation."""
        of_images = not (self.classifier.of_points or self.classifier.of_grids)
        if of_images and self.augmentation == "fast" and self.split == "test":
            raise InputError(
                "setting evaluation.augmentation = 'fast': allowed for evaluation.split = "
                "'validation' only; use 'published' to score on the test split"
            )


class Config(Piece):
    """All settings of a run."""

    data: DataSet = setting(default=Mnist(), help="real clouds")
    clouds: Start = setting(default=Scatter(), help="initial synthetic clouds")
    lift: Lift = setting(
        default=GaussianOccupancy(), help="conversion of points to the input of the network"
    )
    network: Network = setting(default=GridNetwork(), help="distillation network")
    objective: Objective = setting(default=GradientMatching(), help="loss to minimise")
    optimiser: Optimiser = setting(default=Adam(), help="optimiser of the coordinates")
    schedule: Schedule = setting(
        default=Schedule(), help="length of the run and changes of the network"
    )
    evaluation: Evaluation = setting(default=Evaluation(), help="scoring of the result")
    seed: NonNegative = setting(
        default=0, help="seed of all random draws; each use derives its own generator"
    )

    @property
    def method(self) -> Method:
        """The pieces of the distillation."""
        parts = self.lift, self.network, self.objective, self.optimiser, self.schedule
        return Method(*parts, self.seed)

    def start(self, real: PointClouds) -> PointClouds:
        """Return the synthetic clouds before the first iteration, see `Start.clouds`."""
        return self.clouds.clouds(real, self.seed)

    def distill(
        self,
        real: PointClouds,
        device: torch.device | str = "cpu",
        state: dict[str, Any] | None = None,
    ) -> Generator[Step, None, None]:
        """Distil the training clouds `real` with these settings, see `engine.distill.distill`."""
        method = self.method
        pieces = method.lift, method.network, method.objective, method.optimiser, method.schedule
        return distill(real, self.start(real), *pieces, self.seed, device, state)

    def evaluate(
        self,
        clouds: PointClouds,
        test: PointClouds,
        device: torch.device | str = "cpu",
        progress: Callable[[float, str], None] = lambda fraction, text: None,
    ) -> dict[str, Score]:
        """Score `clouds` on `test` with these settings, see `scoring.evaluate.evaluate`."""
        scoring = self.evaluation
        scoring.check()
        pieces = scoring.classifier, scoring.chosen_protocols(), scoring.projection
        return evaluate(clouds, test, *pieces, self.seed, device, progress, self.data.balanced)


KINDS: dict[str, type[Piece]] = {
    "data": DataSet,
    "clouds": Start,
    "lift": Lift,
    "network": Network,
    "objective": Objective,
    "optimiser": Optimiser,
    "schedule": Schedule,
    "evaluation": Evaluation,
    "evaluation.classifier": Classifier,
    "evaluation.projection": Projection,
}


def to_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested dictionaries that JSON can store."""
    return config.to_dict()


def from_dict(settings: Mapping[str, Any]) -> Config:
    """Return the configuration with these settings and defaults for the rest.

    A part without a name is the default piece.
    Raises InputError if a setting is unknown or its value is invalid.
    """
    pieces: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in Config.settings():
            raise _unknown(name)
        if name == "evaluation" and isinstance(value, Mapping):
            nested = {
                part: _piece(f"evaluation.{part}", value[part])
                for part in ("classifier", "projection")
                if part in value
            }
            value = {**value, **nested}
        pieces[name] = _piece(name, value) if name in KINDS else value
    return Config._checked(pieces, "")


def _piece(place: str, value: Any) -> Piece:
    """Return the piece at `place`. Settings without a name are those of the default piece."""
    kind = KINDS[place]
    if kind.choices and isinstance(value, Mapping) and "name" not in value:
        section, _, part = place.partition(".")
        default = getattr(Config(), section)
        value = {"name": (getattr(default, part) if part else default).name, **value}
    return kind.of(value, place)


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return `config` with some settings changed.

    settings: values by dotted name, for instance `{"network.layers": 2}`. A new name of a piece,
        such as `{"lift.name": "points"}` or `{"lift": "points"}`, keeps the values of settings that
        the new piece has too. A value can be a piece as well: `{"lift": Points()}`.
    Raises InputError if a setting is unknown or its value is invalid.
    """
    changed = to_dict(config)
    for name, value in settings.items():
        if name in KINDS and not isinstance(value, Piece):
            name, value = f"{name}.name", value
        if name.endswith(".name") and name[: -len(".name")] in KINDS:
            _choose(changed, name[: -len(".name")], value)
    for name, value in settings.items():
        if name in KINDS and not isinstance(value, Piece) or name.endswith(".name"):
            if name.removesuffix(".name") not in KINDS:
                raise _unknown(name)
            continue
        *sections, last = name.split(".")
        place = changed
        for section in sections:
            if not isinstance(place.get(section), dict):
                raise _unknown(name)
            place = place[section]
        if isinstance(value, Piece):
            if last not in place:
                raise _unknown(name)
            place[last] = value.to_dict()
            continue
        if last in place and isinstance(place[last], dict):
            raise _unknown(name)
        if last not in place:
            piece = ".".join(sections)
            raise _not_of(piece, place, name) if piece in KINDS else _unknown(name)
        place[last] = value
    return from_dict(changed)


def identity(config: Config) -> str:
    """Return a hash of all settings: eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def described_settings() -> dict[str, tuple[Any, str]]:
    """Return all settings of the default pieces, by dotted name: (default, help text)."""
    return {
        name: described
        for piece, choices in described_pieces().items()
        for choice in choices.values()
        for name, described in ((f"{piece}.{field}", entry) for field, entry in choice[1].items())
    } | {"seed": Config.settings()["seed"]}


def described_pieces() -> dict[str, dict[str, tuple[str, dict[str, tuple[Any, str]]]]]:
    """Return the choices of each kind of piece, by its dotted name.

    Each choice, by its name, has the first line of its docstring and its settings.
    """
    return {
        place: {
            name: (
                (choice.__doc__ or "").strip().split("\n")[0],
                {key: value for key, value in choice.settings().items() if key not in nested},
            )
            for name, choice in (kind.choices or {"": kind}).items()
        }
        for place, kind in KINDS.items()
        for nested in (("classifier", "projection") if place == "evaluation" else (),)
    }


def _choose(settings: dict[str, Any], place: str, name: Any) -> None:
    """Change the name of the piece at `place`, and keep what the new piece can have."""
    *sections, last = place.split(".")
    section = settings
    for part in sections:
        section = section[part]
    choice = KINDS[place].choice(name, place)
    kept = {key: value for key, value in section[last].items() if key in choice.settings()}
    fresh = {key: default for key, (default, _) in choice.settings().items()}
    section[last] = {"name": choice.name, **fresh, **kept}


def _not_of(piece: str, settings: dict[str, Any], name: str) -> InputError:
    known = [f"{piece}.{other}" for other in settings if other != "name"]
    hint = nearest_names(name, known) if known else "it has no settings"
    which = f"{piece}.name={settings['name']}" if "name" in settings else piece
    elsewhere = [
        choice
        for choice, entry in described_pieces()[piece].items()
        if name.split(".")[-1] in entry[1] and choice
    ]
    where = f"; {piece}.name={' or '.join(elsewhere)} has it" if elsewhere else ""
    return InputError(f"no setting is called {name!r} for {which}{where}; {hint}")


def _unknown(name: str) -> InputError:
    return InputError(f"no setting is called {name!r}; {nearest_names(name, described_settings())}")
