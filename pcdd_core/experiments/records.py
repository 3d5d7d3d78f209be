"""Read and write records of runs; read trajectories.

A record is a dictionary: schema version, kind (distilled, baseline, released, scored), name, config
(all settings), scores, and for runs health, curves, seconds, memory and the machine. A `note` says
what else sets it apart from a run of today. A run folder holds one as record.json. Committed
records are JSON Lines, one file per experiment. A record belongs to a table by its `identity`,
which is made of its own settings only.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import read_arrays
from ..errors import InputError
from ..files import atomic_write, atomic_write_text, refuse_impossible_path
from ..scoring.baselines import Baseline
from ..scoring.evaluate import Score
from ..sealed import KEY, parsed, sealed, unsealed
from ..text import printable
from .config import Config, from_dict, to_dict
from .presets import label

CHECKOUT = Path(__file__).parents[2]  # if this package is not installed elsewhere
COMMITTED = CHECKOUT / "figures" / "records"
SCHEMA = 2  # version of the format of a record; pcdd 0.1 had 1
LONGEST_NAME = 120  # characters of the name of a kept set before the seed
LOGGED = slice(0, 1250, 100)  # the paper's Table 2 averages the gradients of these iterations
LARGEST_TRAJECTORY = 2**31  # bytes
NEEDED = {"schema", "kind", "name", "config", "scores"}  # entries of every record
KINDS = ("distilled", "baseline", "released", "scored")
STATES = ("moving", "stopped moving", "diverged", "failed")
TYPES = {
    "schema": int,
    "kind": str,
    "name": str,
    "row": str,
    "config": dict,
    "scores": dict,
    "scores_at": dict,
    "seconds": dict,
    "health": dict,
    "scored_on": str,
    "note": str,
    "peak_memory_bytes": int,
    "bytes": int,
    "second_derivatives": dict,
    "mean_absolute_gradient": int | float,
    "mean_absolute_gradient_as_logged": int | float,
    "mean_absolute_displacement": int | float,
}
WINDOWS = 30  # parts of a run; each value of a curve in its record is the mean over one part


def runs_folder() -> Path:
    """Return the folder of run folders: PCDD_RUNS, else `runs` in the checkout, else `runs` here.

    The command line and the notebooks share it.
    """
    if given := os.environ.get("PCDD_RUNS"):
        return Path(given)
    return CHECKOUT / "runs" if (CHECKOUT / "notebooks").is_dir() else Path("runs")


class NoRecord(InputError):
    """A file is missing, or it is not the record of a run."""


class OtherJson(NoRecord):
    """A file of JSON that holds something else than a record."""


def read_record(path: Path | str) -> dict[str, Any]:
    """Read the record in a file or in a run folder.

    Adds `place`, the path of the file, and `clouds_file`, the path of the distilled set beside the
    record, or None if there is no such file.
    Raises NoRecord if the file is missing or of another kind, and InputError if it is damaged.
    """
    path = Path(path)
    refuse_impossible_path(path)
    path = path / "record.json" if path.is_dir() else path
    if not path.is_file():
        raise NoRecord(f"{path}: no such file; expected the record of a finished run")
    try:
        record = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoRecord(f"{path}: not a record ({error})") from None
    if not {"name", "config", "scores"} <= record.keys() and KEY not in record:
        raise OtherJson(
            f"{path}: not a record; "
            f"expected the record.json of a finished run, with {', '.join(sorted(NEEDED))}"
        )
    try:
        record = _checked(record)
    except ValueError as error:
        raise InputError(f"{path}: not an intact record ({printable(error)})") from None
    clouds = (
        path.with_name("clouds.npz") if path.name == "record.json" else path.with_suffix(".npz")
    )
    found = str(clouds.resolve()) if clouds.is_file() else None
    return record | {"place": str(path), "clouds_file": found}


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without its checksum. Raises ValueError if it is damaged or of another kind.

    A record of an older version is refused: `python tools/migrate_records.py` converts it.
    """
    record = unsealed(record)
    if "schema" not in record and {"name", "config", "scores"} <= record.keys():
        raise ValueError("written by pcdd 0.1; tools/migrate_records.py converts it")
    if missing := NEEDED - record.keys():
        raise ValueError(f"no entry '{min(missing)}'")
    _refuse_wrong_types(record)
    return record


def _refuse_wrong_types(record: dict[str, Any]) -> None:
    """Raise ValueError for the first entry that has another type than in a record."""
    for name, kind in TYPES.items():
        if name in record and not isinstance(record[name], kind):
            raise ValueError(f"entry '{name}' is {record[name]!r:.60}")
    if record["schema"] != SCHEMA:
        raise ValueError(f"entry 'schema' is {record['schema']}, expected {SCHEMA}")
    if record["kind"] not in KINDS:
        raise ValueError(f"entry 'kind' is {record['kind']!r:.60}")
    health = record.get("health", {"state": "moving", "iteration": None})
    if health.get("state") not in STATES or not isinstance(health.get("iteration"), int | None):
        raise ValueError(f"entry 'health' is {health!r:.60}")
    if type(record["config"].get("seed")) is not int:
        raise ValueError("entry 'config' has no whole number 'seed'")
    groups = {"scores": record["scores"], **record.get("scores_at", {})}
    for group, scores in groups.items():
        if not isinstance(scores, dict) or not all(isinstance(e, dict) for e in scores.values()):
            raise ValueError(f"entry '{group}' has no scores: {scores!r:.60}")
        for protocol, score in scores.items():
            for part in ("mean", "standard_deviation", "networks"):
                _refuse_no_number(f"{part} of '{group}', '{protocol}'", score.get(part))
    for stage, seconds in record.get("seconds", {}).items():
        _refuse_no_number(f"seconds of '{stage}'", seconds)


def _refuse_no_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: expected a number, not {value!r:.60}")


def as_json(record: dict[str, Any]) -> str:
    """Format a record as indented JSON, with each list of numbers on one line."""
    text = json.dumps(record, indent=2)
    return re.sub(
        r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text
    )


def settings_of(record: dict[str, Any]) -> Config:
    """Return the settings in a record, with defaults for parts that a baseline does not have."""
    return from_dict({key: part for key, part in record["config"].items() if key != "baseline"})


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """Read the records in a JSON Lines file, one per line, in their order.

    Adds `place` and `clouds_file` as `read_record` does. The set is the one in
    ../sets/<stem of the file> that the record names. Raises InputError for the first damaged line.
    """
    found = []
    for record in _lines(Path(path)):
        if isinstance(record, InputError):
            raise record
        found.append(record)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any] | InputError]:
    """Yield the record in each line of a JSON Lines file, or the error of a damaged line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        yield InputError(f"{path}: not a file of records ({error})")
        return
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = _checked(parsed(line))
        except ValueError as error:
            yield InputError(f"{path}:{number}: not an intact record ({printable(error)})")
            continue
        clouds = _sets_of(path) / str(record.get("set"))
        found = str(clouds.resolve()) if "set" in record else None
        yield record | {"place": str(path), "clouds_file": found}


def find_records(places: Sequence[Path | str]) -> dict[str, dict[str, Any]]:
    """Find the records in the JSON Lines files and run folders of these folders, by `identity`.

    If several records have the same identity, the first folder in `places` wins. A damaged record,
    or one with settings of an older version, is skipped with a message on standard error.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in map(Path, places):
        refuse_impossible_path(place)
        for path in sorted([*place.glob("*.jsonl"), *place.glob("*/record.json")]):
            for record in _lines(path) if path.suffix == ".jsonl" else [_one(path)]:
                try:
                    if isinstance(record, InputError):
                        raise record
                    found.setdefault(identity(record), record)
                except (InputError, AttributeError, KeyError, TypeError, RecursionError) as error:
                    print(f"pcdd: skipped: {_reason(path, error)}", file=sys.stderr)
    return found


def _one(path: Path) -> dict[str, Any] | InputError:
    """Return the record of a run folder, or why it cannot be read."""
    try:
        return read_record(path)
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{path}: {error}")


def _reason(path: Path, error: Exception) -> str:
    text = printable(error if isinstance(error, InputError) else repr(error))
    return text if text.startswith(str(path)) else f"{path}: {text}"


def identity(record: dict[str, Any]) -> str:
    """Return a text that is equal for two records of the same run.

    It contains all settings, with defaults filled in. For a baseline it contains the name and the
    settings that scoring uses. record: any dict with the `name` and `config` of a record.
    """
    given = dict(record["config"])
    baseline = given.pop("baseline", None)
    settings = to_dict(from_dict(given))
    if "network" in given:
        return json.dumps(settings, sort_keys=True)
    used = {key: settings[key] for key in ("data", "evaluation", "seed")}
    set_name = Baseline.of(baseline).to_dict() if baseline else record["name"]
    return json.dumps({"baseline": set_name, **used}, sort_keys=True)


def keep(
    records: Iterable[dict[str, Any]], folder: Path | str, experiment: str, with_clouds: bool
) -> Path:
    """Put records into <folder>/records/<experiment>.jsonl, to be committed. Returns the path.

    A record takes the place of the one with the same identity, in whichever file that is: a run can
    belong to several tables. Lines are sorted by row and seed. Raises InputError if a file there
    has a damaged line, because writing the file again would lose it.
    records: from `read_record` or `find_records`
    with_clouds: copy the set of seed 0 to <folder>/sets/<experiment>, if its data may be passed on
    """
    refuse_impossible_path(folder)
    place = Path(folder) / "records"
    files = {path: read_records(path) for path in sorted(place.glob("*.jsonl"))}
    own = place / f"{experiment}.jsonl"
    files.setdefault(own, [])
    homes = {identity(record): path for path, kept in files.items() for record in kept}
    changed = set()
    for record in records:
        home = homes.get(identity(record), own)
        line = _stored(record)
        redistributable = settings_of(record).data.redistributable
        clouds = record.get("clouds_file")
        if with_clouds and clouds and redistributable and record["config"]["seed"] == 0:
            line["set"] = f"{slug(record)}-seed{record['config']['seed']}.npz"
            _copy(Path(clouds), _sets_of(home) / line["set"])
        others = [other for other in files[home] if identity(other) != identity(record)]
        files[home] = [*others, line]
        changed.add(home)
    for path in changed:
        write_records(files[path], path)
    return own


def write_records(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a JSON Lines file: one record per line, with its checksum, sorted by row and seed."""
    lines = [_stored(record) for record in records]
    lines.sort(key=lambda record: (row_of(record), record["config"]["seed"], identity(record)))
    atomic_write_text(path, "".join(json.dumps(sealed(line)) + "\n" for line in lines))


def _stored(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what reading adds."""
    return {key: part for key, part in record.items() if key not in ("clouds_file", "place")}


def slug(record: dict[str, Any]) -> str:
    """Return a name for files: the row of the record, shortened with a hash if it is long."""
    name = re.sub(r"[^\w.-]+", "-", row_of(record)).strip("-")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(row_of(record).encode()).hexdigest()[:8]}"


def _sets_of(path: Path) -> Path:
    return path.parents[1] / "sets" / path.stem


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        with source.open("rb") as content:
            atomic_write(target, lambda file: shutil.copyfileobj(content, file))


def read_trajectory(folder: Path | str) -> dict[str, np.ndarray]:
    """Read the trajectory of a run: `updates` (frames,) and `coordinates` (frames, points, 3).

    Raises InputError if it is missing or damaged.
    """
    path = Path(folder) / "trajectory.npz"
    fields = ("updates", "coordinates")
    arrays = read_arrays(path, fields, LARGEST_TRAJECTORY)
    for field, kind, dimensions in zip(fields, "if", (1, 3)):
        if field not in arrays:
            raise InputError(f"{path}: field '{field}' is missing; expected {', '.join(fields)}")
        if arrays[field].dtype.kind != kind or arrays[field].ndim != dimensions:
            raise InputError(
                f"{path}: field '{field}' has type {arrays[field].dtype} and shape "
                f"{arrays[field].shape}; expected "
                + ("whole numbers (frames,)" if kind == "i" else "floats (frames, points, 3)")
            )
    return arrays


def score_record(score: Score) -> dict[str, Any]:
    """Convert a score to the dict in a record. Accuracies are in percent.

    Only a balanced score has an entry `recalls`.
    """
    return {
        "mean": score.mean,
        "standard_deviation": score.standard_deviation,
        "networks": len(score.accuracies),
        "accuracies": list(score.accuracies),
    } | ({"recalls": [list(each) for each in score.recalls]} if score.recalls else {})


def averages(path: Path) -> dict[str, Any]:
    """Return `averages_of` the steps.jsonl at `path`. Raises InputError if it is damaged."""
    try:
        return averages_of([json.loads(line) for line in path.read_text().splitlines()])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise InputError(f"{path}: not the steps of a run ({error!r})") from None


def averages_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the lines of steps.jsonl.

    Returns means over all iterations, the first and last matching loss, and `curves`: means over
    WINDOWS parts of the run. For long runs it also returns the mean absolute gradient as the paper
    logs it (Table 2), see LOGGED.
    """
    means = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("mean_absolute_gradient", "mean_absolute_displacement")
    }
    ends = {"first": sum(rows[0]["matching_loss"]), "last": sum(rows[-1]["matching_loss"])}
    parts = np.array_split(np.arange(len(rows)), min(WINDOWS, len(rows)))
    values = {
        "matching_loss": [sum(row["matching_loss"]) for row in rows],
        **{key: [row[key] for row in rows] for key in means},
    }
    curves = {"iteration": [float(part.mean()) for part in parts]}
    curves |= {
        key: [float(f"{np.mean(np.take(series, part)):.4g}") for part in parts]
        for key, series in values.items()
    }
    summary = {**means, "matching_loss": ends, "iterations": len(rows), "curves": curves}
    if len(rows) >= LOGGED.stop:
        logged = [row["mean_absolute_gradient"] for row in rows[LOGGED]]
        summary["mean_absolute_gradient_as_logged"] = float(np.mean(logged))
    return summary


def row_of(record: dict[str, Any]) -> str:
    """Return the name of the record's row in tables: its preset or set, and changed settings."""
    if "row" in record:
        return record["row"]
    name, config = record["name"], settings_of(record)
    return label(name, config) if "network" in record["config"] else label_of_score(name, config)


def health_of(record: dict[str, Any]) -> str:
    """Return the health of a run in one line, "" for a set that no run made."""
    health = record.get("health")
    if not health:
        return ""
    when = "" if health["iteration"] is None else f" at iteration {health['iteration']}"
    reason = f": {health['reason']}" if health.get("reason") else ""
    return f"{health['state']}{when}{reason}"


def label_of_score(name: str, config: Config) -> str:
    """Return the label of a score without a run.

    The label is the name, followed by the classifier if it differs from the protocols' classifier.
    """
    classifier = config.evaluation.classifier.name
    usual = Config().evaluation.classifier.name
    return name if classifier == usual else f"{name} evaluation.classifier={classifier}"
