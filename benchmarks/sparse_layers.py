"""Compare time and peak memory of one network in four implementations.

    python benchmarks/sparse_layers.py --data DIR

(About 5 minutes on 2 cores; needs MNIST, see `pcdd distill --help`.) The implementations are
MinkowskiEngine, `sparse` on the kernel maps of MinkowskiEngine or of torch, and dense convolution.
A network of the paper (3 layers, instance norm, max pooling) has two kinds of input: 256 real MNIST
clouds on their flat grid, and 64 hollow boxes in 3D. Three stages are measured: the forward pass,
the gradient of the loss with respect to all parameters, and the gradient of its square with respect
to the input features. The last one moves points; in MinkowskiEngine it is not complete (see
pcdd_core/second_order.py). The implementations take turns, round by round, so that noise on the
machine affects all alike. Peak memory is measured in a new process each time, above the memory that
it used before. Writes benchmarks/records/sparse-layers-<device>.json and prints a table.
"""

import argparse
import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

import pcdd_core as pcdd
from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.clouds import from_occupancy
from pcdd_core.nn import sparse
from pcdd_core.nn.grid import GridNetwork, MinkowskiNetwork, SparseNetwork
from pcdd_core.seeds import generator

WAYS = {
    "minkowski": MinkowskiNetwork(pooling="max"),
    "sparse, minkowski's maps": SparseNetwork(pooling="max", kernel_maps="minkowski"),
    "sparse, torch's maps": SparseNetwork(pooling="max"),
    "torch (dense)": GridNetwork(pooling="max"),
}
STAGES = ("forward", "first derivative", "second derivative")
CASES = ("MNIST, 256 clouds on 1 x 28 x 28", "boxes, 64 clouds on 24 x 24 x 24")


def clouds_of(case: str, data: str | None):
    """Return the clouds of a case."""
    if case == CASES[0]:
        return pcdd.Mnist(max_points=250).load(data).train.select(torch.arange(256))
    draws, occupied = generator(0), torch.zeros(64, 24, 24, 24, dtype=torch.bool)
    for box in occupied:
        low = torch.randint(0, 8, (3,), generator=draws).tolist()
        high = torch.randint(14, 24, (3,), generator=draws).tolist()
        box[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
        box[low[0] + 1 : high[0] - 1, low[1] + 1 : high[1] - 1, low[2] + 1 : high[2] - 1] = False
    return from_occupancy(occupied, torch.arange(64) % 10, tuple("0123456789"))


class Work:
    """One implementation and one case. `run` runs a stage.

    most: largest number of clouds
    """

    def __init__(
        self,
        case: str,
        way: str,
        width: int,
        data: str | None,
        device: torch.device,
        most: int | None = None,
    ):
        clouds = clouds_of(case, data).to(device)
        clouds = clouds.select(torch.arange(len(clouds))[:most])
        network = replace(WAYS[way], width=width)
        self.network = network.new(3, clouds.grid, 10, generator(0)).to(device)
        points = (
            clouds.coordinates,
            clouds.coordinates,
            clouds.cloud_index,
            len(clouds),
            clouds.grid,
        )
        self.tensor, self.labels = sparse.from_points(*points), clouds.labels

    def run(self, stage: str) -> None:
        """Run a stage and all stages before it."""
        features = self.tensor.features.detach().requires_grad_()
        loss = F.cross_entropy(self.network(self.tensor.with_features(features)), self.labels)
        if stage != "forward":
            twice = stage == "second derivative"
            gradients = torch.autograd.grad(
                loss, list(self.network.parameters()), create_graph=twice
            )
            if twice:
                torch.autograd.grad(
                    sum(gradient.square().sum() for gradient in gradients), features
                )
        if features.is_cuda:
            torch.cuda.synchronize()


def memory(case: str, way: str, stage: str, options: argparse.Namespace) -> int:
    """Return the peak memory of one stage in bytes, above the memory before it."""
    settings = case, way, options.width, options.data, options.device
    Work(*settings, most=2).run(stage)  # because libraries allocate at their first call
    work = Work(*settings)
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _resident("VmRSS")
    work.run(stage)
    return (
        torch.cuda.max_memory_allocated() if options.device.type == "cuda" else _resident("VmHWM")
    ) - before


def markdown(rows: list[dict]) -> str:
    """Format a table with one row per case and stage, and one column per implementation.

    Entries are median milliseconds, the ratio to MinkowskiEngine, and MiB.
    """
    lines = [["", *WAYS], ["---"] * (len(WAYS) + 1)]
    for case in CASES:
        for stage in STAGES:
            by_way = {
                row["way"]: row for row in rows if (row["case"], row["stage"]) == (case, stage)
            }
            cells = (
                f"{1000 * median(row['seconds']):.0f} ms ({row['ratio_to_minkowski']:.2f}), "
                f"{row['peak_memory_bytes'] / 2**20:.0f} MiB"
                for row in (by_way[way] for way in WAYS)
            )
            lines.append([f"{case.split(',')[0]}, {stage}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    machine.keep_freed_memory()
    begun, rows = time.monotonic(), []
    spawn = multiprocessing.get_context("spawn")
    for case in CASES:
        work = {way: Work(case, way, options.width, options.data, options.device) for way in WAYS}
        for stage in STAGES:
            seconds = {way: [] for way in WAYS}
            for _ in range(options.rounds + 1):  # the first round warms up and is dropped
                for way in WAYS:
                    start = time.perf_counter()
                    work[way].run(stage)
                    seconds[way].append(time.perf_counter() - start)
            for way in WAYS:
                with spawn.Pool(1) as pool:
                    peak = pool.apply(memory, (case, way, stage, options))
                kept = sorted(seconds[way][1:])
                row = {
                    "case": case,
                    "stage": stage,
                    "way": way,
                    "seconds": kept,
                    "peak_memory_bytes": peak,
                }
                row["ratio_to_minkowski"] = median(kept) / median(seconds["minkowski"][1:])
                rows.append(row)
                print(
                    f"{case} | {stage} | {way} | {1000 * kept[0]:.0f} ms best, "
                    f"{1000 * median(kept):.0f} ms median, "
                    f"{row['ratio_to_minkowski']:.2f} x minkowski | {peak / 2**20:.0f} MiB",
                    flush=True,
                )
    record = {
        "command": "python benchmarks/sparse_layers.py",
        "settings": {
            "layers": 3,
            "width": options.width,
            "norm": "instance",
            "pooling": "max",
            "rounds": options.rounds,
        },
        "machine": machine.describe(options.device) | {"cores": os.cpu_count()},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    path = Path(__file__).parent / "records" / f"sparse-layers-{options.device.type}.json"
    atomic_write_text(path, json.dumps(record, indent=1))
    print(markdown(rows))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


if __name__ == "__main__":
    main()
