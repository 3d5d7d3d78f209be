"""Notebooks executed headless, and what is to be seen in them afterwards."""

from pathlib import Path

import nbformat
import papermill
import yaml

FOLDER = Path(__file__).parent.parent / "notebooks"
SMOKE = yaml.safe_load((FOLDER / "smoke.yaml").read_text()) | {"device": "cpu"}


class Executed:
    """A notebook run in `folder`: how many pictures it shows, its tables (HTML), and all that is printed."""

    def __init__(self, name: str, folder: Path, parameters: dict):
        self.runs = folder / "runs"
        papermill.execute_notebook(
            FOLDER / f"{name}.ipynb",
            folder / "executed.ipynb",
            parameters=parameters,
            kernel_name="python3",
            cwd=str(folder),
            progress_bar=False,
        )
        cells = nbformat.read(folder / "executed.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        shown = [output["data"] for output in outputs if "data" in output]
        self.pictures = sum("image/png" in data for data in shown)
        self.tables = [data["text/html"] for data in shown if "text/html" in data]
        self.printed = "".join(
            output["text"] for output in outputs if output.output_type == "stream"
        )

    def table(self, *words: str) -> str:
        """The one table with all these words in it."""
        (found,) = [table for table in self.tables if all(word in table for word in words)]
        return found

    def rows(self, *words: str) -> list[str]:
        """The rows, as text, of the first table with all these words in it."""
        found = next(table for table in self.tables if all(word in table for word in words))
        return found.split("<tr")[1:]
