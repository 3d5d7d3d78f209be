"""Kill runs at random moments, resume them, and compare them with a run that was not killed.

    PYTHONPATH=. python tests/kills.py --kills 100 --record benchmarks/records/kills-cpu.json

Prints for each signal the kills, the runs and the runs whose result is equal to the last bit. The
exit code is 1 if one differs. POSIX only.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tiny
import torch

from pcdd_core.cli.main import main
from pcdd_core.experiments import machine
from pcdd_core.experiments.records import read_record, read_trajectory
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.storage import load_clouds

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_PER_RUN = 3  # kills of one run, before it may finish
SETTINGS = {
    **tiny.DISTILLATION,
    **tiny.EVALUATION,
    "schedule.iterations": 16,
    "schedule.iterations_per_network": 5,
    "schedule.training_steps": 1,
    "schedule.snapshots": 2,
    "evaluation.protocols": ["standard"],
}
# Processes start from one that has imported everything, so that the moments fall into the runs.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTS = ("pcdd_core.experiments.runs", "sklearn.datasets", "torch._dynamo", "torchvision")
PROCESSES.set_forkserver_preload(["kills", *IMPORTS])


def kills(number: int, folder: Path, seed: int = 0) -> dict[str, Counter]:
    """Kill runs in `folder` `number` times in all.

    Returns counts for each signal: kills, runs, and runs that are equal to the unbroken one.
    """
    draws, counts, done = random.Random(seed), {part.name: Counter() for part in SIGNALS}, 0
    first = PROCESSES.Process(target=time.sleep, args=(0,))  # starts the server, with its imports
    first.start()
    first.join()
    begun = time.monotonic()
    assert _finish(folder / "unbroken") == 0
    duration = time.monotonic() - begun
    runs = 0
    while done < number:
        how = SIGNALS[runs % len(SIGNALS)]
        run = folder / f"run-{runs}"
        runs += 1
        killed = 0
        for _ in range(draws.randint(1, min(MOST_PER_RUN, number - done))):
            if not _kill(run, how, draws.uniform(0, duration)):
                break  # it was finished before
            killed += 1
        counts[how.name]["kills"] += killed
        done += killed
        if not (run / "record.json").exists():
            if (code := _finish(run)) != 0:
                counts[how.name][f"exit code {code}"] += 1
            left = [path for path in run.iterdir() if path.name.startswith(".")]
            counts[how.name]["left over"] += len(left)
        counts[how.name]["runs"] += 1
        counts[how.name]["equal"] += _same(run, folder / "unbroken")
        print(f"{done} of {number} kills\n{_table(counts)}", file=sys.stderr)
    return counts


def _start(folder: Path):
    process = PROCESSES.Process(target=_run, args=(str(folder),))
    process.start()
    return process


def _run(folder: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    started = Path(folder).is_dir() and any(Path(folder).iterdir())
    words = ["distill", "--preset", "quickstart", *tiny.arguments(SETTINGS), "--output", folder]
    words += ["--checkpoint-every", "2", "--device", "cpu", "--quiet"]
    sys.exit(main([*words, *(["--resume"] if started else [])]))


def _kill(folder: Path, how: signal.Signals, after: float) -> bool:
    """Run in `folder` and send the signal after this many seconds. False: the run was faster."""
    process = _start(folder)
    process.join(after)
    if process.exitcode is None:
        os.kill(process.pid, how)
    process.join()
    return process.exitcode != 0


def _finish(folder: Path) -> int:
    process = _start(folder)
    process.join()
    return process.exitcode


def _same(one: Path, other: Path) -> bool:
    """Return whether two runs have the same set, steps, trajectory and scores, bit for bit."""
    if not (one / "record.json").exists():
        return False
    sets = [load_clouds(folder / "clouds.npz").coordinates.numpy() for folder in (one, other)]
    moves = [read_trajectory(folder) for folder in (one, other)]
    records = [read_record(folder) for folder in (one, other)]
    return (
        sets[0].tobytes() == sets[1].tobytes()
        and (one / "steps.jsonl").read_bytes() == (other / "steps.jsonl").read_bytes()
        and all(np.array_equal(moves[0][field], moves[1][field]) for field in moves[0])
        and all(records[0][part] == records[1][part] for part in ("scores", "curves"))
    )


def _table(counts: dict[str, Counter]) -> str:
    usual = ("kills", "runs", "equal")
    lines = [f"{'signal':8} {'kills':>6} {'runs':>6} {'equal':>6}  other"]
    for name, count in counts.items():
        other = {key: value for key, value in count.items() if value and key not in usual}
        numbers = " ".join(f"{count[key]:6}" for key in usual)
        lines.append(f"{name:8} {numbers}  {other or ''}".rstrip())
    return "\n".join(lines)


def markdown(rows: list[dict]) -> str:
    """Format a table with one line per signal, and their sum."""
    fields = ("kills", "runs", "equal", "left over")
    total = {"signal": "all", **{field: sum(row[field] for row in rows) for field in fields}}
    lines = [["signal", "kills", "runs", "equal runs", "files left over"], ["---"] * 5]
    lines += [[str(row[field]) for field in ("signal", *fields)] for row in [*rows, total]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="number of kills (100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--record", type=Path, help="also write the counts to this file (JSON)")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = kills(options.kills, Path(folder), options.seed)
    print(_table(counts))
    if options.record:
        fields = ("kills", "runs", "equal", "left over")
        rows = [
            {"signal": name, **{field: count[field] for field in fields}, **count}
            for name, count in counts.items()
        ]
        record = {
            "command": f"PYTHONPATH=. python tests/kills.py --kills {options.kills} "
            f"--seed {options.seed} --record {options.record}",
            "seed": options.seed,
            "settings": SETTINGS,
            "machine": machine.describe(torch.device("cpu")) | {"cores": os.cpu_count()},
            "seconds": time.monotonic() - begun,
            "rows": rows,
        }
        atomic_write_text(options.record, json.dumps(record, indent=1))
    return int(any(count["equal"] != count["runs"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(_command())
