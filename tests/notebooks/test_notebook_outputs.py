"""The tool that keeps small outputs in the notebooks, on a small notebook; unknown parameters."""

import base64
import io
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

import pcdd_core as pcdd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import notebook_outputs  # noqa: E402
from notebook_outputs import LIMIT, problems, refresh, small_png, text_of_table  # noqa: E402

CELLS = [
    "import sys\nprint('a text')\nprint('a warning', file=sys.stderr)\nprint('its second line')",
    "import pandas as pd\ntable = pd.DataFrame({'x': [1.0, 2.0]}, index=['a', 'b'])\ntable",
    "table.style.format('{:.2f}')",
    "import matplotlib.pyplot as plt\nimport numpy as np\n%matplotlib inline\n"
    "noise = np.random.default_rng(0).random((900, 900, 3))\n"
    "plt.figure(figsize=(9, 9))\nplt.imshow(noise)\nplt.show()",
    "from IPython.display import HTML\nHTML('<video></video>')",
    "import os\nprint(os.path.abspath('file.txt'))",
    "print('long ' * 100_000)",
]


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory) -> Path:
    """A notebook with all kinds of outputs, after `refresh`."""
    path = tmp_path_factory.mktemp("outputs") / "small.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# A title")]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(notebook, path)
    assert problems(path) == ["its code has changed since its outputs were made"]
    refresh(path)
    return path


@pytest.mark.slow
def test_refresh_keeps_texts_tables_and_small_pictures_only(refreshed):
    assert problems(refreshed) == []
    cells = nbformat.read(refreshed, as_version=4).cells
    texts, table, styled, picture, video, path, long = (cell.outputs for cell in cells[1:])
    assert [output.text for output in texts] == ["a text\nits second line\n"]
    assert table[0].data == {"text/plain": "     x\na  1.0\nb  2.0"}
    assert styled[0].data["text/plain"].split() == ["x", "a", "1.00", "b", "2.00"]
    (image,) = [output.data["image/png"] for output in picture]
    assert Image.open(io.BytesIO(base64.b64decode(image))).width > 100 and len(image) < LIMIT
    assert video == []
    assert path[0].text == "file.txt\n"
    assert len(long[0].text) < 5_000 and long[0].text.endswith("(shortened)")


@pytest.mark.slow
def test_outputs_are_stale_after_a_change_of_code_not_of_prose(refreshed, tmp_path, capsys):
    notebook = nbformat.read(refreshed, as_version=4)
    path = tmp_path / "changed.ipynb"

    def check(monkeypatch):
        nbformat.write(notebook, path)
        monkeypatch.setattr(sys, "argv", ["tool", "--check", str(path)])
        return notebook_outputs.main()

    with pytest.MonkeyPatch.context() as patch:
        notebook.cells[0].source = "# Another title"
        assert check(patch) == 0
        notebook.cells[1].source += "\nprint(1)"
        assert check(patch) == 1
    said = capsys.readouterr().out
    assert "changed.ipynb: its code has changed" in said and "make notebooks-outputs" in said


def test_outputs_of_other_kinds_and_large_ones_are_found(tmp_path):
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"text/html": "<b>1</b>"}),
        nbformat.v4.new_output("stream", name="stdout", text="1" * LIMIT),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata[notebook_outputs.KEY] = notebook_outputs.hash_of_cells(notebook)
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert problems(tmp_path / "a.ipynb") == [
        "cell 0 has outputs of ['text/html']",
        f"cell 0 has an output of more than {LIMIT} bytes",
    ]


def test_picture_is_made_smaller_until_it_fits():
    noise = np.random.default_rng(0).integers(0, 255, (800, 600, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    made = Image.open(io.BytesIO(small := small_png(file.getvalue())))
    assert len(base64.b64encode(small)) < LIMIT
    assert made.width / made.height == pytest.approx(600 / 800, rel=0.02)


def test_table_with_cells_over_several_rows_becomes_text():
    source = """<style>th {}</style><table><tr><th></th><th></th><th>x</th></tr>
    <tr><th rowspan="2">a</th><th>b</th><td>1.0</td></tr><tr><th>c</th><td>12.0</td></tr></table>"""
    assert text_of_table(source) == "      x\na  b  1.0\n   c  12.0"


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_that_the_notebook_has_are_accepted():
    pcdd.check_parameters([])
    pcdd.check_parameters(["", "seeds = 1", "import os"])
    pcdd.check_parameters(["", "seeds = 1  # runs\nsettings = {}", "# Parameters\nseeds = 3\n"])


def test_unknown_parameter_is_refused_with_the_nearest_names():
    cells = ["", "seeds = 1\nsettings = {}", "# Parameters\nseedz = 3\n", "import os"]
    with pytest.raises(pcdd.InputError, match=r"parameter seedz: .* nearest: seeds"):
        pcdd.check_parameters(cells)


@pytest.mark.slow
def test_papermill_with_an_unknown_parameter_stops(tmp_path):
    notebook = ROOT / "notebooks" / "12_your_own.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="nearest: seed"):
        papermill.execute_notebook(
            notebook, tmp_path / "out.ipynb", {"seedz": 3}, kernel_name="python3", cwd=str(tmp_path)
        )
