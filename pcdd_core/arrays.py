"""Read .npy and .npz files from anyone: no pickles, and no more memory than a limit.

The header of an array is checked before the array is unpacked, because a small archive can declare
gigabytes.
"""

import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from .errors import InputError


def read_array(path: Path, limit: int) -> np.ndarray:
    """Read the array of an .npy file.

    limit: size of the array in bytes
    Raises InputError in one line, which names the file, if the file is missing, damaged, longer or
    shorter than its header says, larger than the limit, or contains Python objects or text that is
    no Unicode.
    """
    with _refusals(path, ".npy file"), path.open("rb") as file:
        return _array(file, path.stat().st_size, limit)


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises InputError if the file is missing or damaged.
    """
    with _refusals(path, ".npz file"), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        return [name.removesuffix(".npy") for name in members if name.endswith(".npy")]


def read_arrays(path: Path, fields: Iterable[str], limit: int) -> dict[str, np.ndarray]:
    """Read those of the arrays `fields` that an .npz file has. Nothing else is unpacked.

    limit: size of these arrays together in bytes
    Raises InputError as `read_array` does; the message also names the field.
    """
    arrays = {}
    with _refusals(path, ".npz file"), zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        for field in fields:
            if (member := f"{field}.npy") not in members:
                continue
            with _refusals(f"{path}: field '{field}'", "array"), archive.open(member) as file:
                arrays[field] = _array(file, archive.getinfo(member).file_size, limit)
            limit -= arrays[field].nbytes
    return arrays


@contextmanager
def _refusals(where: Path | str, kind: str) -> Iterator[None]:
    """Turn every error in the block into an InputError.

    numpy, zipfile and zlib raise about ten types for damaged files. Their warnings, of odd headers,
    count as damage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; expected an {kind}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{where}: not a readable {kind} ({reason})") from None


def _array(file: IO[bytes], size: int, limit: int) -> np.ndarray:
    """Read an array from an open .npy file of `size` bytes.

    Raises ValueError with the reason if it cannot be read, and OSError.
    """
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format is for tables, not for plain arrays")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(
            "it contains Python objects as a pickle, and unpickling can run code; "
            "expected numbers or text"
        )
    if min(shape, default=0) < 0:
        raise ValueError(f"of shape {shape}")
    count = math.prod(shape)
    if count * max(dtype.itemsize, 1) > limit:
        raise ValueError(
            f"{count:,} elements of {dtype.itemsize} bytes; expected at most {limit:,} bytes"
        )
    if (expected := file.tell() + count * dtype.itemsize) != size:
        raise ValueError(f"{size} bytes; expected {expected} for {dtype} of shape {shape}")
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    if array.dtype.kind == "U" and array.size and array.itemsize:
        points = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(dtype.byteorder))
        if points.max() > 0x10FFFF:
            raise ValueError(f"character U+{points.max():X}; Unicode ends at U+10FFFF")
    return array


HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
