"""Accuracy against bytes on MNIST: distilled sets, real ones and published ones.

    python figures/frontier.py

Reads figures/tables/frontier.csv, which docs/make_tables.py makes of the records. Writes
figures/frontier.png and figures/frontier.json.
"""

import csv
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pcdd_core.experiments.figures import save
from pcdd_core.experiments.frontier import FAST
from pcdd_core.files import atomic_write_text

HERE = Path(__file__).parent
STYLES = {"distilled": ("o", "#20508a"), "real": ("s", "#b8581d"), "published": ("^", "#5b7f3a")}
LEAST, MOST = 85, 500_000  # percent and bytes; other sets are left out of the picture


def read_rows() -> list[dict[str, str]]:
    """Return the rows of the table of at most MOST bytes and of LEAST accuracy or more."""
    with (HERE / "tables" / "frontier.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = [row for row in rows if row["bytes"] and int(row["bytes"]) <= MOST]
    return [row for row in known if float(row["standard"]) >= LEAST]


def draw(rows: list[dict[str, str]]) -> Figure:
    """Draw the rows: one marker each, hollow if scored with the fast augmentation.

    A published set has two markers, for both sizes of a pixel, and its name at the first.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xscale="log",
        xlabel="bytes (published: as uint8, and as float32)",
        ylabel="test accuracy, %",
    )
    for row in rows:
        marker, color = STYLES[row["kind"]]
        x, y = int(row["bytes"]), float(row["standard"])
        face = "white" if row["name"].endswith(FAST) else color
        deviation = float(row["standard sd"] or 0)
        axes.errorbar(x, y, deviation or None, fmt=marker, color=color, markerfacecolor=face)
        if row["name"].endswith("float32"):
            continue
        left = row["name"].startswith("IDC")  # away from the name of DSA
        place = {"xytext": (-5 if left else 5, 3), "ha": "right" if left else "left"}
        label = row["name"].removesuffix(FAST).removesuffix(", uint8")
        axes.annotate(
            label, (x, y), parse_math=False, textcoords="offset points", fontsize=6, **place
        )
    for kind, (marker, color) in STYLES.items():
        axes.plot([], [], marker, color=color, label=kind)
    axes.plot([], [], "o", color="black", markerfacecolor="white", label=FAST.strip(" ()"))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    """Run the command line."""
    rows = read_rows()
    save(draw(rows), HERE / "frontier.png")
    about = {"command": "python figures/frontier.py", "names": [row["name"] for row in rows]}
    atomic_write_text(HERE / "frontier.json", json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
