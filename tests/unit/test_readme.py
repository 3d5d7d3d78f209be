"""What the README and the pages in docs state is what the records say."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pcdd_core as pcdd
from pcdd_core.cli.main import main
from pcdd_core.experiments.config import to_dict
from pcdd_core.experiments.records import COMMITTED, read_records, slug
from pcdd_core.experiments.report import comma_separated
from pcdd_core.experiments.tables import EXPERIMENTS

ROOT = Path(__file__).parents[2]


def script(path: str):
    """Import a script of the repository that is in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = script("docs/make_tables.py")
recordings = script("figures/recordings.py")
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in made.PAGES}
SAVED = sorted({path.stem.rpartition("-")[0] for path in ROOT.glob("figures/tables/*-*.tex")})
TABLES = [name for name in SAVED if name in EXPERIMENTS]
FINISHED = ("ingredients", "architectures")  # all of their runs have records


@pytest.mark.parametrize(
    ("page", "title", "stated"),
    [
        pytest.param(page, match[1], match[2], id=f"{page}: {match[1]}")
        for page, text in PAGES.items()
        for match in made.TABLE.finditer(text)
    ],
)
def test_table_of_a_page_is_made_of_the_records(page, title, stated):
    assert stated == made.TABLES[title]() + "\n", f"{page} is stale: python docs/make_tables.py"


def test_every_table_stands_in_one_page_and_every_marker_has_its_end():
    text = "".join(PAGES.values())
    found = [match[1] for match in made.TABLE.finditer(text)]
    assert sorted(found) == sorted(made.TABLES)
    assert text.count("<!-- end of ") == len(found)


@pytest.mark.parametrize("name", TABLES)
def test_saved_tables_are_made_of_the_records(name, tmp_path, capsys):
    seeds = str(made.SEEDS.get(name, 5))
    assert main(["report", name, "--seeds", seeds, "--runs", str(tmp_path)]) == 0
    if name in FINISHED:
        assert "runs are missing" not in capsys.readouterr().out
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in ROOT.glob(f"figures/tables/{name}-*"))
    for path in tmp_path.iterdir():
        assert path.read_text() == (ROOT / "figures/tables" / path.name).read_text()


def test_there_are_tables_of_the_paper_and_of_the_ingredients():
    assert {"table1", "ingredients", "architectures"} <= set(TABLES)


def test_the_saved_frontier_is_made_of_the_records():
    saved = (ROOT / "figures/tables/frontier.csv").read_text()
    assert saved == comma_separated(made.frontier_rows()), "stale: python docs/make_tables.py"


def test_the_saved_table_of_our_best_sets_is_made_of_their_records():
    saved = (ROOT / "figures/tables/best-fast.csv").read_text()
    assert saved == comma_separated(made.best_rows())


def test_the_saved_table_of_glands_is_made_of_their_records():
    saved = (ROOT / "figures/tables/adrenal.csv").read_text()
    assert saved == made.adrenal_csv(), "stale: python docs/make_tables.py"
    assert saved.startswith('name,"standard, balanced","standard, balanced sd",seeds,')


@pytest.mark.parametrize("name", made.CLASSES)
def test_the_saved_table_of_shapes_is_made_of_their_records(name):
    saved = (ROOT / f"figures/tables/{name}.csv").read_text()
    assert saved == made.shapes_csv(name), "stale: python docs/make_tables.py"


def shape_record(seed, scores, preset="shapes-1-split", baseline=None, **changed):
    """Return the parts of a record that the table of shapes reads.

    scores: {protocol: (mean, networks)}
    """
    config = to_dict(pcdd.override(pcdd.preset(preset).config, {"seed": seed, **changed}))
    clouds = config["clouds"]["clouds_per_class"]
    points = config["clouds"]["points_per_cloud"]
    if baseline:
        config = {key: config[key] for key in ("data", "evaluation", "seed")}
        config["baseline"] = {"name": "random", "clouds_per_class": clouds, "points": None}
    return {
        "name": baseline or preset,
        "config": config,
        "clouds": 10 * clouds,
        "points": 10 * clouds * points,
        "scores": {
            protocol: {"mean": mean, "networks": networks}
            for protocol, (mean, networks) in scores.items()
        },
    }


def test_table_of_shapes_takes_records_of_different_protocols_together():
    sadm, standard = {"evaluation.protocols": ["sadm"]}, {"evaluation.protocols": ["standard"]}
    rows = made.shape_rows(
        [
            shape_record(0, {"sadm": (80.0, 3), "standard": (88.0, 3)}),
            shape_record(1, {"sadm": (84.0, 3), "standard": (90.0, 3)}),
            shape_record(0, {"sadm": (20.0, 2)}, "shapes-1", "random-1", **sadm),
            shape_record(0, {"sadm": (30.0, 3)}, "shapes-1", "random-1", **sadm),
            shape_record(1, {"sadm": (40.0, 2)}, "shapes-1", "random-1", **sadm),
            shape_record(5, {"standard": (50.0, 3)}, "shapes-1", "random-1", **standard),
            shape_record(0, {"standard": (9.0, 1)}, **{"evaluation.split": "validation"}),
            shape_record(0, {"sadm": (70.0, 3)}, **{"clouds.name": "real"}),
            shape_record(0, {}),
        ],
        classes=10,
    )
    assert [list(row.values()) for row in rows] == [
        ["random-1", 1, 1024, 35.0, 5.0, 50.0, None, 2, 122_880],
        ["shapes-1-split", 8, 128, 82.0, 2.0, 89.0, 1.0, 2, 122_880],
        ['shapes-1-split clouds.name="real"', 8, 128, 70.0, None, None, None, 1, 122_880],
    ]
    assert tuple(rows[0]) == made.SHAPE_COLUMNS


def test_table_of_shapes_names_another_classifier_and_other_data():
    other = {"evaluation.classifier.name": "dgcnn", "evaluation.epochs": 100}
    few = {"data.points": 128, "data.name": "modelnet40"}
    rows = made.shape_rows(
        [
            shape_record(0, {"standard": (70.0, 1)}, baseline="random-8", **other),
            shape_record(0, {"standard": (71.0, 1)}, baseline="random-8", **few),
        ],
        classes=10,
    )
    assert [row["name"] for row in rows] == [
        "random-8 data.points=128",
        'random-8 evaluation.classifier.name="dgcnn" evaluation.epochs=100',
    ]


@pytest.mark.parametrize(
    ("page", "link"),
    [
        pytest.param(page, link, id=f"{page}: {link}")
        for page, text in PAGES.items()
        for link in re.findall(r"\]\((?!http)([^)#]+)", text)
    ],
)
def test_what_a_page_links_to_is_there(page, link):
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("picture", sorted(path.name for path in ROOT.glob("figures/*.png")))
def test_every_picture_has_its_record(picture):
    """A picture of a run is named like the run. Others have a JSON file beside them.

    The screenshots of the lab share one.
    """
    runs = [record for path in COMMITTED.glob("*.jsonl") for record in read_records(path)]
    names = {
        f"{name}-seed{record['config']['seed']}.png"
        for record in runs
        for name in (record["name"], slug(record))
    }
    record = "lab.json" if picture.startswith("lab-") else f"{Path(picture).stem}.json"
    assert picture in names or "command" in json.loads((ROOT / "figures" / record).read_text())


def test_gallery_of_the_site_has_recordings_released_sets_and_the_paper_s_sets():
    shown = {}
    for group, name, recording, record in script("docs/build.py").entries():
        assert len(recording.clouds) > 0 and (record is None or record["scores"]), name
        shown.setdefault(group, []).append(name)
    assert shown["Runs, recorded"] == KEPT
    assert shown["Sets that come with pcdd"] == [f"released-{n}" for n in pcdd.released_names()]
    tables = [read_records(COMMITTED / f"{name}.jsonl") for name in ("table1", "table2")]
    assert len(shown["Sets of the paper's networks"]) == sum(
        one["clouds_file"] is not None and pcdd.PRESETS[one["name"]].paper_accuracy is not None
        for one in itertools.chain(*tables)
    )


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


# --- the animation --------------------------------------------------------------------------------

KEPT = sorted(path.stem for path in ROOT.glob("figures/recordings/*.npz"))


@pytest.mark.parametrize("name", KEPT)
def test_recording_is_of_a_whole_run_that_moved(name):
    recording, settings = recordings.read(name), recordings.settings(name)
    assert recording.updates[0] == 0 and recording.updates[-1] == recording.iterations
    assert recording.iterations == settings["schedule"]["iterations"]
    assert (recording.coordinates >= 0).all()
    assert (recording.coordinates < recording.clouds.grid).all()
    moved = np.linalg.norm(recording.coordinates[-1] - recording.coordinates[0], axis=1)
    assert np.median(moved) > 1  # cell


@pytest.mark.parametrize("name", [name for name in KEPT if name in pcdd.released_names()])
def test_recording_of_a_released_set_has_its_settings_and_leads_to_it(name):
    """The run is made again, so positions differ by what rounding on another processor grows to."""
    recording, released = recordings.read(name), pcdd.released(name)
    kept = pcdd.read_record(pcdd.released_path(name).with_suffix(".json"))["config"]
    settings = recordings.settings(name)
    assert settings["seed"] == kept["seed"]
    for section in ("clouds", "lift", "objective", "optimiser", "schedule"):
        assert kept[section].items() <= settings[section].items()

    def near(coordinates):  # share of points within a cell of their place in the released set
        off = np.linalg.norm(coordinates - released.coordinates.numpy(), axis=1)
        return (off < 1).mean()

    assert near(recording.coordinates[-1]) > 2 * near(recording.coordinates[0])


def test_readme_shows_an_animation_of_a_kept_recording():
    assert recordings.ANIMATED in KEPT and "figures/migration.gif" in PAGES["README.md"]
    path = ROOT / "figures/migration.gif"
    assert path.stat().st_size < 2**20
    kept = recordings.read(recordings.ANIMATED)
    shown = recordings.moving_frames(kept)
    assert [*shown.updates[[0, -1]]] == [*kept.updates[[0, -1]]]
    assert recordings.FRAMES / 2 < len(shown) <= recordings.FRAMES
    assert Image.open(path).n_frames == len(shown)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extending.md"])
def test_python_of_a_page_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    state = torch.get_rng_state()
    exec("\n".join(blocks), {"__name__": f"page_{Path(page).stem}"})
    assert len(blocks) == 2 and torch.equal(torch.get_rng_state(), state)
