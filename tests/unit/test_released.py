"""The sets that come with pcdd: whole, within their budget of points, and found by name."""

import json

import pytest
from tiny import EVALUATION, arguments

from pcdd_core.cli.main import main
from pcdd_core.data.solids import SOLIDS
from pcdd_core.errors import InputError
from pcdd_core.experiments.records import read_record
from pcdd_core.geometry.storage import RELEASED, released, released_names

NAMES = released_names()


def test_there_are_some():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_released_set_is_the_one_of_its_record(name):
    released_set, record = released(name), read_record(RELEASED / f"{name}.json")
    assert (
        len(released_set) == record["clouds"] and len(released_set.coordinates) == record["points"]
    )
    solid = record["config"]["data"]["name"] == "solids"
    assert record["scored_on"].startswith(
        "solids, test split, 400" if solid else "mnist, test split, 10000"
    )
    assert not record["machine"].get("changes")
    assert released_set.class_names == tuple(SOLIDS if solid else "0123456789")
    assert set(released_set.labels.tolist()) == set(range(len(released_set.class_names)))
    assert released_set.grid == ((24, 24, 24) if solid else (1, 28, 28))


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=f"no released set is called 'mnsit-1'.*{NAMES[0]}"):
        released("mnsit-1")


def test_released_set_is_scored_with_the_settings_of_its_record(capsys):
    main(
        [
            "evaluate",
            f"released:{NAMES[0]}",
            "data.name=digits",
            *arguments(EVALUATION),
            "--json",
            "--quiet",
        ]
    )
    scored = json.loads(capsys.readouterr().out)
    assert scored["config"]["seed"] == read_record(RELEASED / f"{NAMES[0]}.json")["config"]["seed"]


def test_picture_of_a_released_set_is_drawn_here_not_in_the_installation(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    before = sorted(RELEASED.iterdir())
    assert main(["show", f"released:{NAMES[0]}"]) == 0
    assert (tmp_path / f"{NAMES[0]}.png").is_file() and sorted(RELEASED.iterdir()) == before
