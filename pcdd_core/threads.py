"""Independent pieces of work in a thread each."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def threads_for(device: torch.device) -> int:
    """How many threads are worth starting: as many as torch uses itself on a CPU, one for a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextlib.contextmanager
def side_by_side(count: int) -> Iterator[Callable[..., list]]:
    """A `map`, [function(*arguments), ...], that makes `count` calls at a time, each with operations in its own thread alone.

    One operation shared by all cores, as torch has it otherwise, leaves them waiting for each other where networks are small.
    With a count of one it is an ordinary map. Leaves the number of torch's threads as it found it.
    """
    if count == 1:
        yield lambda function, *arguments: list(map(function, *arguments))
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda function, *arguments: list(pool.map(function, *arguments))
    finally:
        torch.set_num_threads(before)
