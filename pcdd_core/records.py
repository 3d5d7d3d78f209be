"""What is kept of runs, read back: records, trajectories, and tables made of them."""

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from .config import Config, from_dict, to_dict
from .errors import InputError
from .evaluation import Score
from .files import atomic_write_text
from .presets import PRESETS, label

COMMITTED = (
    Path(__file__).parents[1] / "figures" / "records"
)  # in a checkout: the records that the repository keeps
LONGEST_NAME = 180  # of a kept record, before its seed: file systems end at 255
LOGGED = slice(0, 1250, 100)  # the iterations whose gradients the paper's Table 2 averages
WINDOWS = 30  # of a run, over each of which the curves of its record are averaged


def read_record(path: Path | str) -> dict[str, Any]:
    """The record in a file or in a run folder. Raises InputError if there is none or it cannot be read.

    `clouds_file` is added to it: the path of the set it is about, beside it, or None if that is not there.
    """
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the record of a finished run")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not a record ({error})") from None
    needed = {"name", "config", "scores"}
    if not isinstance(record, dict) or not needed <= record.keys():
        raise InputError(
            f"{path}: not a record; expected the record.json of a finished run, with {', '.join(sorted(needed))}"
        )
    clouds = (
        path.with_name("clouds.npz") if path.name == "record.json" else path.with_suffix(".npz")
    )
    return record | {"clouds_file": str(clouds.resolve()) if clouds.is_file() else None}


def as_json(record: dict[str, Any]) -> str:
    """A record as text: indented, but a list of numbers on one line."""
    text = json.dumps(record, indent=2)
    return re.sub(
        r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text
    )


def find_records(places: Sequence[Path | str]) -> dict[str, Path]:
    """Every record in these folders and in the run folders in them, by `identity`; of two alike, the first place's."""
    found: dict[str, Path] = {}
    for place in map(Path, places):
        for path in sorted([*place.glob("*.json"), *place.glob("*/record.json")]):
            try:
                found.setdefault(identity(read_record(path)), path)
            except InputError:
                continue  # another kind of JSON, or the record of an older version's settings
    return found


def identity(record: dict[str, Any]) -> str:
    """What makes two records those of the same experiment: the settings, defaults filled in, or a baseline's name and its.

    Takes any dict with a record's `name` and `config`.
    """
    settings = to_dict(from_dict(record["config"]))
    if "network" in record["config"]:
        return json.dumps(settings, sort_keys=True)
    used = {key: settings[key] for key in ("data", "evaluation", "seed")}
    return json.dumps({"baseline": record["name"], **used}, sort_keys=True)


def keep(path: Path, folder: Path | str, with_clouds: bool) -> Path:
    """Copy the record at `path` (a run's record.json) into `folder` as <name>-seed<n>.json, to be committed.

    Settings that differ from the preset's become part of the name; where that is too long, or taken by another experiment's
    record, eight digits of its `identity` do too. Records from before there were `curves` get them from the run's steps.
    with_clouds: the distilled set goes beside it.
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
    if (
        len(name) > LONGEST_NAME
        or kept.is_file()
        and identity(read_record(kept)) != identity(record)
    ):
        kept = kept.with_name(f"{name[:LONGEST_NAME]}-{digits}-{seed}.json")
    if path.resolve() != kept.resolve():
        atomic_write_text(kept, as_json(record))
    if with_clouds and clouds and Path(clouds).resolve() != kept.with_suffix(".npz").resolve():
        shutil.copyfile(clouds, kept.with_suffix(".npz"))
    return kept


def read_trajectory(folder: Path | str) -> dict[str, np.ndarray]:
    """`updates` (frames,) and `coordinates` (frames, points, 3) of a run."""
    with np.load(Path(folder) / "trajectory.npz", allow_pickle=False) as archive:
        return {"updates": archive["updates"], "coordinates": archive["coordinates"]}


def score_record(score: Score) -> dict[str, Any]:
    """A score as a record keeps it; accuracies in percent."""
    return {
        "mean": score.mean,
        "standard_deviation": score.standard_deviation,
        "networks": len(score.accuracies),
        "epochs": score.epochs,
        "width": score.width,
        "accuracies": list(score.accuracies),
    }


def averages(path: Path) -> dict[str, Any]:
    """Means over all iterations, the matching loss at both ends, and curves: means over WINDOWS parts of the run.

    Of long runs also the mean absolute gradient as the paper logs it (Table 2), see LOGGED.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
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
        key: [float(f"{np.mean(np.take(found, part)):.4g}") for part in parts]
        for key, found in values.items()
    }
    found = {**means, "matching_loss": ends, "iterations": len(rows), "curves": curves}
    if len(rows) >= LOGGED.stop:
        logged = [row["mean_absolute_gradient"] for row in rows[LOGGED]]
        found["mean_absolute_gradient_as_logged"] = float(np.mean(logged))
    return found


def table(
    records: Iterable[dict[str, Any]], columns: Mapping[str, Callable[[Config], Any]] | None = None
) -> list[dict[str, Any]]:
    """A row per experiment: means over its records, one per seed, and of scores the standard deviation.

    The standard deviation is over two seeds or more. An experiment is named by its preset and the
    settings that differ from it. Scores are in percent, memory in MiB. `paper's figure` is what the
    paper states, where it states one. columns: further columns behind it, each made of the settings.
    """
    rows = []
    for name, group in _by_label(records).items():
        row: dict[str, Any] = {"name": name, "paper's figure": _stated(group[0]["name"])}
        for column, value in (columns or {}).items():
            row[column] = (
                value(from_dict(group[0]["config"])) if "network" in group[0]["config"] else None
            )
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
        spent = [
            record["seconds"] for record in group if "seconds" in record
        ]  # failed runs have none
        for stage in spent[0] if spent else ():
            row[f"{stage} seconds"] = round(
                float(np.mean([seconds[stage] for seconds in spent])), 1
            )
        peaks = [record["peak_memory_bytes"] for record in group if "peak_memory_bytes" in record]
        row["peak memory MiB"] = round(max(peaks, default=0) / 2**20)
        scored = (
            "a released set" if name.startswith("released-") else "real clouds"
        )  # which no run made
        row["health"] = "; ".join(
            sorted({record.get("health", scored).split(" at iteration")[0] for record in group})
        )
        rows.append(row)
    return rows


def curve_table(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per experiment and iteration of `evaluation.curve`: the scores there, as in `table`."""
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
    """Mean and standard deviation over seeds per protocol, percent; scored: one dict of scores per seed."""
    row: dict[str, float | None] = {}
    for protocol in {protocol: None for scores in scored for protocol in scores}:
        means = [scores[protocol]["mean"] for scores in scored if protocol in scores]
        row[protocol] = round(float(np.mean(means)), 2)
        row[f"{protocol} sd"] = round(float(np.std(means)), 2) if len(means) > 1 else None
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of `table` as a Markdown table; a column `x sd` is put beside `x`, after a plus-minus sign."""
    cells, columns = _as_text(rows), _columns(rows)
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(rows: list[dict[str, Any]]) -> str:
    """The same as a LaTeX tabular (package booktabs)."""
    return tabulate(
        _as_text(rows), _columns(rows), tablefmt="latex_booktabs", disable_numparse=True
    ).replace("±", r"$\pm$")


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """The same as CSV, numbers and standard deviations in columns of their own."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list({column: None for row in rows for column in row}), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def label_of_score(name: str, config: Config) -> str:
    """The name of what was scored without being distilled, with the classifier if it is not the protocols' own."""
    classifier = config.evaluation.classifier
    return (
        name
        if classifier == Config().evaluation.classifier
        else f"{name} evaluation.classifier={classifier}"
    )


def _label(record: dict[str, Any]) -> str:
    return (label if "network" in record["config"] else label_of_score)(
        record["name"], from_dict(record["config"])
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
