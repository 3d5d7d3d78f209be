"""What the README states is what the records say."""

import json
import re
import runpy
from pathlib import Path

import pytest

from pcdd_core.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_small_table_is_made_of_the_records(capsys):
    stated = re.search(r"<!-- small table -->\n(.*?)\n<!-- end of small table -->", README, re.DOTALL).group(1)
    assert main(["table", *map(str, sorted(ROOT.glob("figures/records/*-small-seed?.json")))]) == 0
    assert stated == capsys.readouterr().out.rstrip()


def test_csv_is_made_of_the_records(tmp_path):
    records = sorted(ROOT.glob("figures/records/*-small-seed?.json"))
    assert main(["table", *map(str, records), "--csv", str(tmp_path / "small.csv")]) == 0
    assert (tmp_path / "small.csv").read_text() == (ROOT / "figures/tables/small.csv").read_text()


@pytest.mark.parametrize(
    ("title", "script", "record"),
    [
        ("missed gradient", "figures/missed_gradient.py", "figures/records/missed-gradient.json"),
        ("sparse layers", "benchmarks/sparse_layers.py", "benchmarks/records/sparse-layers-cpu.json"),
    ],
)
def test_table_is_made_of_its_record_by_the_script_that_makes_both(title, script, record):
    stated = re.search(rf"<!-- {title} -->\n(.*?)\n<!-- end of {title} -->", README, re.DOTALL).group(1)
    assert stated == runpy.run_path(str(ROOT / script))["markdown"](json.loads((ROOT / record).read_text())["rows"])


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_what_the_readme_links_to_is_there(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("picture", sorted(path.name for path in ROOT.glob("figures/*.png")))
def test_every_picture_has_its_record(picture):
    assert (ROOT / "figures/records" / picture).with_suffix(".json").exists()
