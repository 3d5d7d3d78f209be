"""Take screenshots of the lab in JupyterLab, and record a screencast of it.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/lab_screenshots.py

(About 5 minutes on 2 cores; needs Chromium and playwright, no data.) Notebook 13 runs in a real
JupyterLab. Two runs, the Gaussian lift and the paper's, go in step on the digits; at their pause
the script selects a point, draws forces and an energy map, and takes screenshots at 1440 x 900,
at 1920 x 1080, in the dark theme, on the full screen and at a phone's width. Writes
figures/lab-*.png, lab.gif and lab.json, their record, and recordings/lab.gz, the two runs as
player.js reads them. The site plays them.
"""

import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write, atomic_write_text
from pcdd_core.view.page import encoded_in

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import headless  # noqa: E402

SETTINGS = {"clouds.points_per_cloud": 100, "schedule.iterations": 80}
SELECTED = 12  # the point of the first cloud whose force and energy are shown
GIF_WIDTH, GIF_MOMENTS = 800, 26
RARE = 64  # of 256 colours of a picture, those for colours of few pixels: points, curves, the map


class Screen:
    """The page with the lab, and the pictures taken of it."""

    def __init__(self, page):
        self.page, self.pictures = page, {}
        self.view, self.lab = page.locator(".pcdd-player"), page.locator(".pcdd-lab")

    def press(self, name: str) -> None:
        """Press a button of the player."""
        self.view.get_by_role("button", name=name, exact=True).click()

    def wait_for(self, status: str) -> None:
        """Wait for a status that contains these words."""
        self.view.locator(".status", has_text=status).wait_for()

    def shown(self, top=None) -> Image.Image:
        """Return a screenshot with the lab, or the part of it that is given, at the top."""
        (top or self.lab).evaluate("part => part.scrollIntoView()")
        self.page.wait_for_timeout(700)
        return Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")

    def keep(self, name: str, width: int, height: int, top=None) -> None:
        """Take a screenshot at a size of the window, with this part of the lab at the top."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(500)
        self.pictures[name] = self.shown(top)


def screencast(screen: Screen) -> list[Image.Image]:
    """Make two runs to their end. Returns what the screen showed on the way."""
    moments = [screen.shown()]
    screen.lab.get_by_label("Second run").select_option("Lift")
    screen.page.locator("canvas[aria-label*='Two runs']").wait_for()
    screen.press("Start")
    at, last = "document.querySelector('.pcdd-player').dataset.update", 0
    iterations = SETTINGS["schedule.iterations"]
    while last < iterations:
        last = min(last + iterations // GIF_MOMENTS, iterations)
        screen.page.wait_for_function(f"() => Number({at}) >= {last}")
        moments.append(screen.shown())
        last = int(screen.page.evaluate(at))
        if last >= iterations // 2 and "paused" not in screen.pictures:
            stop_and_look(screen)
            moments += [screen.pictures["paused"]] * 6
            screen.press("Start")
    screen.page.locator("canvas.score[aria-label*='Lift: coordinates']").wait_for()
    return [*moments, *[screen.shown()] * 6]


def stop_and_look(screen: Screen) -> None:
    """Pause, select a point, show its force and the energy around it, and take screenshots."""
    screen.press("Pause")
    screen.wait_for("paused")
    screen.view.locator("canvas.clouds").focus()
    for _ in range(SELECTED):
        screen.page.keyboard.press("n")
    for name in ("Forces", "Real mean"):
        screen.view.get_by_label(name).check()
    screen.page.locator(".picked", has_text="next update").wait_for()
    screen.press("Energy map")
    screen.page.locator(".picked", has_text="lowest energy").wait_for()
    screen.pictures["paused"] = screen.shown()


def looks(screen: Screen) -> None:
    """Take screenshots in several sizes and in the dark theme."""
    page = screen.page
    screen.keep("1440x900", 1440, 900)
    screen.keep("1920x1080", 1920, 1080)
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.locator(".lm-Menu-itemLabel:text-is('Theme')").hover()
    page.click(".lm-Menu-itemLabel:text-is('JupyterLab Dark')")
    page.wait_for_timeout(3000)
    screen.keep("dark", 1440, 900)
    screen.press("Full screen")
    page.wait_for_timeout(1000)
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.wait_for_timeout(500)
    screen.pictures["full-screen"] = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.evaluate("document.exitFullscreen()")
    page.locator(".jp-SideBar.jp-mod-left .lm-TabBar-tab[data-id=filebrowser]").click()
    screen.keep("phone", 390, 844, screen.view)


def with_256_colours(pictures: list[Image.Image]) -> list[Image.Image]:
    """Return pictures of equal size with one palette: frequent colours, and some rare ones.

    In an animation, what stands still is then the same in each picture, and takes no room.
    """
    width, height = pictures[0].size
    whole = Image.new("RGB", (width, height * len(pictures)))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (0, index * height))
    frequent = whole.quantize(256 - RARE, Image.Quantize.MEDIANCUT).getpalette()
    rare = whole.quantize(RARE, Image.Quantize.MAXCOVERAGE).getpalette()
    palette = np.array([*frequent, *rare]).reshape(-1, 3)
    packed = np.asarray(whole, np.int64) @ [256 * 256, 256, 1]
    colours, which = np.unique(packed, return_inverse=True)
    channels = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], 1)
    nearest = np.array([np.square(palette - one).sum(1).argmin() for one in channels], np.uint8)
    reduced = nearest[which].reshape(len(pictures), height, width)
    made = [Image.fromarray(part, "P") for part in reduced]
    for picture in made:
        picture.putpalette(palette.astype(np.uint8).tobytes())
    return made


def main() -> None:
    """Take all pictures and write them."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = {"settings": SETTINGS, "device": "cpu", "output": str(folder / "out")}
        source = headless.ROOT / "notebooks" / "13_lab.ipynb"
        headless.notebook_with_parameters(folder, parameters, source)
        with headless.jupyterlab(folder) as address, headless.browser() as chromium:
            context = chromium.new_context(viewport={"width": 1440, "height": 900})
            context.set_default_timeout(10 * 60_000)
            screen = Screen(context.new_page())
            headless.run_all(screen.page, address)
            screen.view.wait_for()
            (folder / "out" / "points.html").unlink()  # of the scatter
            moments = screencast(screen)
            cell = screen.page.locator(".jp-CodeCell", has_text="lab.save(page)")
            cell.locator(".cm-content").click()
            screen.page.keyboard.press("Control+Enter")
            while not (folder / "out" / "points.html").exists():
                screen.page.wait_for_timeout(100)
            looks(screen)
        page = (folder / "out" / "points.html").read_text()
    atomic_write(HERE / "recordings" / "lab.gz", lambda file: file.write(encoded_in(page)))
    for name, picture in screen.pictures.items():
        path = HERE / f"lab-{name}.png"
        (small,) = with_256_colours([picture])
        atomic_write(path, lambda file, small=small: small.save(file, "png", optimize=True))
    height = round(GIF_WIDTH * moments[0].height / moments[0].width)
    frames = [moment.resize((GIF_WIDTH, height), Image.Resampling.LANCZOS) for moment in moments]
    frames = with_256_colours(frames)
    options = {"save_all": True, "append_images": frames[1:], "duration": 250, "loop": 0}
    atomic_write(HERE / "lab.gif", lambda file: frames[0].save(file, "gif", **options))
    record = {
        "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python figures/lab_screenshots.py",
        "settings": SETTINGS,
        "machine": machine.describe(machine.choose_device("cpu")),
        "browser": Path(headless.BROWSER or "").name,
        "seconds": time.monotonic() - begun,
    }
    atomic_write_text(HERE / "lab.json", json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
