"""What the README states is what the records say."""

import json
import re
import runpy
from pathlib import Path

import pytest

from pcdd_core.cli.main import main
from pcdd_core.experiments import records
from pcdd_core.experiments.tables import EXPERIMENTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


OPTIONS = {  # where not 5 seeds
    "why": ["--seeds", "3"],
    "pool": ["--seeds", "3"],
    "initialisation": ["--seeds", "10"],
    "ingredients": ["--seeds", "1"],
    "architectures": ["--seeds", "1"],
    "shapes": ["--seeds", "3"],
}
SAVED = sorted({path.stem.rpartition("-")[0] for path in ROOT.glob("figures/tables/*-*.tex")})
TABLES = [name for name in SAVED if name in EXPERIMENTS]
FINISHED = ("ingredients", "architectures")  # all of their runs have records


def stated_in_readme(title: str) -> str:
    return re.search(rf"<!-- {title} -->\n(.*?)\n<!-- end of {title} -->", README, re.DOTALL).group(
        1
    )


@pytest.mark.parametrize("name", [name for name in TABLES if f"<!-- {name} -->" in README])
def test_table_is_made_of_the_records(name, tmp_path, capsys):
    assert main(["report", name, *OPTIONS.get(name, []), "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(stated_in_readme(name) + "\n\n")


@pytest.mark.parametrize("name", TABLES)
def test_saved_tables_are_made_of_the_records(name, tmp_path, capsys):
    assert main(["report", name, *OPTIONS.get(name, []), "--runs", str(tmp_path)]) == 0
    if name in FINISHED:
        assert "runs are missing" not in capsys.readouterr().out
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in ROOT.glob(f"figures/tables/{name}-*"))
    for path in tmp_path.iterdir():
        assert path.read_text() == (ROOT / "figures/tables" / path.name).read_text()


def test_there_are_tables_of_the_paper_and_of_the_ingredients():
    assert {"table1", "ingredients", "architectures", "shapes"} <= set(TABLES)


def best_rows() -> list[dict]:
    """Our best sets as they were scored with the fast augmentation, from their records."""
    names = ("mnist-", "random-1-183cf4ab", "herding-1-6d7", "k_center-1-9a5", "class_mean-1-b70")
    paths = [
        path
        for name in (*names, "herding-10-c98")
        for path in sorted((ROOT / "figures/records").glob(f"{name}*.json"))
        if path.stem != "mnist-1-split-seed0"  # an earlier setting
    ]
    return records.table(map(records.read_record, paths))


def test_the_table_of_our_best_sets_is_made_of_their_records():
    assert stated_in_readme("best") == records.markdown(best_rows())
    saved = (ROOT / "figures/tables/best-fast.csv").read_text()
    assert saved == records.comma_separated(best_rows())


@pytest.mark.parametrize(
    ("title", "script", "record"),
    [
        ("missed gradient", "figures/missed_gradient.py", "figures/records/missed-gradient.json"),
        ("speed", "benchmarks/bench.py", "benchmarks/results/cpu.json"),
        (
            "sparse layers",
            "benchmarks/sparse_layers.py",
            "benchmarks/records/sparse-layers-cpu.json",
        ),
        ("pointnet", "benchmarks/pointnet.py", "benchmarks/records/pointnet-cpu.json"),
        (
            "sparse shapes",
            "benchmarks/sparse_shapes.py",
            "benchmarks/records/sparse-shapes-cpu.json",
        ),
    ],
)
def test_table_is_made_of_its_record_by_the_script_that_makes_both(
    title, script, record, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    kept = json.loads((ROOT / record).read_text())
    assert stated_in_readme(title) == runpy.run_path(str(ROOT / script))["markdown"](
        kept["rows"] if "rows" in kept else kept
    )


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_every_picture_has_its_record():
    pictures = {path.stem for path in ROOT.glob("figures/*.png")}
    assert pictures and pictures <= {path.stem for path in ROOT.glob("figures/records/*.json")}
