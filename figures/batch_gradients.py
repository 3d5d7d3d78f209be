"""How much the paper's real gradient depends on the batch, on real MNIST clouds.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/batch_gradients.py --data DIR

For each network, class and seed the script draws 8 batches of 256 real clouds and computes their
gradients with respect to the weights. It measures the standard deviation of a batch gradient,
relative to the norm of the mean: over all batches, and over batches with equal origin shifts. From
this follows the relative error of the mean of a pool of N batches. Writes
figures/batch-gradients.json and prints the table of docs/paper.md. About 15 minutes on one core.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import pcdd_core as pcdd
from pcdd_core.engine.losses import real_gradients
from pcdd_core.experiments import machine
from pcdd_core.experiments.config import Config, override, to_dict
from pcdd_core.files import atomic_write_text
from pcdd_core.geometry.clouds import members_per_class

HERE = Path(__file__).parent
COMMAND = "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/batch_gradients.py"
NETWORKS: dict[str, tuple[str, dict]] = {
    "PyTorch, 3 layers": ("paper-torch-3-sum-of-squares", {}),
    "the same without the origin shift": (
        "paper-torch-3-sum-of-squares",
        {"network.origin_shift": False},
    ),
    "MinkowskiEngine, 2 layers": ("paper-minkowski-2-sum-of-squares", {}),
}
POOLS = (8, 32)  # numbers of batches in the pools whose errors the table states


def spread(gradients: torch.Tensor, shifts: list[tuple[int, ...]]) -> dict:
    """Return relative standard deviations of the gradients of one class.

    gradients: (batches, weights); shifts: the smallest occupied cell of each batch
    all: over all batches; same shift: over batches with equal shifts, None if no two are equal
    """
    scale = gradients.mean(0).norm()

    def deviations(chosen: torch.Tensor) -> float:
        return (chosen - chosen.mean(0)).square().sum().item()

    groups = [
        gradients[[number for number, other in enumerate(shifts) if other == shift]]
        for shift in set(shifts)
    ]
    free = len(gradients) - len(groups)
    within = sum(deviations(group) for group in groups)
    return {
        "shifts": len(groups),
        "all": float((deviations(gradients) / (len(gradients) - 1)) ** 0.5 / scale),
        "same shift": float((within / free) ** 0.5 / scale) if free else None,
    }


def measure(config: Config, batches: int, data: str | None, device: torch.device) -> list[dict]:
    """Return the `spread` of each class."""
    method, real = config.method, config.data.load(data).train.to(device)
    network, members = method.draw_network(real, number=0), members_per_class(real)
    lift = method.lift_at(0, real=True)
    drawn = [method.batch_at(real, members, number) for number in range(batches)]
    rows = []
    for label in range(len(members)):
        gradients, shifts = [], []
        for indices in drawn:
            clouds = real.select(indices.split(method.objective.real_batch)[label].to(device))
            parts = real_gradients(network, lift(clouds), clouds.labels)
            gradients.append(torch.cat([part.flatten() for part in parts]))
            shifts.append(tuple(clouds.coordinates.floor().long().amin(0).tolist()))
        rows.append({"class": real.class_names[label], **spread(torch.stack(gradients), shifts)})
    return rows


def markdown(rows: list[dict]) -> str:
    """Return a table with a row per network: means and standard deviations over seeds, in %."""
    errors = [f"error of the mean of {size} batches" for size in POOLS]
    lines = [["network", "one batch", "one batch, equal shifts", *errors], ["---"] * 5]

    def percent(by_seed: list[float], factor: float = 1.0) -> str:
        values = 100 * factor * np.array(by_seed)
        return f"{values.mean():.1f} ± {values.std():.1f} %"

    for name in dict.fromkeys(row["network"] for row in rows):
        by_seed: dict[str, list[float]] = {"all": [], "same shift": []}
        for seed in sorted({row["seed"] for row in rows}):
            of_seed = [row for row in rows if (row["network"], row["seed"]) == (name, seed)]
            for kind, means in by_seed.items():
                means.append(float(np.mean([row[kind] for row in of_seed if row[kind]])))
        columns = [percent(means) for means in by_seed.values()]
        columns += [percent(by_seed["all"], size**-0.5) for size in POOLS]
        lines.append([name, *columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that holds MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--seeds", type=int, default=3, help="networks (%(default)s)")
    parser.add_argument("--batches", type=int, default=8, help="batches per class (%(default)s)")
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    device = machine.choose_device(options.device)
    begun, rows, configs = time.monotonic(), [], {}
    for name, (preset, changed) in NETWORKS.items():
        for seed in range(options.seeds):
            config = override(pcdd.preset(preset).config, {**changed, "seed": seed})
            configs[name] = to_dict(config) | {"seed": 0}
            measured = measure(config, options.batches, options.data, device)
            rows += [{"network": name, "seed": seed, **row} for row in measured]
            print(f"{name}, seed {seed}: {time.monotonic() - begun:.0f} s", flush=True)
    record = {
        "name": "batch-gradients",
        "command": COMMAND,
        "batches": options.batches,
        "configs": configs,
        "machine": machine.describe(device),
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    atomic_write_text(HERE / "batch-gradients.json", json.dumps(record, indent=1) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
