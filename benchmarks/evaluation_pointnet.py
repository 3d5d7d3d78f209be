"""Compare training of the networks of protocol `sadm` with the same networks laid out plainly.

    python benchmarks/evaluation_pointnet.py        (some minutes)

Ours are the 10 PointNets of `pcdd_core.nn.published_pointnet`, in parallel threads. The plain ones
have Conv1d, BatchNorm1d and a maximum over all points, and train one after another, with all
threads for each. Both have the same weights, clouds, batches and step size. The two take turns in
one process, so that noise on the machine affects both alike. A ratio is the median over the turns.
Writes benchmarks/records/evaluation-pointnet-<device>.json and prints a table.
"""

import argparse
import copy
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write_text
from pcdd_core.nn.classifiers import Separate
from pcdd_core.nn.published_pointnet import PublishedPointNet, SharedLayers
from pcdd_core.scoring import evaluate as evaluation
from pcdd_core.seeds import generator
from pcdd_core.threads import threads_for

CLASSES = 10
SETS = ((10, 1024), (80, 128))  # clouds and points per cloud: one cloud per class, and its split


class PlainSharedLayers(nn.Module):
    """The shared layers as Conv1d, BatchNorm1d and a maximum over all points.

    layers: the layers whose parameters and statistics are used
    """

    def __init__(self, layers: SharedLayers):
        super().__init__()
        linear = (layers.narrow[0][0], layers.narrow[1][0], layers.wide)
        self.norms = nn.ModuleList((layers.narrow[0][1], layers.narrow[1][1], layers.norm))
        self.layers = nn.ModuleList(
            nn.Conv1d(layer.in_features, layer.out_features, 1) for layer in linear
        )
        for own, layer in zip(self.layers, linear):
            own.weight, own.bias = nn.Parameter(layer.weight[..., None].detach()), layer.bias

    def forward(self, points: Tensor) -> Tensor:
        """Return the maximum of each channel over the points: (clouds, 1024).

        points: (clouds, points, 3)
        """
        hidden = points.transpose(1, 2)
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            hidden = norm(layer(hidden))
            hidden = hidden.relu() if number < 2 else hidden
        return hidden.max(2).values


def plain(network: PublishedPointNet) -> PublishedPointNet:
    """Return a copy of the network, with its state, whose shared layers are laid out plainly."""
    copied = copy.deepcopy(network)
    copied.transform = PlainSharedLayers(copied.transform)
    copied.shared = PlainSharedLayers(copied.shared)
    return copied


def train_ours(networks: list[nn.Module], inputs: Tensor, labels: Tensor) -> None:
    """Train the networks for an epoch as the evaluation does."""
    shares = Separate(networks).split(threads_for(inputs.device))
    protocol = replace(evaluation.SADM, epochs=1)
    evaluation._train(
        shares, inputs, labels, lambda batch, draws: batch, protocol, 0, lambda fraction: None
    )


def train_one_after_another(networks: list[nn.Module], inputs: Tensor, labels: Tensor) -> None:
    """Train the networks for an epoch, one after another."""
    for number, network in enumerate(networks):
        optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        order = torch.rand(1, len(inputs), generator=generator(0, number)).argsort(1)
        batches = evaluation._batches(
            order.to(inputs.device), evaluation.SADM.batch, Separate([network])
        )
        for (chosen,) in batches:
            optimiser.zero_grad()
            F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
            optimiser.step()


WAYS = {"ours": train_ours, "plain": train_one_after_another}


def measure(clouds: int, points: int, count: int, rounds: int, device: torch.device) -> dict:
    """Return the seconds of an epoch of `count` networks both ways, and their ratio."""
    draws = generator(0, "clouds")
    inputs = torch.randn(clouds, points, 3, generator=draws).to(device) / 3
    labels = torch.arange(clouds, device=device) % CLASSES
    torch.manual_seed(0)
    ours = [PublishedPointNet(CLASSES, generator(number)) for number in range(count)]
    networks = {way: nn.ModuleList(ours if way == "ours" else map(plain, ours)) for way in WAYS}
    seconds = {way: [] for way in WAYS}
    for way in networks:
        networks[way].to(device)
    for _ in range(1 + rounds):  # the first one warms up and is dropped
        for way, train in WAYS.items():
            start = time.perf_counter()
            train(list(networks[way]), inputs, labels)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    kept = {way: measured[1:] for way, measured in seconds.items()}
    ratio = median(slow / fast for fast, slow in zip(kept["ours"], kept["plain"]))
    return {"clouds": clouds, "points": points, "networks": count, **kept, "ratio": ratio}


def markdown(rows: list[dict]) -> str:
    """Format a table with one line per training set."""
    lines = [["training set", "networks", "ours", "one after another", "ratio"], ["---"] * 5]
    for row in rows:
        ours, plainly = (f"{median(row[way]):.2f} s" for way in WAYS)
        what = f"{row['clouds']} clouds of {row['points']:,} points"
        lines.append([what, str(row["networks"]), ours, plainly, f"{row['ratio']:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", type=int, default=evaluation.SADM.networks)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    device = machine.choose_device(options.device)
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    begun = time.monotonic()
    rows = [measure(*size, options.networks, options.rounds, device) for size in SETS]
    record = {
        "command": "python benchmarks/evaluation_pointnet.py",
        "settings": {"networks": options.networks, "rounds": options.rounds},
        "machine": machine.describe(device) | {"cores": os.cpu_count(), "threads": options.threads},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    atomic_write_text(
        Path(__file__).parent / "records" / f"evaluation-pointnet-{device.type}.json",
        json.dumps(record, indent=1),
    )
    print(markdown(rows))


if __name__ == "__main__":
    main()
