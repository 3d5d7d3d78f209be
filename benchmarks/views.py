"""Measure what is left of 100 live views in a Jupyter kernel: memory, widgets and runs.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/views.py

(About 5 minutes on 2 cores; needs no data, no browser.) A view shows preset `gaussian` on the
digits of scikit-learn: 10 clouds of 250 points. Each view runs until its first update. The code
runs in a kernel, with the messages that JupyterLab sends. What the browser holds is not measured.

- rerun: one cell runs 100 times, so that each view replaces the one before
- closed: 100 views in cells of their own; each is closed before the next
- open: 100 views in cells of their own, paused and left open, for comparison

Each way opens 10 views before the first measurement, so that imports and first allocations do not
count. Writes benchmarks/records/views-cpu.json and prints a table.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jupyter_client.manager import KernelManager

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write_text

HERE = Path(__file__).parent
WARM_UP, EVERY = 10, 10
SETUP = """
import gc, json, threading, time
import psutil
from ipywidgets.widgets import widget
import pcdd_core as pcdd
from pcdd_core.view.session import sessions
config = pcdd.override(pcdd.preset("gaussian").config, {"data.name": "digits"})
real = config.data.load().train

def measure():
    gc.collect()
    runs = [thread for thread in threading.enumerate() if thread.name == "distillation"]
    return {
        "rss": psutil.Process().memory_info().rss,
        "widgets": len(widget._instances),
        "views": len(sessions),
        "runs": len(runs),
    }

def until(condition):
    while not condition():
        time.sleep(0.01)
"""
OPEN = """
live = pcdd.watch(config, real, "cpu")
live.start()
live"""
UPDATED = "until(lambda: 'update 0 ' not in live.status)"
# The thread of a replaced or paused run ends after its iteration.
WAYS = {
    "rerun": ("until(lambda: measure()['runs'] == 1)", lambda number: "the cell"),
    "closed": ("live.close(); until(lambda: measure()['runs'] == 0)", lambda number: f"{number}"),
    "open": (
        "live.pause(); live.wait(); until(lambda: measure()['runs'] == 0)",
        lambda number: f"{number}",
    ),
}


@contextmanager
def kernel() -> Iterator[Callable[..., str]]:
    """Start a kernel; yield run(code, cell), which runs code there and returns what it prints.

    cell: id of the cell, as JupyterLab sends it
    """
    manager = KernelManager(kernel_name="python3")
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH")]
    manager.start_kernel(
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}, cwd=str(HERE)
    )
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(60)

    def run(code: str, cell: str) -> str:
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": True}
        content |= {"user_expressions": {}, "stop_on_error": True}
        request = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(request)
        printed = ""
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(message["content"]["traceback"]))
            printed += message["content"].get("text", "")
            if message["content"].get("execution_state") == "idle":
                return printed

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def measured(way: str, views: int) -> dict:
    """Open this number of views in one of the WAYS, in a new kernel.

    Returns the state of the kernel after the warm-up and then after every tenth view.
    """
    after, cell = WAYS[way]
    with kernel() as run:
        run(SETUP, "setup")
        states = []
        for number in range(WARM_UP + views + 1):
            if number >= WARM_UP and (number - WARM_UP) % EVERY == 0:
                states.append(json.loads(run("print(json.dumps(measure()))", "state")))
            if number == WARM_UP:
                begun = time.monotonic()
            if number < WARM_UP + views:
                run(OPEN, cell(number))
                run(UPDATED, "wait")
                run(after, "after")
        return {"way": way, "count": views, "seconds": time.monotonic() - begun, "states": states}


def markdown(rows: list[dict]) -> str:
    """Format a table with one line per way."""
    names = {
        "rerun": "one cell, run {} times",
        "closed": "{} cells, each view closed",
        "open": "{} cells, each view left open",
    }
    lines = [["views", "widgets before, after", "runs before, after", "memory before, after"]]
    lines[0] += ["memory of a view"]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        first, last = row["states"][0], row["states"][-1]
        pairs = [f"{first[what]}, {last[what]}" for what in ("widgets", "runs")]
        before, after = first["rss"] / 2**20, last["rss"] / 2**20
        pairs += [f"{before:.0f}, {after:.0f} MiB", f"{(after - before) / row['count']:.2f} MiB"]
        lines.append([names[row["way"]].format(row["count"]), *pairs])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=100)
    options = parser.parse_args()
    begun, rows = time.monotonic(), []
    for way in WAYS:
        rows.append(measured(way, options.views))
        print(way, [round(state["rss"] / 2**20) for state in rows[-1]["states"]], file=sys.stderr)
    record = {
        "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/views.py",
        "settings": {"preset": "gaussian", "data": "digits", "warm_up": WARM_UP},
        "machine": machine.describe(torch.device("cpu")) | {"cores": os.cpu_count()},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    atomic_write_text(HERE / "records" / "views-cpu.json", json.dumps(record, indent=1))
    print(markdown(rows))


if __name__ == "__main__":
    main()
