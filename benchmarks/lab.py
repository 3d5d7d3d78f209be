"""Measure the lab in JupyterLab: the cost of scores, frames drawn, the first movement.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/lab.py

(About 5 minutes on 2 cores; needs Chromium and playwright, no data.) A headless browser draws in
software on the same cores. Writes benchmarks/records/lab-cpu.json.

- Cost of scores: whole runs of preset `quickstart` with scores every 10 updates and without, in
  turn, so that noise on the machine affects both alike.
- Frames drawn a second while points move: 10 clouds of 250 points, two such runs, and 10 shapes of
  1,024 points. Iterations have small networks, so that the browser is the limit. The same while the
  recording is replayed and the kernel rests.
- First movement: from the press of Start to the first update on the screen, preset `demo`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import nbformat

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import headless  # noqa: E402
from live_view import COUNT_DRAWS  # noqa: E402

FAST = {"network.width": 2, "network.layers": 2, "objective.real_batch": 1}
SHAPES = {
    "data.classes": ["ball", "box", "cone", "cross", "ring"],
    "data.points": 256,
    "data.cells": 16,
    "clouds.points_per_cloud": 1024,
}
CASES = {
    "10 clouds of 250 points": ("quickstart", {**FAST, "schedule.iterations": 5000}, ""),
    "two runs of 10 clouds of 250 points": (
        "quickstart",
        {**FAST, "schedule.iterations": 5000},
        "Distance",
    ),
    "10 shapes of 1,024 points": (
        "solids",
        {
            **SHAPES,
            "network.width": 4,
            "objective.real_batch": 4,
            "clouds.clouds_per_class": 2,
            "schedule.iterations": 5000,
        },
        "",
    ),
    "preset demo": ("demo", {}, ""),
}
COST = {"clouds.points_per_cloud": 100, "schedule.iterations": 60}
WATCHED = 10  # seconds


def cost(rounds: int) -> dict:
    """Measure whole runs without and with scores. The first round is a warm-up and is dropped."""
    from pcdd_core.data.datasets import Digits
    from pcdd_core.view.controls import start_of
    from pcdd_core.view.scorer import Scorer
    from pcdd_core.view.session import Session

    config, splits = start_of("quickstart", COST), Digits().load()
    seconds: dict[str, list[float]] = {"plain": [], "scored": []}
    processor: dict[str, list[float]] = {"plain": [], "scored": []}
    scores = 0
    for _ in range(rounds + 1):
        for way in seconds:
            session = Session([config], splits.train, "cpu")
            if way == "scored":
                scorer = Scorer(session, splits, 10, lambda told: None)
                scorer.start()
            begun, spent = time.monotonic(), time.process_time()
            session.start()
            session.wait()
            seconds[way].append(time.monotonic() - begun)
            processor[way].append(time.process_time() - spent)
            if way == "scored":
                scores += len(scorer.baselines) + len(scorer.curves[0])
            session.close()
    row = {"case": "scores every 10 updates", "scores": scores}
    for name, times in (("seconds", seconds), ("processor_seconds", processor)):
        kept = row[name] = {way: of[1:] for way, of in times.items()}
        row[f"ratio_of_{name}"] = median(b / a for a, b in zip(kept["plain"], kept["scored"]))
    return row


def drawn(case: str) -> dict:
    """Count the frames of one case while points move, and while the recording is replayed."""
    preset, settings, compared = CASES[case]
    source = (
        f"import pcdd_core as pcdd\nlab = pcdd.lab({preset!r}, {settings!r}, device='cpu')\nlab"
    )
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    cells = [nbformat.v4.new_code_cell(source)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    with tempfile.TemporaryDirectory() as name:
        nbformat.write(notebook, Path(name) / "notebook.ipynb")
        with headless.jupyterlab(Path(name)) as address, headless.browser() as chromium:
            context = chromium.new_context(viewport={"width": 1440, "height": 900})
            page = context.new_page()
            page.set_default_timeout(10 * 60_000)
            page.add_init_script(COUNT_DRAWS)
            headless.run_all(page, address)
            view = page.locator(".pcdd-player")
            view.wait_for()
            lab = page.locator(".pcdd-lab")
            if compared:
                lab.get_by_label("Second run").select_option(compared)
                page.locator("canvas[aria-label*='Two runs']").wait_for()
            lab.get_by_label("Score every").fill("0")
            lab.get_by_label("Score every").press("Enter")
            first = "() => Number(document.querySelector('.pcdd-player').dataset.update) >= 1"
            begun = time.monotonic()
            view.get_by_role("button", name="Start", exact=True).click()
            page.wait_for_function(first)
            movement = time.monotonic() - begun
            live = _rate(page)
            view.get_by_role("button", name="Pause", exact=True).click()
            view.locator(".status", has_text="paused").or_(
                view.locator(".status", has_text="finished")
            ).wait_for()
            page.wait_for_timeout(5000)  # the saved state and the picture
            view.get_by_label("Speed").select_option("0.25")
            view.get_by_role("button", name="Replay").click()
            replayed = _rate(page)
    return {
        "case": case,
        "seconds_to_first_movement": movement,
        "frames_per_second_live": live[0],
        "updates_per_second_live": live[1],
        "frames_per_second_replayed": replayed[0],
    }


def _rate(page) -> tuple[float, float]:
    """Return drawings a second, and different updates among them, over WATCHED seconds."""
    page.evaluate("() => (window.draws = [])")
    page.wait_for_timeout(1000 * WATCHED)
    draws = page.evaluate("() => window.draws")
    return len(draws) / WATCHED, len({update for _, update in draws}) / WATCHED


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the cost (%(default)s)")
    options = parser.parse_args()
    if headless.BROWSER is None:
        parser.error("no Chromium or Chrome is installed")
    begun, load = time.monotonic(), os.getloadavg()[0]
    rows = [drawn(case) for case in CASES]
    rows.append(cost(options.rounds))
    for row in rows:
        print(row)
    record = {
        "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/lab.py",
        "settings": {"rounds": options.rounds, "cases": CASES, "cost": COST},
        "machine": machine.describe(machine.choose_device("cpu"))
        | {"cores": os.cpu_count(), "load_before": load},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    atomic_write_text(HERE / "records" / "lab-cpu.json", json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
