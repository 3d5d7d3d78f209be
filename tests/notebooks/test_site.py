"""The site: built with warnings as errors, complete, and readable without a network."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import headless
import pytest

pytest.importorskip("furo")
import pcdd_core as pcdd

ROOT = Path(__file__).parents[2]
EXECUTED = ROOT / "docs" / "generated" / "notebooks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        len(list(EXECUTED.glob("*.ipynb"))) < len(list(ROOT.glob("notebooks/*.ipynb"))),
        reason="needs the executed notebooks of `make site`",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site with the notebooks that an earlier build executed, if there are any."""
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "docs/build.py", "--keep", "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Targets(HTMLParser):
    """The targets of links, pictures, scripts and frames of a page, and its anchors."""

    def __init__(self, page: Path):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.targets += [attributes[key] for key in ("href", "src") if attributes.get(key)]


def test_every_target_of_a_page_is_there(site):
    pages = {path.resolve(): Targets(path) for path in site.rglob("*.html")}
    missing = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme:  # a link to elsewhere; what a page loads is tested in the browser
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = place / "index.html" if place.is_dir() else place
            anchored = not parts.fragment or place not in pages
            if not place.exists() or not (anchored or parts.fragment in pages[place].anchors):
                missing.append((path.name, target))
    assert not missing


def test_site_has_a_page_for_everything(site):
    for notebook in ROOT.glob("notebooks/*.ipynb"):
        page = (site / "generated" / "notebooks" / notebook.name).with_suffix(".html").read_text()
        assert str(ROOT) not in page
        assert "cell_output" in page and f"/{notebook.name}" in page  # outputs, and the download
    for name in pcdd.released_names():
        assert (site / "players" / f"released-{name}.html").exists()
    for path in ROOT.glob("figures/recordings/*.npz"):
        assert (site / "players" / f"{path.stem}.html").exists()
    names = (site / "generated" / "api.html").read_text()
    for name in pcdd.__all__:
        value = getattr(pcdd, name)
        module = type(value).__name__ == "module"
        place = f"module-{value.__name__}" if module else f"pcdd_core.{name}"
        assert f'id="{place}"' in names, name
    commands = (site / "generated" / "commands.html").read_text()
    assert "--clouds-per-class" in commands and "lift.bandwidth_start" in commands


def failures(folder: Path, look=lambda page: []) -> list[str]:
    """Open every page of a folder from disk, without a network.

    Returns requests for anything but files, failed requests, errors of the console, and what
    `look(page)` finds.
    """
    found = []

    def note(page, text):
        found.append(f"{Path(urlsplit(page.url).path).name}: {text}")

    with headless.browser() as chromium:
        context = chromium.new_context(offline=True)
        page = context.new_page()
        page.on("requestfailed", lambda request: note(page, f"failed: {request.url[:200]}"))
        page.on("pageerror", lambda error: note(page, error))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:", "blob:"))
                else note(page, f"request: {request.url}")
            ),
        )
        page.on(
            "console",
            lambda message: note(page, message.text) if message.type == "error" else None,
        )
        for path in sorted(folder.rglob("*.html")):
            page.goto(path.as_uri(), wait_until="load")
            for text in look(page):
                note(page, text)
    return found


def unread_formulas(page) -> list[str]:
    """Return the formulas of a page that MathJax has not drawn, or drew as an error."""
    if page.evaluate("!window.MathJax"):
        return page.locator(".math").all_inner_texts()
    page.wait_for_function("MathJax.startup && MathJax.startup.promise")
    page.evaluate("MathJax.startup.promise")
    return page.evaluate(
        """[...document.querySelectorAll(".math")]
           .filter((formula) => !formula.querySelector("mjx-container svg") ||
                                formula.querySelector("[data-mjx-error], mjx-merror"))
           .map((formula) => formula.textContent)"""
    )


def test_every_page_opens_without_a_network_and_shows_its_formulas(site):
    formulas = []

    def look(page):
        formulas.extend(page.locator(".math").all())
        return unread_formulas(page)

    assert failures(site, look) == []
    assert len(formulas) > 20


@pytest.mark.parametrize(
    "body",
    [
        '<img src="http://example.org/a.png">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<img src="missing.png">',
        "<script>throw new Error('broken')</script>",
        r'<span class="math">\(a^2\)</span>',
    ],
)
def test_a_page_that_loads_from_elsewhere_or_fails_is_noticed(tmp_path, body):
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><title>page</title>{body}")
    assert failures(tmp_path, unread_formulas)


def test_search_finds_a_word(site):
    with headless.browser() as chromium:
        page = chromium.new_context(offline=True).new_page()
        page.goto((site / "search.html").as_uri() + "?q=bandwidth")
        first = page.locator("#search-results li a").first
        first.wait_for(timeout=headless.PATIENCE)
        page.goto(urljoin(page.url, first.get_attribute("href")))
        assert "bandwidth" in page.locator("article").inner_text().lower()


def test_player_of_a_recording_moves(site):
    with headless.browser() as chromium:
        page = chromium.new_context(offline=True).new_page()
        page.goto((site / "players" / "mnist-1-gradient.html").as_uri())
        page.locator("canvas").first.wait_for(timeout=headless.PATIENCE)
        before = page.locator("canvas").first.screenshot()
        page.locator("input[type=range]").first.fill("0")
        assert page.locator("canvas").first.screenshot() != before
