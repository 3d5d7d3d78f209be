"""File writes on full disks, safe names, checksums of JSON, and what the package imports."""

import ast
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import pcdd_core
from pcdd_core import sealed
from pcdd_core.cli.main import main
from pcdd_core.errors import InputError, WriteFailed
from pcdd_core.experiments.config import Config, to_dict
from pcdd_core.experiments.records import (
    SCHEMA,
    find_records,
    identity,
    keep,
    read_record,
    read_records,
)
from pcdd_core.experiments.report import comma_separated, latex, markdown, table
from pcdd_core.files import atomic_write, atomic_write_text
from pcdd_core.geometry.storage import save_clouds
from pcdd_core.text import csv_entry, drawable, markdown_entry, printable

# --- writing --------------------------------------------------------------------------------------


def test_the_file_before_becomes_the_previous_one(tmp_path):
    path, previous = tmp_path / "a", tmp_path / "before"
    for content in (b"1", b"2", b"3"):
        atomic_write(path, lambda file, content=content: file.write(content), previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_file_that_does_not_fit_leaves_the_old_one_and_no_folder(tmp_path):
    import resource

    atomic_write_text(tmp_path / "old", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for path in (tmp_path / "old", tmp_path / "new" / "folder" / "file"):
            with pytest.raises(WriteFailed, match="File too large") as refusal:
                atomic_write_text(path, "x" * 2000)
            assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tiny.files(tmp_path) == {"old": b"old"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_full_disk_behind_standard_output_ends_in_one_line(options):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pcdd_core", "presets", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


# --- names ----------------------------------------------------------------------------------------

EVIL = "a|b\n<img src=x onerror=alert(1)> \x1b]0;title\x07 `c` [d](javascript:e) & \\|"


def test_printable_text_has_no_control_characters_and_one_line():
    assert printable("a\nb\x1b[31m\u202e\u2028\ud800c") == r"a\nb\x1b[31m\u202e\u2028\ud800c"
    assert printable("plain: é, 日本 ± |$<") == "plain: é, 日本 ± |$<"
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"


def test_markdown_entry_is_one_entry_without_markup():
    cell = markdown_entry(EVIL)
    assert "\n" not in cell and "\x1b" not in cell and "<" not in cell and "](" not in cell
    unescaped = cell.replace("\\\\", "")
    assert unescaped.count("|") == unescaped.count("\\|") == 2
    assert markdown_entry('objective.distance="sum_of_squares" [0, 5]') == (
        'objective.distance="sum_of_squares" [0, 5]'
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t=", "\r=", "＝"])
def test_formulas_are_text_in_csv(start):
    assert csv_entry(f'{start}HYPERLINK("http://x")').startswith(("'", "\\"))
    assert csv_entry(-3.5) == -3.5 and csv_entry("a=b") == "a=b" and csv_entry(None) is None


def test_names_in_pictures_are_short():
    assert drawable("cost $5_$10") == "cost $5_$10"
    assert len(drawable("x" * 1000)) == 24 and drawable("a\nb") == r"a\nb"


def record(name: str, **entries) -> dict:
    score = {"mean": 50.0, "standard_deviation": 1.0, "networks": 2}
    return {
        "schema": SCHEMA,
        "kind": "distilled",
        "name": name,
        "config": to_dict(Config()),
        "scores": {"standard": score},
        "scored_on": "digits",
        "seconds": {"evaluation": 1.0},
        "peak_memory_bytes": 1,
        "health": {"state": "moving", "iteration": None},
    } | entries


def test_tables_with_hostile_names_keep_their_rows_and_columns():
    rows = table([record(EVIL), record('=HYPERLINK("http://x")')])
    lines = markdown(rows).splitlines()
    assert len(lines) == 4 and "<img" not in markdown(rows) and "\x1b" not in markdown(rows)
    cells = list(csv.reader(io.StringIO(comma_separated(rows))))
    assert [row[0] for row in cells] == ["name", printable(EVIL), '\'=HYPERLINK("http://x")']
    assert len(comma_separated(rows).splitlines()) == 3
    assert r"\ensuremath{<}img" in latex(rows) and "\x1b" not in latex(rows)


def test_note_of_a_record_stands_beside_its_health():
    (row,) = table([record("a", note="another box"), record("a")])
    assert row["health"] == "moving; moving (another box)"


def test_hostile_names_of_columns_are_neutralised_too():
    score = {"mean": 1.0, "standard_deviation": 0.0, "networks": 1}
    rows = table([record("a", scores={"=1+1|<b>\n": score})])
    assert "<b>" not in markdown(rows) and len(markdown(rows).splitlines()) == 3
    assert "'=1+1" in comma_separated(rows).splitlines()[0]


def test_terminal_shows_no_escape_sequences(tmp_path, capsys):
    names = ("\x1b]0;title\x07", "b", "c")
    clouds = tiny.three_solids()
    save_clouds(type(clouds)(clouds.coordinates, clouds.offsets, clouds.labels, clouds.grid, names),
                tmp_path / "set.npz")  # fmt: skip
    reason = {"state": "failed", "iteration": 3, "reason": "\x1b[31mred"}
    evil = sealed.sealed(record("\x1b[2Jname\nforged: 99 %", health=reason))
    (tmp_path / "set.json").write_text(json.dumps(evil))
    assert main(["show", str(tmp_path / "set.npz")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[2Jname\nforged" in out
    assert main(["show", str(tmp_path / "\x1b[31mnowhere\n")]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and err.count("\n") == 1


# --- records --------------------------------------------------------------------------------------

WRONG = {
    "name": record("a") | {"name": 5},
    "config": record("a") | {"config": []},
    "seed": record("a") | {"config": {"seed": "0"}},
    "setting": record("a") | {"config": {"seed": 0, "network": 5}},
    "nested setting": record("a") | {"config": {"seed": 0, "network": {"layers": {"a": 1}}}},
    "scores": record("a") | {"scores": [1]},
    "score": record("a") | {"scores": {"standard": 5}},
    "mean": record("a") | {"scores": {"standard": {"mean": "50"}}},
    "scores_at": record("a") | {"scores_at": {"0": {"standard": 5}}},
    "seconds": record("a") | {"seconds": {"evaluation": "1"}},
    "health": record("a") | {"health": "moving"},
    "state of health": record("a") | {"health": {"state": "well", "iteration": None}},
    "schema": record("a") | {"schema": SCHEMA + 1},
    "kind": record("a") | {"kind": "guessed"},
    "older version": {key: part for key, part in record("a").items() if key != "schema"},
    "memory": record("a") | {"peak_memory_bytes": "much"},
}


def damaged(name: str) -> str:
    """Return the text of a damaged record."""
    if name == "nesting":
        return '{"name": "a", "scores": {}, "config": ' + "[" * 100_000 + "]" * 100_000 + "}"
    if name == "number":
        return '{"name": "a", "scores": {}, "config": ' + "1" * 5000 + "}"
    if name == "bytes":
        return "\xff\xfe"
    content = sealed.sealed(WRONG.get(name, record("a")))
    return json.dumps(content | {"name": "b"} if name == "checksum" else content)


@pytest.mark.parametrize("name", [*WRONG, "nesting", "number", "bytes", "checksum"])
def test_damaged_record_of_a_run_is_skipped_with_a_message(name, tmp_path, capsys):
    right = record("right", config=to_dict(tiny.config()))
    for folder, text in (("right", json.dumps(sealed.sealed(right))), ("wrong", damaged(name))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "record.json").write_text(text, encoding="latin-1")
    place = str(tmp_path / "right" / "record.json")
    found = find_records([tmp_path])
    assert found == {identity(right): right | {"clouds_file": None, "place": place}}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "wrong" in said and "skipped" in said


@pytest.mark.parametrize("name", [*WRONG, "nesting", "number", "checksum"])
def test_damaged_line_is_skipped_with_its_number(name, tmp_path, capsys):
    right = record("right", config=to_dict(tiny.config()))
    lines = [damaged(name), json.dumps(sealed.sealed(right))]
    (tmp_path / "experiment.jsonl").write_text("\n".join(lines) + "\n")
    assert list(find_records([tmp_path])) == [identity(right)]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "experiment.jsonl" in said and "skipped" in said
    if name not in ("setting", "nested setting"):  # their line is whole, its settings are not
        assert "experiment.jsonl:1:" in said


def test_file_of_records_that_is_not_text_is_skipped_with_a_message(tmp_path, capsys):
    (tmp_path / "experiment.jsonl").write_bytes(b"\xff\xfe")
    assert find_records([tmp_path]) == {}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "experiment.jsonl" in said and "skipped" in said


def test_kept_records_are_read_again_with_their_sets(tmp_path):
    (tmp_path / "run").mkdir()
    save_clouds(tiny.three_solids(), tmp_path / "run" / "clouds.npz")
    config = to_dict(tiny.config())
    for seed in (1, 0):
        made = record("a", config=config | {"seed": seed})
        (tmp_path / "run" / "record.json").write_text(json.dumps(sealed.sealed(made)))
        path = keep([read_record(tmp_path / "run")], tmp_path / "kept", "first", with_clouds=True)
    assert path == tmp_path / "kept" / "records" / "first.jsonl"
    first, second = find_records([path.parent]).values()
    assert [first["config"]["seed"], second["config"]["seed"]] == [0, 1]
    assert second["clouds_file"] is None, "the sets of other seeds are not kept"
    before = (tmp_path / "run" / "clouds.npz").read_bytes()
    assert Path(first["clouds_file"]).read_bytes() == before
    assert Path(first["clouds_file"]).parent == (tmp_path / "kept" / "sets" / "first").resolve()

    better = record("a", config=config | {"seed": 1}, peak_memory_bytes=2)
    keep([better], tmp_path / "kept", "second", with_clouds=False)
    assert not (tmp_path / "kept" / "records" / "second.jsonl").exists()
    memory = [one["peak_memory_bytes"] for one in find_records([path.parent]).values()]
    assert memory == [1, 2], "a record takes the place of the one with the same settings"


def test_file_with_a_damaged_line_is_refused_before_it_is_written_again(tmp_path):
    path = keep([record("a")], tmp_path, "first", with_clouds=False)
    damaged = path.read_text() + '{"name": '
    path.write_text(damaged)
    for read in (lambda: keep([record("a")], tmp_path, "b", False), lambda: read_records(path)):
        with pytest.raises(InputError, match="first.jsonl:2: not an intact record"):
            read()
    assert tiny.files(tmp_path / "records") == {"first.jsonl": damaged.encode()}


def test_record_without_a_checksum_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(record("a")))
    added = {"place": str(tmp_path / "a.json"), "clouds_file": None}
    assert read_record(tmp_path / "a.json") == record("a") | added


def test_every_change_of_a_sealed_record_is_found(tmp_path):
    path, content = tmp_path / "a.json", sealed.sealed(record("a"))
    path.write_text(json.dumps(content))
    assert read_record(path) == record("a") | {"place": str(path), "clouds_file": None}
    for changed in (
        content | {"name": "b"},
        content | {"extra": 1},
        {key: value for key, value in content.items() if key != "health"},
        content | {"sha256": "0" * 64},
        content | {"sha256": 5},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match="checksum"):
            read_record(path)


def test_unrelated_json_beside_a_set_is_ignored_with_a_message(tmp_path, capsys):
    save_clouds(tiny.three_solids(), tmp_path / "f.npz")
    (tmp_path / "f.json").write_text('{"editor": true}')
    assert main(["show", str(tmp_path / "f.npz")]) == 0
    said = capsys.readouterr()
    assert "24 clouds" in said.out
    assert said.err.count("\n") == 1 and "f.json: not a record" in said.err


# --- sweeps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--vary", "seed", "0", "1"], ["seed=3"], ["--seeds", "1000000000"]], ids=repr
)
@pytest.mark.parametrize("command", ["sweep", "report"])
def test_seed_of_a_sweep_is_refused_where_it_would_be_ignored(command, words, tmp_path, capsys):
    more = ["--list"] if command == "sweep" else []
    assert main([command, "quickstart", *words, *more, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--seeds" in said


def test_cell_of_a_sweep_prints_only_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = tiny.arguments({**tiny.DISTILLATION, **tiny.EVALUATION, "schedule.iterations": 1})
    words = ["sweep", "quickstart", *settings, "--seeds", "1", "--runs", str(tmp_path)]
    assert main([*words, "--run", "0", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["status"] == "found"
    assert "run 1 of 1" in said.err


# --- other systems --------------------------------------------------------------------------------

POSIX_ONLY = {"resource", "fcntl", "grp", "posix", "pty", "pwd", "syslog", "termios", "tty"}


def test_no_module_of_the_package_needs_posix_to_be_imported():
    """Imports within functions are allowed."""
    sources = list(Path(pcdd_core.__file__).parent.rglob("*.py"))
    assert len(sources) > 40
    for source in sources:
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            wrong = POSIX_ONLY & {name.split(".")[0] for name in names}
            assert not wrong, f"{source}: imports {wrong}"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the test hides modules that Windows has not")
def test_package_can_be_imported_without_posix_modules():
    code = f"""
import sys
import multiprocessing, subprocess, torch, sklearn.datasets, matplotlib.figure, filelock, tqdm
for name in {sorted(POSIX_ONLY)}:
    sys.modules[name] = None
import pcdd_core.cli.commands, pcdd_core.experiments.sweeps, pcdd_core.view.recording
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
