"""Start JupyterLab and a headless browser, for tests, a benchmark and screenshots."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "03_point_migration.ipynb"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 600_000  # milliseconds: far above the time on a busy machine
PREFERENCES = {
    # draws cells that are out of sight, too
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": True},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false"},
}


@contextmanager
def browser() -> Iterator:
    """Start headless Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def notebook_with_parameters(folder: Path, parameters: dict, source: Path = NOTEBOOK) -> Path:
    """Copy a notebook to `folder` with other parameters, and return its path."""
    notebook = nbformat.read(source, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    nbformat.write(notebook, folder / "notebook.ipynb")
    return folder / "notebook.ipynb"


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Start JupyterLab on `folder`, with its settings in there.

    Yields the address of notebook.ipynb.
    """
    private = folder / ".jupyter"
    for name, setting in PREFERENCES.items():
        path = private / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=token", f"--ServerApp.root_dir={folder}"]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(private / "config"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with (private / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(PATIENCE // 100):
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api?token=token", timeout=5
                ).close()
                break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None:
                    raise RuntimeError(
                        f"JupyterLab did not start: {(private / 'log').read_text()}"
                    ) from None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/notebook.ipynb?token=token"
    finally:
        server.terminate()
        server.wait(PATIENCE / 1000)


def run_all(page, address: str) -> None:
    """Open the notebook at `address` in a page and run all of its cells."""
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # else it asks for a kernel
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    wait_for_cells(page)


def wait_for_cells(page) -> None:
    """Wait until every cell has run."""
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
    page.wait_for_function(
        f"() => {prompts}.map(prompt => prompt.innerText).every(text => /\\d/.test(text))"
    )
