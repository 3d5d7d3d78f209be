"""What is kept of runs, read back: records, trajectories, and tables made of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .evaluation import Score


def read_record(path: Path | str) -> dict[str, Any]:
    """The record in a file or in a run folder. Raises InputError if there is none or it cannot be read."""
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
        raise InputError(f"{path}: not a record; expected the record.json of a finished run, with {', '.join(sorted(needed))}")
    return record


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
    """Means over all iterations, and the matching loss at both ends."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    means = {
        key: float(np.mean([row[key] for row in rows])) for key in ("mean_absolute_gradient", "mean_absolute_displacement")
    }
    ends = {"first": sum(rows[0]["matching_loss"]), "last": sum(rows[-1]["matching_loss"])}
    return {**means, "matching_loss": ends, "iterations": len(rows)}


def table(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per name: means over its records (one per seed), and for scores, of two seeds or more, the standard deviation.

    Scores are in percent, memory in MiB.
    """
    rows, named = [], {}
    for record in records:
        named.setdefault(record["name"], []).append(record)
    for name, group in named.items():
        row: dict[str, Any] = {"name": name, "seeds": len({record["config"]["seed"] for record in group})}
        for protocol in {protocol: None for record in group for protocol in record["scores"]}:
            means = [record["scores"][protocol]["mean"] for record in group if protocol in record["scores"]]
            row[protocol] = round(float(np.mean(means)), 2)
            row[f"{protocol} sd"] = round(float(np.std(means)), 2) if len(means) > 1 else None
        for key in ("mean_absolute_gradient", "mean_absolute_displacement"):
            if all(key in record for record in group):
                row[key] = float(f"{np.mean([record[key] for record in group]):.3g}")
        spent = [record["seconds"] for record in group if "seconds" in record]  # failed runs have none
        for stage in spent[0] if spent else ():
            row[f"{stage} seconds"] = round(float(np.mean([seconds[stage] for seconds in spent])), 1)
        peaks = [record["peak_memory_bytes"] for record in group if "peak_memory_bytes" in record]
        row["peak memory MiB"] = round(max(peaks, default=0) / 2**20)
        row["health"] = "; ".join(sorted({record.get("health", "real clouds").split(" at iteration")[0] for record in group}))
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of `table` as a Markdown table; a column `x sd` is put beside `x`, after a plus-minus sign."""
    columns = list({column: None for row in rows for column in row if not column.endswith(" sd")})

    def cell(row: dict[str, Any], column: str) -> str:
        if row.get(column) is None:
            return ""
        deviation = row.get(f"{column} sd")
        return str(row[column]) if deviation is None else f"{row[column]} ± {deviation}"

    lines = [columns, ["---"] * len(columns), *([cell(row, column) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
