"""Checkpoints of a run: the state to resume from, in two generations.

A file has a line with the version, a line with the SHA-256 of the rest, and a state that
`torch.save` wrote. The checksum is verified before anything else is used. Loading unpickles no
code.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write
from .health import Finding

VERSION = b"pcdd checkpoint 2\n"
WITHOUT_CHECKSUM = b"PK"  # the first bytes of a checkpoint of version 1
NAME, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
Row = dict[str, Any]  # a line of steps.jsonl


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after an iteration.

    configuration:       `config.identity` of the settings
    state:               of `Step.state`
    frames:              float32 (frames, points, 3), in cells
    updates:             number of updates before each frame, increasing from 0
    steps:               columns of steps.jsonl, float64: matching_loss (iterations, classes), and
                         mean_absolute_gradient and mean_absolute_displacement (iterations,)
    label_probabilities: float32 (clouds, classes), or None without learned labels
    seconds:             of the distillation so far
    still, finding:      of `Health`
    """

    configuration: str
    state: dict[str, Any]
    frames: Tensor
    updates: list[int]
    steps: dict[str, Tensor]
    label_probabilities: Tensor | None
    seconds: float
    still: int
    finding: Finding | None

    @property
    def rows(self) -> list[Row]:
        """The lines of steps.jsonl. Each number is the one that was written, to the last bit."""
        columns = {name: column.tolist() for name, column in self.steps.items()}
        return [
            {"iteration": number, **dict(zip(columns, values))}
            for number, values in enumerate(zip(*columns.values()))
        ]


COLUMNS = {"matching_loss": 2, "mean_absolute_gradient": 1, "mean_absolute_displacement": 1}


def columns_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return `Checkpoint.steps` for these rows."""
    return {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in COLUMNS
    }


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint atomically. The one before it becomes the previous generation."""
    payload = io.BytesIO()
    stored = {part.name: getattr(checkpoint, part.name) for part in fields(Checkpoint)}
    torch.save(stored | {"finding": checkpoint.finding and asdict(checkpoint.finding)}, payload)
    digest = hashlib.sha256(payload.getbuffer()).hexdigest().encode()

    def write(file) -> None:
        file.write(VERSION + digest + b"\n")
        file.write(payload.getbuffer())

    atomic_write(folder / NAME, write, previous=folder / PREVIOUS)


def load(folder: Path, iterations: int) -> tuple[Checkpoint | None, str | None]:
    """Return the newest checkpoint in `folder` that is intact, and what was wrong with the newer.

    Returns (None, None) if there is no checkpoint.
    iterations: of the whole run
    Raises InputError if there are checkpoints, but none is intact, or if they are of a version
    without checksum.
    """
    damage = None
    for path in (folder / NAME, folder / PREVIOUS):
        try:
            checkpoint = _read(path, iterations)
        except FileNotFoundError:
            continue
        except InputError:  # an older version, so the other file is no better
            raise
        except ValueError as error:
            damage = damage or f"{path}: not a readable checkpoint ({error})"
            continue
        if damage:
            done = checkpoint.state["iteration"] + 1
            damage += f"; the run continues from {path.name}, after {done} iterations"
        return checkpoint, damage
    if damage:
        raise InputError(f"{damage}; restart the run with --overwrite")
    return None, None


def _read(path: Path, iterations: int) -> Checkpoint:
    """Read one file. Raises ValueError, or InputError for an older version."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror) from None
    if content.startswith(WITHOUT_CHECKSUM):
        raise InputError(
            f"{path}: a checkpoint of an older version, without a checksum; start the run over "
            "with --overwrite"
        )
    start = len(VERSION) + 65
    digest, payload = content[len(VERSION) : start - 1], memoryview(content)[start:]
    if not content.startswith(VERSION) or content[start - 1 : start] != b"\n":
        raise ValueError("its first line is not that of a checkpoint")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError("its content differs from its checksum")
    try:
        stored = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception:  # torch raises many types, and its message advises unsafe loading
        raise ValueError("it is no state of a run") from None
    try:
        return _checked(stored, iterations)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _checked(stored: Any, iterations: int) -> Checkpoint:
    """Return the checkpoint with this content. Raises ValueError for a field that is wrong."""

    def need(met: bool, field: str, expected: str) -> None:
        if not met:
            raise ValueError(f"field '{field}': expected {expected}")

    names = {part.name for part in fields(Checkpoint)}
    need(isinstance(stored, dict) and set(stored) == names, "checkpoint", ", ".join(sorted(names)))
    state, updates, steps = stored["state"], stored["updates"], stored["steps"]
    need(isinstance(stored["configuration"], str), "configuration", "text")
    need(isinstance(state, dict), "state", "a dictionary")
    last = state.get("iteration")
    need(
        type(last) is int and 0 <= last < iterations,
        "state.iteration",
        f"0 to {iterations - 1}, a whole number",
    )
    coordinates = state.get("coordinates")
    need(
        _numbers(coordinates, 2) and coordinates.shape[1] == 3,
        "state.coordinates",
        "finite numbers of shape (points, 3)",
    )
    for part in ("optimiser", "network", "network_optimiser"):
        need(
            isinstance(state.get(part), dict) and _is_plain(state[part]),
            f"state.{part}",
            "a dictionary of tensors and numbers",
        )
    need(
        isinstance(updates, list)
        and all(type(update) is int for update in updates)
        and updates[:1] == [0]
        and all(one < other for one, other in zip(updates, updates[1:]))
        and updates[-1] <= last + 1,
        "updates",
        f"whole numbers that increase from 0 to at most {last + 1}",
    )
    need(
        _numbers(stored["frames"], 3)
        and stored["frames"].shape == (len(updates), len(coordinates), 3),
        "frames",
        f"finite numbers of shape ({len(updates)}, {len(coordinates)}, 3)",
    )
    need(isinstance(steps, dict) and list(steps) == list(COLUMNS), "steps", ", ".join(COLUMNS))
    for name, dimensions in COLUMNS.items():
        need(
            _numbers(steps[name], dimensions)
            and steps[name].dtype == torch.float64
            and len(steps[name]) == last + 1,
            f"steps.{name}",
            f"{last + 1} rows of finite numbers",
        )
    learned = stored["label_probabilities"]
    need(learned is None or _numbers(learned, 2), "label_probabilities", "finite numbers, or None")
    need(
        type(stored["seconds"]) is float and 0 <= stored["seconds"] < math.inf,
        "seconds",
        "a positive number",
    )
    need(type(stored["still"]) is int and stored["still"] >= 0, "still", "0 or more")
    finding = stored["finding"]
    kinds = {"state": str, "iteration": int, "reason": str}
    need(
        finding is None
        or isinstance(finding, dict)
        and {name: type(part) for name, part in finding.items()} == kinds
        and 0 <= finding["iteration"] <= last,
        "finding",
        "state, iteration and reason, or None",
    )
    stored["finding"] = finding and Finding(**finding)
    return Checkpoint(**stored)


def _numbers(value: Any, dimensions: int) -> bool:
    """Return whether a value is a tensor of finite floats with this many dimensions."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == dimensions
        and bool(value.isfinite().all())
    )


def _is_plain(value: Any) -> bool:
    """Return whether a value consists of tensors, numbers, text, None, lists and dictionaries."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, Tensor | int | float | str | None)
