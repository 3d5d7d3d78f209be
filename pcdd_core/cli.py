"""The command line: the same functions and the same settings as the notebooks.

What the commands do is in `commands`.
"""

import argparse
import json
import os
import sys

from . import commands
from .config import described_settings
from .errors import InputError, RunFailed

DESCRIPTION = """\
Distil a labelled set of point clouds into a few synthetic clouds by moving their points.

  pcdd presets                              what can be run, and what the paper reports for it
  pcdd distill --preset gaussian            scatter points, move them into digits, score the result
  pcdd show runs/gaussian-0-1a2b3c4d        what came out of it, with a picture
  pcdd sweep table1 --seeds 5               every cell of the paper's Table 1; `pcdd report table1` prints it

Real data: MNIST under --data DIR or in the environment variable PCDD_DATA (the folder that holds MNIST/raw), downloaded
if neither is given; the setting data.name=digits needs no files.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (the run failed), 2 (the input is wrong) or 130 (stopped by Ctrl-C)."""
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that spin while waiting slow shared CPUs several times
    parser = _parser()
    options, late = parser.parse_known_args(
        arguments
    )  # argparse takes settings in one place only; here they go anywhere
    if unknown := [
        argument for argument in late if argument.startswith("-") or "settings" not in options
    ]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if late:
        options.settings += late
    try:
        result = options.command(options)
        sys.stdout.write(
            json.dumps(result["json"], indent=2) + "\n" if options.json else result["text"] + "\n"
        )
        return 0
    except InputError as error:
        print(f"pcdd: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"pcdd: the run failed at {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hints = {
            commands.distill: "; the same command with --resume goes on from the last checkpoint",
            commands.sweep: "; the same command goes on, and finished cells are kept",
        }
        hint = hints.get(options.command, "")
        print(f"\npcdd: stopped{hint}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("pcdd", description=DESCRIPTION, formatter_class=layout)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(function, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            function.__name__,
            help=text,
            description=text[0].upper() + text[1:],
            epilog=epilog,
            formatter_class=layout,
        )
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    def working(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "settings", nargs="*", metavar="setting=value", help="settings to change, listed below"
        )
        sub.add_argument("--seed", type=int, help="of every random draw (the setting `seed`)")
        sub.add_argument(
            "--data",
            metavar="DIR",
            help="folder that holds MNIST/raw (default: PCDD_DATA, else ~/.cache/pcdd)",
        )
        sub.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")

    def scoring(sub: argparse.ArgumentParser) -> None:
        working(sub)
        sub.add_argument(
            "--preset", metavar="NAME", help="take data and evaluation settings from this preset"
        )
        sub.add_argument(
            "--output", metavar="DIR", help="folder for the set and the record of its score"
        )

    sub = command(
        commands.distill, "distil a data set, score the result, record both", _settings_help("")
    )
    sub.add_argument(
        "--preset", required=True, metavar="NAME", help="where to start from, see `pcdd presets`"
    )
    working(sub)
    sub.add_argument(
        "--output",
        metavar="DIR",
        help="run folder (default: runs/<preset>-<seed>-<hash of the settings>)",
    )
    there = sub.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    there.add_argument(
        "--overwrite", action="store_true", help="start afresh a run that is already there"
    )
    sub.add_argument(
        "--checkpoint-every",
        type=_positive,
        default=25,
        metavar="N",
        help="iterations between checkpoints (25)",
    )

    sub = command(
        commands.evaluate,
        "score a distilled set (.npz) or the set of a run folder",
        _settings_help("data", "evaluation"),
    )
    sub.add_argument(
        "set", metavar="SET", help="a distilled set (.npz), a run folder, or released:NAME"
    )
    scoring(sub)

    sub = command(
        commands.baseline,
        "score real clouds chosen from the training set, or their means",
        _settings_help("data", "evaluation"),
    )
    names = (
        "random",
        "herding",
        "k_center",
        "class_mean",
        "forgetting",
        "craig",
        "whole",
    )  # of coresets, without its imports
    sub.add_argument(
        "name", choices=names, help="how they are chosen, or made: see pcdd_core/coresets.py"
    )
    sub.add_argument(
        "--clouds-per-class",
        type=_positive,
        default=1,
        metavar="N",
        help="how many of each class (1)",
    )
    scoring(sub)

    def choosing(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "name",
            metavar="NAME",
            help="table1, table2, ablation, why, pool, step-size, initialisation, ingredients, best, architectures, shapes, or a preset",
        )
        sub.add_argument(
            "settings", nargs="*", metavar="setting=value", help="settings to change in every cell"
        )
        sub.add_argument(
            "--seeds", type=_positive, default=5, metavar="N", help="seeds 0 to N - 1 (5)"
        )
        sub.add_argument(
            "--scale",
            choices=("small", "paper"),
            help="of a table: paper is the paper's own, small is for smoke runs (default: small for ingredients and architectures)",
        )
        sub.add_argument(
            "--vary",
            nargs="+",
            action="append",
            metavar=("SETTING", "VALUE"),
            help="a cell for each value; may be repeated",
        )
        sub.add_argument(
            "--runs", default="runs", metavar="DIR", help="folder of the run folders (runs)"
        )

    epilog = """\
A cell is one run. Finished cells, here or among the repository's records, are never run again; a killed one is started
again and goes on from its checkpoint. On a cluster started with `ray start`, give --address HOST:PORT; DIR must be on a file system
that all nodes share. Without Ray, for instance under Slurm:

  pcdd sweep table1 --list                               what the cells are, by number
  sbatch --array=0-50 --wrap 'pcdd sweep table1 --cell $SLURM_ARRAY_TASK_ID'
"""
    sub = command(
        commands.sweep, "run all cells of a table, or of a preset, many at a time on Ray", epilog
    )
    choosing(sub)
    sub.add_argument(
        "--data",
        metavar="DIR",
        help="folder that holds MNIST/raw (default: PCDD_DATA, else ~/.cache/pcdd)",
    )
    sub.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a Ray cluster (default: one on this machine, for this sweep)",
    )
    sub.add_argument(
        "--cpus-per-run",
        type=float,
        default=1,
        metavar="N",
        help="cores, and threads, of a run (1)",
    )
    sub.add_argument(
        "--gpus-per-run",
        type=float,
        metavar="X",
        help="part of a GPU for a run (0.25 where there is one)",
    )
    sub.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="how often a run that was killed is started again (3)",
    )
    sub.add_argument(
        "--checkpoint-every",
        type=_positive,
        default=25,
        metavar="N",
        help="iterations between checkpoints (25)",
    )
    sub.add_argument(
        "--minutes", type=float, metavar="M", help="stop after so long; the same command goes on"
    )
    sub.add_argument(
        "--list", action="store_true", help="only say which cells there are and which are finished"
    )
    sub.add_argument(
        "--cell", type=int, metavar="N", help="run this one only, here and without Ray"
    )
    sub.add_argument("--quiet", action="store_true", help="no table of progress")

    sub = command(commands.report, "print and save the table of a sweep: Markdown, CSV, LaTeX")
    choosing(sub)
    sub.add_argument(
        "--output", metavar="DIR", help="where to save it (default: the folder of the runs)"
    )
    sub.add_argument(
        "--keep",
        metavar="DIR",
        help="copy the records there, to be committed, with the clouds of seed 0 where the data may be passed on",
    )

    command(commands.presets, "list the named configurations, with what the paper reports for them")

    sub = command(commands.show, "say what a run or a distilled set is, and draw it")
    sub.add_argument(
        "path", metavar="PATH", help="a run folder, a distilled set (.npz), or released:NAME"
    )
    sub.add_argument("--picture", metavar="FILE", help="where to draw it (default: beside it)")

    sub = command(
        commands.animate,
        "show how the points of a run moved: a page that plays it without network, a GIF, or an MP4",
    )
    sub.add_argument("run", metavar="RUN", help="the folder of a finished run")
    sub.add_argument("files", nargs="+", metavar="FILE", help="what to write: .html, .gif or .mp4")

    sub = command(
        commands.table, "a Markdown row per preset from the records of runs, averaged over seeds"
    )
    sub.add_argument(
        "records", nargs="+", metavar="RECORD", help="run folders or record.json files"
    )
    sub.add_argument("--csv", metavar="FILE", help="write it there as CSV too")
    return parser


def _settings_help(*sections: str) -> str:
    lines = [
        "settings, with their defaults where a preset says nothing else (values are JSON or plain words):"
    ]
    for name, (default, text) in described_settings().items():
        if not any(sections) or name.split(".")[0] in sections:
            default = json.dumps(default)
            lines.append(f"  {name}={default}\n      {text}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value
