"""Notebook 13 in JupyterLab: every control of the lab, in a headless browser."""

import re

import headless
import pytest
from executed import SMOKE, Executed
from headless import PATIENCE
from test_live import (  # noqa: F401
    SETTINGS,
    browser,
    drawn,
    needs_browser,
    page,
    picture,
    update_of,
)

from pcdd_core.view.controls import COMPARED, CONTROLS

NOTEBOOK = headless.ROOT / "notebooks" / "13_lab.ipynb"
THREE_CLASSES = SETTINGS | {"data.classes": ["2", "3", "7"]}
KEYS = ("b", "a", "m", "x", "j", "k", "d", "d", "Shift+m", "ArrowDown", "ArrowUp")


@pytest.fixture
def opened(page, tmp_path):  # noqa: F811
    """Open notebook 13 in JupyterLab, run all cells, and return the page."""
    parameters = {"settings": THREE_CLASSES, "device": "cpu", "output": str(tmp_path / "run")}
    headless.notebook_with_parameters(tmp_path, parameters, NOTEBOOK)
    with headless.jupyterlab(tmp_path) as address:
        headless.run_all(page, address)
        page.locator(".pcdd-player canvas.clouds").wait_for()
        yield page
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
        assert errors.all_inner_texts() == []


def run_cell(page, code: str) -> str:  # noqa: F811
    """Run code in a new last cell, and return what it prints."""
    marker = "printed:"
    page.locator(".jp-Notebook-footer").click()
    cell = page.locator(".jp-Notebook .jp-CodeCell").last
    cell.locator(".cm-content").click()
    page.keyboard.insert_text(code + f"; print({marker!r}, flush=True)")
    page.keyboard.press("Control+Enter")
    output = cell.locator(".jp-OutputArea", has_text=marker)
    output.wait_for()
    text = output.inner_text().split(marker)[0].strip()
    page.keyboard.press("Escape")
    return text


def control(page, label: str):  # noqa: F811
    """Return the input of a control of the panel."""
    return page.locator(".pcdd-lab").get_by_label(label, exact=True).first


def press(page, name: str) -> None:  # noqa: F811
    page.locator(".pcdd-player").get_by_role("button", name=name, exact=True).click()


def wait_for_status(page, words: str) -> int:  # noqa: F811
    """Wait for a status that begins so. Returns the number of the update."""
    status = page.locator(".pcdd-player .status", has_text=re.compile(f"^{words}"))
    status.wait_for()
    return int(status.inner_text().split()[2])


def wait_for_update(page, number: int) -> None:  # noqa: F811
    page.wait_for_function(
        f"() => Number(document.querySelector('.pcdd-player').dataset.update) >= {number}"
    )


@pytest.mark.slow
@needs_browser
def test_lab_in_jupyterlab(opened):
    page = opened  # noqa: F811
    view, message = page.locator(".pcdd-player"), page.locator(".pcdd-message")
    clouds = view.locator("canvas.clouds")

    # Letters and arrows in a control are no shortcuts of the notebook.
    cells = page.locator(".jp-Notebook .jp-Cell")
    view.locator(".status").click()

    def notebook() -> tuple:
        active = page.locator(".jp-Notebook .jp-mod-active").first
        index = active.evaluate("cell => [...cell.parentElement.children].indexOf(cell)")
        return cells.count(), page.locator(".jp-MarkdownCell").count(), index

    before = notebook()
    kinds = "input, select, textarea, button, [role=slider], canvas.clouds"
    controls = page.locator(f".pcdd-lab :is({kinds}):visible:enabled")
    assert controls.count() >= len(CONTROLS) + 10
    for index in range(controls.count()):
        focused = controls.nth(index)
        focused.focus()
        kind = focused.evaluate("c => c.type || c.tagName")
        value = focused.evaluate("c => c.value")
        # a letter would choose another entry of a menu, an arrow another number
        for key in KEYS if kind in ("checkbox", "button", "submit", "CANVAS") else KEYS[:4]:
            if kind == "select-one":
                focused.dispatch_event(
                    "keydown", {"key": key, "bubbles": True, "keyCode": ord(key[0].upper())}
                )
            else:
                focused.press(key)
        if kind in ("text", "number"):
            focused.fill(value)
        assert notebook() == before, focused.evaluate("c => c.outerHTML")
        named = focused.evaluate(
            "c => c.getAttribute('aria-label') || c.title || c.innerText"
            " || c.labels?.[0]?.innerText"
        )
        assert named, focused.evaluate("c => c.outerHTML")
    wait_for_status(page, "ready")

    # A run, and a setting that changes in it.
    start = picture(clouds)
    press(page, "Start")
    wait_for_update(page, 2)
    page.get_by_role("slider", name="Step size").press("ArrowLeft")
    message.get_by_text(re.compile(r"Step size 0.2\d+, from update \d+ on")).wait_for()
    at = update_of(view)
    wait_for_update(page, at + 2)

    # A setting that begins another run, from the same scatter, and starts it.
    control(page, "Depth").fill("1")
    control(page, "Depth").press("Enter")
    message.get_by_text("Another run").wait_for()
    wait_for_status(page, "running")
    wait_for_update(page, 2)
    assert run_cell(page, "import threading") == ""
    count = "print(sum(t.name == 'distillation' for t in threading.enumerate()))"
    for _ in range(PATIENCE // 1000):
        if run_cell(page, count).startswith("1"):
            break
        page.wait_for_timeout(1000)
    press(page, "Pause")
    paused = wait_for_status(page, "paused")
    page.wait_for_selector(f".pcdd-player[data-update='{paused}']")
    view.get_by_label("moment of the recording").fill("0")
    drawn(page)
    assert picture(clouds) == start
    view.get_by_label("moment of the recording").press("End")

    # Settings that contradict each other are explained, and the run stays.
    control(page, "Network").select_option("pointnet")
    message.get_by_text("network.name").wait_for()
    assert wait_for_status(page, "paused") == paused
    control(page, "Network").select_option("torch")
    page.wait_for_function("() => !document.querySelector('.pcdd-message').innerText.trim()")

    # Select a point, its forces and the energy around it.
    clouds.focus()
    page.keyboard.press("n")
    picked = view.locator(".picked")
    picked.get_by_text("force of the next update").or_(
        picked.filter(has_text="force of the next update")
    ).first.wait_for()
    pictures = {picture(clouds)}
    for name in ("Forces", "Real mean"):
        view.get_by_label(name).check()
        page.wait_for_function(
            "before => !before.includes(document.querySelector('canvas.clouds').toDataURL())",
            arg=list(pictures),
        )
        pictures.add(picture(clouds))
    press(page, "Energy map")
    picked.filter(has_text="lowest energy").wait_for()

    # Two runs in step.
    control(page, "Second run").select_option("Lift")
    page.locator(".pcdd-player canvas.clouds[aria-label*='Two runs side by side']").wait_for()
    press(page, "Step")
    wait_for_status(page, "paused, update 1")
    page.wait_for_selector(".pcdd-player[data-update='1']")
    before_difference = picture(clouds)
    view.get_by_label("Difference").check()
    drawn(page)
    assert picture(clouds) != before_difference
    for label in [each.label for each in COMPARED]:
        control(page, "Second run").select_option(label)
        page.wait_for_function(
            "label => document.querySelector('canvas.clouds').getAttribute('aria-label')"
            ".includes(label) || document.querySelector('.pcdd-message').innerText.trim()",
            arg=f"by side, {label}: ",
        )
    control(page, "Second run").select_option("none")
    page.locator(".pcdd-player canvas.clouds[aria-label^='3 clouds']").wait_for()

    # Scores arrive while points move.
    control(page, "Score every").fill("1")
    control(page, "Score every").press("Enter")
    press(page, "Start")
    page.locator("canvas.score[aria-label*='%. Without distillation: random']").wait_for()
    page.locator("canvas.score[aria-label*='class mean']").wait_for()
    page.locator("canvas.score[aria-label*='validation: ']").wait_for()

    # A page that is loaded again in mid-run gets all frames. A fast run leaves frames out later, so
    # the page notes whether there was a moment with all of them.
    page.add_init_script(
        "new MutationObserver(changes => changes.forEach(({ target }) => {"
        " const { frames, update } = target.dataset;"
        " window.complete ||= update >= 6 && frames >= Math.min(update, 100); }))"
        ".observe(document, { subtree: true, attributeFilter: ['data-frames'] })"
    )
    wait_for_update(page, 5)
    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1000)
    page.reload()
    page.locator(".pcdd-player canvas.clouds").wait_for()
    wait_for_status(page, "running")
    page.wait_for_function("() => window.complete")

    # Copy and reset.
    press_in_panel = page.locator(".pcdd-lab").get_by_role("button", name="Copy settings")
    press_in_panel.click()
    copied = page.locator(".pcdd-lab textarea")
    copied.wait_for()
    assert "pcdd distill --preset=quickstart" in copied.input_value()
    assert "network.layers=1" in copied.input_value()
    page.locator(".pcdd-lab").get_by_role("button", name="Reset", exact=True).first.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pcdd-lab label')].some(l => l.innerText === 'Depth'"
        " && l.parentElement.querySelector('input').value === '2')"
    )
    wait_for_status(page, "running")

    # The cell again: the former run and its widgets are gone.
    page.locator(".jp-CodeCell", has_text="lab = pcdd.lab").locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "ready")
    assert run_cell(page, "import time; time.sleep(1); " + count) == "0"


@pytest.mark.slow
@needs_browser
def test_lab_fits_phones_and_follows_the_theme(opened):
    page = opened  # noqa: F811
    clouds = page.locator(".pcdd-player canvas.clouds")
    light = picture(clouds)
    ground = "() => getComputedStyle(document.querySelector('.pcdd-player')).backgroundColor"
    before = page.evaluate(ground)
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.locator(".lm-Menu-itemLabel:text-is('Theme')").hover()
    page.click(".lm-Menu-itemLabel:text-is('JupyterLab Dark')")
    page.wait_for_function(f"before => ({ground})() !== before", arg=before)
    page.wait_for_function(
        "light => document.querySelector('canvas.clouds').toDataURL() !== light", arg=light
    )
    page.locator(".jp-SideBar.jp-mod-left .lm-TabBar-tab[data-id=filebrowser]").click()
    page.set_viewport_size({"width": 390, "height": 844})
    drawn(page)
    lab = page.locator(".pcdd-lab")
    room = lab.evaluate("lab => lab.parentElement.clientWidth")
    edge = "element => element.getBoundingClientRect().right"
    wide = lab.evaluate(
        f"lab => Math.max(...[...lab.querySelectorAll('*')].map({edge}))"
        " - lab.getBoundingClientRect().left"
    )
    assert wide <= room + 1


@pytest.mark.slow
def test_notebook_of_the_lab_runs_without_a_screen(tmp_path):
    executed = Executed("13_lab", tmp_path, SMOKE)
    assert "finished, update 3 of 3; 4 frames" in executed.printed
    assert executed.pictures == 1
    assert "mount(" in (tmp_path / "runs" / "lab" / "points.html").read_text()
