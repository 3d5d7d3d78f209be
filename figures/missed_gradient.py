"""How much of the coordinates' true gradient MinkowskiEngine misses, on real MNIST clouds.

    python figures/missed_gradient.py --data DIR

Per layer, depth and distance, for the paper's networks of 2, 3 and 4 layers and its two distances,
3 seeds: at the scatter that a run starts from, and at the clouds that a run is scored by (moment
"end"), where the folder of that run is in --runs. The real batch is an eighth of the paper's: the
cost grows with it. Writes figures/missed-gradient.json, figures/tables/missed-gradient.csv
and figures/missed-gradient.png, and prints the table of docs/paper.md. About 2 minutes on one core.
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
from pcdd_core.experiments import machine
from pcdd_core.experiments.config import Config, override, to_dict
from pcdd_core.experiments.figures import save
from pcdd_core.experiments.runs import folder_name
from pcdd_core.experiments.scores import scored_iteration
from pcdd_core.experiments.second_order import missed_gradient
from pcdd_core.files import atomic_write_text

HERE = Path(__file__).parent
DEPTHS = (2, 3, 4)
DISTANCES = ("sum-of-squares", "layerwise-cosine")
MOMENTS = {"start": "at the start of a run", "end": "where a run is scored"}


def preset_name(depth: int, distance: str) -> str:
    """Of the paper's MinkowskiEngine network."""
    return f"paper-minkowski-{depth}-{distance}"


def measured_config(name: str, real_batch: int, seed: int = 0) -> Config:
    """The preset with fewer real clouds per class."""
    return override(pcdd.preset(name).config, {"objective.real_batch": real_batch, "seed": seed})


def measure(options: argparse.Namespace) -> list[dict]:
    """A row per preset, moment and seed, with what `missed_gradient` returns."""
    rows = []
    for distance in DISTANCES:
        for depth in DEPTHS:
            name = preset_name(depth, distance)
            for seed in range(options.seeds):
                config = measured_config(name, options.real_batch, seed)
                real = config.data.load(options.data).train
                moments = {"start": (config.start(real), 0)}
                run = override(pcdd.preset(name).config, {"seed": seed})
                end = Path(options.runs) / folder_name(name, run) / "clouds.npz"
                if end.exists():
                    moments["end"] = (pcdd.load_clouds(end), scored_iteration(run))
                about = {"name": name, "layers": depth, "distance": distance, "seed": seed}
                for moment, (clouds, iteration) in moments.items():
                    begun = time.monotonic()
                    found = missed_gradient(config.method, real, clouds, options.device, iteration)
                    seconds = {"seconds": time.monotonic() - begun}
                    rows.append(about | {"moment": moment} | found | seconds)
                    print(f"{name}, seed {seed}, {moment}: {found['missed']:.3f}", flush=True)
    return rows


def table(rows: list[dict]) -> list[dict]:
    """A row per preset, moment and layer: means and standard deviations over seeds.

    The whole network is the layer `all`.
    """
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


def rows_of(rows: list[dict], depth: int, distance: str, moment: str) -> list[dict]:
    """One per seed."""
    kind = (preset_name(depth, distance), moment)
    return [row for row in rows if (row["name"], row["moment"]) == kind]


def markdown(rows: list[dict]) -> str:
    """The whole networks at the start: a column per depth, percentages and cosines over seeds."""
    lines = [["", *(f"{depth} layers" for depth in DEPTHS)], ["---"] * (len(DEPTHS) + 1)]
    for distance in DISTANCES:
        cells = []
        for depth in DEPTHS:
            found = rows_of(rows, depth, distance, "start")
            missed = [100 * row["missed"] for row in found]
            cosine = np.mean([row["cosine"] for row in found])
            percent = f"{np.mean(missed):.1f} ± {np.std(missed):.1f} %"
            cells.append(f"{percent} (cosine {cosine:.4f})")
        lines.append([distance.replace("-", " "), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: list[dict]) -> plt.Figure:
    """The missed share against depth: a panel per distance, a line per moment, seeds as a band."""
    figure, panels = plt.subplots(1, len(DISTANCES), figsize=(9, 3.4), layout="constrained")
    for panel, distance in zip(panels, DISTANCES):
        for moment, label in MOMENTS.items():
            found = {depth: rows_of(rows, depth, distance, moment) for depth in DEPTHS}
            missed = {depth: [100 * row["missed"] for row in kind] for depth, kind in found.items()}
            missed = {depth: values for depth, values in missed.items() if values}
            if missed:
                means = [np.mean(values) for values in missed.values()]
                deviations = [np.std(values) for values in missed.values()]
                panel.errorbar(list(missed), means, deviations, marker="o", capsize=3, label=label)
        panel.set(title=distance.replace("-", " "), xlabel="layers", xticks=DEPTHS, ylim=(0, None))
    panels[1].set_ylim(0, 105)
    panels[0].set_ylabel("missed, % of the true gradient\n(the scales of the panels differ)")
    panels[0].legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that holds MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--runs", default="runs", help="where run folders are (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--real-batch", type=int, default=32, help="real clouds per class (%(default)s)"
    )
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    begun = time.monotonic()
    rows = measure(options)
    names = dict.fromkeys(row["name"] for row in rows)
    record = {
        "name": "missed-gradient",
        "command": f"python figures/missed_gradient.py --real-batch {options.real_batch}",
        "configs": {name: to_dict(measured_config(name, options.real_batch)) for name in names},
        "machine": machine.describe(options.device),
        "seconds": time.monotonic() - begun,
        "peak_memory_bytes": machine.peak_memory(options.device),
        "rows": rows,
    }
    atomic_write_text(HERE / "missed-gradient.json", json.dumps(record, indent=1))
    lines, text = table(rows), io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    atomic_write_text(HERE / "tables" / "missed-gradient.csv", text.getvalue())
    save(draw(rows), HERE / "missed-gradient.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
