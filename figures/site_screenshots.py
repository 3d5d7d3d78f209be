"""Take screenshots of the site and of notebooks in JupyterLab, in the light and the dark theme.

    make site
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/site_screenshots.py

(About 5 minutes on 2 cores; needs Chromium and playwright, no data.) The pages of the site come
from build/site, without a network. The notebooks run in a real JupyterLab with their default
parameters. Writes figures/site-*.png, notebook-*.png and their record site-screenshots.json.
"""

import io
import json
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write, atomic_write_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import headless  # noqa: E402

SITE = HERE.parent / "build" / "site"
PAGES = {"index": "index.html", "gallery": "generated/gallery.html", "paper": "paper.html"}
NOTEBOOKS = ("01_quickstart", "03_point_migration", "04_table_1_backends_and_layers")
NOTEBOOKS += ("11_shapes_in_three_dimensions",)
SIZE = {"width": 1280, "height": 900}
PATIENCE = 10 * 60_000  # milliseconds


def keep(name: str, screenshot: bytes) -> None:
    """Write a screenshot with 256 colours."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(256)
    path = HERE / f"{name}.png"
    atomic_write(path, lambda file: picture.save(file, "png", optimize=True))
    print(path.name, flush=True)


def of_site(chromium) -> None:
    """Take screenshots of the pages in both colour schemes."""
    for scheme in ("light", "dark"):
        context = chromium.new_context(viewport=SIZE, color_scheme=scheme)
        context.set_offline(True)
        page = context.new_page()
        for name, place in PAGES.items():
            page.goto((SITE / place).as_uri())
            page.wait_for_timeout(3000)
            keep(f"site-{name}-{scheme}", page.screenshot())
        context.close()


def of_notebook(chromium, name: str) -> None:
    """Run a notebook in JupyterLab and take screenshots of its largest output in both themes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = headless.ROOT / "notebooks" / f"{name}.ipynb"
        headless.notebook_with_parameters(folder, {"device": "cpu"}, source)
        with headless.jupyterlab(folder) as address:
            context = chromium.new_context(viewport=SIZE)
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            headless.run_all(page, address)
            page.wait_for_timeout(3000)
            outputs = page.locator(".jp-OutputArea-output:has(img, canvas, table)")
            outputs.first.evaluate("output => output.scrollIntoView({ block: 'center' })")
            page.wait_for_timeout(1000)
            keep(f"notebook-{name[:2]}-light", page.screenshot())
            page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
            page.locator(".lm-Menu-itemLabel:text-is('Theme')").hover()
            page.click(".lm-Menu-itemLabel:text-is('JupyterLab Dark')")
            page.wait_for_timeout(3000)
            keep(f"notebook-{name[:2]}-dark", page.screenshot())
            context.close()


def main() -> None:
    """Take all screenshots and write their record."""
    if not (SITE / "index.html").exists():
        raise SystemExit(f"{SITE}: no site; build it with `make site`")
    begun = time.monotonic()
    with headless.browser() as chromium:
        of_site(chromium)
        for name in NOTEBOOKS:
            of_notebook(chromium, name)
    record = {
        "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/site_screenshots.py",
        "machine": machine.describe(machine.choose_device("cpu")),
        "seconds": time.monotonic() - begun,
    }
    atomic_write_text(HERE / "site-screenshots.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
