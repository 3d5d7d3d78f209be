"""A step of training PointNet: ours, beside the same network laid out plainly by torch's layers.

    python benchmarks/pointnet.py        (about a minute)

Both have the same weights and see the same 8 clouds; ours computes its widest layer's derivative at the largest points only. The two
take turns, so that a noisy machine harms both alike. Writes benchmarks/records/pointnet-<device>.json and prints a table.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from pcdd_core import machine
from pcdd_core.files import atomic_write_text
from pcdd_core.point_networks import PointNet

CLOUDS, CLASSES = 8, 10


class Plain(nn.Module):
    """The same computation, every layer at every point."""

    def __init__(self, ours: PointNet):
        super().__init__()
        layers = []
        for linear, norm in zip(ours.layers, ours.norms):
            layers += [
                _at_points(linear),
                nn.InstanceNorm1d(linear.out_features, affine=True),
                nn.ReLU(),
            ]
            layers[-2].load_state_dict(norm.state_dict())
        self.layers, self.head = nn.Sequential(*layers, _at_points(ours.last)), ours.head

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
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    network.zero_grad()
    network(points).logsumexp(1).mean().backward()
    if points.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def markdown(rows: list[dict]) -> str:
    """A line per number of points."""
    lines = [["points of a cloud", "ours", "plainly", "ratio"], ["---"] * 4]
    for row in rows:
        ours, plain = (f"{1000 * median(row[way]):.0f} ms" for way in ("ours", "plain"))
        lines.append([f"{row['points']:,}", ours, plain, f"{row['ratio']:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    device = machine.choose_device(options.device)
    torch.set_num_threads(
        1
    )  # as networks run in a distillation and an evaluation: side by side, each in one thread
    machine.keep_freed_memory()
    begun, rows = time.monotonic(), []
    for count in (128, 1024):
        torch.manual_seed(0)
        ours = PointNet(CLASSES)
        networks, points = (
            {"ours": ours.to(device), "plain": Plain(ours).to(device)},
            torch.rand(CLOUDS, count, 3, device=device) * 2 - 1,
        )
        with torch.no_grad():
            apart = float(
                (networks["ours"](points) - networks["plain"](points)).abs().max()
            )  # by bfloat16's choice of points
        seconds = {way: [] for way in networks}
        for _ in range(options.rounds + 2):  # the first two warm up and are dropped
            for way, network in networks.items():
                seconds[way].append(step(network, points))
        kept = {way: found[2:] for way, found in seconds.items()}
        ratio = median(plain / own for own, plain in zip(kept["ours"], kept["plain"]))
        rows.append(
            {"points": count, **kept, "ratio": ratio, "largest_difference_of_logits": apart}
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
