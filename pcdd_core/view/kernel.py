"""Queries of the Jupyter kernel: whether its front end has a screen, and which cell runs."""

import re
import sys
from collections.abc import Callable
from typing import Any


def has_screen() -> bool:
    """Return whether a front end displays widgets and sends their events.

    Jupyter has no query for this. But an execution request states whether input can be requested
    from a user. JupyterLab and similar front ends allow it. papermill and nbconvert, which both use
    nbclient, do not.
    """
    return bool(getattr(_kernel(), "_allow_stdin", False))


def request() -> tuple[str | None, str | None]:
    """Return the ids of the cell and of the execution in progress. None: the front end sends none.

    A cell that calls `watch` twice has one id. The id of the execution tells that from a second
    execution.
    """
    if _kernel() is None:
        return None, None
    request = _shell().get_parent()
    cell = request.get("metadata", {}).get("cellId")
    return cell, request.get("header", {}).get("msg_id")


def after_each_cell(action: Callable[[Any], None]) -> None:
    """Call `action` with the result of each cell that ends. A second call changes nothing."""
    events = _shell().events
    if action not in events.callbacks["post_run_cell"]:
        events.register("post_run_cell", action)


def on_interrupt(action: Callable[[], None]) -> None:
    """Call `action` if the idle kernel is interrupted. ipykernel ignores it otherwise.

    ipykernel sets this handler when a request has been handled. During a cell an interrupt is a
    KeyboardInterrupt in the cell.
    """
    kernel = _kernel()
    if kernel is not None:
        # not in the handler itself, which interrupts the main thread at any line
        kernel.saved_sigint_handler = lambda *_: kernel.io_loop.add_callback(action)


def forget(result: Any) -> None:
    """Remove an object from IPython's history of results: Out, _, __, ___ and _12."""
    shell = _shell()
    for number in [number for number, value in shell.user_ns["_oh"].items() if value is result]:
        del shell.user_ns["_oh"][number]
    for names in (shell.user_ns, shell.user_ns_hidden):
        for name in [name for name, value in names.items() if value is result]:
            if re.fullmatch(r"_\d+|_{1,3}", name):
                del names[name]
    for name in ("_", "__", "___"):
        if getattr(shell.displayhook, name) is result:
            setattr(shell.displayhook, name, None)


def _shell() -> Any:
    """Return IPython's shell, or None."""
    ipython = sys.modules.get("IPython")  # a shell has imported it
    return ipython.get_ipython() if ipython else None


def _kernel() -> Any:
    """Return the Jupyter kernel of this process, or None."""
    return getattr(_shell(), "kernel", None)
