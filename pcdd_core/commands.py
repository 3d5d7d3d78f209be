"""What each command of `pcdd` does: from parsed options to {"text": what is printed, "json": the same as plain data}.

Nothing heavy is imported before a command needs it, so that help is instant.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from .config import Config, from_dict, override
from .errors import InputError


def distill(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd distill`."""
    from .presets import preset

    config = override(preset(options.preset).config, _settings(options))
    from . import ranks, records, runs  # after the settings are known to be right: they bring torch

    folder = runs.run(
        config,
        options.preset,
        folder=options.output,
        data=options.data,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
        checkpoint_every=options.checkpoint_every,
        progress=runs.Progress(options.quiet),
    )
    if not ranks.first_of_torchrun():
        return {"text": "pcdd: this process has done its part", "json": {}}
    record = records.read_record(folder)
    text = (
        f"{_scores(record)}\n{record['health']}\n{folder}: clouds.npz, migration.png, record.json"
    )
    return {"text": text, "json": {"folder": str(folder), **record}}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd evaluate`."""
    from . import clouds

    path = _place_of_set(options.set)
    config = _base(options, _config_of(path))
    scored = clouds.load(path / "clouds.npz" if path.is_dir() else path)
    return _score(options, scored, path.stem, config)


def baseline(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd baseline`."""
    from .coresets import BASELINES

    config = _base(options, Config())

    def choose(real):
        return BASELINES[options.name](real, options.clouds_per_class, config.seed)

    return _score(options, choose, f"{options.name}-{options.clouds_per_class}", config)


def presets(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd presets`."""
    from .config import to_dict
    from .presets import PRESETS

    lines = [f"{'preset':42} {'paper %':>7}  what"]
    for name, entry in PRESETS.items():
        lines.append(f"{name:42} {entry.paper_accuracy or '-':>7}  {entry.text}")
    listed = [
        {
            "name": name,
            "text": entry.text,
            "paper_accuracy": entry.paper_accuracy,
            "config": to_dict(entry.config),
        }
        for name, entry in PRESETS.items()
    ]
    return {"text": "\n".join(lines), "json": listed}


def show(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd show`."""
    from . import clouds, figures, records, second_order

    path = _place_of_set(options.path)
    found = clouds.load(path / "clouds.npz" if path.is_dir() else path)
    beside = path / "clouds.png" if path.is_dir() else path.with_suffix(".png")
    if path.parent == clouds.RELEASED:  # which belongs to the installation
        beside = Path(beside.name)
    picture = Path(options.picture) if options.picture else beside
    record_path = path / "record.json" if path.is_dir() else path.with_suffix(".json")
    record = records.read_record(record_path) if record_path.exists() else None
    figures.save(figures.gallery(found), picture)
    sizes = found.sizes.tolist()
    about = {
        "clouds": len(found),
        "classes": list(found.class_names),
        "grid": list(found.grid),
        "points_per_cloud": [min(sizes), max(sizes)],
        "picture": str(picture),
        "record": record,
    }
    lines = [
        f"{path}: {len(found)} clouds of {len(found.class_names)} classes on a grid of {found.grid} cells, "
        f"{min(sizes)} to {max(sizes)} points each",
        f"picture: {picture}",
    ]
    if record:
        lines += [
            f"{record['name']}, seed {record['config']['seed']}: {record.get('health', '')}",
            _scores(record),
        ]
        derivatives = record.get("second_derivatives")
        if derivatives and derivatives["gradients_without_graph"]:
            lines.append(second_order.sentence(derivatives))
    return {"text": "\n".join(lines), "json": about}


def animate(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd animate`."""
    from .player import read_recording, save_animation, save_player

    recording = read_recording(options.run)
    for path in options.files:
        save = save_player if Path(path).suffix.lower() in (".html", ".htm") else save_animation
        save(recording, path)
    return {
        "text": "\n".join(options.files),
        "json": {"frames": len(recording), "files": options.files},
    }


def table(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd table`."""
    from . import records
    from .files import atomic_write_text

    rows = records.table(records.read_record(path) for path in options.records)
    if options.csv:
        atomic_write_text(options.csv, records.comma_separated(rows))
    return {"text": records.markdown(rows), "json": rows}


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd sweep`."""
    cells = _cells(options)
    from . import sweeps

    def result(states: list) -> dict[str, Any]:
        listed = [
            {
                "number": number,
                "name": state.cell.label,
                "seed": state.cell.config.seed,
                "status": state.status,
                "attempts": state.attempts,
                "note": state.note,
                "folder": str(state.folder),
            }
            for number, state in enumerate(states)
        ]
        lines = [
            f"{row['number']:>4}  {row['status']:8}  {row['name']}, seed {row['seed']}  {row['note']}"
            for row in listed
        ]
        counts = {
            status: sum(row["status"] == status for row in listed)
            for status in dict.fromkeys(row["status"] for row in listed)
        }
        lines.append(
            f"{len(listed)} cells: "
            + ", ".join(f"{count} {status}" for status, count in counts.items())
        )
        return {"text": "\n".join(lines), "json": listed}

    planned = sweeps.Sweep(
        cells,
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
    if options.cell is not None:
        if not 0 <= options.cell < len(cells):
            raise InputError(
                f"--cell {options.cell}: expected 0 to {len(cells) - 1}; `--list` shows them"
            )
        sweeps.obtain([cells[options.cell]], options.runs, options.data)
        return result(sweeps.Sweep([cells[options.cell]], options.runs).states)
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
            f"\nstopped after {options.minutes:g} minutes with {left} cells left; the same command goes on"
        )
    return ended


def report(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd report`."""
    cells = _cells(options)
    from . import records, sweeps
    from .datasets import PASSED_ON
    from .experiments import COLUMNS, EXPERIMENTS, scale_of
    from .files import atomic_write_text

    places = sweeps.default_places(options.runs)
    found = records.find_records(
        places[::-1] if options.keep else places
    )  # what is to be kept is taken from the runs
    there = [cell for cell in cells if cell.identity in found]
    paths = [found[cell.identity] for cell in there]
    if not paths:
        raise InputError(
            f"{options.name}: none of its {len(cells)} cells has been run; run them with `pcdd sweep`"
        )
    if options.keep:
        for cell, path in zip(there, paths, strict=True):
            records.keep(
                path,
                options.keep,
                with_clouds=cell.config.seed == 0 and cell.config.data.name in PASSED_ON,
            )
    found_records = [records.read_record(path) for path in paths]
    rows = records.table(found_records, COLUMNS.get(options.name))
    title = options.name
    if title in EXPERIMENTS:
        title += f"-{options.scale or scale_of(title)}"
    folder = Path(options.output or options.runs)
    tables = {title: rows, f"{title}-curve": records.curve_table(found_records)}
    for name, made in tables.items():
        if made:
            atomic_write_text(folder / f"{name}.md", records.markdown(made) + "\n")
            atomic_write_text(folder / f"{name}.csv", records.comma_separated(made))
            atomic_write_text(folder / f"{name}.tex", records.latex(made) + "\n")
    missing = len(cells) - len(paths)
    text = records.markdown(rows) + f"\n\n{folder / title}.md, .csv, .tex"
    if missing:
        text += f"\n{missing} of {len(cells)} cells have not been run; run them with `pcdd sweep`"
    return {"text": text, "json": {"rows": rows, "missing": missing}}


def _cells(options: argparse.Namespace) -> list:
    """The cells that `sweep` and `report` are about."""
    from .experiments import experiment

    vary = {}
    for name, *values in options.vary or []:
        if not values:
            raise InputError(f"--vary {name}: expected the setting and then its values")
        vary[name] = [_value(value) for value in values]
    options.seed = None
    return experiment(options.name, options.scale, options.seeds, _settings(options), vary)


def _score(options: argparse.Namespace, clouds, name: str, config: Config) -> dict[str, Any]:
    from . import runs
    from .files import refuse_file_in_the_way

    refuse_file_in_the_way(options.output or ".")
    progress = runs.Progress(options.quiet)
    clouds, record = runs.score(clouds, name, config, options.data, options.device, progress)
    text = f"{name}: {_scores(record)}"
    if options.output:
        runs.keep_score(clouds, record, options.output)
        text += f"\n{options.output}: clouds.npz, record.json"
    return {"text": text, "json": record}


def _base(options: argparse.Namespace, otherwise: Config) -> Config:
    from .presets import preset

    return override(
        preset(options.preset).config if options.preset else otherwise, _settings(options)
    )


def _scores(record: dict[str, Any]) -> str:
    parts = [
        f"{protocol}: {score['mean']:.2f} +- {score['standard_deviation']:.2f} % ({score['networks']} classifiers)"
        for protocol, score in record["scores"].items()
    ]
    return ", ".join(parts) + f" on {record['scored_on']}" if parts else "no scores"


def _place_of_set(text: str) -> Path:
    """A file or folder; `released:NAME` is the file of a set that comes with pcdd."""
    from .clouds import released_path

    kind, colon, name = text.partition(":")
    return released_path(name) if colon and kind == "released" else Path(text)


def _config_of(path: Path) -> Config:
    """The settings that a set was scored with: its run's, those of the record beside it, or the defaults."""
    from .records import read_record

    if path.is_dir():
        return _config_of_run(path)
    record = path.with_suffix(".json")
    if not record.is_file():
        return Config()
    config = from_dict(read_record(record)["config"])
    if config.evaluation.split == "validation":
        return config
    # older records were scored on test images with the fast augmentation, which is refused today
    return override(config, {"evaluation.augmentation": "published"})


def _config_of_run(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a run folder")
    try:
        settings = json.loads(path.read_text())
        settings.pop("name", None)
        return from_dict(settings)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not the settings of a run ({error})") from None


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """`name=value` arguments; values are JSON, and what is no JSON is text."""
    settings = {}
    for argument in options.settings:
        name, equals, value = argument.partition("=")
        if not equals:
            raise InputError(
                f"argument {argument!r}: expected setting=value, for instance network.layers=2"
            )
        settings[name] = _value(value)
    if options.seed is not None:
        settings["seed"] = options.seed
    return settings


def _value(text: str) -> Any:
    """JSON, or else plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
