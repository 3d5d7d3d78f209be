"""Write the tables of README.md and docs/*.md, and CSV files in figures/tables, from the records.

    python docs/make_tables.py

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`. tests/unit/test_readme.py fails
if a table differs from the output of this script.
"""

import ast
import contextlib
import io
import json
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import pcdd_core as pcdd
from pcdd_core.cli.main import main as command
from pcdd_core.experiments import frontier, presets, records, report
from pcdd_core.files import atomic_write_text

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "figures" / "records"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"<!-- (?!end of )([\w ]+) -->\n(.*?)<!-- end of \1 -->", re.DOTALL)
SEEDS = {  # where not 5
    "why": 3,
    "pool": 3,
    "initialisation": 10,
    "ingredients": 1,
    "architectures": 1,
}
CLASSES = {"modelnet10": 10, "modelnet40": 40}  # of the experiments on shapes
SHAPE_COLUMNS = (
    "name",
    "clouds per class",
    "points per cloud",
    *("sadm", "sadm sd", "standard", "standard sd"),
    "seeds",
    "bytes",
)
ADRENAL_COLUMNS = (
    "name",
    *("standard, balanced", "standard, balanced sd"),
    "seeds",
    *("distillation seconds", "evaluation seconds"),
    "peak memory MiB",
)
# Table: the script that makes it and its record, and the record
SCRIPTS = {
    "missed gradient": ("figures/missed_gradient.py", "figures/missed-gradient.json"),
    "batch gradients": ("figures/batch_gradients.py", "figures/batch-gradients.json"),
    "speed": ("benchmarks/bench.py", "benchmarks/results/cpu.json"),
    "sparse layers": (
        "benchmarks/sparse_layers.py",
        "benchmarks/records/sparse-layers-cpu.json",
    ),
    "pointnet": ("benchmarks/pointnet.py", "benchmarks/records/pointnet-cpu.json"),
    "evaluation pointnet": (
        "benchmarks/evaluation_pointnet.py",
        "benchmarks/records/evaluation-pointnet-cpu.json",
    ),
    "sparse shapes": (
        "benchmarks/sparse_shapes.py",
        "benchmarks/records/sparse-shapes-cpu.json",
    ),
    "fuzz": ("tests/fuzz.py", "benchmarks/records/fuzz.json"),
    "kills": ("tests/kills.py", "benchmarks/records/kills-cpu.json"),
    "views": ("benchmarks/views.py", "benchmarks/records/views-cpu.json"),
}


def report_of(name: str) -> str:
    """Return the table of an experiment, as `pcdd report` prints it."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        code = command(["report", name, "--seeds", str(SEEDS.get(name, 5)), "--runs", folder])
    if code:
        raise SystemExit(f"pcdd report {name}: exit code {code}")
    return printed.getvalue().split("\n\n")[0]


def by_its_script(name: str) -> str:
    """Return a table as the script formats it that makes its record, once there is one."""
    script, record = SCRIPTS[name]
    if not (ROOT / record).exists():
        return f"Not measured yet: `python {script}`."
    kept = json.loads((ROOT / record).read_text())
    folder = str((ROOT / script).parent)  # as Python does for a script
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(str(ROOT / script))["markdown"](
            kept["rows"] if "rows" in kept else kept
        )
    finally:
        sys.path.remove(folder)


def best_records() -> list[dict]:
    """Return the records of our best sets and the real ones beside them, in the table's order."""
    order = ("mnist-", "random-1", "herding-1", "k_center", "class_mean", "herding-10")

    def place(record: dict) -> int:
        name = record["name"]
        return max(number for number, start in enumerate(order) if name.startswith(start))

    return sorted(records.read_records(RECORDS / "best-fast.jsonl"), key=place)


def best_rows() -> list[dict]:
    """Return the rows of our best sets, as scored with the fast augmentation."""
    return report.table(best_records())


def headline() -> str:
    """Return the README's table: the paper, and our sets beside real clouds of the same bytes."""
    paper = pcdd.PRESETS["paper-minkowski-2-sum-of-squares"].paper_accuracy
    chosen = {
        "Distilled, `released:mnist-1`": "mnist-1",
        "Real clouds, chosen by herding": "herding-1",
        "Distilled, `released:mnist-10`": "mnist-10",
        "Real clouds, chosen by herding, ten per class": "herding-10",
    }
    lines = [
        "| set | bytes | standard, % | paper, % | seeds |",
        "| --- | --- | --- | --- | --- |",
        f"| The paper's best, as it reports it | {bytes_of(10):,} |  | {paper} |  |",
    ]
    for name, chosen_set in chosen.items():
        made = [record for record in best_records() if record["name"] == chosen_set]
        (row,) = report.table(made)
        (clouds,) = {record["clouds"] for record in made}
        scores = [
            f"{row[protocol]:.2f}"
            + (f" ± {row[f'{protocol} sd']:.2f}" if row[f"{protocol} sd"] is not None else "")
            for protocol in ("standard", "paper")
        ]
        lines.append(f"| {name} | {bytes_of(clouds):,} | {' | '.join(scores)} | {row['seeds']} |")
    return "\n".join(lines)


def shape_rows(made: Iterable[dict], classes: int) -> list[dict]:
    """Return one row per set of shapes on the test split: columns `SHAPE_COLUMNS`.

    A score is the mean over seeds, each the mean over its networks, with the standard deviation
    over seeds. Records of a row may have different protocols and numbers of networks. Of two with
    the same seed and protocol, the one with more networks counts. `seeds` is the number of the
    protocol that has the most. `bytes` are those of all coordinates as float32.
    made: records of one experiment
    """
    groups: dict[str, list[dict]] = {}
    for record in made:
        if record["scores"] and record["config"]["evaluation"]["split"] == "test":
            groups.setdefault(shape_name(record), []).append(record)
    rows = []
    for name, group in groups.items():
        clouds, points = group[0]["clouds"], group[0]["points"]
        row = {"name": name, "points per cloud": points // clouds, "bytes": 3 * 4 * points}
        row["clouds per class"] = None if clouds % classes else clouds // classes
        row["seeds"] = 0
        for protocol in ("sadm", "standard"):
            scored = [record for record in group if protocol in record["scores"]]
            scored.sort(key=lambda record: record["scores"][protocol]["networks"])
            by_seed = {
                record["config"]["seed"]: record["scores"][protocol]["mean"] for record in scored
            }
            means = list(by_seed.values())
            row[protocol] = round(float(np.mean(means)), 2) if means else None
            row[f"{protocol} sd"] = round(float(np.std(means)), 2) if len(means) > 1 else None
            row["seeds"] = max(row["seeds"], len(means))
        rows.append({column: row[column] for column in SHAPE_COLUMNS})
    return sorted(rows, key=lambda row: (row["bytes"], row["name"]))


def shape_name(record: dict) -> str:
    """Return the name of a row: the preset or the baseline, and the settings that are not usual.

    The data set, the protocols and the number of networks are not part of it.
    """
    distilled = "network" in record["config"]
    preset = record["name"] if distilled else "shapes-1"
    changed = presets.differences(preset, records.settings_of(record))
    for key in ("data.name", "evaluation.protocols", "evaluation.networks"):
        changed.pop(key, None)
    if not distilled:  # a baseline has no other settings
        changed = {
            key: value for key, value in changed.items() if key.startswith(("data.", "evaluation."))
        }
    return " ".join([record["name"], *(f"{key}={json.dumps(changed[key])}" for key in changed)])


def rows_of_shapes(name: str) -> list[dict]:
    """Return the rows of an experiment on shapes, [] before its first record."""
    path = RECORDS / f"{name}.jsonl"
    return shape_rows(records.read_records(path), CLASSES[name]) if path.exists() else []


def shapes(name: str) -> str:
    """Return the table of an experiment on shapes."""
    rows = rows_of_shapes(name)
    return report.markdown(rows) if rows else f"Not run yet: `pcdd sweep {name} --seeds 3`."


def shapes_csv(name: str) -> str:
    """Return the same table as CSV. Without records it has the columns only."""
    rows = rows_of_shapes(name)
    return report.comma_separated(rows) if rows else ",".join(SHAPE_COLUMNS) + "\n"


def frontier_rows() -> list[dict]:
    """Return the rows of accuracy against bytes."""
    made = [
        record for path in sorted(RECORDS.glob("*.jsonl")) for record in records.read_records(path)
    ]
    return frontier.rows(made)


def adrenal_rows() -> list[dict]:
    """Return the rows of the experiment on glands, [] without records: `ADRENAL_COLUMNS`."""
    path = RECORDS / "adrenal.jsonl"
    made = report.table(records.read_records(path)) if path.exists() else []
    return [{column: row.get(column) for column in ADRENAL_COLUMNS} for row in made]


def adrenal() -> str:
    """Return the table of the experiment on glands."""
    rows = adrenal_rows()
    return report.markdown(rows) if rows else "Not run yet: `pcdd sweep adrenal --seeds 3`."


def adrenal_csv() -> str:
    """Return the same table as CSV. Without records it has the columns only."""
    empty = report.comma_separated([dict.fromkeys(ADRENAL_COLUMNS)]).split("\n")[0] + "\n"
    return report.comma_separated(adrenal_rows()) if adrenal_rows() else empty


def attacks() -> str:
    """Return the table of all attacks: what was tried, what failed, and the command."""

    def kept(name: str) -> tuple[list[dict], str]:
        record = json.loads((ROOT / SCRIPTS[name][1]).read_text())
        return record["rows"], record["command"]

    files, fuzz = kept("fuzz")
    killed, kill = kept("kills")
    opened, open_views = kept("views")
    lines = [["attack", "tried", "failed", "command"], ["---"] * 4]
    for attack, tried, failed, words in (
        (
            "a damaged file is read as something else, or stops a command without a clear line",
            sum(row["tried"] for row in files),
            sum(row["failed"] for row in files),
            fuzz,
        ),
        (
            "a run that was killed and resumed ends in another result",
            sum(row["kills"] for row in killed),
            sum(row["runs"] - row["equal"] for row in killed),
            kill,
        ),
        (
            "a view that was replaced or closed leaves its run computing",
            sum(row["count"] for row in opened if row["way"] != "open"),
            sum(
                row["states"][-1]["runs"] - row["states"][0]["runs"]
                for row in opened
                if row["way"] != "open"
            ),
            open_views,
        ),
    ):
        lines.append([attack, f"{tried:,}", f"{failed:,}", f"`{words}`"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def modules() -> str:
    """Return the table of the modules, each with the first sentence of its docstring."""
    lines = ["| module of `pcdd_core` | what it does |", "| --- | --- |"]
    for path in sorted((ROOT / "pcdd_core").rglob("*.py")):
        if path.name.startswith("__"):
            continue
        first = ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].split(". ")[0]
        name = path.relative_to(ROOT / "pcdd_core")
        lines.append(f"| `{name}` | {' '.join(first.split()).rstrip('.')} |")
    return "\n".join(lines)


def bytes_of(clouds: int) -> int:
    """Return the bytes of MNIST clouds, each a bitmap of 28 x 28 cells."""
    return clouds * 28 * 28 // 8


PAPER = ("table1", "table2", "ablation", "why", "pool")
TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "modules": modules,
    "attacks": attacks,
    "adrenal": adrenal,
    "best": lambda: report.markdown(best_rows()),
    "frontier": lambda: report.markdown(frontier_rows()),
    **{name: lambda name=name: report_of(name) for name in PAPER},
    **{name: lambda name=name: shapes(name) for name in CLASSES},
    **{name: lambda name=name: by_its_script(name) for name in SCRIPTS},
}


def with_tables(text: str) -> str:
    """Return the text of a page with its tables made anew."""
    return TABLE.sub(
        lambda match: f"<!-- {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end of {match[1]} -->", text
    )


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text()
        if (made := with_tables(text)) != text:
            atomic_write_text(page, made)
            print(page.relative_to(ROOT))
    for name, rows in {"frontier": frontier_rows(), "best-fast": best_rows()}.items():
        atomic_write_text(ROOT / "figures" / "tables" / f"{name}.csv", report.comma_separated(rows))
    for name in CLASSES:
        atomic_write_text(ROOT / "figures" / "tables" / f"{name}.csv", shapes_csv(name))
    atomic_write_text(ROOT / "figures" / "tables" / "adrenal.csv", adrenal_csv())
