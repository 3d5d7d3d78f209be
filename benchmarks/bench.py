"""How fast the engine is, beside the published way of writing it and beside what the machine could do.

    make bench        (python benchmarks/bench.py --help: some of it, other devices)

Ours and the yardstick take turns, so that a noisy machine harms both alike, each in a process of its own, because how ours uses
memory would help both; a ratio is the median over the pairs. The yardsticks are in published_style.py, the machine's own
limits are measured by limits.py.
Writes benchmarks/results/<device>.json, a list with one object per benchmark, and prints the README's table. Needs MNIST.
"""

import argparse
import contextlib
import importlib.util
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
from pcdd_core import machine, sparse
from pcdd_core.clouds import PointClouds, members_per_class, scatter
from pcdd_core.config import Config, DataConfig, EvaluationConfig, NetworkConfig
from pcdd_core.evaluation import evaluate, project
from pcdd_core.files import atomic_write_text
from pcdd_core.networks import build_network
from pcdd_core.randomness import generator
from pcdd_core.runs import Progress

HERE = Path(__file__).parent
# Gradient matching, one cloud of 250 points per class: the field's setting, the same in float32 only, preset `gaussian`'s, and
# the paper's two architectures, of which MinkowskiEngine's is ours by `sparse`, with all second derivatives. The last row is the
# paper's PyTorch network with real gradients from a pool, against fresh ones in the published way.
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
FILLED = 60  # iterations after which nearly every pool of 8 batches for 10 classes is full
CLASSIFIERS, EPOCHS = 20, 1001
DOUBLED = {  # what grows, from which value, and the setting that says so
    "points per cloud": (50, "clouds.points_per_cloud"),
    "clouds per class": (1, "clouds.clouds_per_class"),
    "classes": (2, None),
    "real batch": (16, "objective.real_batch"),
}


def matching_config(preset: str = "gaussian", **changes) -> Config:
    """A preset without an end, with spots of one width and one network."""
    still = {
        "lift.bandwidth_start": 0.5, "lift.bandwidth_end": 0.5, "schedule.iterations": 10**6,
        "schedule.iterations_per_network": 0,
    }  # fmt: skip
    return pcdd.override(pcdd.preset(preset).config, {**still, **changes})


def ours_iteration(config: Config, real: PointClouds, device: torch.device) -> Callable[[], object]:
    """Each call makes one iteration; a pool of real gradients is filled before the first."""
    machine.keep_freed_memory()
    steps = pcdd.distill(config, real, device)
    if config.objective.real_gradients != "fresh":
        for _ in range(FILLED):
            next(steps)
    return lambda: next(steps)


def published_iteration(
    config: Config, real: PointClouds, device: torch.device
) -> Callable[[], object]:
    """The same work in the published way."""
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
    elif network.backend == "torch":
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
    """Each call trains 20 classifiers on the 10 clouds of `mnist-1`, and looks at one cloud with them."""
    machine.keep_freed_memory()
    clouds, settings = (
        pcdd.released("mnist-1"),
        EvaluationConfig(protocols=["standard"], networks=CLASSIFIERS, epochs=epochs),
    )
    return lambda: evaluate(clouds, clouds.select(torch.arange(1)), settings, 0, device)


def published_evaluation(epochs: int, device: torch.device) -> Callable[[], object]:
    """The same in the published way: one classifier after another."""
    images, labels = (
        project(pcdd.released("mnist-1")).to(device),
        pcdd.released("mnist-1").labels.to(device),
    )
    return lambda: [
        published_style.train_classifier(images, labels, 128, epochs) for _ in range(CLASSIFIERS)
    ]


class Process:
    """A process that makes some work, once, and then does it whenever asked to."""

    def __init__(self, make: Callable, *arguments):
        self.pool = multiprocessing.get_context("spawn").Pool(1)
        self.pool.apply(_make, (make, arguments))

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self.pool.terminate()

    def seconds(self) -> float:
        """Do it; seconds."""
        return self.pool.apply(_do)

    def peak(self) -> int:
        """Bytes at the peak so far, the libraries and the data included on a CPU."""
        return self.pool.apply(_peak)


_work: list = []  # in such a process: what to do, and on which device


def _make(make: Callable, arguments: tuple) -> None:
    _work[:] = make(*arguments), arguments[-1]


def _do() -> float:
    return seconds_of(*_work)


def _peak() -> int:
    return machine.peak_memory(_work[1])


def in_turns(ours: tuple, yardstick: tuple, rounds: int) -> tuple[list[tuple[float, float]], int]:
    """Seconds of both, round by round, and the peak memory of ours; the first round warms up and is dropped."""
    with Process(*ours) as mine, Process(*yardstick) as theirs:
        found = [(mine.seconds(), theirs.seconds()) for _ in range(rounds + 1)]
        return found[1:], mine.peak()


def compared(found: list[tuple[float, float]], peak: int, floor: float | None) -> dict:
    """What the results say of a comparison. floor: seconds that the operations would take that cannot be left out, if counted."""
    ours = median(pair[0] for pair in found)
    return {
        "ours_s": ours,
        "yardstick_s": median(pair[1] for pair in found),
        "ratio": median(theirs / mine for mine, theirs in found),
        "pairs_s": found,
        "floor_s": floor,
        "floor_fraction": floor and floor / ours,
        "peak_bytes": peak,
    }


def iteration(name: str, options: argparse.Namespace) -> dict:
    """An iteration of gradient matching, against the published way; the floor is the real clouds' part alone, of dense ConvNets."""
    config, real = (
        matching_config(PRESETS.get(name, "gaussian"), **ITERATIONS[name]),
        mnist(options.data),
    )
    ways = ((make, config, real, options.device) for make in (ours_iteration, published_iteration))
    found, peak = in_turns(*ways, options.rounds)
    network, batch = config.network, config.objective.real_batch
    settings = {
        "backend": network.backend,
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
    return {"settings": settings, **compared(found, peak, floor)}


def evaluation(name: str, options: argparse.Namespace) -> dict:
    """20 classifiers, 1,001 epochs, 10 clouds, against one after another: some of the epochs, times what is missing."""
    ways = (
        (make, options.epochs, options.device) for make in (ours_evaluation, published_evaluation)
    )
    found, peak = in_turns(*ways, options.rounds)
    scale = EPOCHS / options.epochs
    found = [(scale * mine, scale * theirs) for mine, theirs in found]
    operations = EPOCHS * CLASSIFIERS * 10 * limits.training_operations(28, 128, 3, first_padding=3)
    settings = {
        "classifiers": CLASSIFIERS,
        "epochs": EPOCHS,
        "measured_epochs": options.epochs,
        "clouds": 10,
        "width": 128,
    }
    return {"settings": settings, **compared(found, peak, operations / options.rates["float32"])}


def growth(name: str, options: argparse.Namespace) -> dict:
    """Seconds of an iteration as one size is doubled four times, and the exponents: 1 where cost doubles as well."""
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
    """256 clouds of 100 points at random in each class, as real ones: only times matter."""
    labels = [label for label in range(classes) for _ in range(256)]
    return scatter(
        [100] * len(labels), labels, (1, 28, 28), tuple(map(str, range(classes))), generator(0)
    )


def records(name: str, options: argparse.Namespace) -> dict:
    """A run with its folder, steps, checkpoints and health, against the bare loop over `distill`; scoring is left out."""
    iterations = 50
    config = pcdd.override(pcdd.preset("gaussian").config, {"schedule.iterations": iterations})
    real = mnist(options.data)

    def recorded() -> float:
        with tempfile.TemporaryDirectory() as folder:
            few = {
                "evaluation.networks": 1,
                "evaluation.epochs": 1,
                "evaluation.width": 1,
                "evaluation.protocols": ["standard"],
            }
            done = pcdd.run(
                pcdd.override(config, few),
                "run",
                f"{folder}/run",
                options.data,
                str(options.device),
                progress=Progress(quiet=True),
            )
            return pcdd.read_record(done / "record.json")["seconds"]["distillation"]

    def bare() -> float:
        return seconds_of(
            lambda: [None for _ in pcdd.distill(config, real, options.device)], options.device
        )

    found = [(recorded(), bare()) for _ in range(options.rounds + 1)][1:]
    overhead = median(with_records / without - 1 for with_records, without in found)
    return {
        "settings": {"preset": "gaussian", "iterations": iterations},
        "pairs_s": found,
        "overhead": overhead,
    }


def volume(name: str, options: argparse.Namespace) -> dict:
    """The sparse network on ever larger grids with as many occupied cells, and with ever more cells on the largest grid but one.

    256 clouds, forward and first derivative; peak memory includes the libraries' own, some 400 MiB.
    A dense network is left out where it would need too much memory, MinkowskiEngine where it is not installed.
    """
    rows = []
    ways = [
        "sparse",
        *(["minkowski"] if importlib.util.find_spec("MinkowskiEngine") else []),
        "torch",
    ]
    for grid, points in [
        *((grid, 250) for grid in GRIDS),
        *((GRIDS[-2], points) for points in (500, 1000, 2000)),
    ]:
        needed = (
            CLOUDS * 32 * math.prod(grid) * 4 * 4
        )  # bytes: the first layer's outputs of a dense network, a few of them
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
    """Each call: a network's forward pass and first derivative on clouds scattered over a grid."""
    machine.keep_freed_memory()
    description = NetworkConfig(layers=3, width=32, norm="instance", backend=way)
    network = build_network(description, 3, grid, 10, generator(0)).to(device)
    clouds = scatter([points] * CLOUDS, [0] * CLOUDS, grid, tuple("0123456789"), generator(1)).to(
        device
    )
    tensor = sparse.from_points(
        clouds.coordinates, clouds.coordinates, clouds.cloud_index, CLOUDS, grid
    )
    return lambda: torch.autograd.grad(
        F.cross_entropy(network(tensor), clouds.labels), list(network.parameters())
    )


def start_up(name: str, options: argparse.Namespace) -> dict:
    """Seconds of `pcdd --help` and of `import pcdd_core`, each in a process of its own."""
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


def mnist(data: str | None) -> PointClouds:
    """Real clouds."""
    return pcdd.load_data(DataConfig(name="mnist", max_points=250), data).train


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
    """The README's tables: what has a yardstick; sparse networks on ever larger grids, and with ever more points."""
    lines = [
        ["", "ours", "published way", "ratio", "share of the floor's rate", "peak memory"],
        ["---"] * 6,
    ]
    for row in results:
        if "ratio" in row:
            lines.append([
                row["name"], f"{row['ours_s']:.3g} s", f"{row['yardstick_s']:.3g} s", f"{row['ratio']:.2f}",
                f"{row['floor_fraction']:.0%}" if row["floor_fraction"] else "", _memory(row["peak_bytes"]),
            ])  # fmt: skip
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
                found = [
                    f"{of_way[way]['seconds']:.2f} s, {_memory(of_way[way]['peak_bytes'])}"
                    if way in of_way
                    else "too large"
                    for way in ways
                ]
                tables[-1].append([" x ".join(map(str, grid)), str(points), *found])
    return "\n\n".join(
        "\n".join("| " + " | ".join(line) + " |" for line in lines) for lines in tables
    )


def _memory(amount: int) -> str:
    return f"{amount / 2**20:.0f} MiB"


def main() -> None:
    """The command."""
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
    parser.add_argument("--data", help="folder that holds MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--epochs",
        type=int,
        default=5,
        help="of the evaluation's 1,001 that are measured (%(default)s)",
    )
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    machine.keep_freed_memory()
    options.rates = limits.rates(options.device)
    path = HERE / "results" / f"{options.device.type}.json"
    path.parent.mkdir(exist_ok=True)
    kept = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    place = machine.describe(options.device)
    for name in options.only:
        load, begun = os.getloadavg()[0], time.monotonic()
        found = BENCHMARKS[name](name, options)
        about = {
            "rates": options.rates,
            "cores": os.cpu_count(),
            "load_before": load,
            "seconds": time.monotonic() - begun,
        }
        kept[name] = {"name": name, **place, **found, **about}
        atomic_write_text(
            path, json.dumps([kept[name] for name in BENCHMARKS if name in kept], indent=1)
        )
        print(f"{name}: {found.get('ratio', '')} {time.monotonic() - begun:.0f} s", flush=True)
    print(markdown([kept[name] for name in BENCHMARKS if name in kept]))


if __name__ == "__main__":
    main()
