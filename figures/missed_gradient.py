"""How much of the coordinates' true gradient MinkowskiEngine misses, on real MNIST clouds: per layer, depth and distance.

    python figures/missed_gradient.py --data DIR

For the paper's networks of 2, 3 and 4 layers and its two distances, 3 seeds: at the scatter that a run starts from, at the
paper's scale and at the small one, and at the end of each small run, where runs/ holds it (`make tables`). Writes
figures/records/missed-gradient.json, figures/tables/missed-gradient.csv and figures/missed-gradient.png, and prints the
README's table. About 6 minutes on 2 cores.
"""

import argparse
import csv
import io
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import pcdd_core as pcdd
from pcdd_core import machine
from pcdd_core.config import override, to_dict
from pcdd_core.distillation import initial_clouds
from pcdd_core.figures import save
from pcdd_core.files import atomic_write_text
from pcdd_core.second_order import missed_gradient

HERE = Path(__file__).parent
DEPTHS = (2, 3, 4)
DISTANCES = ("sum-of-squares", "layerwise-cosine")


def measure(options: argparse.Namespace) -> list[dict]:
    """A row per preset, moment and seed, with what `missed_gradient` returns."""
    rows = []
    for distance in DISTANCES:
        for depth in DEPTHS:
            for suffix in ("", "-small"):
                name = f"paper-minkowski-{depth}-{distance}{suffix}"
                for seed in range(options.seeds):
                    config = override(pcdd.preset(name).config, {"seed": seed})
                    real = pcdd.load_data(config.data, options.data).train
                    moments = {"start": (initial_clouds(config, real), 0)}
                    run = Path(options.runs) / f"{name}-seed{seed}" / "clouds.npz"
                    if run.exists():
                        moments["end"] = (pcdd.load_clouds(run), config.schedule.iterations - 1)
                    for moment, (clouds, iteration) in moments.items():
                        begun = time.monotonic()
                        found = missed_gradient(config, real, clouds, options.device, iteration)
                        about = {"name": name, "layers": depth, "distance": distance, "seed": seed, "moment": moment}
                        rows.append(about | found | {"seconds": time.monotonic() - begun})
                        print(f"{name}, seed {seed}, {moment}: missed {found['missed']:.3f}", flush=True)
    return rows


def table(rows: list[dict]) -> list[dict]:
    """Means and standard deviations over seeds: a row per preset, moment and layer, the whole network as `all`."""
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        whole = {"share": 1.0, "missed": row["missed"], "cosine": row["cosine"]}
        for layer, found in {"all": whole, **row["layers"]}.items():
            cells.setdefault((row["name"], row["moment"], layer), []).append(found)
    lines = []
    for (name, moment, layer), found in cells.items():
        line = {"name": name, "moment": moment, "layer": layer, "seeds": len(found)}
        for key in ("share", "missed", "cosine"):
            values = [one[key] for one in found if key in one]
            line[key] = f"{np.mean(values):.4f}" if values else ""
            line[f"{key} sd"] = f"{np.std(values):.4f}" if values else ""
        lines.append(line)
    return lines


def markdown(rows: list[dict]) -> str:
    """The whole networks at the paper's scale, at the start: a column per depth, percentages and cosines over seeds."""
    lines = [["", *(f"{depth} layers" for depth in DEPTHS)], ["---"] * (len(DEPTHS) + 1)]
    for distance in DISTANCES:
        cells = []
        for depth in DEPTHS:
            name = f"paper-minkowski-{depth}-{distance}"
            found = [row for row in rows if row["name"] == name and row["moment"] == "start"]
            missed, cosines = [100 * row["missed"] for row in found], [row["cosine"] for row in found]
            cells.append(f"{np.mean(missed):.1f} ± {np.std(missed):.1f} % (cosine {np.mean(cosines):.4f})")
        lines.append([distance.replace("-", " "), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: list[dict]) -> plt.Figure:
    """The missed share against depth: a panel per distance, a line per scale and moment, seeds as a band."""
    figure, panels = plt.subplots(1, len(DISTANCES), figsize=(9, 3.4), sharey=True, layout="constrained")
    kinds = [("", "start", "paper's scale, start"), ("-small", "start", "small, start"), ("-small", "end", "small, end")]
    for panel, distance in zip(panels, DISTANCES):
        for suffix, moment, label in kinds:
            chosen = {
                depth: [
                    row["missed"]
                    for row in rows
                    if row["name"] == f"paper-minkowski-{depth}-{distance}{suffix}" and row["moment"] == moment
                ]
                for depth in DEPTHS
            }
            if all(chosen.values()):
                means = [np.mean(values) for values in chosen.values()]
                deviations = [np.std(values) for values in chosen.values()]
                panel.errorbar(DEPTHS, means, deviations, marker="o", capsize=3, label=label)
        panel.set(title=distance.replace("-", " "), xlabel="layers", xticks=DEPTHS, ylim=(0, 1.05))
    panels[0].set_ylabel("share of the gradient missed")
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--runs", default="runs", help="where the small runs are (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    begun = time.monotonic()
    rows = measure(options)
    record = {
        "name": "missed-gradient",
        "command": "python figures/missed_gradient.py",
        "configs": {name: to_dict(pcdd.preset(name).config) for name in dict.fromkeys(row["name"] for row in rows)},
        "machine": machine.describe(options.device),
        "seconds": time.monotonic() - begun,
        "peak_memory_bytes": machine.peak_memory(options.device),
        "rows": rows,
    }
    atomic_write_text(HERE / "records" / "missed-gradient.json", json.dumps(record, indent=1))
    lines, text = table(rows), io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    atomic_write_text(HERE / "tables" / "missed-gradient.csv", text.getvalue())
    save(draw(rows), HERE / "missed-gradient.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
