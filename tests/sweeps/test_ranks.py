"""A run shared by several processes is the run of one, and what cannot be shared is refused."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
from tiny import distill

from pcdd_core import ranks
from pcdd_core.errors import InputError
from pcdd_core.geometry.storage import load_clouds

SETTINGS = {
    **tiny.DISTILLATION,
    **tiny.EVALUATION,
    "clouds.clouds_per_class": 2,
    "objective.augmentation": True,
}
ALONE = [sys.executable, "-m", "pcdd_core"]
HUNG = 30 * 60  # seconds: far above the time on a busy machine
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "pcdd_core",
]


def distilled(command, folder, *more):
    arguments = [
        "distill",
        "--preset",
        "quickstart",
        "--device",
        "cpu",
        "--quiet",
        "--output",
        str(folder),
    ]
    # as torchrun sets it; more threads sum in another order
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*command, *arguments, *tiny.arguments(SETTINGS), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG, env=one_thread)
    return done, folder


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["gradient_matching", "maximum_mean_discrepancy"])
def test_two_processes_give_bit_for_bit_what_one_gives(objective, tmp_path):
    name = f"objective.name={objective}"
    runs = [
        distilled(command, tmp_path / str(number), name)
        for number, command in enumerate((ALONE, TORCHRUN))
    ]
    for done, _ in runs:
        assert done.returncode == 0, done.stderr
    assert runs[1][0].stdout.count("standard:") == 1  # one process reports
    alone, together = (load_clouds(folder / "clouds.npz") for _, folder in runs)
    assert torch.equal(alone.coordinates, together.coordinates)
    lines, other_lines = ((folder / "steps.jsonl").read_text() for _, folder in runs)
    assert lines == other_lines and len(lines.splitlines()) == SETTINGS["schedule.iterations"]
    scores, other_scores = (
        json.loads((folder / "record.json").read_text())["scores"] for _, folder in runs
    )
    assert scores == other_scores


@pytest.mark.slow
def test_processes_part_for_good(tmp_path):
    """No object may hold the process group at the end: its threads can abort the process."""
    script = tmp_path / "part.py"
    script.write_text(
        "import weakref\n"
        "import torch\n"
        "from pcdd_core import ranks\n"
        "with ranks.joined(torch.device('cpu')):\n"
        "    group = weakref.ref(torch.distributed.group.WORLD)\n"
        "    points = torch.ones(2, requires_grad=True)\n"
        "    points.sum().backward()\n"
        "    ranks.sum_over_ranks(points.grad)\n"
        "    torch.optim.Adam([points]).step()\n"
        "print('held' if group() else 'gone')\n"
    )
    done = subprocess.run(
        [*TORCHRUN[:-2], str(script)], capture_output=True, text=True, timeout=HUNG
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["gone", "gone"]


@pytest.mark.slow
def test_all_processes_refuse_a_folder_that_holds_a_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    done, _ = distilled(TORCHRUN, folder)
    assert done.returncode != 0 and "holds an unfinished run" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("count", "changes", "said"),
    [
        (
            2,
            {"objective__name": "unrolled_training"},
            "objective.name=unrolled_training.*shared among 2 processes",
        ),
        (
            2,
            {"objective__name": "feature_regression"},
            "objective.name=feature_regression.*shared among 2 processes",
        ),
        (4, {}, "4 processes for 3 classes; expected at most one for each class"),
    ],
)
def test_what_cannot_be_shared_is_refused(count, changes, said, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: count)
    with pytest.raises(InputError, match=said):
        distill(tiny.config(**changes), tiny.three_digits())


def test_every_class_is_matched_by_one_process(monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(ranks, "rank", lambda: number)
        shares += ranks.own_classes(10)
    assert sorted(shares) == list(range(10))
