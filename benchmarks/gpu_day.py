"""Run everything that needs a GPU, in parts of at most 9 minutes each.

    make gpu        (python benchmarks/gpu_day.py --help: single parts, a dry run without a GPU)

Each part is a process of its own, the most valuable part first. It writes
benchmarks/records/gpu/<part>.json, and this script prints one line about it. A part whose record is
complete is skipped; delete the record to repeat the part. A part that was cut continues where it
stopped at the next call. Logs and run folders are in runs/gpu.

Exit code: 0 if all parts are done, 1 if a part failed or is not finished, 2 if there is no GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 540.0  # seconds of a part
PATIENCE = 20.0  # seconds between Ctrl-C and the end of a part that was cut
SCRIPT = str(Path(__file__).with_name("gpu_parts.py"))


@dataclass(frozen=True)
class Part:
    """A part of the day.

    name: names its record and its log
    goal: printed beside its result
    command: words after `python`; the place and the device follow
    """

    name: str
    goal: str
    command: tuple[str, ...]


PARTS = tuple(
    Part(name, goal, (SCRIPT, name))
    for name, goal in (
        ("tests", "all gpu tests pass: equal to the CPU within their tolerance"),
        ("iteration", "10 times the published way or more, below 10 GB"),
        ("evaluation", "20 classifiers 15 times the published way or more"),
        ("table1", "6 runs of Table 1 with fresh gradients below 10 minutes"),
        ("graphs", "equal to the engine; faster than without a graph"),
        ("minkowski", "the CUDA build passes its self-test"),
        ("unrolled", "above the 91.6 % of the CPU's 1,200 iterations"),
        ("pointnets", "ten PointNets of protocol sadm"),
        ("bench", "the other rows of make bench"),
    )
)


def record_path(root: Path, name: str) -> Path:
    """Return the path of the record of a part."""
    return root / "benchmarks" / "records" / "gpu" / f"{name}.json"


def read_record(root: Path, name: str) -> dict | None:
    """Return the record of a part, or None if there is none that can be read."""
    try:
        record = json.loads(record_path(root, name).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def run_parts(parts: Sequence[Part], root: Path, options: Sequence[str], limit: float) -> int:
    """Run the parts that are not done, one after another. Prints a line for each.

    root: folder of the records, logs and runs
    options: words that follow the command of each part
    limit: seconds of a part
    Returns the exit code: 0 if all are done, else 1.
    """
    done = True
    for part in parts:
        record = read_record(root, part.name)
        if record and record.get("finished"):
            line = f"done before on {record['machine']['device']}: {record['result']}"
        else:
            finished, line = _run(part, root, options, limit)
            done = done and finished
        print(f"{part.name}: {line} [goal: {part.goal}]", flush=True)
    return 0 if done else 1


def _run(part: Part, root: Path, options: Sequence[str], limit: float) -> tuple[bool, str]:
    """Run a part. Returns whether it is done, and a line about it."""
    log = root / "runs" / "gpu" / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    begun = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, *part.command, "--root", str(root), *options],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _stop(process)
            return False, f"cut after {limit:.0f} s; the next call continues it"
        except BaseException:
            _stop(process)
            raise
    record, seconds = read_record(root, part.name), time.monotonic() - begun
    if code:
        lines = log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        return False, f"FAILED with exit code {code}: {last.strip()} (log: {log})"
    if record is None:
        return False, f"FAILED: it wrote no record (log: {log})"
    if not record.get("finished"):
        return False, f"not finished: {record['result']}; the next call continues it"
    return True, f"{record['result']} ({seconds:.0f} s)"


def _stop(process: subprocess.Popen) -> None:
    """Interrupt a part and its processes as Ctrl-C does, and kill them if they do not end."""
    for stop, patience in ((signal.SIGINT, PATIENCE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, stop)
        except ProcessLookupError:
            pass
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def has_gpu() -> bool:
    """Return whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def main(words: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
    )
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run the parts on the CPU with tiny sizes, in a temporary folder",
    )
    options = parser.parse_args(words)
    parts = [part for part in PARTS if part.name in options.only]
    if options.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        with tempfile.TemporaryDirectory(prefix="pcdd-gpu-") as folder:
            return run_parts(parts, Path(folder), ["--device", "cpu", "--small"], LIMIT)
    if not has_gpu():
        print(
            "gpu: torch sees no CUDA device; `--dry-run` tries all parts on the CPU",
            file=sys.stderr,
        )
        return 2
    data = ["--data", options.data] if options.data else []
    return run_parts(parts, ROOT, ["--device", "cuda", *data], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
