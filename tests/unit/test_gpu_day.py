"""The driver of `make gpu`, with small programs as parts, and its dry run."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="ends parts by POSIX signals")
# Programs get `--root DIR` as their first words. `write` writes the record.
PROGRAM = """
import json, pathlib, sys, time
root = pathlib.Path(sys.argv[2])
def write(name, finished=True):
    path = root / "benchmarks" / "records" / "gpu" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"device": "a card"}
    path.write_text(json.dumps({"result": "7 %", "finished": finished, "machine": machine}))
"""


@pytest.fixture
def day(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_day

    return gpu_day


@pytest.fixture
def run(day, tmp_path, capsys):
    """Return run(name=program, ...), which runs parts: (exit code, printed lines)."""

    def run(limit: float = 60, **programs: str) -> tuple[int, list[str]]:
        parts = [
            day.Part(name, "more", ("-c", PROGRAM + program)) for name, program in programs.items()
        ]
        code = day.run_parts(parts, tmp_path, ["--device", "cpu"], limit)
        return code, capsys.readouterr().out.splitlines()

    return run


def test_part_gets_its_place_and_device_and_its_result_is_printed_beside_the_goal(run, tmp_path):
    code, (line,) = run(a="write('a'); print(sys.argv[1:])")
    assert code == 0
    assert line.startswith("a: 7 % (") and line.endswith(" [goal: more]")
    log = (tmp_path / "runs" / "gpu" / "a.log").read_text()
    assert log == f"['--root', '{tmp_path}', '--device', 'cpu']\n"


def test_finished_part_is_skipped(run, tmp_path):
    program = "write('a'); (root / 'runs' / 'calls').open('a').write('x')"
    assert run(a=program)[0] == 0
    code, (line,) = run(a=program)
    assert code == 0 and line == "a: done before on a card: 7 % [goal: more]"
    assert (tmp_path / "runs" / "calls").read_text() == "x"


def test_damaged_record_of_a_part_is_not_taken_for_a_finished_one(run, day, tmp_path):
    path = day.record_path(tmp_path, "a")
    path.parent.mkdir(parents=True)
    for damaged in ("{", "[1]"):
        path.write_text(damaged)
        code, (line,) = run(a="write('a')")
        assert code == 0 and line.startswith("a: 7 % (")


def test_part_is_cut_at_the_limit_and_continues_at_the_next_call(run, tmp_path):
    program = """
half = root / 'half'
if half.exists():
    write('a')
else:
    half.touch()
    time.sleep(600)
"""
    begun = time.monotonic()
    code, lines = run(limit=2, a=program, b="write('b')")
    assert time.monotonic() - begun < 60
    assert code == 1
    assert lines[0] == "a: cut after 2 s; the next call continues it [goal: more]"
    assert lines[1].startswith("b: 7 %")
    code, lines = run(a=program, b="write('b')")
    assert code == 0
    assert lines[0].startswith("a: 7 % (") and lines[1].startswith("b: done before")


def test_part_that_is_cut_gets_ctrl_c_first_and_its_processes_end_too(run, tmp_path):
    program = """
import subprocess
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
(root / 'child').write_text(str(child.pid))
try:
    time.sleep(600)
except KeyboardInterrupt:
    (root / 'interrupted').touch()
"""
    assert run(limit=3, a=program)[0] == 1
    assert (tmp_path / "interrupted").exists()
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # the child has no parent any more; the system collects it
        status = Path(f"/proc/{child}/status")
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} is still there")


def test_part_that_ignores_ctrl_c_is_killed(run, day, monkeypatch):
    monkeypatch.setattr(day, "PATIENCE", 1)
    ignoring = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(600)
"""
    begun = time.monotonic()
    assert run(limit=2, a=ignoring)[0] == 1
    assert time.monotonic() - begun < 60


def test_failing_part_is_named_with_its_reason_and_the_others_run(run, tmp_path):
    code, lines = run(
        a="print('noise'); sys.exit('no such card')",
        b="pass",
        c="write('c', finished=False)",
        d="write('d')",
    )
    log = tmp_path / "runs" / "gpu"
    assert code == 1
    assert lines[0] == (
        f"a: FAILED with exit code 1: no such card (log: {log / 'a.log'}) [goal: more]"
    )
    assert lines[1] == f"b: FAILED: it wrote no record (log: {log / 'b.log'}) [goal: more]"
    assert lines[2] == "c: not finished: 7 %; the next call continues it [goal: more]"
    assert lines[3].startswith("d: 7 % (")


def test_without_a_gpu_one_line_says_so(day, monkeypatch, capsys):
    monkeypatch.setattr(day, "has_gpu", lambda: False)
    monkeypatch.setattr(day, "run_parts", lambda *arguments: pytest.fail("a part runs"))
    assert day.main([]) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert "no CUDA device" in output.err


def test_with_a_gpu_the_chosen_parts_run_in_the_checkout(day, monkeypatch):
    called = []
    monkeypatch.setattr(day, "has_gpu", lambda: True)
    monkeypatch.setattr(day, "run_parts", lambda *arguments: called.append(arguments) or 0)
    assert day.main(["--only", "tests", "graphs", "--data", "there"]) == 0
    ((parts, root, options, limit),) = called
    assert [part.name for part in parts] == ["tests", "graphs"]
    assert root == ROOT and limit == 540
    assert options == ["--device", "cuda", "--data", "there"]


def test_every_part_has_its_work(day):
    from gpu_parts import WORK

    assert [part.name for part in day.PARTS] == list(dict.fromkeys(p.name for p in day.PARTS))
    assert {part.name for part in day.PARTS} == set(WORK)


def test_losses_in_fixed_memory_equal_the_engine_s(monkeypatch):
    """Without a GPU the function that a CUDA graph would record is called as it is."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cuda_graphs
    import tiny
    import torch

    config = tiny.config(schedule__iterations_per_network=2)
    device, real = torch.device("cpu"), tiny.three_digits()
    assert cuda_graphs.difference(config, real, device) < 1e-5
    other = tiny.config(schedule__iterations_per_network=2, optimiser__step_size=0.5)
    pairs = zip(config.distill(real, device), cuda_graphs.iterations(other, real, device))
    (first, again), (second, moved) = next(pairs), next(pairs)
    assert again[0] == pytest.approx(first.matching_loss)
    assert moved[0] != pytest.approx(second.matching_loss)  # the comparison can fail


def test_gpu_prepare_lists_the_requirements_of_the_package_and_of_the_build(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_prepare import requirements

    wanted = requirements()
    assert {"torch>=2.6", "pytest>=8", "ray>=2.40", "ninja"} <= set(wanted)
    assert not any(each.startswith("sphinx") for each in wanted)
    fewer = requirements(["torch", "torchvision"])
    assert set(wanted) - set(fewer) == {"torch>=2.6", "torchvision>=0.21"}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(
    os.environ.get("PCDD_TEST_GPU_DAY") != "yes",
    reason="takes 6 minutes on 2 cores; PCDD_TEST_GPU_DAY=yes runs it",
)
def test_dry_run_of_all_parts():
    # Ray puts sockets below TMPDIR, whose paths have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="gpu") as short:
        environment = os.environ | {"TMPDIR": short, "PYTHONPATH": str(ROOT)}
        environment.pop("PCDD_DATA", None)
        environment.pop("PCDD_RUNS", None)
        result = subprocess.run(
            [sys.executable, str(BENCHMARKS / "gpu_day.py"), "--dry-run"],
            capture_output=True,
            text=True,
            env=environment,
        )
    assert result.returncode == 0, result.stdout + result.stderr
    names = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert names == [
        "tests", "iteration", "evaluation", "table1", "graphs", "minkowski", "unrolled",
        "pointnets", "bench",
    ]  # fmt: skip
    changed = subprocess.run(
        ["git", "status", "--porcelain", "benchmarks", "figures"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "records/gpu" not in changed.stdout
