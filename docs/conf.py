"""Settings of Sphinx. `python docs/build.py` writes the generated pages first, then runs Sphinx."""

import re
from importlib import metadata
from pathlib import Path

project = "pcdd"
author = "The pcdd authors"
copyright = "2026, the pcdd authors"
version = release = metadata.version("pcdd")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["generated/extra", "_build"]
html_theme = "furo"
html_title = "pcdd"
html_static_path = ["generated/static"]
html_extra_path = ["generated/extra"]
html_css_files = ["site.css"]
html_copy_source = False

# The pages make no request: MathJax is a file of the site, and no widget script is loaded.
mathjax_path = "tex-svg.js"
nb_ipywidgets_js = {}
# build.py has executed the notebooks
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# A notebook begins with cells of imports, and some headings skip a level.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
smartquotes = False  # settings in tables can be copied
default_role = "code"
highlight_language = "none"


ITEM = re.compile(r"([a-z_`*][\w`*]*(?:, [\w`*]+)*):\s+(.+)")


def prose(text: str) -> str:
    """Escape plain text for reStructuredText. Names in backticks become code."""
    return "".join(
        f"``{part[1:-1]}``"
        if re.fullmatch(r"`[^`]+`", part)
        else re.sub(r"([\\*_|`])", r"\\\1", part)
        for part in re.split(r"(`[^`]+`)", text)
    )


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Convert a docstring, which is plain text, to reStructuredText in place.

    `name: meaning` lines, each with its indented continuation, become items of a list. Other
    indented lines are shown as they are written. The rest are paragraphs.
    """
    made: list[str] = []
    kind = ""  # of the line before
    for line in lines:
        before = kind
        if not line.strip():
            kind = ""
            made.append("")
        elif item := ITEM.fullmatch(line):
            kind = "item"
            made += [""] * (before != kind)
            made.append(f"* ``{item[1].replace('`', '')}``: {prose(item[2])}")
        elif line[0] == " " and before == "item":
            kind = "item"
            made.append(f"  {prose(line.strip())}")
        elif line[0] == " ":
            kind = "as written"
            made += ["", "::", ""] if before != kind else []
            made.append(f"   {line}")
        else:
            kind = "paragraph"
            made += [""] * (before != kind)
            made.append(prose(line))
    lines[:] = [*made, ""]


def with_pages_of_the_site(app, docname: str, source: list[str]) -> None:
    """Put the README into the index, and let links lead to pages where the site has one."""
    text = source[0]
    if docname == "index":
        readme = (Path(__file__).parents[1] / "README.md").read_text()
        readme = readme.replace("](./docs/", "](").replace("](./", "](../")
        text = text.replace("<!-- README.md -->", readme)
    text = re.sub(r"\]\(\.\./(notebooks/\w+\.ipynb)\)", r"](generated/\1)", text)
    source[0] = re.sub(r"\]\(\.\./(CONTRIBUTING|CHANGELOG)\.md\)", r"](generated/\1.md)", text)


def setup(app) -> None:
    """Register the conversions."""
    app.connect("source-read", with_pages_of_the_site)
    app.connect("autodoc-process-docstring", as_restructured_text)
