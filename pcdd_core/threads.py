"""Run independent calls in parallel threads."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def threads_for(device: torch.device) -> int:
    """Return the number of threads to use: torch's own number on a CPU, one on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextlib.contextmanager
def side_by_side(count: int) -> Iterator[Callable[..., list]]:
    """Yield a `map` that makes `count` calls in parallel: [function(*arguments), ...].

    Each call runs its torch operations in its own thread. By default torch splits each operation
    over all cores, and in small networks the cores then wait for each other. With a count of one,
    the calls run one after another with torch's default. Restores torch's number of threads.
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
