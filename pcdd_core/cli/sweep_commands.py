"""The commands `pcdd sweep` and `pcdd report`: functions from parsed options to a result.

See `commands.py` for results.
"""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ..errors import InputError
from .commands import given_settings, json_or_text

MOST_SEEDS = 10_000


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd sweep`: make the runs of a table or preset."""
    plans = _plans(options)
    from ..experiments import sweeps

    def result(states: list) -> dict[str, Any]:
        listed = [
            {
                "number": number,
                "name": state.plan.label,
                "seed": state.plan.config.seed,
                "status": state.status,
                "attempts": state.attempts,
                "note": state.note,
                "folder": str(state.folder),
            }
            for number, state in enumerate(states)
        ]
        lines = [
            f"{row['number']:>4}  {row['status']:8}  "
            f"{row['name']}, seed {row['seed']}  {row['note']}"
            for row in listed
        ]
        counts = {
            status: sum(row["status"] == status for row in listed)
            for status in dict.fromkeys(row["status"] for row in listed)
        }
        lines.append(
            f"{len(listed)} runs: "
            + ", ".join(f"{count} {status}" for status, count in counts.items())
        )
        return {"text": "\n".join(lines), "json": listed}

    planned = sweeps.Sweep(
        plans,
        options.runs,
        options.data,
        options.address,
        options.cpus_per_run,
        options.gpus_per_run,
        options.retries,
        options.checkpoint_every,
    )
    if options.list:
        return result(planned.states)
    if options.run is not None:
        if not 0 <= options.run < len(plans):
            raise InputError(
                f"--run {options.run}: expected 0 to {len(plans) - 1}; `--list` numbers the runs"
            )
        with redirect_stdout(sys.stderr):  # standard output has the result only
            sweeps.obtain([plans[options.run]], options.runs, options.data)
        return result(sweeps.Sweep([plans[options.run]], options.runs).states)
    from .sweep_view import SweepView

    with SweepView(options.quiet) as view:
        for states in planned:
            view.show(states)
            if options.minutes is not None and view.minutes > options.minutes:
                break
    ended = result(planned.states)
    left = sum(state.status in ("waiting", "running") for state in planned.states)
    if left:
        ended["text"] += (
            f"\nstopped after {options.minutes:g} minutes with {left} runs left; "
            "the same command continues"
        )
    return ended


def report(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd report`: print and save the table of a sweep."""
    plans = _plans(options)
    from ..experiments import ranking, records, sweeps
    from ..experiments import report as tables
    from ..experiments.tables import COLUMNS, EXPERIMENTS, scale_of
    from ..files import atomic_write_text

    places = sweeps.default_places(options.runs)
    # --keep copies records from the run folders, so these come first then
    by_identity = records.find_records(places[::-1] if options.keep else places)
    finished = [plan for plan in plans if plan.identity in by_identity]
    finished_records = [ranking.with_bytes(by_identity[plan.identity]) for plan in finished]
    if not finished_records:
        raise InputError(
            f"{options.name}: none of its {len(plans)} runs is finished; "
            "make them with `pcdd sweep`"
        )
    if options.keep:
        records.keep(finished_records, options.keep, options.name, with_clouds=True)
    rows = tables.table(finished_records, COLUMNS.get(options.name), by_identity.values())
    title = options.name
    if title in EXPERIMENTS:
        title += f"-{options.scale or scale_of(title)}"
    folder = Path(options.output or options.runs or records.runs_folder())
    all_rows = {title: rows, f"{title}-curve": tables.curve_table(finished_records)}
    for name, made in all_rows.items():
        if made:
            atomic_write_text(folder / f"{name}.md", tables.markdown(made) + "\n")
            atomic_write_text(folder / f"{name}.csv", tables.comma_separated(made))
            atomic_write_text(folder / f"{name}.tex", tables.latex(made) + "\n")
    missing = len(plans) - len(finished_records)
    text = tables.markdown(rows) + f"\n\n{folder / title}.md, .csv, .tex"
    if missing:
        text += f"\n{missing} of {len(plans)} runs are missing; make them with `pcdd sweep`"
    return {"text": text, "json": {"rows": rows, "missing": missing}}


def _plans(options: argparse.Namespace) -> list:
    """Return the runs that the options of `sweep` and `report` name."""
    from ..experiments.tables import experiment

    if options.seeds > MOST_SEEDS:
        raise InputError(f"--seeds {options.seeds}: expected at most {MOST_SEEDS}")
    vary = {}
    for name, *values in options.vary or []:
        if name == "seed":
            raise InputError(
                "--vary seed: every run is made with seeds 0 to N - 1; choose N with --seeds N"
            )
        if not values:
            raise InputError(f"--vary {name}: expected a setting, followed by its values")
        vary[name] = [json_or_text(value) for value in values]
    options.seed = None
    settings = given_settings(options)
    if "seed" in settings:
        raise InputError(
            f"setting seed = {settings['seed']}: every run is made with seeds 0 to N - 1; choose N "
            "with --seeds N"
        )
    return experiment(options.name, options.scale, options.seeds, settings, vary)
