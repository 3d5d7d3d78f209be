"""Keep small outputs in the notebooks, for readers on a code host: `make notebooks-outputs`.

Each notebook runs without a browser with its default parameters, as a reader's does. Its .ipynb
keeps pictures (PNG) and plain text, each smaller than LIMIT. Longer text ends early, larger
pictures are made smaller. Results without either form, such as videos, are left out. The metadata
holds a hash of the code, so a test finds outputs that are older than the code.

    python tools/notebook_outputs.py [--check | --all] [notebooks/01_quickstart.ipynb ...]
"""

import argparse
import base64
import hashlib
import io
import json
import os
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 100_000  # bytes of one output
KEY = "outputs_of"  # in the metadata: hash of the code that made the outputs
LONGEST_TEXT = 4_000  # characters of one text


def hash_of_cells(notebook: NotebookNode) -> str:
    """Return a hash of the sources of the code cells."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def problems(path: Path) -> list[str]:
    """Return what is wrong with the outputs of a notebook, one sentence each."""
    notebook = nbformat.read(path, as_version=4)
    found = []
    if notebook.metadata.get(KEY) != hash_of_cells(notebook):
        found.append("its code has changed since its outputs were made")
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            kinds = set(output["data"]) if "data" in output else {"text/plain"}
            if not kinds <= {"text/plain", "image/png"}:
                found.append(f"cell {number} has outputs of {sorted(kinds)}")
            if len(json.dumps(output)) > LIMIT:
                found.append(f"cell {number} has an output of more than {LIMIT} bytes")
    return found


def refresh(path: Path) -> None:
    """Execute a notebook with its default parameters and keep its small outputs in `path`."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    executed = nbformat.from_dict(notebook)
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}  # files of the run go there
        client = NotebookClient(executed, resources=resources, kernel_name="python3")
        # the kernel imports this checkout, and reads the committed records only
        runs = str(Path(folder) / "runs")
        client.execute(env={**os.environ, "PYTHONPATH": search, "PCDD_RUNS": runs})
        for cell, done in zip(notebook.cells, executed.cells):
            if cell.cell_type == "code":
                cell.execution_count = None
                cell.outputs = small_outputs(done.outputs, folder)
    notebook.metadata[KEY] = hash_of_cells(notebook)
    nbformat.write(notebook, path)


def small_outputs(outputs: list[NotebookNode], folder: str) -> list[NotebookNode]:
    """Return the pictures and texts of a cell, each below LIMIT.

    folder: working folder of the run, which the kept texts do not name
    """
    texts: list[str] = []  # the streams of a cell, in the order of its first one
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stdout":
                texts.append(output.text)
            continue
        data = output.get("data", {})
        if "image/png" in data:
            picture = small_png(base64.b64decode(data["image/png"]))
            small = {"image/png": base64.b64encode(picture).decode()}
        elif "text/plain" in data and not data["text/plain"].startswith("<"):
            small = {"text/plain": shortened(data["text/plain"], folder)}
        elif "<table" in data.get("text/html", ""):
            small = {"text/plain": shortened(text_of_table(data["text/html"]), folder)}
        else:
            continue
        kept.append(nbformat.v4.new_output("display_data", small))
    text = shortened("".join(texts), folder)
    if text:
        kept.insert(0, nbformat.v4.new_output("stream", name="stdout", text=text))
    return kept


class _Table(HTMLParser):
    """Reads the rows of an HTML table. A cell that spans rows is empty after its first row."""

    def __init__(self, source: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.spans: dict[int, int] = {}  # column: rows that its cell still spans
        self.inside = False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            row, options = self.rows[-1], dict(attributes)
            while self.spans.get(len(row), 0):
                self.spans[len(row)] -= 1
                row.append("")
            self.spans[len(row)] = int(options.get("rowspan", 1)) - 1
            row += [""] * int(options.get("colspan", 1))
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, text):
        if self.inside:
            self.rows[-1][-1] += text.strip()


def text_of_table(source: str) -> str:
    """Return an HTML table as text, with columns of equal width."""
    rows = _Table(source).rows
    columns = max(map(len, rows))
    rows = [row + [""] * (columns - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(columns)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def shortened(text: str, folder: str) -> str:
    """Return text without the working folder, at most LONGEST_TEXT characters."""
    text = text.replace(f"{folder}/", "")
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "\n(shortened)"


def small_png(picture: bytes) -> bytes:
    """Return a PNG whose base64 form is below LIMIT: with fewer colours, then with fewer pixels."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    while True:
        made = io.BytesIO()
        image.quantize(64, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
        if len(made.getvalue()) * 4 / 3 < LIMIT - 1_000:
            return made.getvalue()
        size = image.width * 4 // 5, image.height * 4 // 5
        image = image.resize(size, Image.Resampling.LANCZOS)


def main() -> int:
    """Refresh or check the outputs, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="say what is stale, and run nothing")
    parser.add_argument("--all", action="store_true", help="refresh what is not stale, too")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    options = parser.parse_args()
    failed = False
    for path in options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        found = problems(path)
        if options.check:
            failed |= bool(found)
            print(*(f"{path.name}: {problem}" for problem in found), sep="\n", end="")
        elif found or options.all:
            refresh(path)
            print(f"{path.name}: refreshed", flush=True)
    if failed:
        print("\nmake notebooks-outputs makes them again")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
