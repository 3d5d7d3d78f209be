"""Compare a training step of our PointNet with the same network from torch's layers.

    python benchmarks/pointnet.py        (about a minute)

Both networks have the same weights and the same 8 clouds as input. Ours computes the derivative of
its widest layer only at the points with the largest features. The two take turns, so that noise on
the machine affects both alike. Writes benchmarks/records/pointnet-<device>.json and prints a table.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write_text
from pcdd_core.nn.points import PointNet

CLOUDS, CLASSES = 8, 10


class Plain(nn.Module):
    """The same computation with every layer at every point.

    network: network whose weights are copied
    """

    def __init__(self, network: PointNet):
        super().__init__()
        layers = []
        for linear, norm in zip(network.layers, network.norms):
            layers += [
                _at_points(linear),
                nn.InstanceNorm1d(linear.out_features, affine=True),
                nn.ReLU(),
            ]
            layers[-2].load_state_dict(norm.state_dict())
        self.layers, self.head = nn.Sequential(*layers, _at_points(network.last)), network.head

    def forward(self, points: Tensor) -> Tensor:
        """points: (clouds, points, 3); returns (clouds, classes)."""
        return self.head(self.layers(points.transpose(1, 2)).amax(2))


def _at_points(linear: nn.Linear) -> nn.Conv1d:
    convolution = nn.Conv1d(linear.in_features, linear.out_features, 1)
    convolution.weight.data, convolution.bias.data = (
        linear.weight.data[..., None].clone(),
        linear.bias.data.clone(),
    )
    return convolution


def step(network: nn.Module, points: Tensor) -> float:
    """Return the seconds of a forward and a backward pass. points: (clouds, points, 3)."""
    start = time.perf_counter()
    network.zero_grad()
    network(points).logsumexp(1).mean().backward()
    if points.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def markdown(rows: list[dict]) -> str:
    """Format a table with one line per number of points."""
    lines = [["points of a cloud", "ours", "plainly", "ratio"], ["---"] * 4]
    for row in rows:
        engine, plain = (f"{1000 * median(row[way]):.0f} ms" for way in ("ours", "plain"))
        lines.append([f"{row['points']:,}", engine, plain, f"{row['ratio']:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    device = machine.choose_device(options.device)
    # distillation and evaluation run networks in parallel, each in one thread
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    begun, rows = time.monotonic(), []
    for count in (128, 1024):
        torch.manual_seed(0)
        engine = PointNet(CLASSES)
        networks, points = (
            {"ours": engine.to(device), "plain": Plain(engine).to(device)},
            torch.rand(CLOUDS, count, 3, device=device) * 2 - 1,
        )
        with torch.no_grad():
            # they differ because the engine selects points in bfloat16
            difference = float((networks["ours"](points) - networks["plain"](points)).abs().max())
        seconds = {way: [] for way in networks}
        for _ in range(options.rounds + 2):  # the first two warm up and are dropped
            for way, network in networks.items():
                seconds[way].append(step(network, points))
        kept = {way: measured[2:] for way, measured in seconds.items()}
        ratio = median(plain / own for own, plain in zip(kept["ours"], kept["plain"]))
        rows.append(
            {"points": count, **kept, "ratio": ratio, "largest_difference_of_logits": difference}
        )
    record = {
        "command": "python benchmarks/pointnet.py",
        "settings": {"clouds": CLOUDS, "rounds": options.rounds},
        "machine": machine.describe(device) | {"cores": os.cpu_count()},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    atomic_write_text(
        Path(__file__).parent / "records" / f"pointnet-{device.type}.json",
        json.dumps(record, indent=1),
    )
    print(markdown(rows))


if __name__ == "__main__":
    main()
