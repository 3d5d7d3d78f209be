"""Notebook 3 in JupyterLab, and the page opened from disk, both in a headless browser."""

import base64
import gzip
import html
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
from dataclasses import replace

import headless
import nbformat
import numpy as np
import papermill
import pytest
from headless import NOTEBOOK, PATIENCE
from jupyter_client.manager import KernelManager
from PIL import Image
from test_player import decoded, recording

from pcdd_core.view.page import STEPS, encoded_in, save_player
from pcdd_core.view.recording import still

pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)


def needs_browser(test):
    """Mark a test as one of the browser, and skip it without one."""
    without = headless.BROWSER is None
    skip = pytest.mark.skipif(without, reason="no Chromium or Chrome is installed")
    return pytest.mark.browser(skip(test))


LONG = 1_000_000  # iterations: more than any test waits for
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
    view.get_by_role("button", name="Replay").click()
    page.wait_for_function(
        "() => Number(document.querySelector('.pcdd-player').dataset.update) < 7"
    )
    page.wait_for_selector(".pcdd-player[data-update='8']")
    page.wait_for_function(
        "() => document.querySelector('.pcdd-player [aria-label=Replay]') !== null"
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
    view.get_by_role("button", name="Replay").click()
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
    assert update_of(view) == 0 and view.get_by_role("button", name="Replay").is_disabled()


RECORD_COLOURS = """
window.drawn = [];
for (const name of ["fill", "fillRect"]) {
  const plain = CanvasRenderingContext2D.prototype[name];
  CanvasRenderingContext2D.prototype[name] = function (...rest) {
    if (this.canvas.className.includes("clouds"))
      window.drawn.push(`${this.fillStyle} ${this.globalAlpha}`);
    return plain.apply(this, rest);
  };
}
"""


def contrast(one, other) -> float:
    """Return the contrast of two colours of 0 to 255 as WCAG 2.2 defines it."""

    def luminance(colour) -> float:
        shares = np.array(colour) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(colour: str) -> list[int]:
    """Return the channels of #rrggbb or rgb(...)."""
    if colour.startswith("#"):
        return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


@needs_browser
@pytest.mark.parametrize("background", ["white", "black", "#111111", "#fdf6e3", "#777777"])
def test_every_colour_of_points_has_contrast(browser, tmp_path, background):
    """Read the colours that the canvas gets, with points at every distance from their start."""
    walk = recording(frames=2, names=("zero",), points=400)
    save_player(walk, tmp_path / "page.html")
    save_player(recording(2, (8, 8, 8), ("zero",), 400), tmp_path / "solid.html")
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(RECORD_COLOURS)
    seen = set()
    for name in ("page.html", "solid.html"):
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector(".pcdd-player[data-update]")
        page.evaluate(f"document.querySelector('.pcdd-player').style.background = '{background}'")
        for colour in ("displacement", "gradient", "identity"):
            page.get_by_role("combobox", name="Colour").select_option(colour)
            for projection in (False, True):
                page.get_by_label("Projection").set_checked(projection)
                drawn(page)
                page.evaluate("window.drawn = []")
                page.get_by_label("Trails").click()  # redraws in any case
                drawn(page)
                ground = np.array(
                    rgb(
                        page.locator(".pcdd-player").evaluate(
                            "element => getComputedStyle(element).backgroundColor"
                        )
                    )
                )
                marks = set(page.evaluate("drawn"))
                cells = [mark for mark in marks if not mark.endswith(" 1")]
                assert len(cells) == projection
                for mark in cells:
                    text, opacity = mark.split()
                    ground = ground + float(opacity) * (np.array(rgb(text)) - ground)
                points = marks - set(cells)
                assert points
                for mark in points:
                    seen.add((colour, mark))
                    assert contrast(rgb(mark.split()[0]), ground) >= 2.98, (mark, colour, ground)
    context.close()
    assert {"displacement", "gradient", "identity"} == {colour for colour, _ in seen}
    assert len([mark for colour, mark in seen if colour == "gradient"]) > 20  # most of the ramp
    assert len([mark for colour, mark in seen if colour == "identity"]) >= 8


@needs_browser
def test_canvas_is_described_and_changes_are_said(opened, page):
    view = opened(recording(frames=9))
    clouds, said = view.locator("canvas.clouds"), view.locator("[aria-live=polite]")
    last = clouds.get_attribute("aria-label")
    assert "zero, one, two" in last and "update 8 of 8" in last and "cells from the start" in last
    view.get_by_label("moment of the recording").fill("2")
    page.wait_for_selector(".pcdd-player[data-update='2']")
    assert "update 2 of 8" in clouds.get_attribute("aria-label")
    page.wait_for_function(
        "() => document.querySelector('[aria-live]').textContent === 'update 2 of 8'"
    )
    assert ": " in view.locator("canvas.loss").get_attribute("aria-label")
    view.get_by_role("combobox", name="Class").select_option("1")
    drawn(page)
    label = clouds.get_attribute("aria-label")
    assert "1 cloud of points: one." in label
    page.wait_for_function(
        "text => document.querySelector('[aria-live]').textContent === text", arg=label
    )
    assert said.get_attribute("role") == "status"


@needs_browser
def test_zoom_moves_and_resets(opened, page):
    view = opened(recording(frames=9))
    clouds = view.locator("canvas.clouds")
    plain = picture(clouds)
    scrolled = page.evaluate("() => scrollY")
    box = clouds.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -200)  # without Ctrl: scrolls the page
    drawn(page)
    assert picture(clouds) == plain
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    drawn(page)
    zoomed = picture(clouds)
    assert zoomed != plain and "Zoom 2.7" in clouds.get_attribute("aria-label")
    assert page.evaluate("() => [scrollY, visualViewport.scale]") == [scrolled, 1]
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 80, steps=3)
    page.mouse.up()
    drawn(page)
    moved = picture(clouds)
    clouds.focus()
    page.keyboard.press("ArrowRight")
    drawn(page)
    assert len({plain, zoomed, moved, picture(clouds)}) == 4
    view.get_by_role("button", name="Reset the view").click()
    drawn(page)
    assert picture(clouds) == plain and view.get_by_role("button", name="Zoom out").is_disabled()
    view.get_by_role("button", name="Zoom in").click()
    drawn(page)
    assert "Zoom 1.5" in clouds.get_attribute("aria-label")


@needs_browser
def test_frames_can_be_stepped_and_speed_chosen(opened, page):
    view = opened(recording(frames=41))
    view.get_by_role("button", name="One frame back").click()
    page.wait_for_selector(".pcdd-player[data-update='39']")
    view.get_by_role("button", name="One frame forward").click()
    page.wait_for_selector(".pcdd-player[data-update='40']")
    ends = {}
    for speed in ("1", "4"):
        view.get_by_label("Speed").select_option(speed)
        page.evaluate("() => window.begun = performance.now()")
        view.get_by_role("button", name="Replay").click()
        page.wait_for_selector(".pcdd-player [aria-label=Replay]")
        ends[speed] = page.evaluate("() => performance.now() - begun")
    # 40 frames at 10 a second: never faster, however fast the machine is
    assert ends["1"] >= 3900 and ends["4"] >= 900


def points_of(view) -> tuple[int, ...]:
    """Return what the line about the selected point says: its number in the cloud, and no more."""
    return tuple(
        int(number)
        for number in re.findall(r"Point (\d+) of", view.locator(".picked").inner_text())
    )


@needs_browser
def test_points_can_be_selected_by_click_and_by_key(opened, page):
    given = recording(frames=9, points=12)
    view = opened(given)
    clouds = view.locator("canvas.clouds")
    plain = picture(clouds)
    clouds.focus()
    for key, expected in (("n", 1), ("n", 2), ("p", 1), ("p", 12)):
        page.keyboard.press(key)
        drawn(page)
        assert points_of(view) == (expected,)
    assert "of two" in view.locator(".picked").inner_text()  # the last point of all
    assert picture(clouds) != plain
    place = given.coordinates[-1, -1]
    text = view.locator(".picked").inner_text()
    steps = [f"{np.floor(place[axis] * STEPS) / STEPS + 0.5 / STEPS:.1f}" for axis in (1, 2)]
    assert f"at {steps[0]}, {steps[1]}" in text
    page.wait_for_function(
        "text => document.querySelector('[aria-live]').textContent === text", arg=text
    )
    page.keyboard.press("Escape")
    drawn(page)
    assert points_of(view) == () and picture(clouds) == plain

    # The first tile: its left and top as the page lays them out, then a click on each point.
    box = clouds.bounding_box()
    found = set()
    tile = 300
    left = (box["width"] - 3 * (tile + 8)) / 2 + 4
    for height, width in given.coordinates[-1, :12, 1:]:
        clouds.click(
            position={
                "x": left + float(width) / 28 * tile,
                "y": 18 + float(height) / 28 * tile,
            }
        )
        drawn(page)
        found.update(points_of(view))
        assert "of zero" in view.locator(".picked").inner_text()
    assert len(found) >= 10  # points that lie together share a click
    clouds.click(position={"x": 3, "y": 3})
    drawn(page)
    assert points_of(view) == ()


@pytest.fixture
def told(page, tmp_path):
    """Return told(*recordings, names), which opens their page, with a `player` to send to."""

    def open_page(*given, names=("",)):
        save_player(given[0], tmp_path / "page.html", *given[1:], names=names)
        path = tmp_path / "page.html"
        text = path.read_text().replace(
            'mount(document.getElementById("player")).show(await decode(bytes));',
            "window.sent = [];"
            'window.player = mount(document.getElementById("player"), (m) => sent.push(m));'
            "window.player.show(await decode(bytes));"
            'window.player.run("paused, update 8 of 8", [["Step", "", true]]);',
        )
        path.write_text(text)
        page.goto(path.as_uri())
        page.wait_for_selector(".pcdd-player[data-update]")
        return page.locator(".pcdd-player")

    return open_page


FLOATS = (
    "values => ({buffer: new Float32Array(values).buffer, byteOffset: 0,"
    " byteLength: 4 * values.length})"
)


def tell(page, kind: str, message: dict, values) -> None:
    """Call a method of the player with a message and a buffer, and wait for the drawing."""
    values = [float(value) for value in np.ravel(values)]
    page.evaluate(
        f"([kind, message, values]) => player[kind](message, [({FLOATS})(values)])",
        [kind, message, values],
    )
    drawn(page)


@needs_browser
def test_forces_maps_and_means_of_the_kernel_are_drawn(told, page):
    given = recording(frames=9, points=12)
    view = told(given)
    clouds, energy = view.locator("canvas.clouds"), view.get_by_role("button", name="Energy map")
    pictures = [picture(clouds)]

    def changed() -> None:
        drawn(page)
        pictures.append(picture(clouds))
        assert pictures[-1] not in pictures[:-1]

    assert energy.is_disabled()
    view.get_by_label("Forces").check()
    drawn(page)
    assert page.evaluate("sent") == [{"ask": "forces", "on": True}]
    forces = np.zeros((3, 36))
    forces[2, 5] = 0.25
    tell(page, "forces", {"update": 8}, forces)
    changed()
    clouds.focus()
    for _ in range(6):
        page.keyboard.press("n")
    changed()
    assert "force of the next update 0.25 per cell" in view.locator(".picked").inner_text()
    energy.click()
    assert page.evaluate("sent.at(-1)") == {"ask": "map", "point": 5}
    values = np.arange(9.0)[::-1].reshape(3, 3)  # lowest at the lower right
    about = {"update": 8, "point": 5, "place": [0, 14.0, 14.0], "reach": 4, "side": 3}
    tell(page, "map", about, values)
    changed()
    assert "lowest energy 4.0 cells down, 4.0 right" in view.locator(".picked").inner_text()
    # one row lies above the grid: points cannot go there
    tell(page, "map", {**about, "place": [0, 1.0, 14.0]}, values[::-1])
    assert "lowest energy 0.0 cells down, 4.0 right" in view.locator(".picked").inner_text()
    # the map belongs to its moment and to its point
    view.get_by_label("moment of the recording").fill("2")
    drawn(page)
    assert "energy" not in view.locator(".picked").inner_text() and energy.is_disabled()
    assert "force" not in view.locator(".picked").inner_text()
    view.get_by_label("moment of the recording").fill("8")
    view.get_by_label("Real mean").check()
    assert page.evaluate("sent.at(-1)") == {"ask": "means"}
    page.evaluate(
        "() => player.means({}, [{buffer: new Uint8Array(3 * 28 * 28).fill(200).buffer,"
        " byteOffset: 0, byteLength: 3 * 28 * 28}])"
    )
    changed()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_points_have_contrast_over_the_real_mean(told, page, scheme):
    """Where all real clouds occupy each cell, the ground of the points is as grey as it gets."""
    page.emulate_media(color_scheme=scheme)
    page.add_init_script(RECORD_COLOURS)
    view = told(recording(frames=2, names=("zero",), points=400))
    view.get_by_label("Real mean").check()
    cells = 28 * 28
    page.evaluate(
        f"() => player.means({{}}, [{{buffer: new Uint8Array({cells}).fill(255).buffer,"
        f" byteOffset: 0, byteLength: {cells}}}])"
    )
    seen = set()
    for colour in ("displacement", "gradient", "identity"):
        page.evaluate("window.drawn = []")
        page.get_by_role("combobox", name="Colour").select_option(colour)
        drawn(page)
        plain = np.array(rgb(view.evaluate("view => getComputedStyle(view).backgroundColor")))
        marks = set(page.evaluate("drawn"))
        (shade,) = [mark for mark in marks if not mark.endswith(" 1")]
        text, opacity = shade.split()
        grey = plain + float(opacity) * (np.array(rgb(text)) - plain)
        for mark in marks - {shade}:
            seen.add(mark)
            for ground in (plain, grey):
                assert contrast(rgb(mark.split()[0]), ground) >= 2.98, (mark, colour, ground)
    assert len(seen) > 20


@needs_browser
def test_two_runs_are_side_by_side_and_their_difference_is_drawn(told, page):
    first = recording(frames=9)
    second = replace(
        first, coordinates=first.coordinates * np.linspace(1, 0.8, 9)[:, None, None].astype("f4")
    )
    view = told(first, second, names=("cosine", "squares"))
    clouds = view.locator("canvas.clouds")
    label = clouds.get_attribute("aria-label")
    assert "Two runs side by side, cosine and squares" in label and "6 clouds" in label
    assert view.get_by_label("Class").locator("option").count() == 4
    before = picture(clouds)
    view.get_by_label("Difference").check()
    drawn(page)
    assert picture(clouds) != before
    curves = view.locator("canvas.loss").get_attribute("aria-label")
    assert "cosine" in curves and "squares" in curves
    wide = clouds.bounding_box()["height"]
    page.set_viewport_size({"width": 390, "height": 844})
    drawn(page)
    narrow = clouds.bounding_box()
    assert narrow["width"] <= 390 and narrow["height"] < 2 * wide + 200
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    # scores arrive while the runs go on
    page.evaluate(
        "() => player.score({runs: [[[0, 10], [4, 55]], [[0, 10]]],"
        " baselines: {random: 40}, note: 'cheap'})"
    )
    drawn(page)
    said = view.locator("canvas.score").get_attribute("aria-label")
    assert "cosine 55 %" in said and "squares 10 %" in said and "random 40 %" in said


@needs_browser
def test_view_follows_the_theme_of_the_page(told, page):
    view = told(recording(frames=3))
    clouds = view.locator("canvas.clouds")
    light = picture(clouds)
    page.emulate_media(color_scheme="dark")
    drawn(page)
    dark = picture(clouds)
    assert dark != light
    page.emulate_media(color_scheme="light")
    drawn(page)
    assert picture(clouds) == light
    # JupyterLab changes its variables, then an attribute of the body
    page.evaluate(
        "document.body.style.setProperty('--jp-layout-color0', '#111111');"
        "document.body.style.setProperty('--jp-ui-font-color1', '#eeeeee');"
        "document.body.dataset.jpThemeName = 'JupyterLab Dark'"
    )
    drawn(page)
    assert picture(clouds) not in (light,)


@needs_browser
def test_full_screen_uses_the_width(opened, page):
    view = opened(recording(frames=3))
    page.set_viewport_size({"width": 1800, "height": 1000})
    drawn(page)
    before = view.locator("canvas.clouds").bounding_box()["width"]
    view.get_by_role("button", name="Full screen").click()
    page.wait_for_function("() => document.querySelector('canvas.clouds').clientWidth > 1700")
    assert before <= 1100
    sizes = view.evaluate("root => [root.scrollHeight, innerHeight]")
    assert sizes[0] <= sizes[1]


@needs_browser
def test_reduced_motion_neither_glides_nor_draws_trails_on_the_way(opened, page):
    page.add_init_script(
        "window.strokes = 0; window.playing = () => document.querySelector('[aria-label=Hold]');"
        "const plain = CanvasRenderingContext2D.prototype.stroke;"
        "CanvasRenderingContext2D.prototype.stroke = function (...rest) {"
        "  if (this.canvas.className.includes('clouds') && playing()) window.strokes += 1;"
        "  return plain.apply(this, rest);"
        "};"
    )
    page.emulate_media(reduced_motion="reduce")
    view = opened(recording(frames=9))
    assert update_of(view) == 8  # no replay by itself
    view.get_by_label("Trails").check()
    view.get_by_role("button", name="Replay").click()
    page.wait_for_selector(".pcdd-player [aria-label=Replay]")
    assert page.evaluate("strokes") == 0
    page.emulate_media(reduced_motion="no-preference")
    view.get_by_role("button", name="Replay").click()
    page.wait_for_selector(".pcdd-player [aria-label=Replay]")
    assert page.evaluate("strokes") > 0


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
    clouds, status = view.locator("canvas.clouds"), view.locator(".status")

    def press(name: str) -> None:
        view.get_by_role("button", name=name, exact=True).click()

    def wait_for_status(words: str) -> int:
        """Wait for a status that begins with `words` and for the view to reach its update.

        Returns the number of the update.
        """
        view.locator(".status", has_text=words).wait_for()
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
    view.locator(".status", has_text=f"paused, update {paused + 1} ").wait_for()
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

    # The player below the view plays without a kernel, and without the state of widgets.
    page.get_by_text("Play the recording (needs no kernel)").first.click()
    kept = page.frame_locator("iframe[srcdoc]").first
    kept.locator("canvas.clouds").wait_for()
    kept.locator(f"[data-update='{stopped}']").wait_for()
    assert 'srcdoc="' in image["text/html"]

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
@needs_browser
def test_keys_in_the_player_do_not_reach_the_notebook(page, tmp_path):
    """Letters are shortcuts of JupyterLab's command mode: a, b, d d, m, x and Enter."""
    parameters = {"settings": SETTINGS, "device": "cpu", "output": str(tmp_path / "run")}
    headless.notebook_with_parameters(tmp_path, parameters)
    with headless.jupyterlab(tmp_path) as address:
        headless.run_all(page, address)
        view = page.locator(".pcdd-player").first
        view.wait_for()
        cells = page.locator(".jp-Notebook .jp-Cell")

        def notebook() -> tuple:
            active = page.locator(".jp-Notebook .jp-mod-active").first
            index = active.evaluate("cell => [...cell.parentElement.children].indexOf(cell)")
            editing = page.locator(".jp-Notebook.jp-mod-editMode").count()
            return cells.count(), page.locator(".jp-MarkdownCell").count(), index, editing

        view.locator(".status").click()  # the cell of the view becomes the active one
        before = notebook()
        controls = view.locator("button:enabled, select, input:enabled, canvas.clouds")
        assert controls.count() >= 10
        for index in range(controls.count()):
            control = controls.nth(index)
            control.focus()
            for key in ("b", "a", "m", "x", "ArrowDown", "ArrowUp", "j", "k", "d", "d", "Shift+m"):
                control.press(key)
            assert notebook() == before, control.evaluate("element => element.outerHTML")

        # Enter starts the run and does not open the cell's editor.
        view.get_by_role("button", name="Start", exact=True).focus()
        page.keyboard.press("Enter")
        view.locator(".status", has_text="running").wait_for()
        view.get_by_role("button", name="Stop", exact=True).focus()
        page.keyboard.press("Space")
        view.locator(".status", has_text="stopped").wait_for()
        assert notebook() == before

        # Tab visits the controls in the order of the page.
        view.get_by_role("combobox", name="Class").focus()
        visited = []
        for _ in range(6):
            page.keyboard.press("Tab")
            visited.append(
                page.evaluate(
                    "() => document.activeElement.labels?.[0]?.innerText.split('\\n')[0].trim()"
                    " || document.activeElement.className || document.activeElement.title"
                )
            )
        assert [name.split(" ")[0] for name in visited] == [
            "Colour",
            "Trails",
            "Projection",
            "Real",
            "Forces",
            "clouds",
        ]
        slider = view.get_by_label("moment of the recording")
        last = slider.input_value()
        slider.press("ArrowLeft")
        page.wait_for_function(
            "last => document.querySelector('.pcdd-player [type=range]').value === last",
            arg=str(int(last) - 1),
        )
        assert notebook() == before


# --- the kernel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory):
    """Yield execute(code, cell), which runs code in a kernel as JupyterLab does.

    It returns what the code prints, and the name of an exception.
    cell: id of the cell; None: a front end that sends none
    """
    folder = tmp_path_factory.mktemp("kernel")
    manager = KernelManager(kernel_name="python3")
    paths = [str(headless.ROOT), str(headless.ROOT / "tests"), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    manager.start_kernel(env=environment, cwd=str(folder))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(60)

    def execute(code: str, cell: str | None = None, wait: bool = True) -> str:
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
        }
        request = client.session.msg(
            "execute_request", content, metadata={"cellId": cell} if cell else {}
        )
        client.shell_channel.send(request)
        return until_idle(request) if wait else request

    def until_idle(request) -> str:
        printed = ""
        while True:
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            content = message["content"]
            if message["msg_type"] == "update_display_data":
                execute.updated.append(content["data"])
            printed += content.get("text", "") + content.get("ename", "")
            if content.get("execution_state") == "idle":
                return printed

    execute.manager, execute.until_idle, execute.folder = manager, until_idle, folder
    execute.updated = []  # outputs that a later cell changed, by kind of data
    execute(KERNEL)
    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(shared_kernel):
    """Return `shared_kernel` without views and runs."""
    assert shared_kernel(CLEAN, "clean") == ""
    return shared_kernel


CLEAN = """
for session in list(sessions):
    session.close()
until(lambda: runs() == 0)
"""
KERNEL = """
import gc, threading, time, weakref, tiny, pcdd_core as pcdd
from ipywidgets.widgets import widget
from pcdd_core.view.session import sessions
from pcdd_core.view.widget import PlayerWidget
config = tiny.config(schedule__iterations=100_000)
real = tiny.three_digits()

def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)

def runs():
    return sum(thread.name == "distillation" for thread in threading.enumerate())
"""
WATCH = "live = pcdd.watch(config, real, 'cpu')\nlive.start()\nlive"


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["a", None])
def test_a_cell_that_runs_again_ends_its_former_view(kernel, cell):
    """The former run stops, its widgets are closed, and nothing refers to it any more."""
    execute = kernel
    execute(WATCH, cell)
    execute("until(lambda: 'update 0' not in live.status)\nformer = weakref.ref(live)", "x")
    before = int(execute("print(len(widget._instances))", "x"))
    for _ in range(4):
        execute(WATCH, cell)
    execute("until(lambda: runs() == 1)\ngc.collect()", "x")
    assert execute("print(former(), len(widget._instances), live.status.split(',')[0])", "x") == (
        f"None {before} running\n"
    )


@pytest.mark.slow
def test_labs_of_one_cell_leave_nothing(kernel):
    """Former runs and their scores stop, and the widgets of all controls are closed."""
    execute = kernel
    settings = {**SETTINGS, "data.classes": ["2", "3"]}
    make = f"lab = pcdd.lab(settings={settings!r}, device='cpu')\nlab\n"
    execute(make + "lab.start()", "lab")
    before = int(execute("gc.collect(); print(len(widget._instances))", "x"))
    for _ in range(3):
        execute(make + "lab._session.view.compare.value = 'lift.name'; lab.start()", "lab")
    execute(make + "lab.start()", "lab")
    execute("until(lambda: runs() == 1)\ngc.collect()", "x")
    assert int(execute("print(len(widget._instances))", "x")) == before
    execute("lab.close()", "x")
    assert (
        execute(
            "until(lambda: not [t for t in threading.enumerate() if 'distillation' in t.name])", "x"
        )
        == ""
    )


@pytest.mark.slow
def test_views_of_other_cells_and_of_one_execution_stay(kernel):
    execute = kernel
    execute("views = [pcdd.watch(config, real, 'cpu') for _ in range(3)]", "a")
    execute("for view in views: view.start()", "b")
    execute("other = pcdd.watch(config, real, 'cpu'); other.start()", "b")
    assert execute("print(runs())", "x") == "4\n"
    execute("kept = views[0]\nviews = [pcdd.watch(config, real, 'cpu')]", "a")
    # The variable `kept` has the closed view: its recording stays, its run does not.
    execute("until(lambda: runs() == 1)", "x")
    assert execute("print(len(kept.recording) > 0, other.status.split(',')[0])", "x") == (
        "True running\n"
    )
    assert "InputError" in execute("kept.restart()", "x")


@pytest.mark.slow
def test_views_opened_and_closed_leave_nothing(kernel):
    execute = kernel
    before = execute("print(len(widget._instances))", "x")
    for number in range(10):
        execute("live = pcdd.watch(config, real, 'cpu')\nlive", f"cell {number}")
        execute("live.close()\nold = weakref.ref(live.recording.clouds)", "x")
    assert execute("print(len(widget._instances))", "x") == before
    # Drawn players are not kept by anywidget either.
    code = "sum(issubclass(type(thing), PlayerWidget) for thing in gc.get_objects())"
    assert execute(f"gc.collect()\nprint({code})", "x") == "0\n"


@pytest.mark.slow
def test_closed_view_leaves_its_last_picture(kernel):
    kernel("live = pcdd.watch(config, real, 'cpu')\nlive", "a")
    kernel("live.step(); live.wait(); time.sleep(3)", "b")
    kernel.updated.clear()
    kernel("live.close(); live.close()", "c")
    kinds = [sorted(output) for output in kernel.updated]
    assert kinds == [["text/plain"], ["image/png", "text/html", "text/plain"]]


@pytest.mark.slow
def test_closed_lab_of_two_runs_leaves_both(kernel):
    settings = {**SETTINGS, "data.classes": ["2", "3"]}
    kernel(f"lab = pcdd.lab(settings={settings!r}, device='cpu')\nlab", "a")
    kernel("lab._session.view.compare.value = 'lift.name'; lab.step(); lab.wait()", "b")
    one = kernel("print(lab.status)", "x")
    assert one == f"paused, update 1 of {LONG}\n"
    kernel.updated.clear()
    kernel("lab.close()", "c")
    shown = kernel.updated[-1]
    assert decoded(encoded_in(html.unescape(shown["text/html"])))["runs"] == [
        "Lift: gaussian",
        "Lift: coordinates",
    ]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["image/png"]))))
    upper, lower = np.split(picture, 2)
    assert not np.array_equal(upper, lower)
    # the halves show the same scatter, in the row of the start
    assert (upper < 128).any() and (lower < 128).any()


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_interrupt_stops_the_run(kernel, busy):
    execute = kernel
    execute(WATCH, "a")
    execute("until(lambda: 'update 0' not in live.status)", "x")
    request = (
        execute("open('begun', 'w').close()\ntime.sleep(60)", "x", wait=False) if busy else None
    )
    if busy:
        begun = execute.folder / "begun"
        end = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < end:
            time.sleep(0.05)
    execute.manager.interrupt_kernel()
    if busy:
        assert "KeyboardInterrupt" in execute.until_idle(request)
    assert execute("until(lambda: runs() == 0)\nprint(live.status.split(',')[0])", "x") == (
        "stopped\n"
    )


@pytest.mark.slow
def test_python_that_ends_during_a_run_ends_well(tmp_path):
    """A thread inside torch at the end of Python would abort the process."""
    code = """
import tiny, time
from pcdd_core.view.live import LiveDistillation
live = LiveDistillation(tiny.config(schedule__iterations=100_000), tiny.three_digits(), "cpu")
live.start()
while "update 0" in live.status:
    time.sleep(0.01)
"""
    paths = [str(headless.ROOT), str(headless.ROOT / "tests"), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


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
