"""Notebook 3 in JupyterLab, and the page opened from disk, both in a headless browser."""

import base64
import gzip
import json
import struct
from dataclasses import replace

import headless
import nbformat
import numpy as np
import papermill
import pytest
from headless import NOTEBOOK, PATIENCE
from test_player import recording

from pcdd_core.view.recording import STEPS, save_player, still

pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)


def needs_browser(test):
    """Mark a test as one of the browser, and skip it without one."""
    without = headless.BROWSER is None
    skip = pytest.mark.skipif(without, reason="no Chromium or Chrome is installed")
    return pytest.mark.browser(skip(test))


LONG = 5000  # iterations: more than any test waits for
SETTINGS = {
    "schedule.iterations": LONG,
    "network.width": 4,
    "network.layers": 2,
    "objective.real_batch": 2,
    "clouds.points_per_cloud": 30,
}


@pytest.fixture(scope="module")
def browser():
    """Start headless Chromium."""
    with headless.browser() as chromium:
        yield chromium


@pytest.fixture
def page(browser):
    """Open a page; an error in it fails the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 1100})
    context.set_default_timeout(PATIENCE)
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not errors


def picture(canvas) -> str:
    """Return the picture of a canvas as a data URL."""
    return canvas.evaluate("canvas => canvas.toDataURL()")


def update_of(view) -> int:
    return int(view.get_attribute("data-update"))


def drawn(page) -> None:
    """Wait until the page is drawn."""
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


# --- the page from disk ---------------------------------------------------------------------------


@pytest.fixture
def opened(page, tmp_path):
    """Return open(recording), which opens its page from disk without a network.

    A request for anything but the file fails the test.
    """
    asked, said = [], []

    def open_page(given):
        save_player(given, tmp_path / "page.html")
        page.context.set_offline(True)
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector(".pcdd-player[data-update]")
        return page.locator(".pcdd-player")

    yield open_page
    assert asked == [(tmp_path / "page.html").as_uri()] and not said


@needs_browser
def test_page_opens_without_a_network_and_can_be_scrubbed(opened, page):
    given = recording(frames=9)
    view = opened(given)
    clouds, slider = view.locator("canvas.clouds"), view.get_by_label("moment of the recording")
    assert update_of(view) == 8 and slider.input_value() == "8"
    last = picture(clouds)
    slider.fill("2")
    page.wait_for_selector(".pcdd-player[data-update='2']")
    assert view.locator(".moment").inner_text() == "update 2 of 8"
    assert picture(clouds) != last
    slider.fill("8")
    page.wait_for_selector(".pcdd-player[data-update='8']")
    assert picture(clouds) == last


@needs_browser
def test_page_replays_to_the_end_and_then_stands_still(opened, page):
    view = opened(recording(frames=9))
    view.get_by_role("button").click()
    page.wait_for_function(
        "() => Number(document.querySelector('.pcdd-player').dataset.update) < 7"
    )
    page.wait_for_selector(".pcdd-player[data-update='8']")
    page.wait_for_function(
        "() => document.querySelector('.pcdd-player button').textContent.includes('Replay')"
    )
    before = picture(view.locator("canvas.clouds"))
    for _ in range(10):
        drawn(page)
    assert picture(view.locator("canvas.clouds")) == before


@needs_browser
def test_page_replays_where_frames_come_late(opened, page):
    """Replay with frame times before the click: points must not move back beyond their start."""
    page.add_init_script(
        "const ask = requestAnimationFrame;"
        "window.requestAnimationFrame = f => ask(now => f(now - 500))"
    )
    view = opened(recording(frames=9))
    view.get_by_role("button").click()
    page.wait_for_function(
        "() => Number(document.querySelector('.pcdd-player').dataset.update) < 7"
    )
    page.wait_for_selector(".pcdd-player[data-update='8']")
    assert update_of(view) == 8


@needs_browser
def test_every_choice_of_the_page_changes_what_is_drawn(opened, page):
    view = opened(recording(frames=9))
    clouds = view.locator("canvas.clouds")
    pictures = {picture(clouds)}
    changes = [
        lambda: view.get_by_label("Colour").select_option("identity"),
        lambda: view.get_by_label("Colour").select_option("gradient"),
        lambda: view.get_by_label("Trails").check(),
        lambda: view.get_by_label("Projection").check(),
        lambda: view.get_by_label("Class").select_option("1"),
        lambda: view.get_by_label("Class").select_option("2"),
    ]
    for count, change in enumerate(changes, start=2):
        change()
        drawn(page)
        pictures.add(picture(clouds))
        assert len(pictures) == count
    assert view.get_by_label("Class").locator("option").all_inner_texts() == [
        "all",
        "zero",
        "one",
        "two",
    ]


@needs_browser
def test_page_decodes_what_was_encoded(opened, page):
    given = recording(frames=4)
    opened(given)
    # the names of the page's module are private: run the module again with a line that gives them
    page.evaluate(
        """() => new Promise(done => {
            const again = document.createElement("script");
            again.type = "module";
            again.textContent = document.querySelector("script").textContent
                .replace(
                    /^mount\\(.*$/m,
                    "window.answer = await decode(bytes); window.answered();"
                );
            window.answered = done;
            document.body.append(again);
        })"""
    )
    places = np.array(page.evaluate("() => answer.frames.map(frame => [...frame.places])"))
    coordinates = (places.reshape(4, 3, -1).swapaxes(1, 2) + 0.5) / STEPS
    assert np.abs(coordinates - given.coordinates).max() <= 0.5 / STEPS + 1e-5
    assert np.allclose(page.evaluate("() => answer.mean_gradient"), given.mean_absolute_gradient)


@needs_browser
def test_recording_without_gradients_says_so(opened):
    given = recording()
    view = opened(replace(given, gradients=None))
    option = view.get_by_label("Colour").locator("option[value=gradient]")
    assert option.is_disabled() and "not recorded" in option.inner_text()


@needs_browser
def test_clouds_in_3d_can_be_turned_flat_ones_not(opened, page):
    view = opened(recording(grid=(8, 8, 8)))
    clouds = view.locator("canvas.clouds")
    pictures = {picture(clouds)}
    box = clouds.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 130, steps=3)
    page.mouse.up()
    drawn(page)
    pictures.add(picture(clouds))
    clouds.focus()
    page.keyboard.press("ArrowLeft")
    drawn(page)
    pictures.add(picture(clouds))
    assert len(pictures) == 3 and "turn" in view.locator(".note").inner_text()


@needs_browser
def test_page_of_names_that_look_like_code_shows_them_as_text(opened):
    names = ("<img src=x onerror=alert(1)>", "</script>", "$x^2$")
    view = opened(recording(names=names))
    assert view.get_by_label("Class").locator("option").all_inner_texts() == ["all", *names]
    assert view.locator("img").count() == 0


@needs_browser
def test_page_of_one_frame_shows_it(opened):
    view = opened(still(recording().clouds))
    assert update_of(view) == 0 and view.get_by_role("button").is_disabled()


# --- the notebook ---------------------------------------------------------------------------------


@pytest.mark.slow
@needs_browser
def test_live_view_in_jupyterlab(page, tmp_path):
    """Run all cells, then press start, pause, step, restart and stop, scrub, save and reopen."""
    parameters = {"settings": SETTINGS, "device": "cpu", "output": str(tmp_path / "run")}
    headless.notebook_with_parameters(tmp_path, parameters)
    with headless.jupyterlab(tmp_path) as address:
        headless.run_all(page, address)
        _steer(page, tmp_path)
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def _steer(page, folder) -> None:
    view = page.locator(".pcdd-player").first
    view.wait_for()
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    # later cells state that nothing ran yet
    assert "Press Start above" in page.locator(".jp-Notebook").inner_text()
    clouds, status = (
        view.locator("canvas.clouds"),
        page.locator(".widget-label", has_text="update").first,
    )

    def press(name: str) -> None:
        page.locator("button.jupyter-button", has_text=name).first.click()

    def wait_for_status(words: str) -> int:
        """Wait for a status that begins with `words` and for the view to reach its update.

        Returns the number of the update.
        """
        page.locator(".widget-label", has_text=words).first.wait_for()
        update = int(status.inner_text().split()[2])
        page.wait_for_selector(f".pcdd-player[data-update='{update}']")
        drawn(page)
        return update

    def wait_for_update(number: int) -> None:
        page.wait_for_function(
            f"() => Number(document.querySelector('.pcdd-player').dataset.update) >= {number}"
        )

    assert update_of(view) == 0 and wait_for_status("ready") == 0
    start = picture(clouds)
    press("Start")
    wait_for_update(2)
    assert picture(clouds) != start

    press("Pause")
    paused = wait_for_status("paused")
    at_rest = picture(clouds)
    page.wait_for_timeout(1500)  # longer than the interval at which the recording is renewed
    assert picture(clouds) == at_rest and update_of(view) == paused

    press("Step")
    page.locator(".widget-label", has_text=f"paused, update {paused + 1} ").wait_for()
    page.wait_for_selector(f".pcdd-player[data-update='{paused + 1}']")
    drawn(page)
    assert picture(clouds) != at_rest

    press("Start")
    wait_for_update(paused + 3)
    press("Restart")
    page.wait_for_function(
        f"() => Number(document.querySelector('.pcdd-player').dataset.update) < {paused + 3}"
    )
    wait_for_update(paused + 3)
    press("Stop")
    stopped = wait_for_status("stopped")
    assert stopped < LONG

    slider = view.get_by_label("moment of the recording")
    last = picture(clouds)
    slider.fill("0")
    page.wait_for_function("() => document.querySelector('.pcdd-player').dataset.update === '0'")
    drawn(page)
    assert picture(clouds) == start  # the same scatter as before the restart
    slider.press("End")
    page.wait_for_function(
        f"() => document.querySelector('.pcdd-player').dataset.update === '{stopped}'"
    )
    drawn(page)
    assert picture(clouds) == last

    # The picture below the view is for viewers without widgets. It was drawn again, and a saved
    # notebook has the view and the picture.
    def outputs() -> list[dict]:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        saved = nbformat.read(folder / "notebook.ipynb", as_version=4)
        cell = next(cell for cell in saved.cells if "pcdd.watch(config, real" in cell.source)
        return [output["data"] for output in cell.outputs] + [saved.metadata.get("widgets", {})]

    page.locator(".jp-Notebook").press("Escape")
    for _ in range(PATIENCE // 500):
        widget, image, state = outputs()
        if len(image.get("image/png", "")) > 40_000 and stopped in _last_updates(state):
            break
    assert (
        "application/vnd.jupyter.widget-view+json" in widget and "Live view" in widget["text/plain"]
    )
    assert len(image["image/png"]) > 40_000 and stopped in _last_updates(state)

    # Reopened without its kernel, the notebook shows the view, which can be scrubbed.
    page.click(".lm-MenuBar-itemLabel:text-is('Kernel')")
    page.click(".lm-Menu-itemLabel:text-is('Shut Down Kernel')")
    # if reloaded earlier, JupyterLab looks for the kernel for a minute
    page.get_by_text("No Kernel").first.wait_for()
    page.reload()
    view.locator("canvas.clouds").wait_for()
    page.wait_for_function(
        f"() => document.querySelector('.pcdd-player').dataset.update === '{stopped}'"
    )
    slider.fill("0")
    page.wait_for_function("() => document.querySelector('.pcdd-player').dataset.update === '0'")


def _last_updates(widgets: dict) -> set[int]:
    """Return the last update of each recording in the saved widgets of a notebook."""
    models = widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", {}).values()
    recordings = [
        part["data"]
        for model in models
        for part in model.get("buffers", [])
        if part["path"] == ["recording"]
    ]
    last = set()
    for unzipped in (gzip.decompress(base64.b64decode(data)) for data in recordings):
        (length,) = struct.unpack_from("<I", unzipped)
        last.add(json.loads(unzipped[4 : 4 + length])["updates"][-1])
    return last


@pytest.mark.slow
def test_notebook_without_a_screen_runs_to_its_end_and_keeps_pictures(tmp_path):
    settings = {**SETTINGS, "schedule.iterations": 3}
    papermill.execute_notebook(
        NOTEBOOK,
        tmp_path / "executed.ipynb",
        parameters={"settings": settings, "output": str(tmp_path / "run"), "device": "cpu"},
        kernel_name="python3",
        cwd=str(tmp_path),
        progress_bar=False,
    )
    assert {path.suffix for path in (tmp_path / "run").iterdir()} == {".html", ".gif", ".mp4"}
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    live = [cell for cell in executed.cells if "pcdd.watch(" in cell.source]
    assert len(live) == 2
    for cell in live:
        assert [list(output["data"]) for output in cell.outputs] == [["image/png", "text/plain"]]
    printed = "".join(
        output.get("text", "") for cell in executed.cells for output in cell.get("outputs", [])
    )
    assert "finished, update 3 of 3" in printed and "4 frames" in printed
