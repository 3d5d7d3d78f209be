"""The command line. It has the functions and settings of the notebooks.

The commands are in `commands` and `sweep_commands`.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from ..errors import InputError, RunFailed, WriteFailed
from ..files import STORAGE_ERRORS
from ..pieces import import_pieces
from ..text import printable
from . import commands, sweep_commands
from .help import Help, Parser, settings_help

DESCRIPTION = """\
Distil a labelled set of point clouds into a few synthetic clouds by moving their points.

  pcdd presets                          list the presets and the paper's accuracies
  pcdd distill --preset gaussian        scatter points, move them into digits, score the result
  pcdd show runs/gaussian-0-1a2b3c4d    describe the result and draw a picture
  pcdd sweep table1 --seeds 5           make all runs of the paper's Table 1
  pcdd report table1                    print this table

Real data: MNIST is read from the folder that contains MNIST/raw, given by --data DIR or by the
environment variable PCDD_DATA. It is downloaded if neither is given. The setting data.name=digits
needs no files.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns the exit code: 0, 1 (the run failed), 2 (invalid input) or 130 (stopped by Ctrl-C).
    """
    # threads that spin while they wait slow shared CPUs down several times
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = _parser()
    # argparse accepts settings in one place only, but here they can be anywhere
    options, late = parser.parse_known_args(arguments)
    if unknown := [
        argument for argument in late if argument.startswith("-") or "settings" not in options
    ]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if late:
        options.settings += late
    try:
        import_pieces(options.modules)
        with _plain_warnings():
            result = options.command(options)
        if options.json:
            sys.stdout.write(json.dumps(result["json"], indent=2) + "\n")
        else:
            sys.stdout.write(printable(result["text"], keep="\n") + "\n")
        sys.stdout.flush()
        return 0
    except InputError as error:
        return _failed(2, str(error))
    except RunFailed as error:
        return _failed(1, f"the run failed at {error}")
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        _drop_standard_output()
        return _failed(2, str(WriteFailed(error.filename, error.strerror)))
    except KeyboardInterrupt:
        hints = {
            commands.distill: "; the same command with --resume continues from the last checkpoint",
            sweep_commands.sweep: "; the same command continues, and finished runs are kept",
        }
        hint = hints.get(options.command, "")
        print(f"\npcdd: stopped{hint}", file=sys.stderr)
        return 130


def _failed(code: int, reason: str) -> int:
    print(f"pcdd: {printable(reason)}", file=sys.stderr)
    return code


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings like errors: they contain names of files, and no place in the code helps."""

    def plain(message: Warning | str, *_, **__) -> str:
        return f"pcdd: {printable(message, keep=chr(10))}\n"

    before = warnings.formatwarning
    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def _drop_standard_output() -> None:
    """Discard what standard output still holds. Python would fail to write it at exit."""
    with suppress(OSError, ValueError):  # a stream without a descriptor, in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("pcdd", description=DESCRIPTION, formatter_class=layout)
    subparsers = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser
    )

    def command(function, text: str, epilog=None) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            function.__name__.rstrip("_"),  # `import_`, because `import` is a keyword
            help=text,
            description=text[0].upper() + text[1:],
            epilog=None if callable(epilog) else epilog,
            formatter_class=layout,
            late_epilog=epilog if callable(epilog) else None,
            add_help=False,
        )
        sub.add_argument("-h", "--help", action=Help, help="show this help message and exit")
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="import a module that defines pieces of your own, such as an objective",
        )
        return sub

    def reading(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--data",
            metavar="DIR",
            help="folder that holds MNIST/raw (default: PCDD_DATA, else ~/.cache/pcdd)",
        )

    def stopping(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--checkpoint-every",
            type=_positive,
            default=25,
            metavar="N",
            help="iterations between checkpoints (25)",
        )

    def working(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "settings",
            nargs="*",
            metavar="setting=value",
            help="settings to change, see the list below",
        )
        sub.add_argument("--seed", type=int, help="seed of all randomness (the setting `seed`)")
        reading(sub)
        sub.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")
        sub.add_argument("--quiet", action="store_true", help="print no progress bars")

    def scoring(sub: argparse.ArgumentParser) -> None:
        working(sub)
        sub.add_argument(
            "--preset", metavar="NAME", help="preset with data and evaluation settings"
        )
        sub.add_argument("--output", metavar="DIR", help="folder for the set and its record")

    sub = command(commands.distill, "distil a data set, score and record the result", settings_help)
    sub.add_argument(
        "--preset", required=True, metavar="NAME", help="preset to start from, see `pcdd presets`"
    )
    working(sub)
    sub.add_argument(
        "--output",
        metavar="DIR",
        help="run folder (default: <preset>-<seed>-<hash of the settings> in the runs folder)",
    )
    there = sub.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="continue a stopped run")
    there.add_argument(
        "--overwrite", action="store_true", help="delete an existing run and start again"
    )
    stopping(sub)

    sub = command(
        commands.evaluate,
        "score a distilled set (.npz) or the set in a run folder",
        partial(settings_help, "data", "evaluation"),
    )
    sub.add_argument(
        "set", metavar="SET", help="a distilled set (.npz), a run folder, or released:NAME"
    )
    scoring(sub)

    sub = command(
        commands.baseline,
        "score real clouds chosen from the training set, or their means",
        partial(settings_help, "data", "evaluation"),
    )
    # the names of baselines, without importing torch
    names = ("random", "herding", "k_center", "class_mean", "forgetting", "craig", "whole")
    sub.add_argument(
        "name", choices=names, help="kind of baseline, see pcdd_core/scoring/baselines.py"
    )
    sub.add_argument(
        "--clouds-per-class",
        type=_positive,
        default=1,
        metavar="N",
        help="number of clouds per class (1)",
    )
    scoring(sub)

    def choosing(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "name",
            metavar="NAME",
            help="table1, table2, ablation, why, pool, step-size, initialisation, ingredients, "
            "best, frontier, architectures, modelnet10, modelnet40, adrenal, or a preset",
        )
        sub.add_argument(
            "settings", nargs="*", metavar="setting=value", help="settings to change in every run"
        )
        sub.add_argument(
            "--seeds", type=_positive, default=5, metavar="N", help="seeds 0 to N - 1 (5)"
        )
        sub.add_argument(
            "--scale",
            choices=("small", "paper"),
            help="scale of a table: paper: as in the paper; small: for smoke runs (default: paper; "
            "small for ingredients and architectures)",
        )
        sub.add_argument(
            "--vary",
            nargs="+",
            action="append",
            metavar=("SETTING", "VALUE"),
            help="make a run for each value; can be repeated",
        )
        sub.add_argument(
            "--runs",
            metavar="DIR",
            help="folder of the run folders (default: PCDD_RUNS, else runs in the checkout)",
        )

    epilog = """\
Finished runs are not repeated. They are looked for in the folder of the runs and in the records of
the repository. A killed run is started again and continues from its checkpoint. On a cluster from
`ray start`, give --address HOST:PORT; DIR must be on a file system that all nodes share. Without
Ray, for instance with Slurm:

  pcdd sweep table1 --list                               number and list the runs
  sbatch --array=0-55 --wrap 'pcdd sweep table1 --run $SLURM_ARRAY_TASK_ID'
"""
    sub = command(
        sweep_commands.sweep,
        "make all runs of a table or of a preset, many at a time on Ray",
        epilog,
    )
    choosing(sub)
    reading(sub)
    sub.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="address of a Ray cluster (default: start one on this machine)",
    )
    sub.add_argument(
        "--cpus-per-run",
        type=float,
        default=1,
        metavar="N",
        help="cores and threads of a run (1)",
    )
    sub.add_argument(
        "--gpus-per-run",
        type=float,
        metavar="X",
        help="part of a GPU for each run (0.25 if there is a GPU)",
    )
    sub.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="how often to restart a run that was killed (3)",
    )
    stopping(sub)
    sub.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="stop after M minutes; the same command continues",
    )
    sub.add_argument("--list", action="store_true", help="only list the runs and their status")
    sub.add_argument(
        "--run", type=int, metavar="N", help="make only run N of the list, here and without Ray"
    )
    sub.add_argument("--quiet", action="store_true", help="print no progress")

    sub = command(
        sweep_commands.report, "print and save the table of a sweep: Markdown, CSV, LaTeX"
    )
    choosing(sub)
    sub.add_argument(
        "--output", metavar="DIR", help="folder for the table (default: the folder of the runs)"
    )
    sub.add_argument(
        "--keep",
        metavar="DIR",
        help="put the records into DIR/records/NAME.jsonl, and into DIR/sets the clouds of seed "
        "0 that may be passed on",
    )

    command(commands.presets, "list the presets with the paper's accuracies")

    sub = command(commands.show, "describe and draw a run or a distilled set")
    sub.add_argument(
        "path", metavar="PATH", help="a run folder, a distilled set (.npz), or released:NAME"
    )
    sub.add_argument("--picture", metavar="FILE", help="picture file (default: beside PATH)")

    epilog = """\
The files and their axes are described in pcdd_core/geometry/export.py. For instance:

  pcdd export released:mnist-1 --png --csv              one image per cloud, one table of points
  pcdd export released:solids --ply --output solids     one .ply per cloud, for viewers
  pcdd export released:mnist-1-labels --pt --output pt  tensors for torch.load
  pcdd import solids --output solids.npz                back to a set, exact from pt, csv and ply
  pcdd import exports/mnist-1 --from png --output cells.npz
"""
    sub = command(commands.export, "write a distilled set as .ply, .csv, .png or .pt", epilog)
    sub.add_argument(
        "set", metavar="SET", help="a distilled set (.npz), a run folder, or released:NAME"
    )
    for kind, text in {
        "ply": "one file of points per cloud: x = width, y = depth, z = -height, in cells",
        "csv": "one file: cloud, label, class, depth, height, width (cells)",
        "png": "one binary image per cloud, projected along the depth",
        "pt": "one file of tensors, for torch.load(..., weights_only=True)",
    }.items():
        sub.add_argument(f"--{kind}", action="store_true", help=text)
    sub.add_argument(
        "--output", metavar="DIR", help="new folder for the files (default: exports/<name of SET>)"
    )

    sub = command(commands.import_, "read the folder of an export into a set (.npz)", epilog)
    sub.add_argument("folder", metavar="FOLDER", help="a folder that `pcdd export` wrote")
    sub.add_argument(
        "--from",
        dest="kind",
        choices=("pt", "csv", "ply", "png"),
        help="kind of file to read the points from (default: the first there is); "
        "png gives the occupied cells of a flat grid",
    )
    sub.add_argument("--output", required=True, metavar="FILE", help="new file for the set (.npz)")

    epilog = """\
Of a set on a flat grid the occupied cells are kept, so the hard projection. Sets on a grid with
depth, and sets scored as grey images, need a resolution. For instance:

  pcdd pack released:mnist-1 mnist-1.pack                 417 bytes, labels and checksum included
  pcdd pack released:solids solids.pack --resolution 0.1  coordinates in steps of 1/16 cell
  pcdd unpack mnist-1.pack mnist-1-cells.npz
"""
    sub = command(commands.pack, "write a distilled set in few bytes", epilog)
    sub.add_argument(
        "set", metavar="SET", help="a distilled set (.npz), a run folder, or released:NAME"
    )
    sub.add_argument("file", metavar="FILE", help="new file for the packed set")
    sub.add_argument(
        "--resolution",
        type=float,
        metavar="CELLS",
        help="keep all coordinates, in steps of at most this many cells (default: keep the "
        "occupied cells of a flat grid)",
    )

    sub = command(commands.unpack, "read a packed set into a set (.npz)", epilog)
    sub.add_argument("file", metavar="FILE", help="a file that `pcdd pack` wrote")
    sub.add_argument("output", metavar="OUTPUT", help="new file for the set (.npz)")

    sub = command(
        commands.animate,
        "export the moving points of a run: an HTML page (needs no network), a GIF or an MP4",
    )
    sub.add_argument("run", metavar="RUN", help="the folder of a finished run")
    sub.add_argument("files", nargs="+", metavar="FILE", help="file to write: .html, .gif or .mp4")

    sub = command(commands.table, "print a Markdown table of records, with one row per experiment")
    sub.add_argument(
        "records", nargs="+", metavar="RECORD", help="run folders or record.json files"
    )
    sub.add_argument("--csv", metavar="FILE", help="also write the table as CSV")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 to {2**31 - 1}")
    return value
