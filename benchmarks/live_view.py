"""Measure the cost and the frame rate of the live view in JupyterLab.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/live_view.py --data DIR

(About 5 minutes on 2 cores; needs Chromium and playwright.) The cases are 10 clouds of 250 points
with preset `gaussian` on MNIST, and the same with a small network and batch. The small case shows
the frame rate of the view when iterations are fast. The benchmark uses a real JupyterLab with a
headless browser that draws the frames. In its kernel two ways take turns, round by round, so that
noise on the machine affects both alike: iteration over `distill`, and a restarted live view. Both
start at the scatter and end after the same number of iterations. The browser draws in software on
the same cores, so its cost is included. Writes benchmarks/records/live-view-<device>.json.
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

import pcdd_core as pcdd
from pcdd_core.experiments import machine
from pcdd_core.experiments.config import to_dict
from pcdd_core.files import atomic_write_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import headless  # noqa: E402

CASES = {
    "gaussian": {},
    "gaussian, width 8, 4 real clouds per class": {"network.width": 8, "objective.real_batch": 4},
}
# Runs in the browser: records the time of each drawing of clouds (seconds) and its update.
COUNT_DRAWS = """
window.draws = [];
const clear = CanvasRenderingContext2D.prototype.clearRect;
CanvasRenderingContext2D.prototype.clearRect = function (...rectangle) {
  const view = this.canvas.closest(".pcdd-player");
  if (this.canvas.className.includes("clouds"))
    window.draws.push([Date.now() / 1000, view.dataset.update]);
  return clear.apply(this, rectangle);
};
"""


def measure(live, config, real, device: str, rounds: int) -> dict:
    """Measure whole runs without and with the view. Runs in the kernel.

    Returns wall-clock seconds, processor seconds of the kernel (without other programs and the
    browser), and start and end times of the watched runs. The first round is a warm-up and is
    dropped.
    """
    seconds, processor, watched = ({"plain": [], "watched": []} for _ in range(3))
    for _ in range(rounds + 1):
        for way in seconds:
            begun, spent = time.time(), time.process_time()
            if way == "plain":
                for _step in config.distill(real, device):
                    pass
            else:
                live.restart()
                while not live.status.startswith("finished"):
                    time.sleep(0.02)
            watched[way].append((begun, time.time()))
            seconds[way].append(time.time() - begun)
            processor[way].append(time.process_time() - spent)
            # the view updates the saved state and the picture, which is not part of an iteration
            time.sleep(4)
    kept = {"seconds": seconds, "processor_seconds": processor}
    return {name: {way: times[1:] for way, times in of.items()} for name, of in kept.items()} | {
        "watched": watched["watched"][1:]
    }


def notebook(folder: Path, config, options: argparse.Namespace) -> None:
    """Write a notebook of two cells: the view, and the measurement with its result in a file."""
    setup = f"""import json, sys
sys.path.insert(0, {str(HERE)!r})
import live_view, pcdd_core as pcdd
config = pcdd.Config(**json.loads({json.dumps(json.dumps(to_dict(config)))}))
real = config.data.load({options.data!r}).train
live = pcdd.watch(config, real, {str(options.device)!r})
live"""
    work = f"""import time; time.sleep(3)
result = live_view.measure(live, config, real, {str(options.device)!r}, {options.rounds})
open("result.json", "w").write(json.dumps(result))"""
    cells = [nbformat.v4.new_code_cell(source) for source in (setup, work)]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}),
        folder / "notebook.ipynb",
    )


def run(case: str, options: argparse.Namespace) -> dict:
    """Measure one case in a new JupyterLab."""
    config = pcdd.override(
        pcdd.preset("gaussian").config, {**CASES[case], "schedule.iterations": options.iterations}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook(folder, config, options)
        with headless.jupyterlab(folder) as address, headless.browser() as chromium:
            context = chromium.new_context(viewport={"width": 1300, "height": 1000})
            context.set_default_timeout(30 * 60_000)
            page = context.new_page()
            page.add_init_script(COUNT_DRAWS)
            headless.run_all(page, address)
            draws = page.evaluate("() => window.draws")
        result = json.loads((folder / "result.json").read_text())
    frame_rates, update_rates = [], []
    for begin, end in result.pop("watched"):
        during = [(moment, update) for moment, update in draws if begin <= moment <= end]
        frame_rates.append(len(during) / (end - begin))
        update_rates.append(len({update for _, update in during}) / (end - begin))

    def ratio(name: str) -> float:
        """Return the median over rounds of watched / plain. Each round compares adjacent runs."""
        return median(b / a for a, b in zip(result[name]["plain"], result[name]["watched"]))

    return {
        "case": case,
        **result,
        "ratio": ratio("seconds"),
        "processor_ratio": ratio("processor_seconds"),
        "iterations_per_second": {
            way: options.iterations / median(result["seconds"][way]) for way in result["seconds"]
        },
        "drawn_frames_per_second": median(frame_rates),
        "updates_shown_per_second": median(update_rates),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--iterations", type=int, default=40, help="iterations of each run (%(default)s)"
    )
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    options.device = machine.choose_device(options.device)
    if headless.BROWSER is None:
        parser.error("no Chromium or Chrome is installed")
    begun = time.monotonic()
    load = os.getloadavg()[0]
    rows = [run(case, options) for case in CASES]
    for row in rows:
        speed = row["iterations_per_second"]
        print(
            f"{row['case']}: {speed['plain']:.1f} iterations/s without the view, "
            f"{speed['watched']:.1f} with it; time {100 * (row['ratio'] - 1):+.1f} %, "
            f"processor time of the kernel {100 * (row['processor_ratio'] - 1):+.1f} %; "
            f"{row['updates_shown_per_second']:.1f} updates and "
            f"{row['drawn_frames_per_second']:.1f} frames per second"
        )
    record = {
        "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/live_view.py",
        "settings": {
            "preset": "gaussian",
            "data": "mnist",
            "rounds": options.rounds,
            "iterations": options.iterations,
        },
        "machine": machine.describe(options.device)
        | {"cores": os.cpu_count(), "load_before": load},
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    path = HERE / "records" / f"live-view-{options.device.type}.json"
    atomic_write_text(path, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
