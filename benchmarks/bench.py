"""Measure the speed of the engine against published-style code and against the machine's limits.

    make bench        (python benchmarks/bench.py --help: single benchmarks, other devices)

The engine and the yardstick take turns, so that noise on the machine affects both alike. Each has
its own process, because the memory settings of the engine would speed up both. A ratio is the
median over the pairs. The yardsticks are in published_style.py. limits.py measures the limits of
the machine. The script writes benchmarks/results/<device>.json, a list with one object per
benchmark, and prints the tables of docs/benchmarks.md. It needs MNIST. `--small` tries the script
with tiny sizes on data that need no files; its numbers say nothing.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import limits
import published_style
import torch
import torch.nn.functional as F
from limits import seconds_of

import pcdd_core as pcdd
from pcdd_core.errors import EngineMissing
from pcdd_core.experiments import machine
from pcdd_core.experiments.config import Config
from pcdd_core.experiments.progress import Progress
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry import grid as grids
from pcdd_core.geometry.clouds import PointClouds, members_per_class
from pcdd_core.nn import minkowski, sparse
from pcdd_core.nn.grid import Network
from pcdd_core.scoring.evaluate import Protocol, evaluate, project
from pcdd_core.seeds import generator

HERE = Path(__file__).parent
# Gradient matching with one cloud of 250 points per class: the field's setting, the same in float32
# only, the setting of preset `gaussian`, and the paper's two architectures. The engine runs the
# MinkowskiEngine architecture with `sparse`, so with all second derivatives. The last row is the
# paper's PyTorch network with real gradients from a pool, against fresh ones in the yardstick.
FIELD = {"network.width": 128, "objective.real_batch": 256}
ITERATIONS = {
    "iteration-convnet3": {**FIELD, "objective.real_precision": "bfloat16"},
    "iteration-convnet3-float32": FIELD,
    "iteration-small": {},
    "iteration-paper-torch-3": {"objective.real_gradients": "fresh"},
    "iteration-paper-minkowski-2": {"objective.real_gradients": "fresh"},
    "iteration-paper-pool": {},
}
PRESETS = {
    "iteration-paper-torch-3": "paper-torch-3-sum-of-squares",
    "iteration-paper-minkowski-2": "paper-sparse-2-sum-of-squares",
    "iteration-paper-pool": "paper-torch-3-sum-of-squares",
}
SMALL = {"network.width": 4, "objective.real_batch": 4, "clouds.points_per_cloud": 20}  # --small
FILLED = 60  # iterations after which nearly every pool of 8 batches for 10 classes is full
CLASSIFIERS, EPOCHS = 20, 1001
DOUBLED = {  # size: (first value, its setting)
    "points per cloud": (50, "clouds.points_per_cloud"),
    "clouds per class": (1, "clouds.clouds_per_class"),
    "classes": (2, None),
    "real batch": (16, "objective.real_batch"),
}


def matching_config(preset: str = "gaussian", **changes) -> Config:
    """Return a preset with constant bandwidth, one network and practically no end."""
    constant = {"schedule.iterations": 10**6, "schedule.iterations_per_network": 0}
    config = pcdd.preset(preset).config
    if config.lift.name == "gaussian":
        constant |= {"lift.bandwidth_start": 0.5, "lift.bandwidth_end": 0.5}
    return pcdd.override(config, {**constant, **changes})


def ours_iteration(config: Config, real: PointClouds, device: torch.device) -> Callable[[], object]:
    """Return a function that makes one iteration. A pool of real gradients is full before that."""
    machine.keep_freed_memory()
    steps = config.distill(real, device)
    if config.method.stored_gradients:
        for _ in range(FILLED):
            next(steps)
    return lambda: next(steps)


def published_iteration(
    config: Config, real: PointClouds, device: torch.device
) -> Callable[[], object]:
    """Return a function that makes the same iteration in the published style."""
    size, classes, network = real.grid[1], len(real.class_names), config.network
    if config.lift.name == "gaussian":
        axes, centre, make = slice(1, 3), 0.5, published_style.ConvNet
        lift = {
            "size": size,
            "bandwidth": config.lift.bandwidth_end,
            "saturation": config.lift.saturation,
        }
        show, distance = (
            partial(published_style.occupancy_images, **lift),
            published_style.cosine_of_weights,
        )
    elif network.name == "torch":
        axes, centre, make = slice(0, 3), 0.0, published_style.PaperConvNet
        show, distance = (
            partial(published_style.coordinate_images, size=size),
            published_style.sum_of_squares,
        )
    else:
        axes, centre, make = slice(0, 3), 0.0, published_style.PaperMinkowskiNet
        show, distance = published_style.minkowski_tensor, published_style.sum_of_squares
    clouds = (real.coordinates[:, axes].floor() + centre).split(real.sizes.tolist())
    loaders = [
        published_style.batches(
            [clouds[index] for index in members.tolist()], config.objective.real_batch
        )
        for members in members_per_class(real)
    ]
    box = torch.tensor(real.grid[axes])
    points = [
        (box * torch.rand(config.clouds.points_per_cloud, len(box))).to(device).requires_grad_()
        for _ in loaders
    ]
    network = make(size, classes, network.width, network.layers).to(device)
    if config.optimiser.name == "adam":
        optimiser = torch.optim.Adam(
            points, config.optimiser.step_size, betas=(config.optimiser.momentum, 0.999)
        )
    else:
        optimiser = torch.optim.SGD(
            points, config.optimiser.step_size, momentum=config.optimiser.momentum
        )

    def iterate() -> None:
        loss = published_style.matching_loss(
            network, [next(loader) for loader in loaders], points, show, distance
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for cloud in points:  # the boundary check
                cloud.copy_(torch.minimum(cloud.clamp(min=0), box.to(cloud) - 1e-4))
        loss.item()

    return iterate


def ours_evaluation(epochs: int, device: torch.device) -> Callable[[], object]:
    """Return a function that trains 20 classifiers on `mnist-1` (10 clouds) and tests one cloud."""
    machine.keep_freed_memory()
    clouds, protocol = pcdd.released("mnist-1"), Protocol(networks=CLASSIFIERS, epochs=epochs)
    test = clouds.select(torch.arange(1))
    return lambda: evaluate(clouds, test, protocol=protocol, device=device)


def published_evaluation(epochs: int, device: torch.device) -> Callable[[], object]:
    """Return a function with the same work in the published style, classifier by classifier."""
    images, labels = (
        project(pcdd.released("mnist-1")).to(device),
        pcdd.released("mnist-1").labels.to(device),
    )
    return lambda: [
        published_style.train_classifier(images, labels, 128, epochs) for _ in range(CLASSIFIERS)
    ]


class Process:
    """A process that prepares some work once, and then does it for each call of `seconds`."""

    def __init__(self, make: Callable, *arguments):
        self.pool = multiprocessing.get_context("spawn").Pool(1)
        self.pool.apply(_make, (make, arguments))

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self.pool.terminate()

    def seconds(self) -> float:
        """Do the work once. Returns its seconds."""
        return self.pool.apply(_do)

    def peak(self) -> int:
        """Return the peak memory in bytes. On a CPU it includes libraries and data."""
        return self.pool.apply(_peak)


_work: list = []  # in a `Process`: the work and its device


def _make(make: Callable, arguments: tuple) -> None:
    _work[:] = make(*arguments), arguments[-1]


def _do() -> float:
    return seconds_of(*_work)


def _peak() -> int:
    return machine.peak_memory(_work[1])


def in_turns(engine: tuple, yardstick: tuple, rounds: int) -> tuple[list[tuple[float, float]], int]:
    """Run both in turns. Returns seconds of both for each round, and the peak memory of the engine.

    engine, yardstick: arguments of `Process`. The first round is a warm-up and is dropped.
    """
    with Process(*engine) as engine_process, Process(*yardstick) as yardstick_process:
        pairs = [(engine_process.seconds(), yardstick_process.seconds()) for _ in range(rounds + 1)]
        return pairs[1:], engine_process.peak()


def compared(pairs: list[tuple[float, float]], peak: int, floor: float | None) -> dict:
    """Return the fields of a comparison.

    pairs: seconds of engine and yardstick. peak: bytes. floor: seconds of the necessary operations
    at the measured rate, or None if they are not counted.
    """
    engine_seconds = median(pair[0] for pair in pairs)
    return {
        "ours_s": engine_seconds,
        "yardstick_s": median(pair[1] for pair in pairs),
        "ratio": median(yardstick / engine for engine, yardstick in pairs),
        "pairs_s": pairs,
        "floor_s": floor,
        "floor_fraction": floor and floor / engine_seconds,
        "peak_bytes": peak,
    }


def iteration(name: str, options: argparse.Namespace) -> dict:
    """Compare an iteration of gradient matching with the published style.

    The floor counts the real clouds only, and exists for dense ConvNets only.
    """
    changes = ITERATIONS[name] | (SMALL if options.small else {})
    config, real = matching_config(PRESETS.get(name, "gaussian"), **changes), real_clouds(options)
    ways = ((make, config, real, options.device) for make in (ours_iteration, published_iteration))
    pairs, peak = in_turns(*ways, options.rounds)
    network, batch = config.network, config.objective.real_batch
    settings = {
        "network": network.name,
        "layers": network.layers,
        "width": network.width,
        "real_batch": batch,
    }
    settings |= {
        "real_precision": config.objective.real_precision,
        "classes": 10,
        "points": config.clouds.points_per_cloud,
    }
    settings |= {"real_gradients": config.objective.real_gradients}
    operations = 10 * batch * limits.training_operations(28, network.width, network.layers)
    floor = (
        operations / options.rates[config.objective.real_precision] if name not in PRESETS else None
    )
    return {"settings": settings, **compared(pairs, peak, floor)}


def evaluation(name: str, options: argparse.Namespace) -> dict:
    """Compare 20 classifiers, 1,001 epochs, 10 clouds with one classifier after another.

    Measures some of the epochs and scales the seconds to all of them.
    """
    ways = (
        (make, options.epochs, options.device) for make in (ours_evaluation, published_evaluation)
    )
    pairs, peak = in_turns(*ways, options.rounds)
    scale = EPOCHS / options.epochs
    pairs = [(scale * engine, scale * yardstick) for engine, yardstick in pairs]
    operations = EPOCHS * CLASSIFIERS * 10 * limits.training_operations(28, 128, 3, first_padding=3)
    settings = {
        "classifiers": CLASSIFIERS,
        "epochs": EPOCHS,
        "measured_epochs": options.epochs,
        "clouds": 10,
        "width": 128,
    }
    return {"settings": settings, **compared(pairs, peak, operations / options.rates["float32"])}


def growth(name: str, options: argparse.Namespace) -> dict:
    """Measure an iteration while one size doubles four times.

    Returns seconds and exponents. An exponent of 1 means that the cost doubles too.
    """
    rows = {}
    for size, (start, setting) in DOUBLED.items():
        values, seconds = [start * 2**doubling for doubling in range(5)], []
        for value in values:
            changes = {
                "network.width": 16,
                "objective.real_batch": 16,
                "clouds.points_per_cloud": 50,
            }
            changes |= {setting: value} if setting else {}
            real = scattered(classes=value if size == "classes" else 8).to(options.device)
            seconds.append(
                limits.best_seconds(
                    ours_iteration(matching_config(**changes), real, options.device), options.device
                )
            )
        rows[size] = {
            "values": values,
            "seconds": seconds,
            "exponents": [math.log2(after / before) for before, after in pairwise(seconds)],
        }
    return {"settings": {"width": 16, "real_batch": 16, "points": 50, "classes": 8}, "rows": rows}


def scattered(classes: int) -> PointClouds:
    """Return 256 clouds of 100 random points per class. They replace real ones for timing."""
    labels = [label for label in range(classes) for _ in range(256)]
    return grids.scattered(
        [100] * len(labels), labels, (1, 28, 28), tuple(map(str, range(classes))), generator(0)
    )


def records(name: str, options: argparse.Namespace) -> dict:
    """Compare a run with its folder, steps, checkpoints and health to a plain loop over `distill`.

    Scoring is not measured.
    """
    iterations = 50
    config = pcdd.override(pcdd.preset("gaussian").config, {"schedule.iterations": iterations})
    real = real_clouds(options)

    def recorded() -> float:
        with tempfile.TemporaryDirectory() as folder:
            few = {
                "evaluation.networks": 1,
                "evaluation.epochs": 1,
                "evaluation.classifier.width": 1,
                "evaluation.protocols": ["standard"],
            }
            run_folder = pcdd.run(
                pcdd.override(config, few),
                "run",
                f"{folder}/run",
                options.data,
                str(options.device),
                progress=Progress(quiet=True),
            )
            return pcdd.read_record(run_folder / "record.json")["seconds"]["distillation"]

    def bare() -> float:
        return seconds_of(
            lambda: [None for _ in config.distill(real, options.device)], options.device
        )

    pairs = [(recorded(), bare()) for _ in range(options.rounds + 1)][1:]
    overhead = median(with_records / without - 1 for with_records, without in pairs)
    return {
        "settings": {"preset": "gaussian", "iterations": iterations},
        "pairs_s": pairs,
        "overhead": overhead,
    }


def volume(name: str, options: argparse.Namespace) -> dict:
    """Measure sparse networks on grids of increasing size, and with increasing numbers of points.

    All grids have the same number of points. On the second largest grid the number of points
    increases. Each measurement is a forward pass and a first derivative for 256 clouds. On a CPU,
    peak memory includes the libraries, about 400 MiB. The dense network is left out if it would
    need too much memory, and MinkowskiEngine if it is not installed for the device.
    """
    rows = []
    ways = ["sparse", *(["minkowski"] if has_minkowski(options.device) else []), "torch"]
    for grid, points in [
        *((grid, 250) for grid in GRIDS),
        *((GRIDS[-2], points) for points in (500, 1000, 2000)),
    ]:
        # bytes of some outputs of the first layer of a dense network
        needed = CLOUDS * 32 * math.prod(grid) * 4 * 4
        with contextlib.ExitStack() as running:
            taking_turns = {
                way: running.enter_context(Process(sparse_work, way, grid, points, options.device))
                for way in ways if way != "torch" or needed < 12 * 2**30
            }  # fmt: skip
            rounds = [
                {way: work.seconds() for way, work in taking_turns.items()}
                for _ in range(options.rounds + 1)
            ][1:]
            for way, work in taking_turns.items():
                seconds = min(each[way] for each in rounds)
                rows.append(
                    {
                        "way": way,
                        "grid": grid,
                        "points": points,
                        "seconds": seconds,
                        "peak_bytes": work.peak(),
                    }
                )
    return {"settings": {"layers": 3, "width": 32, "clouds": CLOUDS}, "rows": rows}


GRIDS = ((1, 28, 28), (32, 32, 32), (64, 64, 64), (128, 128, 128))
CLOUDS = 256


def sparse_work(
    way: str, grid: tuple[int, int, int], points: int, device: torch.device
) -> Callable[[], object]:
    """Return a function: forward pass and first derivative of a network for scattered clouds.

    way: name of the network
    """
    machine.keep_freed_memory()
    network = Network.of({"name": way, "pooling": "max"}).new(3, grid, 10, generator(0)).to(device)
    clouds = grids.scattered(
        [points] * CLOUDS, [0] * CLOUDS, grid, tuple("0123456789"), generator(1)
    ).to(device)
    tensor = sparse.from_points(
        clouds.coordinates, clouds.coordinates, clouds.cloud_index, CLOUDS, grid
    )
    return lambda: torch.autograd.grad(
        F.cross_entropy(network(tensor), clouds.labels), list(network.parameters())
    )


def start_up(name: str, options: argparse.Namespace) -> dict:
    """Measure the seconds of `pcdd --help` and of `import pcdd_core`, each in a new process."""
    commands = {
        "pcdd --help": ["-m", "pcdd_core", "--help"],
        "import pcdd_core": ["-c", "import pcdd_core"],
    }
    rows = {}
    for label, arguments in commands.items():
        command = [sys.executable, *arguments]
        run = partial(subprocess.run, command, check=True, capture_output=True)
        rows[label] = limits.best_seconds(run, torch.device("cpu"))
    return {"settings": {}, "rows": rows}


def real_clouds(options: argparse.Namespace) -> PointClouds:
    """Return the training clouds of MNIST. With `--small`: of scikit-learn's digits."""
    data = pcdd.Digits() if options.small else pcdd.Mnist(max_points=250)
    return data.load(options.data).train


def has_minkowski(device: torch.device) -> bool:
    """Return whether MinkowskiEngine is installed, and built for this kind of device."""
    try:
        engine = minkowski.engine()
        return device.type == "cpu" or engine.is_cuda_available()
    except EngineMissing:
        return False


BENCHMARKS = {
    "iteration-convnet3": iteration,
    "evaluation-ensemble": evaluation,
    "iteration-convnet3-float32": iteration,
    "iteration-small": iteration,
    "iteration-paper-torch-3": iteration,
    "iteration-paper-minkowski-2": iteration,
    "iteration-paper-pool": iteration,
    "growth": growth,
    "volume": volume,
    "records": records,
    "start-up": start_up,
}


def markdown(results: list[dict]) -> str:
    """Format the tables of docs/benchmarks.md: benchmarks with a yardstick, and `volume`."""
    lines = [
        ["", "ours", "published way", "ratio", "share of the floor's rate", "peak memory"],
        ["---"] * 6,
    ]
    for row in results:
        if "ratio" in row:
            lines.append(
                [
                    row["name"],
                    f"{row['ours_s']:.3g} s",
                    f"{row['yardstick_s']:.3g} s",
                    f"{row['ratio']:.2f}",
                    f"{row['floor_fraction']:.0%}" if row["floor_fraction"] else "",
                    _memory(row["peak_bytes"]),
                ]
            )
    tables = [lines]
    for row in results:
        if row["name"] == "volume":
            cases = list(
                dict.fromkeys((tuple(case["grid"]), case["points"]) for case in row["rows"])
            )
            ways = list(dict.fromkeys(case["way"] for case in row["rows"]))
            tables.append([["grid", "points per cloud", *ways], ["---"] * (2 + len(ways))])
            for grid, points in cases:
                of_way = {
                    case["way"]: case
                    for case in row["rows"]
                    if (tuple(case["grid"]), case["points"]) == (grid, points)
                }
                entries = [
                    f"{of_way[way]['seconds']:.2f} s, {_memory(of_way[way]['peak_bytes'])}"
                    if way in of_way
                    else "too large"
                    for way in ways
                ]
                tables[-1].append([" x ".join(map(str, grid)), str(points), *entries])
    return "\n\n".join(
        "\n".join("| " + " | ".join(line) + " |" for line in lines) for lines in tables
    )


def _memory(amount: int) -> str:
    return f"{amount / 2**20:.0f} MiB"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=BENCHMARKS,
        default=list(BENCHMARKS),
        metavar="NAME",
        help=", ".join(BENCHMARKS),
    )
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--epochs",
        type=int,
        default=5,
        help="epochs to measure of the 1,001 of the evaluation (%(default)s)",
    )
    parser.add_argument("--device", default=None)
    parser.add_argument(
        "--output", type=Path, help="file of the results (default: benchmarks/results/DEVICE.json)"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, without MNIST: only tries the script"
    )
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    machine.keep_freed_memory()
    options.rates = limits.rates(options.device, shrink=16 if options.small else 1)
    path = options.output or HERE / "results" / f"{options.device.type}.json"
    kept = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    place = machine.describe(options.device)
    for name in options.only:
        load, begun = os.getloadavg()[0], time.monotonic()
        result = BENCHMARKS[name](name, options)
        about = {
            "rates": options.rates,
            "cores": os.cpu_count(),
            "load_before": load,
            "seconds": time.monotonic() - begun,
        }
        kept[name] = {"name": name, **place, **result, **about}
        atomic_write_text(
            path, json.dumps([kept[name] for name in BENCHMARKS if name in kept], indent=1)
        )
        print(f"{name}: {result.get('ratio', '')} {time.monotonic() - begun:.0f} s", flush=True)
    print(markdown([kept[name] for name in BENCHMARKS if name in kept]))


if __name__ == "__main__":
    main()
