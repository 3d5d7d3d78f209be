"""Pack a set of clouds into few bytes.

Of a set on a flat grid `pack` keeps the occupied cells, so the hard projection, labels, grid and
names of classes; with a resolution it keeps all coordinates at that resolution. Both forms are
coded by a range coder with adaptive models, see `entropy`. On the released sets this is the
smallest of the forms that were compared. Bytes of the cells alone, without labels and header:

    set                bitmap   zlib   bz2   xz (raw LZMA)   list of subsets   here
    mnist-1               980    600   697             578               553    404
    mnist-1-split       7,840  2,212 2,198           2,114             1,816  1,524
    mnist-10            9,800  4,787 4,956           4,489             5,566  3,248
    mnist-50           49,000 22,965 22,320         21,145            27,662 15,604
    10 real, herding      980    384   391             370               568    164

(List of subsets: log2 of the binomial coefficient, the least for cells without neighbourhood.)

    version     1 byte
    checksum    4 bytes, CRC-32 of the rest
    numbers     LEB128: form (0: cells; 1 + log2 of steps per cell: positions), grid (3), classes,
                bytes of names (0: "0", "1", ...), 1 if labels are learned, clouds per class (0:
                not equal or not in order of the classes; then the number of clouds); for
                positions, the points per cloud (0: not equal; then those of each cloud)
    names       JSON, deflated
    learned     float32 (clouds, classes), little-endian
    coded       labels where they are not in order; cells, or positions
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..files import refuse_impossible_path
from .clouds import Grid, PointClouds, from_occupancy
from .entropy import Coder, Reader, Writer, code_adaptively, code_cells, code_positions
from .storage import LARGEST_SET, arrays_of, clouds_from_arrays

VERSION = 1
MOST_POINTS = 2**22  # a small file can hold many equal points
MOST_CELLS = 2**26  # of a flat set, all clouds together
LARGEST_GRID = 2**20  # cells of a flat grid, which are coded one after another
MOST_STEPS = 2**22  # along an axis: float32 still tells them apart
MOST_CLASSES = 2**16
LONGEST_NAMES = 2**23  # bytes of JSON


def pack(clouds: PointClouds, resolution: float | None = None) -> bytes:
    """Return a set in few bytes, for `unpack`.

    resolution: in cells, above 0 and at most 1. Coordinates are kept in steps of the largest power
        of two that is not larger, and in their cells, so that they change by at most half a step.
        None: keep which cells are occupied, of a flat grid only.
    Learned labels are kept exactly. The order of the points of a cloud is lost, and along an axis
    of one cell points come back in its middle, because nothing determines a position there.
    Raises InputError if a cloud is empty or a point lies outside the grid, if the grid has a depth
    and no resolution is given, and if the set is too large or the resolution too fine.
    """
    clouds = clouds_from_arrays(Path("the set"), arrays_of(clouds))
    form = 0 if resolution is None else 1 + _halvings(resolution)
    _refuse_too_large("the set", form, clouds.grid, len(clouds), len(clouds.class_names))
    labels, writer = clouds.labels.numpy(), Writer()
    names, learned = _packed_names(clouds.class_names), clouds.label_probabilities
    per_class = _clouds_per_class(labels, len(clouds.class_names))
    numbers = [form, *clouds.grid, len(clouds.class_names), len(names), int(learned is not None)]
    numbers += [per_class] if per_class else [0, len(labels)]
    if not per_class:
        _code_labels(writer, labels, len(labels), len(clouds.class_names))
    if form:
        sizes = clouds.sizes.numpy()
        equal = sizes.min() == sizes.max()
        numbers += [int(sizes[0])] if equal else [0, *sizes.tolist()]
        axes, shape = _axes(clouds.grid, form)
        code_positions(writer, _positions(clouds, form)[:, axes], sizes, shape)
    else:
        code_cells(writer, _occupied(clouds), labels, clouds.grid[1:], len(clouds.class_names))
    probabilities = b"" if learned is None else learned.numpy().astype("<f4").tobytes()
    rest = b"".join(map(_varint, numbers)) + names + probabilities + writer.content()
    return bytes([VERSION]) + zlib.crc32(rest).to_bytes(4, "big") + rest


def unpack(packed: bytes, source: object = "packed set") -> PointClouds:
    """Return the set that `pack` packed.

    The points of occupied cells lie at their centres, in raster order.
    source: its file, for error messages
    Raises InputError in one line if the content is no packed set, damaged, or of a newer version.
    """
    if len(packed) < 6 or zlib.crc32(packed[5:]) != int.from_bytes(packed[1:5], "big"):
        raise InputError(f"{source}: damaged, or not a packed set (its checksum does not fit)")
    if packed[0] != VERSION:
        raise InputError(
            f"{source}: a packed set of version {packed[0]}; expected {VERSION}; a newer pcdd may "
            "read it"
        )
    try:
        return _unpacked(packed[5:], source)
    except (ValueError, OverflowError, zlib.error, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: not an intact packed set ({reason})") from None


def read_packed(path: Path | str) -> PointClouds:
    """Return the set in a file with the bytes of `pack`. Raises InputError as `unpack` does."""
    path = Path(path)
    refuse_impossible_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a packed set")
    if (size := path.stat().st_size) > LARGEST_SET:
        raise InputError(f"{path}: {size} bytes; expected at most {LARGEST_SET}")
    try:
        return unpack(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from None


def _unpacked(content: bytes, source: object) -> PointClouds:
    """Return the set in the content after the checksum. Raises ValueError if it is damaged."""
    numbers = _Numbers(content)
    form, *grid, classes, length, learned = (numbers.next() for _ in range(7))
    depth, height, width = grid
    per_class = numbers.next()
    count = per_class * classes if per_class else numbers.next()
    _refuse_too_large(source, form, (depth, height, width), count, classes)
    sizes = _sizes(numbers, count) if form else np.zeros(0, np.int64)
    names = _unpacked_names(numbers.rest(length), classes)
    probabilities = numbers.rest(4 * count * classes if learned else 0)
    reader = Reader(numbers.rest(None))
    if per_class:
        labels = np.arange(classes).repeat(per_class)
    else:
        labels = _code_labels(reader, None, count, classes)
    if form:
        axes, shape = _axes((depth, height, width), form)
        coded = code_positions(reader, None, sizes, shape)
        coordinates = np.full((len(coded), 3), 0.5)
        coordinates[:, axes] = _coordinates(coded, form)
        offsets = np.append(0, sizes.cumsum())
    else:
        occupied = code_cells(reader, None, labels, (height, width), classes)
        cells = from_occupancy(torch.from_numpy(occupied)[:, None], torch.from_numpy(labels), names)
        coordinates, offsets = cells.coordinates.numpy(), cells.offsets.numpy()
    arrays = {
        "format_version": np.array(2 if learned else 1),
        "coordinates": coordinates.astype(np.float32),
        "offsets": offsets,
        "labels": labels,
        "grid": np.array(grid),
        "class_names": np.array(names),
    }
    if learned:
        arrays["label_probabilities"] = np.frombuffer(probabilities, "<f4").reshape(count, classes)
    return clouds_from_arrays(Path(str(source)), arrays)


def _sizes(numbers: "_Numbers", count: int) -> np.ndarray:
    """Return the points of each cloud: int64 (count,). Raises ValueError if they are too many."""
    if equal := numbers.next():
        total, sizes = equal * count, (equal,)
    else:
        sizes = [numbers.next() for _ in range(count)]  # ends at the end of the content
        total = sum(sizes)
    if total > MOST_POINTS:
        raise ValueError(f"{total} points; expected at most {MOST_POINTS}")
    return np.broadcast_to(np.array(sizes, np.int64), count)


class _Numbers:
    """Reads LEB128 numbers and bytes from the start of a content."""

    def __init__(self, content: bytes):
        self._content, self._place = content, 0

    def next(self) -> int:
        """Return the next number, below 2**35. Raises ValueError at the end of the content."""
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.rest(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is too long")

    def rest(self, length: int | None) -> bytes:
        """Return the next bytes, None: all. Raises ValueError if there are fewer."""
        end = len(self._content) if length is None else self._place + length
        if end > len(self._content):
            raise ValueError("it ends early")
        start, self._place = self._place, end
        return self._content[start:end]


def _varint(number: int) -> bytes:
    """Return a number as LEB128: 7 bits per byte, the last bits first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _halvings(resolution: float) -> int:
    """Return how often a cell is halved to reach steps of at most `resolution`."""
    if not 0 < resolution <= 1:
        raise InputError(f"resolution {resolution}: expected cells, above 0 and at most 1")
    return max(0, math.ceil(-math.log2(resolution)))


def _refuse_too_large(source: object, form: int, grid: Grid, count: int, classes: int) -> None:
    """Raise InputError for sets that cannot be coded in a reasonable time and memory."""
    if not (min(grid) >= 1 and 1 <= classes <= MOST_CLASSES and 1 <= count <= MOST_POINTS):
        raise InputError(
            f"{source}: {count} clouds of {classes} classes on a grid of {grid} cells; expected 1 "
            f"to {MOST_POINTS} clouds and at most {MOST_CLASSES} classes"
        )
    if form == 0 and grid[0] > 1:
        raise InputError(
            f"{source}: its grid has {grid[0]} cells of depth; state a resolution in cells to keep "
            "the coordinates"
        )
    if form == 0 and (
        math.prod(grid) > LARGEST_GRID or math.prod(grid) * max(count, classes) > MOST_CELLS
    ):
        raise InputError(
            f"{source}: {count} clouds of {classes} classes on a grid of {grid} cells; expected at "
            f"most {LARGEST_GRID} cells, and {MOST_CELLS} of all clouds or classes"
        )
    if form and (form > 24 or max(grid) << (form - 1) > MOST_STEPS):
        raise InputError(
            f"{source}: {2 ** (form - 1)} steps per cell on a grid of {grid} cells; expected at "
            f"most {MOST_STEPS} steps along an axis: state a coarser resolution"
        )


def _packed_names(names: tuple[str, ...]) -> bytes:
    if names == tuple(map(str, range(len(names)))):
        return b""
    return zlib.compress(json.dumps(names, ensure_ascii=False).encode(), 9, wbits=-15)


def _unpacked_names(content: bytes, classes: int) -> tuple[str, ...]:
    """Return the names of the classes. Raises ValueError or zlib.error if they are damaged."""
    if not content:
        return tuple(map(str, range(classes)))
    names = json.loads(zlib.decompressobj(wbits=-15).decompress(content, LONGEST_NAMES))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its classes are damaged")
    longest = max(map(len, names), default=0)
    if len(names) != classes or 4 * longest * classes > LARGEST_SET:  # bytes of a text array
        raise ValueError(f"{len(names)} names of up to {longest} characters, {classes} classes")
    return tuple(names)


def _clouds_per_class(labels: np.ndarray, classes: int) -> int:
    """Return the number of clouds per class, 0 if not equal or not class after class."""
    count, left = divmod(len(labels), classes)
    ordered = not left and np.array_equal(labels, np.arange(classes).repeat(count))
    return count if ordered else 0


def _code_labels(coder: Coder, labels: np.ndarray | None, count: int, classes: int) -> np.ndarray:
    """Code labels by how far each class lies from the last one: int64 (count,)."""
    steps = None if labels is None else np.diff(labels, prepend=0) % classes
    coded = code_adaptively(coder, steps, count, np.full(classes, 0.5))
    return np.cumsum(coded, dtype=np.int64) % classes


def _occupied(clouds: PointClouds) -> np.ndarray:
    """Return the occupied cells of flat clouds: bool (clouds, height, width)."""
    occupied = np.zeros((len(clouds), *clouds.grid[1:]), bool)
    _, rows, columns = clouds.coordinates.floor().long().numpy().T
    occupied[clouds.cloud_index.numpy(), rows, columns] = True
    return occupied


def _axes(grid: Grid, form: int) -> tuple[list[int], list[int]]:
    """Return the axes of more than one cell, and the numbers of steps along them."""
    axes = [axis for axis in range(3) if grid[axis] > 1]
    return axes, [grid[axis] << (form - 1) for axis in axes]


def _positions(clouds: PointClouds, form: int) -> np.ndarray:
    """Return coordinates in whole steps: int64 (points, 3)."""
    return np.floor(clouds.coordinates.numpy().astype(np.float64) * 2 ** (form - 1)).astype(
        np.int64
    )


def _coordinates(positions: np.ndarray, form: int) -> np.ndarray:
    """Return the middles of steps in cells."""
    return (positions + 0.5) / 2 ** (form - 1)
