"""Names of classes, which end up in tables, pictures, files and terminals."""

from collections.abc import Sequence

from ..errors import InputError

LONGEST_NAME = 100  # characters


def check_class_names(names: Sequence[str], source: object) -> tuple[str, ...]:
    """Return the names if each is 1 to 100 printable characters.

    Line breaks, control characters, invisible characters and bytes that are not UTF-8 (Python reads
    them as surrogates) are not printable.
    source: file or folder that the names come from, for the error message
    Raises InputError that names the class.
    """
    for label, name in enumerate(names):
        if not (len(name) <= LONGEST_NAME and name.isprintable() and name.strip()):
            quoted = ascii(name[:40]) + (f" ... ({len(name)} characters)" if len(name) > 40 else "")
            raise InputError(
                f"{source}: class {label} is called {quoted}; "
                f"expected 1 to {LONGEST_NAME} printable characters (UTF-8)"
            )
    return tuple(names)
