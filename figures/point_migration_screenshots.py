"""Take screenshots of the live view in JupyterLab and of the HTML player, when points are digits.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python figures/point_migration_screenshots.py --data DIR

(About 3 minutes on 2 cores; needs Chromium and playwright.) Notebook 3 runs in a real JupyterLab
with the preset `quickstart` on MNIST. The script runs all notebook cells, presses Start, and takes
the first screenshot at the end of the run. Then it runs the notebook cell with the export again,
and opens the exported page from disk, without a network. Writes
figures/point-migration-jupyterlab.png, figures/point-migration-player.png and their records.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pcdd_core as pcdd
from pcdd_core.experiments import machine
from pcdd_core.experiments.config import override, to_dict
from pcdd_core.files import atomic_write, atomic_write_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import headless  # noqa: E402

PRESET, SEED = "quickstart", 0
COMMAND = "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/point_migration_screenshots.py"


def of_jupyterlab(page, address: str) -> bytes:
    """Run notebook 3 and its live view to the end, and run the export. Returns the screenshot."""
    headless.run_all(page, address)
    view = page.locator(".pcdd-player").first
    view.get_by_role("button", name="Start", exact=True).click()
    view.locator(".status", has_text="finished").wait_for()
    page.wait_for_timeout(5000)  # until the picture below the view is complete
    view.get_by_label("Colour").select_option("identity")
    page.locator(".jp-CodeCell", has_text="live = pcdd.watch").first.evaluate(
        "cell => cell.scrollIntoView()"
    )
    page.wait_for_timeout(500)
    picture = page.screenshot()
    page.locator(".jp-CodeCell", has_text="recording = live.recording").locator(
        ".cm-content"
    ).click()
    page.keyboard.press("Control+Enter")
    page.locator(".jp-OutputArea", has_text="frames, the last after").wait_for()
    return picture


def of_player(page, path: Path) -> bytes:
    """Return a screenshot of the page at two thirds of the frames, with trails and projection."""
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.wait_for_selector(".pcdd-player[data-update]")
    slider = page.get_by_label("moment of the recording")
    slider.fill(str(int(slider.get_attribute("max")) * 2 // 3))
    page.get_by_label("Projection").check()
    page.get_by_label("Trails").check()
    page.wait_for_timeout(500)
    return page.screenshot()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that contains MNIST/raw (default: PCDD_DATA)")
    options = parser.parse_args()
    begun, pictures = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = {
            "preset": PRESET,
            "dataset": "mnist",
            "data_folder": options.data or "",
            "seed": SEED,
        }
        headless.notebook_with_parameters(
            folder, {**parameters, "device": "cpu", "output": str(folder / "out")}
        )
        with headless.jupyterlab(folder) as address, headless.browser() as chromium:
            context = chromium.new_context(viewport={"width": 1280, "height": 1000})
            context.set_default_timeout(10 * 60_000)
            pictures["point-migration-jupyterlab"] = of_jupyterlab(context.new_page(), address)
            for _ in range(600):  # the notebook cell writes the page last
                if (folder / "out" / "points.html").exists():
                    break
                time.sleep(0.1)
            context = chromium.new_context(viewport={"width": 1000, "height": 640})
            pictures["point-migration-player"] = of_player(
                context.new_page(), folder / "out" / "points.html"
            )
    config = override(pcdd.preset(PRESET).config, {"data.name": "mnist", "seed": SEED})
    for name, picture in pictures.items():
        atomic_write(HERE / f"{name}.png", lambda file, picture=picture: file.write(picture))
        record = {
            "name": name,
            "command": COMMAND,
            "preset": PRESET,
            "config": to_dict(config),
            "machine": machine.describe(machine.choose_device("cpu")),
            "browser": Path(headless.BROWSER).name,
            "seconds": time.monotonic() - begun,
        }
        atomic_write_text(HERE / f"{name}.json", json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
