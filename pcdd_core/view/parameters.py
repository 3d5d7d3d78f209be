"""Refuse unknown parameters of a notebook that papermill runs.

Papermill warns of a parameter that the notebook does not have, and runs it with the default.
"""

import ast
from collections.abc import Sequence

from ..errors import InputError, extra_missing, nearest_names

try:
    from IPython import get_ipython
except ImportError as missing:
    raise extra_missing(missing.name or "IPython", "notebooks") from None

INJECTED = "# Parameters\n"  # papermill's cell begins with this line


def check_parameters(cells: Sequence[str] | None = None) -> None:
    """Raise InputError if papermill sets a name that the cell of the parameters does not set.

    Without papermill it does nothing.
    cells: source of each executed cell; None: those of the notebook that calls
    """
    shell = get_ipython()
    sources = (shell.user_ns.get("In", []) if shell else []) if cells is None else cells
    injected = [number for number, cell in enumerate(sources) if cell.startswith(INJECTED)]
    if not injected or injected[-1] == 0:
        return
    valid = _assigned(sources[injected[-1] - 1])
    for name in _assigned(sources[injected[-1]]):
        if name not in valid:
            raise InputError(
                f"parameter {name}: this notebook has no such parameter; "
                f"{nearest_names(name, valid)}"
            )


def _assigned(cell: str) -> list[str]:
    """Return the names that a cell assigns at its top level."""
    return [
        target.id
        for statement in ast.parse(cell).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
