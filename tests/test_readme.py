"""What the README states is what the records say."""

import json
import re
import runpy
from pathlib import Path

import pytest

from pcdd_core.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


OPTIONS = {  # where not 5 seeds at small scale
    "step-size": ["--seeds", "3"], "initialisation": ["--seeds", "10"], "ingredients": ["--seeds", "1"],
    "best": ["--scale", "paper"], "architectures": ["--seeds", "1"], "shapes": ["--scale", "paper", "--seeds", "3"],
}  # fmt: skip
TABLES = (
    "table1",
    "table2",
    "ablation",
    "step-size",
    "initialisation",
    "ingredients",
    "best",
    "architectures",
    "shapes",
)
UNFINISHED = ("best", "shapes")  # their first rows alone have all seeds


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
    assert (name in UNFINISHED) == ("have not been run" in capsys.readouterr().out)
    for made in tmp_path.iterdir():
        assert made.read_text() == (ROOT / "figures/tables" / made.name).read_text()


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


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_what_the_readme_links_to_is_there(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("picture", sorted(path.name for path in ROOT.glob("figures/*.png")))
def test_every_picture_has_its_record(picture):
    assert (ROOT / "figures/records" / picture).with_suffix(".json").exists()
