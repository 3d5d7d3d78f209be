"""Sparse networks beside dense ones on real shapes: accuracy, time and memory of training, on grids of 32^3 and 64^3.

    python benchmarks/sparse_shapes.py --data DIR        (about an hour on 2 cores; DIR holds modelnet10_voxels24)

The same network (convolution, instance norm, ReLU, max pooling, as often as leaves 4^3 cells; a linear head) learns to
tell the shapes apart, seen as occupied cells: computed on all cells (dense), or on occupied ones only (sparse). Each training
is a process of its own, so peak memory, above what the data takes, is its own. Accuracies are those of the last epoch on the test split;
nothing is chosen by them. Writes benchmarks/records/sparse-shapes-<device>.json and prints a table.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from pathlib import Path
from statistics import mean, median, stdev

import torch
import torch.nn.functional as F

import pcdd_core as pcdd
from pcdd_core import lifts, machine, sparse
from pcdd_core.clouds import PointClouds, members_per_class, sample
from pcdd_core.config import DataConfig, NetworkConfig
from pcdd_core.files import atomic_write_text
from pcdd_core.networks import build_network
from pcdd_core.randomness import generator

WAYS = {"torch": "dense", "sparse": "sparse"}


def shown(clouds: PointClouds, way: str):
    """Occupied cells as the network's input: a dense grid, or their list with the feature 1."""
    if way == "torch":
        return lifts.occupancy(clouds)
    return sparse.from_points(clouds.coordinates, torch.ones_like(clouds.coordinates[:, :1]), clouds.cloud_index, len(clouds), clouds.grid)


def train(way: str, cells: int, seed: int, options: argparse.Namespace) -> dict:
    """One training: accuracy in percent, seconds of a step (median), bytes at the peak above those with only the data loaded."""
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    data = pcdd.load_data(DataConfig(name="modelnet10-voxels24", cells=cells), options.data)
    draws, names = generator(seed, "training"), data.train.class_names
    counts = [min(options.shapes, len(members)) for members in members_per_class(data.train)]
    train, test = (part.to(options.device) for part in (data.train.select(sample(members_per_class(data.train), counts, draws, names)), data.test))
    description = NetworkConfig(backend=way, layers=int(math.log2(cells)) - 2, width=options.width, norm="instance", pooling="max")
    network = build_network(description, 1, train.grid, len(names), generator(seed, "network")).to(options.device)
    optimiser, seconds = torch.optim.Adam(network.parameters(), 1e-3), []
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = machine.peak_memory(options.device)
    for _ in range(options.epochs):
        for batch in torch.randperm(len(train), generator=draws).to(options.device).split(options.batch):
            start, chosen = time.perf_counter(), train.select(batch)
            optimiser.zero_grad()
            F.cross_entropy(network(shown(chosen, way)), chosen.labels).backward()
            optimiser.step()
            if options.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    peak = machine.peak_memory(options.device) - before
    with torch.no_grad():
        right = [network(shown(test.select(part), way)).argmax(1) == test.labels[part] for part in torch.arange(len(test)).split(options.batch)]
    accuracy = 100 * torch.cat(right).double().mean().item()
    return {
        "way": way, "cells": cells, "seed": seed, "accuracy": accuracy, "steps": len(seconds), "seconds_of_a_step": median(seconds),
        "peak_memory_bytes": peak, "occupied_cells": int(lifts.occupancy(test.select(torch.arange(50))).sum()) / 50,
    }  # fmt: skip


def markdown(rows: list[dict]) -> str:
    """A line per grid and way: means over seeds."""
    lines = [["cells", "network", "accuracy, %", "a step", "memory", "seeds"], ["---"] * 6]
    for cells, way in dict.fromkeys((row["cells"], row["way"]) for row in rows):
        found = [row for row in rows if (row["cells"], row["way"]) == (cells, way)]
        scores = [row["accuracy"] for row in found]
        spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
        step, peak = (median(row["seconds_of_a_step"] for row in found), max(row["peak_memory_bytes"] for row in found))
        lines.append([f"{cells}^3", WAYS[way], f"{mean(scores):.1f}{spread}", f"{1000 * step:.0f} ms", f"{peak / 2**20:.0f} MiB", str(len(found))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds modelnet10_voxels24 (default: PCDD_DATA)")
    parser.add_argument("--cells", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shapes", type=int, default=60, help="training shapes of each class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    begun, rows, spawn = time.monotonic(), [], multiprocessing.get_context("spawn")
    for seed in range(options.seeds):
        for cells in options.cells:
            for way in WAYS:
                with spawn.Pool(1) as pool:
                    rows.append(pool.apply(train, (way, cells, seed, options)))
                row = rows[-1]
                print(f"{cells}^3 | {WAYS[way]} | seed {seed} | {row['accuracy']:.1f} % | {1000 * row['seconds_of_a_step']:.0f} ms a step | "
                      f"{row['peak_memory_bytes'] / 2**20:.0f} MiB", flush=True)  # fmt: skip
    settings = {key: getattr(options, key) for key in ("shapes", "epochs", "batch", "width")}
    record = {
        "command": "python benchmarks/sparse_shapes.py",
        "data": "modelnet10-voxels24",
        "settings": settings | {"norm": "instance", "pooling": "max", "optimiser": "Adam, 0.001"},
        "machine": machine.describe(options.device) | {"cores": os.cpu_count(), "threads": options.threads},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    path = Path(__file__).parent / "records" / f"sparse-shapes-{options.device.type}.json"
    atomic_write_text(path, json.dumps(record, indent=1))
    print(markdown(rows))


if __name__ == "__main__":
    main()
