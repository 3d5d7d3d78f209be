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
default_role = "code"


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Convert a docstring, which is plain text, to reStructuredText in place.

    A paragraph stays one, and its names in backticks become code. A block of `name:  meaning` lines
    or of indented lines is shown as it is written.
    """
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    made = []
    for block in blocks:
        if re.search(r"^(\s+\S|[\w*`., ]+:\s+\S.*)", block, re.MULTILINE):
            made += ["::", "", *("   " + line for line in block.splitlines()), ""]
        else:
            parts = re.split(r"(`[^`]+`)", block)
            text = "".join(
                f"``{part[1:-1]}``"
                if part[:1] == "`" and part[-1:] == "`" and len(part) > 2
                else re.sub(r"([\\*_|`<>])", r"\\\1", part)
                for part in parts
            )
            made += [*text.splitlines(), ""]
    lines[:] = made


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
