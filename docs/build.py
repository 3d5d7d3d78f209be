"""Build the site: `make site`, or `python docs/build.py`. It needs the extra `site`.

Writes into docs/generated: executed notebooks, players, the gallery, the reference of the command
line and of the public names. Then Sphinx makes build/site, and warnings are errors. Nothing is
downloaded, and no data are needed beyond the committed records and scikit-learn's digits.
"""

import argparse
import ast
import html
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import nbformat
import papermill

import pcdd_core as pcdd
from pcdd_core.cli import main as command_line
from pcdd_core.experiments.config import described_settings
from pcdd_core.experiments.records import COMMITTED, find_records, slug
from pcdd_core.view.page import page_of_encoded

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "figures"))
import recordings  # noqa: E402

GENERATED = DOCS / "generated"
EXTRA = GENERATED / "extra"  # copied to the root of the site as it is
NOTEBOOKS = GENERATED / "notebooks"
LINKED = (".html", ".gif", ".mp4", ".off")  # files that notebooks write and link to


def main() -> int:
    """Build the site and return the exit code of Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    parser.add_argument(
        "--keep", action="store_true", help="keep the notebooks that an earlier build executed"
    )
    options = parser.parse_args()
    if not options.keep:
        shutil.rmtree(GENERATED, ignore_errors=True)
    for step in (static_files, players, command_reference, public_names):
        timed(step.__name__.replace("_", " "), step)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        timed(path.stem, lambda path=path: execute(path))
    shutil.rmtree(options.output, ignore_errors=True)
    sphinx = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(GENERATED / "doctrees")]
    return timed(
        "Sphinx",
        lambda: subprocess.call(
            [sys.executable, "-m", "sphinx", *sphinx, str(DOCS), str(options.output)]
        ),
    )


def timed(name: str, step):
    """Run one step, and print its seconds."""
    begun = time.monotonic()
    result = step()
    print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    return result


def static_files() -> None:
    """Copy MathJax, whose formulas are SVG and need no font, the style sheet and two pages."""
    folder = GENERATED / "static"
    folder.mkdir(parents=True, exist_ok=True)
    (source,) = [
        file
        for file in metadata.files("sphinx-mathjax-offline")
        if file.as_posix().endswith("static/mathjax/tex-svg.js")
    ]
    shutil.copyfile(source.locate(), folder / "tex-svg.js")
    shutil.copyfile(DOCS / "site.css", folder / "site.css")
    for page in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copyfile(ROOT / page, GENERATED / page)


def execute(path: Path) -> None:
    """Execute a notebook with its default parameters, and link its source.

    04 to 11 read the committed records; 01, 02, 03 and 11 distil digits or solids.
    """
    executed = NOTEBOOKS / path.name
    if executed.exists():
        return
    part = executed.with_name(f".{executed.name}")  # an interrupted build leaves no notebook
    folder = EXTRA / NOTEBOOKS.relative_to(DOCS)  # links to files that a cell writes stay valid
    folder.mkdir(parents=True, exist_ok=True)
    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONPATH"] = search  # the kernel imports this checkout
    papermill.execute_notebook(
        path,
        part,
        kernel_name="python3",
        cwd=str(folder),
        progress_bar=False,
        iopub_timeout=600,  # seconds; a cell can be silent for long on a busy machine
        log_output=False,
    )
    for file in folder.glob("runs/*/*"):
        if file.is_file() and file.suffix not in LINKED:
            file.unlink()
    # The paths of this machine say nothing to a reader.
    text = part.read_text().replace(f"{folder}/", "").replace(str(ROOT), ".")
    notebook = nbformat.reads(text, as_version=4)
    source = f"../../../notebooks/{path.stem}"
    links = (
        f"Download: {{download}}`notebook <{source}.ipynb>`, {{download}}`script <{source}.py>`."
    )
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(links))
    nbformat.write(notebook, executed)
    part.unlink()


# --- players --------------------------------------------------------------------------------------


def players() -> None:
    """Write a player and a picture for each set and each kept recording, and the gallery."""
    folder = EXTRA / "players"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tiles: dict[str, list[str]] = {}
    for group, name, recording, record in entries():
        pcdd.save_player(recording, folder / f"{name}.html")
        pcdd.figures.save(pcdd.figures.gallery(recording.clouds), folder / f"{name}.png")
        tiles.setdefault(group, []).append(tile(name, recording, record))
    encoded = (ROOT / "figures" / "recordings" / "lab.gz").read_bytes()
    (folder / "lab.html").write_text(page_of_encoded("Two runs side by side", encoded))
    text = (DOCS / "gallery.md.in").read_text()
    for group, made in tiles.items():
        text += f"\n## {group}\n\n" + '<div class="players">\n' + "\n".join(made) + "\n</div>\n"
    (GENERATED / "gallery.md").write_text(text)


def entries() -> Iterator[tuple[str, str, pcdd.Recording, dict | None]]:
    """Yield the entries of the gallery: group, name, recording, and its record, if there is one."""
    kept = {
        f"{slug(record)}-seed{record['config']['seed']}": record
        for record in find_records([COMMITTED]).values()
    }
    for path in sorted((ROOT / "figures" / "recordings").glob("*.npz")):
        yield "Runs, recorded", path.stem, recordings.read(path.stem), kept.get(path.stem)
    for name in pcdd.released_names():
        record = pcdd.read_record(pcdd.released_path(name).with_suffix(".json"))
        still = pcdd.still(pcdd.released(name))
        yield "Sets that come with pcdd", f"released-{name}", still, record
    for name, record in sorted(kept.items()):
        preset = pcdd.PRESETS.get(record["row"])
        if record["clouds_file"] and preset and preset.paper_accuracy is not None:
            still = pcdd.still(pcdd.load_clouds(record["clouds_file"]))
            yield "Sets of the paper's networks", name, still, record


def tile(name: str, recording: pcdd.Recording, record: dict | None) -> str:
    """Return the HTML of one entry of the gallery, with the scores of its record."""
    clouds, points = len(recording.clouds), len(recording.clouds.coordinates)
    about = f"{clouds} clouds, {points:,} points"
    if len(recording) > 1:
        about += f"; {len(recording)} frames of {recording.iterations:,} updates"
    if record:
        about += f"; on {record['scored_on']}: " + ", ".join(
            f"{protocol} {score['mean']:.1f} %" for protocol, score in record["scores"].items()
        )
    picture = f'<img src="../players/{name}.png" alt="clouds of {name}" loading="lazy">'
    return (
        f'<a href="../players/{name}.html">{picture}<strong>{name}</strong>'
        f"<span>{html.escape(about)}</span></a>"
    )


# --- references -----------------------------------------------------------------------------------


def command_reference() -> None:
    """Write the help of every command, and every setting with its default."""
    os.environ["COLUMNS"] = "96"
    parser = command_line._parser()
    (commands,) = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
    lines = ["# Reference of commands and settings", ""]
    lines += ["Generated from the parser of `pcdd` and from its settings.", "", "## Commands", ""]
    for name, sub in commands.choices.items():
        if sub.epilog and sub.epilog.startswith("settings with their defaults"):
            sub.epilog = None  # they follow below
        lines += [f"### pcdd {name}", "", "```text", sub.format_help().rstrip(), "```", ""]
    lines += [
        "## Settings",
        "",
        "Presets can change the defaults. Values are JSON or plain words.",
        "",
    ]
    section = None
    for name, (default, text) in described_settings().items():
        if name.split(".")[0] != section:
            section = name.split(".")[0]
            lines += ["", f"### {section}", "", "| setting | default | meaning |", "|---|---|---|"]
        words = text.replace("|", r"\|")
        lines.append(f"| `{name}` | `{default!r}` | {words} |")
    (GENERATED / "commands.md").write_text("\n".join(lines) + "\n")


def public_names() -> None:
    """Write the page of the public names, by package, in the order of `__init__.pyi`."""
    tree = ast.parse((Path(pcdd.__file__).with_suffix(".pyi")).read_text())
    title = "Public names"
    lines = [title, "=" * len(title), "", "``import pcdd_core as pcdd`` has these names.", ""]
    package = None
    for statement in tree.body:
        module = statement.module or ""
        if module.split(".")[0] != package:
            package = module.split(".")[0]
            lines += ["", package, "-" * len(package), ""]
        for alias in statement.names:
            name = alias.asname or alias.name
            value = getattr(pcdd, name)
            if isinstance(value, type):
                lines += [f".. autoclass:: pcdd_core.{name}", "   :members:", ""]
            elif type(value).__name__ == "module":
                lines += [f".. automodule:: {value.__name__}", "   :members:", ""]
            elif callable(value):
                lines += [f".. autofunction:: pcdd_core.{name}", ""]
            else:
                kind = type(value).__name__
                keys = ", ".join(map(str, value)) if isinstance(value, dict) else ""
                lines += [".. py:currentmodule:: pcdd_core", "", f".. py:data:: {name}", ""]
                lines += [f"   A {kind}: {keys}", ""]
    (GENERATED / "api.rst").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
