"""Atomic file writes, and a lock on folders.

A file is complete or absent: it is written under a temporary name in the same folder, then renamed.
The lock lets one process at a time write to a folder.
"""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .errors import FolderInUse, InputError, WriteFailed

LOCK = ".lock"
# Errors of the storage itself: no space, no quota, a limit on file sizes, a device that failed.
STORAGE_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS")
    if hasattr(errno, name)
)


def atomic_write(
    path: Path | str, write: Callable[[BinaryIO], object], previous: Path | None = None
) -> None:
    """Write a file atomically. Missing parent folders are created.

    write: called with a binary file, which becomes `path` once it is complete and on disk
    previous: the new path of the file that is replaced, if there is one; None: it is deleted
    Raises InputError if the folder is not writable, and WriteFailed if the disk is full. The old
    file and no new folder are there then.
    """
    path = Path(path)
    refuse_impossible_path(path)
    missing = _missing_folders(path.parent)
    temporary = None
    try:
        temporary = _temporary_file(path, write)
        if previous is not None:
            with suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        _remove_empty(missing)
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            raise WriteFailed(path, error.strerror) from None
        raise


def _temporary_file(path: Path, write: Callable[[BinaryIO], object]) -> str:
    """Write a complete file beside `path`, with the usual permissions. Returns its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        if error.errno in STORAGE_ERRORS:
            raise
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
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def remove_leftovers(folder: Path | str, names: Iterable[str]) -> None:
    """Delete the temporary files of `atomic_write` that a killed process left in `folder`.

    names: names of the complete files
    No other process may be writing these files, see `sole_user`.
    """
    for path in Path(folder).iterdir():
        if is_leftover(path, names):
            path.unlink(missing_ok=True)


def is_leftover(path: Path, names: Iterable[str]) -> bool:
    """Return whether `path` is a temporary file of `atomic_write` for one of these names."""
    match = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", path.name)
    return match is not None and match[1] in names


def refuse_impossible_path(path: Path | str) -> None:
    """Raise InputError if no file can have this path: it is too long, or contains NUL."""
    try:
        os.lstat(path)
    except ValueError as error:
        raise InputError(f"{str(path)!r}: not a path ({error})") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:60]}...{str(path)[-17:]}"
            raise InputError(
                f"{shown}: the path or one of its names is too long ({len(str(path))} characters); "
                "choose a shorter path"
            ) from None


def _missing_folders(folder: Path) -> list[Path]:
    """Return `folder` and its parents as far as they do not exist, the innermost first."""
    missing = []
    for part in (folder, *folder.parents):
        if os.path.lexists(part):
            break
        missing.append(part)
    return missing


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove these folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def refuse_file_in_the_way(folder: Path | str) -> None:
    """Raise InputError if `folder` or a parent of it is a file, or if the path is impossible."""
    refuse_impossible_path(folder)
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

    The operating system releases the lock when the process ends, even after a crash. If the body
    raises, folders that were created and are empty are removed.
    Raises FolderInUse if another process holds the lock, InputError if the folder is not writable,
    and WriteFailed if the disk is full.
    """
    folder = Path(folder)
    refuse_impossible_path(folder)
    missing = _missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"{folder}: another process is running in it; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        _remove_empty(missing)
        if error.errno in STORAGE_ERRORS:
            raise WriteFailed(folder, error.strerror) from None
        raise InputError(
            f"{folder}: cannot write there ({error.strerror}); choose a folder you can write to"
        ) from None
    failed = True
    try:
        yield
        failed = False
    finally:
        # Delete the file before the release, so that the next process creates its own.
        # Windows refuses to delete a locked file.
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
        if failed:
            _remove_empty(missing)
