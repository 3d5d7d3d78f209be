"""`make lab`: opens copies of the notebooks, also as root."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs make")
def test_make_lab_opens_copies_of_the_notebooks(tmp_path):
    pytest.importorskip("jupyterlab")
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "12_your_own.ipynb", tmp_path / "notebooks" / "a.ipynb")
    command = ["make", "-o", "install", "lab", f"BIN={Path(sys.executable).parent}"]
    environment = os.environ | {"BROWSER": "true", "JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")}
    lab = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    patience = threading.Timer(600, lambda: os.killpg(lab.pid, 9))
    patience.start()
    try:
        printed = []
        for line in lab.stdout:
            printed.append(line)
            if "is running at" in line:
                break
        else:
            pytest.fail("".join(printed))
        assert (tmp_path / "runs" / "lab" / "a.ipynb").exists()
    finally:
        patience.cancel()
        os.killpg(lab.pid, 9)
        lab.wait()
