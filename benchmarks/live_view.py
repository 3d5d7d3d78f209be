"""What it costs to look on: a distillation in JupyterLab's live view, and without it, and how many frames are drawn.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/live_view.py --data DIR

(About 5 minutes on 2 cores; needs Chromium and playwright.) 10 clouds of 250 points, preset `gaussian` on MNIST, and
the same with a small network and batch, which shows what the view can do where iterations are fast. A real JupyterLab
with a headless browser that draws what arrives. In its kernel the two ways take turns, round by round, so that a noisy
machine harms both alike: iterating over `distill`, and a live view that is restarted. Both begin at the scatter and
end after the same iterations. The browser, which draws in software here, runs on the same cores, so what it takes from
the distillation is counted. Writes benchmarks/records/live-view-<device>.json.
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
from pcdd_core import machine
from pcdd_core.config import to_dict
from pcdd_core.files import atomic_write_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import headless  # noqa: E402

CASES = {
    "gaussian": {},
    "gaussian, width 8, 4 real clouds per class": {"network.width": 8, "objective.real_batch": 4},
}
# In the browser: when clouds were drawn (seconds), and which update that was.
COUNT_DRAWS = """
window.draws = [];
const clear = CanvasRenderingContext2D.prototype.clearRect;
CanvasRenderingContext2D.prototype.clearRect = function (...rectangle) {
  const view = this.canvas.closest(".pcdd-player");
  if (this.canvas.className.includes("clouds")) window.draws.push([Date.now() / 1000, view.dataset.update]);
  return clear.apply(this, rectangle);
};
"""


def measure(live, config, real, device: str, rounds: int) -> dict:
    """In the kernel: seconds of a whole run without and with the view, and when the watched ones ran.

    Seconds of the wall clock, and of the processor in the kernel, of which other programs and the browser take nothing.
    The first round warms up and is dropped.
    """
    seconds, processor, watched = ({"plain": [], "watched": []} for _ in range(3))
    for _ in range(rounds + 1):
        for way in seconds:
            begun, spent = time.time(), time.process_time()
            if way == "plain":
                for _step in pcdd.distill(config, real, device):
                    pass
            else:
                live.restart()
                while not live.status.startswith("finished"):
                    time.sleep(0.02)
            watched[way].append((begun, time.time()))
            seconds[way].append(time.time() - begun)
            processor[way].append(time.process_time() - spent)
            time.sleep(
                4
            )  # the saved view and the picture are renewed, which is not part of the iterations
    kept = {"seconds": seconds, "processor_seconds": processor}
    return {name: {way: times[1:] for way, times in of.items()} for name, of in kept.items()} | {
        "watched": watched["watched"][1:]
    }


def notebook(folder: Path, config, options: argparse.Namespace) -> None:
    """A notebook of two cells: the view, and the measurement with its result in a file."""
    setup = f"""import json, sys
sys.path.insert(0, {str(HERE)!r})
import live_view, pcdd_core as pcdd
config = pcdd.Config(**json.loads({json.dumps(json.dumps(to_dict(config)))}))
real = pcdd.load_data(config.data, {options.data!r}).train
live = pcdd.watch(config, real, {str(options.device)!r})
live"""
    work = f"""import time; time.sleep(3)
found = live_view.measure(live, config, real, {str(options.device)!r}, {options.rounds})
open("found.json", "w").write(json.dumps(found))"""
    cells = [nbformat.v4.new_code_cell(source) for source in (setup, work)]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}),
        folder / "notebook.ipynb",
    )


def run(case: str, options: argparse.Namespace) -> dict:
    """One case in a JupyterLab of its own."""
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
        found = json.loads((folder / "found.json").read_text())
    drawn, shown = [], []
    for begin, end in found.pop("watched"):
        during = [(moment, update) for moment, update in draws if begin <= moment <= end]
        drawn.append(len(during) / (end - begin))
        shown.append(len({update for _, update in during}) / (end - begin))

    def ratio(name: str) -> float:
        """The middle one of the rounds' ratios: what is next to each other in time is compared."""
        return median(b / a for a, b in zip(found[name]["plain"], found[name]["watched"]))

    return {
        "case": case,
        **found,
        "ratio": ratio("seconds"),
        "processor_ratio": ratio("processor_seconds"),
        "iterations_per_second": {
            way: options.iterations / median(found["seconds"][way]) for way in found["seconds"]
        },
        "drawn_frames_per_second": median(drawn),
        "updates_shown_per_second": median(shown),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that holds MNIST/raw (default: PCDD_DATA)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=40, help="of each run (%(default)s)")
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
            f"{row['case']}: {speed['plain']:.1f} iterations/s without, {speed['watched']:.1f} with the view, which takes "
            f"{100 * (row['ratio'] - 1):+.1f} % time, {100 * (row['processor_ratio'] - 1):+.1f} % in the kernel alone; "
            f"{row['updates_shown_per_second']:.1f} updates shown, {row['drawn_frames_per_second']:.1f} frames drawn a second"
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
