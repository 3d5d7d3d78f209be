"""Tables of records: rows, and their text as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from ..text import csv_entry, markdown_entry, printable
from .config import Config
from .presets import PRESETS
from .ranking import beside_references, is_of_images, mean_bytes
from .records import row_of, settings_of


def table(
    records: Iterable[dict[str, Any]],
    columns: Mapping[str, Callable[[Config], Any]] | None = None,
    references: Iterable[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per experiment: means over its records, one record per seed.

    Scores also have the standard deviation over seeds, if there are two or more. The name of an
    experiment is its preset with the settings that differ from it. Scores are in percent, memory is
    in MiB. `paper's figure` is the accuracy in the paper, if it states one. `bytes` are those of
    the packed set, see `ranking.packed_size`, None where no record has them. Tables of images have
    IOR and HLR, see `ranking.beside_references`.
    columns: additional columns after `paper's figure`, each a function of the configuration
    references: records of random and of all real clouds; None: `records`
    """
    rows, records = [], list(records)
    beside = records if references is None else list(references)
    images = all(map(is_of_images, records))
    for name, group in _by_label(records).items():
        row: dict[str, Any] = {"name": name, "paper's figure": _stated(group[0]["name"])}
        for column, value in (columns or {}).items():
            row[column] = value(settings_of(group[0])) if "network" in group[0]["config"] else None
        row |= _scores([record["scores"] for record in group])
        row["seeds"] = len({record["config"]["seed"] for record in group})
        row["bytes"] = mean_bytes(group)
        if images:
            row |= beside_references(group, beside)
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
        row["health"] = "; ".join(sorted({_state(record) for record in group}))
        rows.append(row)
    return rows


def _state(record: dict[str, Any]) -> str:
    """Return the health of a run. A set that no run made has none: say what it is instead."""
    if health := record.get("health"):
        return f"{health['state']} ({record['note']})" if "note" in record else health["state"]
    return "a released set" if record.get("kind") == "released" else "real clouds"


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
        groups.setdefault(row_of(record), []).append(record)
    return groups


def _scores(scored: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return mean and standard deviation over seeds per protocol, in percent.

    The column of a balanced accuracy says so.
    scored: one dict of scores per seed
    """
    row: dict[str, float | None] = {}
    for protocol in {protocol: None for scores in scored for protocol in scores}:
        entries = [scores[protocol] for scores in scored if protocol in scores]
        means = [entry["mean"] for entry in entries]
        column = f"{protocol}, balanced" if "recalls" in entries[0] else protocol
        row[column] = round(float(np.mean(means)), 2)
        row[f"{column} sd"] = round(float(np.std(means)), 2) if len(means) > 1 else None
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format rows of `table` as Markdown. Column `x sd` joins `x` after a plus-minus sign."""
    entries, columns = _as_text(rows), _columns(rows)
    entries = [[markdown_entry(entry) for entry in line] for line in [columns, *entries]]
    lines = [entries[0], ["---"] * len(columns), *entries[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(rows: list[dict[str, Any]]) -> str:
    """Format rows of `table` as a LaTeX tabular (package booktabs); columns as in `markdown`."""
    return tabulate(
        [[printable(entry) for entry in line] for line in _as_text(rows)],
        [printable(column) for column in _columns(rows)],
        tablefmt="latex_booktabs",
        disable_numparse=True,
    ).replace("±", r"$\pm$")


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """Format rows of `table` as CSV. Standard deviations have their own columns."""
    text = io.StringIO()
    columns = list({column: None for row in rows for column in row})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_entry(column) for column in columns])
    writer.writerows([csv_entry(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _stated(name: str) -> float | None:
    return PRESETS[name].paper_accuracy if name in PRESETS else None


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list({column: None for row in rows for column in row if not column.endswith(" sd")})


def _as_text(rows: list[dict[str, Any]]) -> list[list[str]]:
    def entry(row: dict[str, Any], column: str) -> str:
        if row.get(column) is None:
            return ""
        deviation = row.get(f"{column} sd")
        return str(row[column]) if deviation is None else f"{row[column]} ± {deviation}"

    return [[entry(row, column) for column in _columns(rows)] for row in rows]
