"""Run notebooks headless, and read their outputs.

`python tests/executed.py FOLDER` runs all of them with the smallest settings: `make notebooks`.
"""

import os
import sys
from pathlib import Path

import nbformat
import papermill
import yaml

FOLDER = Path(__file__).parent.parent / "notebooks"
SMOKE = yaml.safe_load((FOLDER / "smoke.yaml").read_text()) | {"device": "cpu"}


class Executed:
    """A notebook that ran in `folder`.

    It holds the number of pictures, the tables (HTML) and the printed text.
    """

    def __init__(self, name: str, folder: Path, parameters: dict):
        self.runs = folder / "runs"
        known = papermill.inspect_notebook(FOLDER / f"{name}.ipynb")
        # a notebook refuses parameters that it does not have; SMOKE is for all notebooks
        parameters = {
            key: value for key, value in parameters.items() if key in known or key not in SMOKE
        }
        folder.mkdir(parents=True, exist_ok=True)
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
        displayed = [output["data"] for output in outputs if "data" in output]
        self.pictures = sum("image/png" in data for data in displayed)
        self.tables = [data["text/html"] for data in displayed if "text/html" in data]
        self.printed = "".join(
            output["text"] for output in outputs if output.output_type == "stream"
        )

    def table(self, *words: str) -> str:
        """Return the only table that contains all these words."""
        (match,) = [table for table in self.tables if all(word in table for word in words)]
        return match

    def rows(self, *words: str) -> list[str]:
        """Return the rows, as text, of the first table that contains all these words."""
        match = next(table for table in self.tables if all(word in table for word in words))
        return match.split("<tr")[1:]


def main() -> None:
    """Run every notebook with the smallest settings. Runs are shared."""
    folder = Path(sys.argv[1]).resolve()
    os.environ["PCDD_RUNS"] = str(folder / "runs")
    for path in sorted(FOLDER.glob("*.ipynb")):
        print(path.stem, flush=True)
        Executed(path.stem, folder / path.stem, SMOKE)


if __name__ == "__main__":
    main()
