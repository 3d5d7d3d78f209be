"""Read, write and tabulate run records; read trajectories."""

import csv
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..arrays import read_arrays
from ..errors import InputError
from ..files import atomic_write, atomic_write_text, refuse_impossible_path
from ..scoring.baselines import Baseline
from ..scoring.evaluate import Score
from ..sealed import KEY, parsed, sealed, unsealed
from ..text import csv_cell, markdown_cell, printable
from .config import Config, from_dict, to_dict
from .presets import PRESETS, label

COMMITTED = Path(__file__).parents[2] / "figures" / "records"  # records in a git checkout
LONGEST_NAME = 180  # characters of a kept record's name before the seed; file systems allow 255
LOGGED = slice(0, 1250, 100)  # the paper's Table 2 averages the gradients of these iterations
LARGEST_TRAJECTORY = 2**31  # bytes
NEEDED = {"name", "config", "scores"}  # entries of every record
TYPES = {
    "name": str,
    "config": dict,
    "scores": dict,
    "scores_at": dict,
    "seconds": dict,
    "health": str,
    "scored_on": str,
    "peak_memory_bytes": int,
    "second_derivatives": dict,
    "mean_absolute_gradient": int | float,
    "mean_absolute_gradient_as_logged": int | float,
    "mean_absolute_displacement": int | float,
}
WINDOWS = 30  # parts of a run; each value of a curve in its record is the mean over one part


class NoRecord(InputError):
    """A file is missing, or it is not the record of a run."""


class OtherJson(NoRecord):
    """A file of JSON that holds something else than a record."""


def read_record(path: Path | str) -> dict[str, Any]:
    """Read the record in a file or in a run folder.

    Adds `clouds_file`: the path of the distilled set beside the record, or None if there is no such
    file. Raises NoRecord if the file is missing or another kind of file, and InputError if it is a
    damaged record.
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
    if not NEEDED <= record.keys() and KEY not in record:
        raise OtherJson(
            f"{path}: not a record; "
            f"expected the record.json of a finished run, with {', '.join(sorted(NEEDED))}"
        )
    try:
        record = unsealed(record)
        if missing := NEEDED - record.keys():
            raise ValueError(f"no entry '{min(missing)}'")
        _refuse_wrong_types(record)
    except ValueError as error:
        raise InputError(f"{path}: not an intact record ({printable(error)})") from None
    clouds = (
        path.with_name("clouds.npz") if path.name == "record.json" else path.with_suffix(".npz")
    )
    return record | {"clouds_file": str(clouds.resolve()) if clouds.is_file() else None}


def _refuse_wrong_types(record: dict[str, Any]) -> None:
    """Raise ValueError for the first entry that has another type than in a record."""
    for name, kind in TYPES.items():
        if name in record and not isinstance(record[name], kind):
            raise ValueError(f"entry '{name}' is {record[name]!r:.60}")
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


def find_records(places: Sequence[Path | str]) -> dict[str, Path]:
    """Find the records in these folders and in their run folders. Returns paths by `identity`.

    If several records have the same identity, the first folder in `places` wins. A damaged record,
    or one with settings of an older version, is skipped with a message on standard error. Other
    kinds of JSON are skipped in silence.
    """
    paths: dict[str, Path] = {}
    for place in map(Path, places):
        refuse_impossible_path(place)
        for path in sorted([*place.glob("*.json"), *place.glob("*/record.json")]):
            try:
                paths.setdefault(identity(read_record(path)), path)
            except OtherJson:
                continue
            except (InputError, AttributeError, KeyError, TypeError, RecursionError) as error:
                print(f"pcdd: skipped: {_reason(path, error)}", file=sys.stderr)
    return paths


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


def keep(path: Path, folder: Path | str, with_clouds: bool) -> Path:
    """Copy the record.json at `path` to `folder` as <name>-seed<n>.json. Returns the new path.

    with_clouds: copy the distilled set too

    The copy is meant to be committed. Its name includes the settings that differ from the preset.
    If the name is too long, or another experiment has it, eight digits of a hash of `identity`
    extend it. An old record without `curves` gets them from the steps of the run.
    """
    record = read_record(path)
    clouds = record.pop("clouds_file")
    steps = path.with_name("steps.jsonl")
    if "curves" not in record and steps.exists() and record["scores"]:
        record |= averages(steps)
    name = re.sub(r"[^\w.-]+", "-", _label(record)).strip("-")
    seed, digits = (
        f"seed{record['config']['seed']}",
        hashlib.sha256(identity(record).encode()).hexdigest()[:8],
    )
    kept = Path(folder) / f"{name}-{seed}.json"
    refuse_impossible_path(folder)
    if (
        len(name) > LONGEST_NAME
        or kept.is_file()
        and identity(read_record(kept)) != identity(record)
    ):
        kept = kept.with_name(f"{name[:LONGEST_NAME]}-{digits}-{seed}.json")
    if path.resolve() != kept.resolve():
        atomic_write_text(kept, as_json(sealed(record)))
    if with_clouds and clouds and Path(clouds).resolve() != kept.with_suffix(".npz").resolve():
        with open(clouds, "rb") as source:
            atomic_write(kept.with_suffix(".npz"), lambda file: shutil.copyfileobj(source, file))
    return kept


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
    """Convert a score to the dict in a record. Accuracies are in percent."""
    return {
        "mean": score.mean,
        "standard_deviation": score.standard_deviation,
        "networks": len(score.accuracies),
        "accuracies": list(score.accuracies),
    }


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


def table(
    records: Iterable[dict[str, Any]], columns: Mapping[str, Callable[[Config], Any]] | None = None
) -> list[dict[str, Any]]:
    """Return one row per experiment: means over its records, one record per seed.

    Scores also have the standard deviation over seeds, if there are two or more. The name of an
    experiment is its preset with the settings that differ from it. Scores are in percent, memory is
    in MiB. `paper's figure` is the accuracy in the paper, if it states one. columns: additional
    columns after `paper's figure`, each a function of the configuration.
    """
    rows = []
    for name, group in _by_label(records).items():
        row: dict[str, Any] = {"name": name, "paper's figure": _stated(group[0]["name"])}
        for column, value in (columns or {}).items():
            row[column] = value(settings_of(group[0])) if "network" in group[0]["config"] else None
        row |= _scores([record["scores"] for record in group])
        row["seeds"] = len({record["config"]["seed"] for record in group})
        for key in (
            "mean_absolute_gradient",
            "mean_absolute_gradient_as_logged",
            "mean_absolute_displacement",
        ):
            if all(key in record for record in group):
                row[key.replace("_", " ")] = float(
                    f"{np.mean([record[key] for record in group]):.3g}"
                )
        # failed runs have no seconds
        spent = [record["seconds"] for record in group if "seconds" in record]
        for stage in spent[0] if spent else ():
            row[f"{stage} seconds"] = round(
                float(np.mean([seconds[stage] for seconds in spent])), 1
            )
        peaks = [record["peak_memory_bytes"] for record in group if "peak_memory_bytes" in record]
        row["peak memory MiB"] = round(max(peaks, default=0) / 2**20)
        # a set that no run made has no health: the column says what it is
        scored = "a released set" if name.startswith("released-") else "real clouds"
        row["health"] = "; ".join(
            sorted({record.get("health", scored).split(" at iteration")[0] for record in group})
        )
        rows.append(row)
    return rows


def curve_table(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per experiment and iteration of `evaluation.curve`; scores as in `table`."""
    rows = []
    for name, group in _by_label(record for record in records if "scores_at" in record).items():
        for iteration in group[0]["scores_at"]:
            row = {
                "name": name,
                "paper's figure": _stated(group[0]["name"]),
                "iteration": int(iteration),
            }
            scored = [record["scores_at"][iteration] for record in group]
            rows.append(
                row
                | _scores(scored)
                | {"seeds": len({record["config"]["seed"] for record in group})}
            )
    return rows


def _by_label(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(_label(record), []).append(record)
    return groups


def _scores(scored: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return mean and standard deviation over seeds per protocol, in percent.

    scored: one dict of scores per seed
    """
    row: dict[str, float | None] = {}
    for protocol in {protocol: None for scores in scored for protocol in scores}:
        means = [scores[protocol]["mean"] for scores in scored if protocol in scores]
        row[protocol] = round(float(np.mean(means)), 2)
        row[f"{protocol} sd"] = round(float(np.std(means)), 2) if len(means) > 1 else None
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format rows of `table` as Markdown. Column `x sd` joins `x` after a plus-minus sign."""
    cells, columns = _as_text(rows), _columns(rows)
    cells = [[markdown_cell(cell) for cell in line] for line in [columns, *cells]]
    lines = [cells[0], ["---"] * len(columns), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(rows: list[dict[str, Any]]) -> str:
    """Format rows of `table` as a LaTeX tabular (package booktabs); columns as in `markdown`."""
    return tabulate(
        [[printable(cell) for cell in line] for line in _as_text(rows)],
        [printable(column) for column in _columns(rows)],
        tablefmt="latex_booktabs",
        disable_numparse=True,
    ).replace("±", r"$\pm$")


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """Format rows of `table` as CSV. Standard deviations have their own columns."""
    text = io.StringIO()
    columns = list({column: None for row in rows for column in row})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_cell(column) for column in columns])
    writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def label_of_score(name: str, config: Config) -> str:
    """Return the label of a score without a run.

    The label is the name, followed by the classifier if it differs from the protocols' classifier.
    """
    classifier = config.evaluation.classifier.name
    usual = Config().evaluation.classifier.name
    return name if classifier == usual else f"{name} evaluation.classifier={classifier}"


def _label(record: dict[str, Any]) -> str:
    return (label if "network" in record["config"] else label_of_score)(
        record["name"], settings_of(record)
    )


def _stated(name: str) -> float | None:
    return PRESETS[name].paper_accuracy if name in PRESETS else None


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list({column: None for row in rows for column in row if not column.endswith(" sd")})


def _as_text(rows: list[dict[str, Any]]) -> list[list[str]]:
    def cell(row: dict[str, Any], column: str) -> str:
        if row.get(column) is None:
            return ""
        deviation = row.get(f"{column} sd")
        return str(row[column]) if deviation is None else f"{row[column]} ± {deviation}"

    return [[cell(row, column) for column in _columns(rows)] for row in rows]
