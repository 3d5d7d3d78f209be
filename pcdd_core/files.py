"""Files that are either whole or not there: written under a temporary name in the same folder, then renamed.

And folders that one process at a time may write to.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .errors import FolderInUse, InputError

LOCK = ".lock"


def atomic_write(path: Path | str, write: Callable[[BinaryIO], None]) -> None:
    """Call `write` with a binary file that becomes `path` once it is complete and on disk; makes parent folders.

    Raises InputError if the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(
            f"{path}: cannot write there ({error.strerror}); choose a folder you can write to"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(
            temporary, 0o666 & ~umask
        )  # mkstemp makes private files; a result should be as readable as any other
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def refuse_file_in_the_way(folder: Path | str) -> None:
    """Raise InputError if `folder`, or a folder that it lies in, is a file."""
    for part in (Path(folder), *Path(folder).parents):
        if part.exists() and not part.is_dir():
            raise InputError(
                f"{folder}: cannot be a folder, because {part} is a file; choose another folder"
            )


def atomic_write_text(path: Path | str, text: str) -> None:
    """`atomic_write` for a text."""
    atomic_write(path, lambda file: file.write(text.encode()))


@contextmanager
def sole_user(folder: Path | str) -> Iterator[None]:
    """Hold `folder` (made if need be) against other processes; the system lets go when this one ends, however it ends.

    Raises FolderInUse if another process holds it, InputError if it cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"{folder}: another process is running in it; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"{folder}: cannot write there ({error.strerror}); choose a folder you can write to"
        ) from None
    try:
        yield
    finally:
        with suppress(
            OSError
        ):  # before it is freed, so that whoever comes next makes a file of its own; Windows refuses
            (folder / LOCK).unlink()
        lock.release()
