"""Atomic file writes, and a lock on folders.

A file is complete or absent: it is written under a temporary name in the same folder, then renamed.
The lock lets one process at a time write to a folder.
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
    """Write a file atomically. Missing parent folders are created.

    write: called with a binary file, which becomes `path` once it is complete and on disk.
    Raises InputError if the folder is not writable.
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
        # mkstemp creates private files, but a result should have the usual permissions
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def refuse_file_in_the_way(folder: Path | str) -> None:
    """Raise InputError if `folder` or one of its parents is a file."""
    for part in (Path(folder), *Path(folder).parents):
        if part.exists() and not part.is_dir():
            raise InputError(
                f"{folder}: cannot be a folder, because {part} is a file; choose another folder"
            )


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write a text file (UTF-8) with `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


@contextmanager
def sole_user(folder: Path | str) -> Iterator[None]:
    """Lock `folder` against other processes. The folder is created if it is missing.

    The operating system releases the lock when the process ends, even after a crash.
    Raises FolderInUse if another process holds the lock, and InputError if the folder is not
    writable.
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
        # Delete the file before the release, so that the next process creates its own.
        # Windows refuses to delete a locked file.
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
