"""The commands of `pcdd`: functions from parsed options to a result.

A result is {"text": the text to print, "json": the same as plain data}. Commands import large
packages only when they need them, so that help is instant.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import refuse_impossible_path
from ..sealed import parsed, unsealed
from ..text import printable

if TYPE_CHECKING:
    from ..experiments.config import Config

# Titles of `pcdd presets` and the names in each group. A preset is in the first group that fits.
PRESET_GROUPS = {
    "Start here, without data files": "demo|quickstart|solids",
    "Our best on MNIST": "mnist-.*",
    "Shapes in three dimensions": "shapes-.*|adrenal.*",
    "Gradient matching, the base of our experiments": "gaussian.*|ingredients-.*",
    "Table 1 of the paper": "paper-.*-sum-of-squares.*",
    "Table 2 of the paper": "paper-.*-layerwise-cosine.*",
    "Section 4.4 of the paper": "paper-.*-average-pooling.*",
    "Others": ".*",
}


def distill(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd distill`: make a run."""
    from ..experiments.config import override
    from ..experiments.presets import preset

    config = override(preset(options.preset).config, given_settings(options))
    from .. import ranks
    from ..experiments import records, runs
    from ..experiments.progress import Progress

    folder = runs.run(
        config,
        options.preset,
        folder=options.output,
        data=options.data,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
        checkpoint_every=options.checkpoint_every,
        progress=Progress(options.quiet),
    )
    if not ranks.first_of_torchrun():
        return {"text": "pcdd: this process is finished", "json": {}}
    record = records.read_record(folder)
    files = f"{folder}: clouds.npz, migration.png, record.json"
    text = f"{_scores(record)}\n{records.health_of(record)}\n{files}"
    return {"text": text, "json": {"folder": str(folder), **record}}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd evaluate`: score a set."""
    from ..geometry.storage import load_clouds

    path = _place_of_set(options.set)
    config = _base(options, _config_of(path))
    scored = load_clouds(path / "clouds.npz" if path.is_dir() else path)
    return _score(options, scored, path.stem, config)


def baseline(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd baseline`: score real clouds."""
    from ..experiments.config import Config
    from ..scoring.baselines import Baseline

    chosen = {"name": options.name, "clouds_per_class": options.clouds_per_class}
    made = Baseline.of(chosen, "baseline")
    return _score(options, made, made.label, _base(options, Config()))


def presets(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd presets`: list the presets in groups, the most useful group first."""
    from ..experiments.config import to_dict
    from ..experiments.presets import PRESETS

    lines = [f"{'preset':42} {'paper %':>7}  what"]
    rest = list(PRESETS)
    for title, pattern in PRESET_GROUPS.items():
        members = [name for name in rest if re.fullmatch(pattern, name)]
        rest = [name for name in rest if name not in members]
        lines += ["", f"{title}:"] if members else []
        for name in sorted(members, key=lambda name: name.endswith("-small")):
            entry = PRESETS[name]
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
    """`pcdd show`: describe and draw a run or a set."""
    from ..experiments import figures, second_order
    from ..experiments.records import health_of
    from ..geometry.storage import RELEASED, load_clouds

    path = _place_of_set(options.path)
    loaded = load_clouds(path / "clouds.npz" if path.is_dir() else path)
    beside = path / "clouds.png" if path.is_dir() else path.with_suffix(".png")
    if path.parent == RELEASED:  # write no picture into the installed package
        beside = Path(beside.name)
    picture = Path(options.picture) if options.picture else beside
    record_path = path / "record.json" if path.is_dir() else path.with_suffix(".json")
    record = _record_beside(record_path)
    figures.save(figures.gallery(loaded), picture)
    sizes = loaded.sizes.tolist()
    about = {
        "clouds": len(loaded),
        "classes": list(loaded.class_names),
        "grid": list(loaded.grid),
        "points_per_cloud": [min(sizes), max(sizes)],
        "picture": str(picture),
        "record": record,
    }
    points = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{sizes[0]}"
    lines = [
        f"{path}: {len(loaded)} clouds of {len(loaded.class_names)} classes "
        f"on a grid of {loaded.grid} cells, {points} points each",
        f"picture: {picture}",
    ]
    if record:
        lines += [
            printable(f"{record['name']}, seed {record['config']['seed']}: ")
            + printable(health_of(record)),
            _scores(record),
        ]
        derivatives = record.get("second_derivatives")
        if derivatives and derivatives["gradients_without_graph"]:
            lines.append(second_order.sentence(derivatives))
    return {"text": "\n".join(lines), "json": about}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd export`: write a set in common formats."""
    from ..geometry.export import KINDS, MANIFEST, export_clouds
    from ..geometry.storage import load_clouds

    path = _place_of_set(options.set)
    kinds = [kind for kind in KINDS if getattr(options, kind)]
    if not kinds:
        raise InputError("no kind of file is given; expected some of --pt, --csv, --ply, --png")
    loaded = load_clouds(path / "clouds.npz" if path.is_dir() else path)
    name = path.resolve().name if path.is_dir() else path.stem
    folder = export_clouds(loaded, options.output or Path("exports") / name, kinds)
    text = f"{folder}: {MANIFEST}, {len(loaded)} clouds as {', '.join(kinds)}"
    return {"text": text, "json": {"folder": str(folder), "clouds": len(loaded), "kinds": kinds}}


def import_(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd import`: read an export into a set."""
    from ..geometry.export import clouds_from_export
    from ..geometry.storage import save_clouds

    _refuse_existing(options.output)
    clouds = clouds_from_export(options.folder, options.kind)
    save_clouds(clouds, options.output)
    return _saved_set(clouds, options.output)


def pack(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd pack`: write a set in few bytes."""
    from ..files import atomic_write
    from ..geometry.packing import pack
    from ..geometry.storage import load_clouds

    _refuse_existing(options.file)
    path = _place_of_set(options.set)
    clouds = load_clouds(path / "clouds.npz" if path.is_dir() else path)
    packed = pack(clouds, options.resolution)
    atomic_write(options.file, lambda file: file.write(packed))
    text = f"{options.file}: {len(clouds)} clouds, {len(packed)} bytes"
    about = {"file": options.file, "clouds": len(clouds), "bytes": len(packed)}
    return {"text": text, "json": about}


def unpack(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd unpack`: read a packed set into a set."""
    from ..geometry.packing import read_packed
    from ..geometry.storage import save_clouds

    _refuse_existing(options.output)
    clouds = read_packed(options.file)
    save_clouds(clouds, options.output)
    return _saved_set(clouds, options.output)


def animate(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd animate`: export the recording of a run."""
    from ..view.animation import save_animation
    from ..view.page import save_player
    from ..view.recording import read_recording

    refuse_impossible_path(options.run)
    pages = (".html", ".htm")
    for path in options.files:
        if Path(path).suffix.lower() not in (*pages, ".gif", ".mp4"):
            raise InputError(f"{path}: this kind is not supported; expected .html, .gif or .mp4")
    recording = read_recording(options.run)
    for path in options.files:
        save = save_player if Path(path).suffix.lower() in pages else save_animation
        save(recording, path)
    return {
        "text": "\n".join(options.files),
        "json": {"frames": len(recording), "files": options.files},
    }


def table(options: argparse.Namespace) -> dict[str, Any]:
    """`pcdd table`: tabulate records."""
    from ..experiments import records
    from ..experiments import report as tables
    from ..files import atomic_write_text

    rows = tables.table(
        record
        for path in map(Path, options.records)
        for record in (
            records.read_records(path) if path.suffix == ".jsonl" else [records.read_record(path)]
        )
    )
    if options.csv:
        atomic_write_text(options.csv, tables.comma_separated(rows))
    return {"text": tables.markdown(rows), "json": rows}


def _refuse_existing(path: str) -> None:
    """Raise InputError if the file for a set is there already."""
    refuse_impossible_path(path)
    if Path(path).exists():
        raise InputError(f"{path}: is there already; choose another file for the set")


def _saved_set(clouds, path: str) -> dict[str, Any]:
    """Return the result of a command that wrote a set."""
    count, points = len(clouds), len(clouds.coordinates)
    text = f"{path}: {count} clouds, {points} points"
    return {"text": text, "json": {"set": path, "clouds": count, "points": points}}


def _score(options: argparse.Namespace, clouds, name: str, config: "Config") -> dict[str, Any]:
    from ..experiments import scores
    from ..experiments.progress import Progress
    from ..files import refuse_file_in_the_way

    refuse_file_in_the_way(options.output or ".")
    progress = Progress(options.quiet)
    clouds, record = scores.score(clouds, name, config, options.data, options.device, progress)
    text = f"{name}: {_scores(record)}"
    if options.output:
        scores.keep_score(clouds, record, options.output)
        text += f"\n{options.output}: clouds.npz, record.json"
    return {"text": text, "json": record}


def _base(options: argparse.Namespace, otherwise: "Config") -> "Config":
    from ..experiments.config import override
    from ..experiments.presets import preset

    return override(
        preset(options.preset).config if options.preset else otherwise, given_settings(options)
    )


def _scores(record: dict[str, Any]) -> str:
    parts = [
        f"{protocol}: {score['mean']:.2f} +- {score['standard_deviation']:.2f} % "
        f"({score['networks']} classifiers)"
        for protocol, score in record["scores"].items()
    ]
    return printable(", ".join(parts) + f" on {record['scored_on']}") if parts else "no scores"


def _place_of_set(text: str) -> Path:
    """Return the path of a file or folder. `released:NAME` is a set that comes with pcdd."""
    from ..geometry.storage import released_path

    refuse_impossible_path(text)
    kind, colon, name = text.partition(":")
    return released_path(name) if colon and kind == "released" else Path(text)


def _config_of(path: Path) -> "Config":
    """Return the settings that a set was scored with.

    They come from its run, from the record beside it, or from the defaults.
    """
    from ..experiments.config import Config, override
    from ..experiments.records import settings_of

    if path.is_dir():
        return _config_of_run(path)
    record = _record_beside(path.with_suffix(".json"))
    if record is None:
        return Config()
    config = settings_of(record)
    if config.evaluation.split == "validation":
        return config
    # Older records were scored on test images with the fast augmentation, which is not valid today.
    return override(config, {"evaluation.augmentation": "published"})


def _record_beside(path: Path) -> dict[str, Any] | None:
    """Return the record in this file. If it is another kind of file, say so and return None."""
    from ..experiments.records import NoRecord, read_record

    if not path.is_file():
        return None
    try:
        return read_record(path)
    except NoRecord as error:
        if path.name == "record.json":
            raise
        print(f"pcdd: {printable(error)}; it is ignored", file=sys.stderr)
        return None


def _config_of_run(folder: Path) -> "Config":
    from ..experiments.config import from_dict

    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a run folder")
    try:
        settings = unsealed(parsed(path.read_text(encoding="utf-8")), required=True)
        settings.pop("name", None)
        return from_dict(settings)
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not the settings of a run ({error})") from None


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Parse `name=value` arguments. Values are JSON, or else plain text."""
    settings = {}
    for argument in options.settings:
        name, equals, value = argument.partition("=")
        if not equals:
            raise InputError(
                f"argument {argument!r}: expected setting=value, for instance network.layers=2"
            )
        settings[name] = json_or_text(value)
        if "\0" in str(settings[name]):
            raise InputError(f"setting {name} = {settings[name]!r}: a value cannot contain NUL")
    if options.seed is not None:
        settings["seed"] = options.seed
    return settings


def json_or_text(text: str) -> Any:
    """Parse JSON, or return the text if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text
