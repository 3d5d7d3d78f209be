"""Compare sparse and dense networks on real shapes, on grids of 32^3 and 64^3 cells.

    python benchmarks/sparse_shapes.py --data DIR

(About half an hour; DIR contains ModelNet10.) The same network is computed on all cells
(dense) or on occupied cells only (sparse). It has a linear head and as many blocks of convolution,
instance norm, ReLU and max pooling as leave 4^3 cells.

Training: the network learns to classify shapes, given as occupied cells. The results are accuracy,
time and memory. The sparse network also has a variant with twice the channels.
Distillation: the network distils one cloud per class from scatter by gradient matching, so with
second derivatives, for both lifts. The results are time and memory of an iteration.

Each measurement has its own process, so that its peak memory is its own; the memory of the data is
subtracted. Accuracies are those of the last epoch on the test split, and nothing is chosen by them.
Writes benchmarks/records/sparse-shapes-<device>.json and prints two tables.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import torch.nn.functional as F

from pcdd_core.data.datasets import ModelNet10
from pcdd_core.engine import lifts
from pcdd_core.experiments import machine
from pcdd_core.experiments.config import override
from pcdd_core.experiments.presets import PRESETS
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.clouds import PointClouds, members_per_class, sample
from pcdd_core.nn import sparse
from pcdd_core.nn.grid import Network
from pcdd_core.seeds import generator

TRAINED = {  # (name of the network, factor of the width)
    "dense": ("torch", 1),
    "sparse": ("sparse", 1),
    "sparse, twice as wide": ("sparse", 2),
}
DISTILLED = {"dense": "torch", "sparse": "sparse"}
LIFTS = {"coordinates": "coordinates as features", "gaussian": "Gaussian occupancy"}
# Changes of preset shapes-1, whose clouds start as 1,024 points of uniform scatter.
DISTILLATION = {
    "objective.name": "gradient_matching",
    "objective.distance": "layerwise_cosine",
    "objective.augmentation": False,
    "lift.bandwidth_start": 0.5,
    "network.norm": "instance",
    "network.pooling": "max",
}


def shown(clouds: PointClouds, name: str):
    """Return the occupied cells as network input: a dense grid, or a sparse tensor of ones."""
    if name == "torch":
        return lifts.occupancy(clouds)
    return sparse.from_points(
        clouds.coordinates,
        torch.ones_like(clouds.coordinates[:, :1]),
        clouds.cloud_index,
        len(clouds),
        clouds.grid,
    )


def memory_from_here(device: torch.device) -> int:
    """Reset the peak memory. Returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Return freed memory to the kernel. Otherwise later allocations would use it unnoticed.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (Linux)
    return machine.peak_memory(device)


def layers(cells: int) -> int:
    """Return the number of poolings that leave 4^3 cells."""
    return int(math.log2(cells)) - 2


def distil(way: str, lift: str, cells: int, options: argparse.Namespace) -> dict:
    """Measure some iterations of distillation.

    Returns the seconds of an iteration (median of all but the first) and the peak memory in bytes,
    above the memory of the data.
    """
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    changed = {
        "data.cells": cells,
        "network.name": DISTILLED[way],
        "network.layers": layers(cells),
        "network.width": options.width,
        "lift.name": lift,
    }
    config = override(PRESETS["shapes-1"].config, DISTILLATION | changed)
    real = config.data.load(options.data).train.to(options.device)
    before, seconds = memory_from_here(options.device), []
    iterations, start = config.distill(real), time.perf_counter()
    for _ in range(1 + options.iterations):
        next(iterations)
        if options.device.type == "cuda":
            torch.cuda.synchronize()
        start, begun = time.perf_counter(), start
        seconds.append(start - begun)
    peak = machine.peak_memory(options.device) - before
    return {
        "way": way,
        "lift": lift,
        "cells": cells,
        "seconds_of_an_iteration": median(seconds[1:]),
        "peak_memory_bytes": peak,
    }


def train(way: str, cells: int, seed: int, options: argparse.Namespace) -> dict:
    """Train one network.

    Returns the accuracy in percent, the seconds of a step (median) and the peak memory in bytes,
    above the memory of the data.
    """
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    data = ModelNet10(cells=cells).load(options.data)
    draws, names = generator(seed, "training"), data.train.class_names
    counts = [min(options.shapes, len(members)) for members in members_per_class(data.train)]
    train, test = (
        part.to(options.device)
        for part in (
            data.train.select(sample(members_per_class(data.train), counts, draws, names)),
            data.test,
        )
    )
    name, times = TRAINED[way]
    size = {"layers": layers(cells), "width": times * options.width}
    network = (
        Network.of({"name": name, "pooling": "max", **size})
        .new(1, train.grid, len(names), generator(seed, "network"))
        .to(options.device)
    )
    optimiser, seconds = torch.optim.Adam(network.parameters(), 1e-3), []
    before = memory_from_here(options.device)
    for _ in range(options.epochs):
        for batch in (
            torch.randperm(len(train), generator=draws).to(options.device).split(options.batch)
        ):
            start, chosen = time.perf_counter(), train.select(batch)
            optimiser.zero_grad()
            F.cross_entropy(network(shown(chosen, name)), chosen.labels).backward()
            optimiser.step()
            if options.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    peak = machine.peak_memory(options.device) - before
    with torch.no_grad():
        right = [
            network(shown(test.select(part), name)).argmax(1) == test.labels[part]
            for part in torch.arange(len(test)).split(options.batch)
        ]
    accuracy = 100 * torch.cat(right).double().mean().item()
    return {
        "way": way,
        "cells": cells,
        "seed": seed,
        "accuracy": accuracy,
        "steps": len(seconds),
        "seconds_of_a_step": median(seconds),
        "peak_memory_bytes": peak,
        "occupied_cells": int(lifts.occupancy(test.select(torch.arange(50))).sum()) / 50,
    }


def table(lines: list[list[str]]) -> str:
    """Format a Markdown table. The first line is the header."""
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    )


def training_table(rows: list[dict]) -> str:
    """Format the table of training: a line per grid and network, with means over seeds."""
    lines = [["cells", "network", "accuracy, %", "a step", "memory", "seeds"]]
    for cells, way in dict.fromkeys((row["cells"], row["way"]) for row in rows):
        group = [row for row in rows if (row["cells"], row["way"]) == (cells, way)]
        scores = [row["accuracy"] for row in group]
        spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
        step, peak = (
            median(row["seconds_of_a_step"] for row in group),
            max(row["peak_memory_bytes"] for row in group),
        )
        lines.append(
            [
                f"{cells}^3",
                way,
                f"{mean(scores):.1f}{spread}",
                f"{1000 * step:.0f} ms",
                f"{peak / 2**20:.0f} MiB",
                str(len(group)),
            ]
        )
    return table(lines)


def distillation_table(rows: list[dict]) -> str:
    """Format the table of distillation: a line per grid and lift, dense and sparse."""
    lines = [["cells", "lift", "dense", "sparse", "ratio", "memory, dense", "memory, sparse"]]
    for cells, lift in dict.fromkeys((row["cells"], row["lift"]) for row in rows):
        dense, sparse_row = (
            next(
                row for row in rows if (row["cells"], row["lift"], row["way"]) == (cells, lift, way)
            )
            for way in DISTILLED
        )
        times = [row["seconds_of_an_iteration"] for row in (dense, sparse_row)]
        lines.append(
            [
                f"{cells}^3",
                LIFTS[lift],
                *(f"{seconds:.1f} s" for seconds in times),
                f"{times[0] / times[1]:.1f}",
                *(f"{row['peak_memory_bytes'] / 2**20:.0f} MiB" for row in (dense, sparse_row)),
            ]
        )
    return table(lines)


def markdown(record: dict) -> str:
    """Format both tables."""
    return training_table(record["training"]) + "\n\n" + distillation_table(record["distillation"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that contains ModelNet10 (default: PCDD_DATA)")
    parser.add_argument("--cells", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shapes", type=int, default=60, help="training shapes per class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--iterations", type=int, default=3, help="iterations of distillation after a warm-up"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    begun, trained, distilled = time.monotonic(), [], []

    def apart(measure: Callable[..., dict], *what: Any) -> dict:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (*what, options))
        print(
            " | ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in row.items()
            ),
            flush=True,
        )
        return row

    for cells in options.cells:
        distilled += [apart(distil, way, lift, cells) for lift in LIFTS for way in DISTILLED]
    for seed in range(options.seeds):
        trained += [apart(train, way, cells, seed) for cells in options.cells for way in TRAINED]
    settings = {
        key: getattr(options, key) for key in ("shapes", "epochs", "batch", "width", "iterations")
    }
    record = {
        "command": "python benchmarks/sparse_shapes.py",
        "data": "modelnet10",
        "settings": settings | {"norm": "instance", "pooling": "max", "optimiser": "Adam, 0.001"},
        "distillation_settings": DISTILLATION,
        "machine": machine.describe(options.device)
        | {"cores": os.cpu_count(), "threads": options.threads},
        "seconds": time.monotonic() - begun,
        "training": trained,
        "distillation": distilled,
    }
    path = Path(__file__).parent / "records" / f"sparse-shapes-{options.device.type}.json"
    atomic_write_text(path, json.dumps(record, indent=1))
    print(markdown(record))


if __name__ == "__main__":
    main()
