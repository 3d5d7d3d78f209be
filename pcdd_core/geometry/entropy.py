"""Adaptive models of cells and points for an entropy coder, the base of `packing`.

The coder is the range coder of `constriction` (Bamler 2022). A model is one function for both
directions: it asks a `Coder` for symbols, and the coder writes the given ones or reads them. All
probabilities are counts combined by +, * and /, which IEEE 754 rounds alike on every machine.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import constriction
import numpy as np

# `stream` has no module file to import from, and its stubs do not name it.
stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
model, queue = stream.model, stream.queue

# Earlier neighbours of a cell as (rows, columns), the nearest first: the three-line template of
# JBIG (ITU-T T.82). A context of order k has the first k.
NEIGHBOURS = (
    (0, -1), (-1, 0), (-1, 1), (-1, -1), (0, -2), (-2, 0), (-1, 2), (-1, -2), (-2, 1), (-2, -1),
)  # fmt: skip
ORDERS = (0, 2, 4, 6, 10)
MARGIN = 2  # rows and columns that NEIGHBOURS reach
ORDER_WEIGHT = 8.0  # observations that the estimate of a lower order counts as
CLASS_WEIGHT = 6.0  # likewise for the step from neighbours to earlier clouds of the class
LEVELS = 8  # of a share of occupied cells
BINS = 16  # of a probability, in the context of earlier clouds
LEAST = 1e-4  # smallest probability of a cell
TABLES = 16  # largest number of points whose split has a table of its own


class Coder(Protocol):
    """Writes symbols, or reads them."""

    def bits(self, bits: np.ndarray | None, probabilities: np.ndarray) -> np.ndarray:
        """Code bits (n,), each with its probability of 1 (n,). None: read. Returns int32 (n,)."""
        ...

    def symbols(self, symbols: np.ndarray | None, counts: np.ndarray, number: int) -> np.ndarray:
        """Code `number` symbols with probabilities in proportion to `counts`. None: read."""
        ...

    def uniform(self, symbols: np.ndarray | None, sizes: np.ndarray) -> np.ndarray:
        """Code symbols (n,), each equally likely below its size (n,), 2 or more. None: read."""
        ...


class Writer:
    """A `Coder` that writes the symbols it is given."""

    def __init__(self):
        self._encoder = queue.RangeEncoder()

    def bits(self, bits, probabilities):
        bits = bits.astype(np.int32)
        self._encoder.encode(bits, model.Bernoulli(perfect=False), probabilities)
        return bits

    def symbols(self, symbols, counts, number):
        symbols = symbols.astype(np.int32)
        self._encoder.encode(symbols, model.Categorical(counts, perfect=False))
        return symbols

    def uniform(self, symbols, sizes):
        symbols = symbols.astype(np.int32)
        self._encoder.encode(symbols, model.Uniform(), sizes.astype(np.int32))
        return symbols

    def content(self) -> bytes:
        """Return what is written, without zeros at the end, which a `Reader` adds."""
        return self._encoder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class Reader:
    """A `Coder` that reads what a `Writer` wrote. Wrong content gives wrong symbols, or ValueError.

    Content that is too short continues with zeros.
    """

    def __init__(self, content: bytes):
        words = np.frombuffer(content + bytes(-len(content) % 4), ">u4").astype(np.uint32)
        self._decoder = queue.RangeDecoder(words)

    def bits(self, bits, probabilities):
        return self._read(model.Bernoulli(perfect=False), probabilities)

    def symbols(self, symbols, counts, number):
        return self._read(model.Categorical(counts, perfect=False), number)

    def uniform(self, symbols, sizes):
        return self._read(model.Uniform(), sizes.astype(np.int32))

    def _read(self, *what) -> np.ndarray:
        try:
            return self._decoder.decode(*what)
        except AssertionError as error:  # what constriction raises
            raise ValueError(str(error)) from None


def code_adaptively(
    coder: Coder, symbols: np.ndarray | None, number: int, counts: np.ndarray
) -> np.ndarray:
    """Code `number` symbols whose probabilities follow `counts`, to which each symbol adds 1.

    The counts grow after blocks of 8, 8, 16, 32, ... symbols. Returns int32 (number,).
    symbols: None: read them
    counts: float64 (kinds of symbols,), above 0; changed
    """
    coded, start = [np.zeros(0, np.int32)], 0
    while start < number:
        end = min(max(8, 2 * start), number)
        block = None if symbols is None else symbols[start:end]
        if len(counts) > 1:
            block = coder.symbols(block, counts, end - start)
        else:
            block = np.zeros(end - start, np.int32)
        counts += np.bincount(block, minlength=len(counts))
        coded.append(block)
        start = end
    return np.concatenate(coded)


def code_cells(
    coder: Coder,
    occupied: np.ndarray | None,
    labels: np.ndarray,
    shape: tuple[int, int],
    classes: int,
) -> np.ndarray:
    """Code the occupied cells of flat clouds: bool (clouds, rows, columns).

    occupied: None: read them
    labels: class of each cloud (clouds,)
    The probability of a cell follows how often cells with the same earlier neighbours were
    occupied, of 0 to 10 neighbours: the estimate of each order is the prior of the next (as in a
    hierarchical Dirichlet model). A last step refines it by the share of earlier clouds of the
    class that occupy the cells around it. So the model needs no training and no stored weights.
    """
    rows, columns = shape
    result = np.zeros((len(labels), rows, columns), bool)
    # one table of (zeros, ones), with the contexts of all orders one after another
    masks = 2 ** np.array(ORDERS)[:, None] - 1
    starts = np.cumsum(masks + 1, axis=0) - masks - 1
    table, class_table = np.zeros((int((masks + 1).sum()), 2)), np.zeros((BINS * LEVELS * 4, 2))
    filled = np.zeros((classes, rows, columns), np.int64)
    seen = np.zeros(classes, np.int64)
    width = columns + 2 * MARGIN
    offsets = np.array([down * width + right for down, right in NEIGHBOURS])
    places = 2 ** np.arange(len(NEIGHBOURS), dtype=np.uint16)
    for chosen in _rounds(labels):
        mine = labels[chosen]
        shares = _shares_around(filled[mine], seen[mine]).transpose(1, 2, 0)
        # the part of the last context that stays the same from cell to cell
        fixed = 4 * shares + np.searchsorted([1, 3, 7], seen[mine], side="right")
        cells = np.zeros(((rows + MARGIN) * width, len(chosen)), np.uint16)
        for row, column in np.ndindex(rows, columns):
            cell = (row + MARGIN) * width + column + MARGIN
            index = (places @ cells[cell + offsets] & masks) + starts
            estimate = np.full(len(chosen), 0.5)
            for counts in table[index]:
                estimate = _refined(estimate, counts, ORDER_WEIGHT)
            bin_ = np.minimum((estimate * BINS).astype(np.int64), BINS - 1)
            last = bin_ * 4 * LEVELS + fixed[row, column]
            estimate = _refined(estimate, class_table[last], CLASS_WEIGHT)
            given = None if occupied is None else occupied[chosen, row, column]
            bits = coder.bits(given, estimate.clip(LEAST, 1 - LEAST))
            np.add.at(table, (index, bits), 1)
            np.add.at(class_table, (last, bits), 1)
            cells[cell] = bits
        coded = cells.reshape(rows + MARGIN, width, -1)[MARGIN:, MARGIN:-MARGIN].transpose(2, 0, 1)
        result[chosen] = coded
        np.add.at(filled, mine, coded)
        np.add.at(seen, mine, 1)
    return result


def _refined(estimate: np.ndarray, counts: np.ndarray, weight: float) -> np.ndarray:
    """Return the shares of ones among counts (n, 2), with an estimate that counts as `weight`."""
    zeros, ones = counts.T
    return (ones + weight * estimate) / (zeros + ones + weight)


def _rounds(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield indices of clouds to code together: of each class one, later a quarter of those before.

    A round knows all clouds of earlier rounds, and of its own only the cells before the current.
    """
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts
    first = 0
    while first <= rank.max(initial=-1):
        last = first + max(1, first // 4)
        yield np.flatnonzero((rank >= first) & (rank < last))
        first = last


def _shares_around(filled: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return levels 0 to LEVELS - 1 of the share of occupied cells among 3 x 3 cells.

    filled: number of earlier clouds that occupy each cell (clouds, rows, columns)
    seen: number of earlier clouds (clouds,)
    """
    rows, columns = filled.shape[1:]
    padded = np.pad(filled, ((0, 0), (1, 1), (1, 1)))
    around = sum(
        padded[:, down : down + rows, right : right + columns]
        for down in range(3)
        for right in range(3)
    )
    most = 9 * np.maximum(seen, 1)[:, None, None]
    return ((LEVELS - 1) * around + most - 1) // most


def code_positions(
    coder: Coder, positions: np.ndarray | None, sizes: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Code whole positions in a box, in any order within a cloud: int64 (points, axes).

    positions: of cloud 0 first, each axis from 0 to shape - 1; None: read them
    sizes: number of points of each cloud (clouds,)
    Boxes are halved axis by axis, as in an octree. Of the points in a box the number in the first
    half is coded, so the order of points, which means nothing, costs nothing. Up to 16 points it
    follows the earlier boxes of the same size with as many points. The result has the points of
    each cloud in the order of the halves.
    """
    bits = [int(length - 1).bit_length() for length in shape]
    number = sizes
    start = np.zeros((len(sizes), len(shape)), np.int64)
    box = np.zeros(0, np.int64)  # of each point, if they are known
    if positions is not None:
        box = np.arange(len(sizes)).repeat(number)
    for bit in range(max(bits, default=0) - 1, -1, -1):
        for axis in np.flatnonzero(np.array(bits) > bit).tolist():
            middle = start[:, axis] + (1 << bit)
            inside, given = np.zeros(0, bool), None
            if positions is not None:
                inside = positions[:, axis] < middle[box]
                given = np.bincount(box[inside], minlength=len(number))
            first = _code_splits(coder, given, number, middle < shape[axis])
            # boxes with points: first halves at even places, second halves at odd ones
            halves = np.stack([first, number - first], 1).ravel()
            kept = np.flatnonzero(halves)
            if positions is not None:
                box = (np.cumsum(halves > 0) - 1)[2 * box + ~inside]
            start = start.repeat(2, axis=0)
            start[1::2, axis] += 1 << bit
            start, number = start[kept], halves[kept]
    return start.repeat(number, axis=0)


def _code_splits(
    coder: Coder, first: np.ndarray | None, number: np.ndarray, divided: np.ndarray
) -> np.ndarray:
    """Code how many points of each box lie in its first half: int64 (boxes,).

    number: points of each box; divided: where the second half is not empty for certain
    """
    result = number.copy()
    for points in range(1, TABLES + 1):
        where = np.flatnonzero(divided & (number == points))
        given = None if first is None else first[where]
        result[where] = code_adaptively(coder, given, len(where), np.full(points + 1, 0.5))
    where = np.flatnonzero(divided & (number > TABLES))
    if len(where):
        given = None if first is None else first[where]
        result[where] = coder.uniform(given, number[where] + 1)
    return result
