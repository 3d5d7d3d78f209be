"""Share the classes of one run among several processes, on one or more GPUs or machines.

For the objectives in `INDEPENDENT_CLASSES`, the gradient of a class's points depends on the network
and on that class only. Each process is a rank of `torchrun`. Of n ranks, rank r matches classes r,
r + n, r + 2n and so on. All ranks sum losses and gradients and then make the same update. The
gradient of a point comes from one class, so the sum is exact. On a CPU with as many threads, the
run equals that of one process bit for bit.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

# Objectives whose gradient for one class's points depends on no other class.
INDEPENDENT_CLASSES = (
    "gradient_matching",
    "distribution_matching",
    "maximum_mean_discrepancy",
    "sorted_feature_matching",
)


def rank() -> int:
    """Return the rank of this process in the run: 0 for a single process."""
    return dist.get_rank() if _several() else 0


def count() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _several() else 1


def first_of_torchrun() -> bool:
    """Return whether this process reports the result of the run.

    Reads the environment, so the answer holds after the process group is destroyed too.
    """
    return int(os.environ.get("RANK", "0")) == 0


def own_classes(classes: int) -> list[int]:
    """Return the classes that this process matches, out of `classes` classes."""
    return list(range(rank(), classes, count()))


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def wait_for_all() -> None:
    """Block until all processes have called this function."""
    if count() > 1:
        dist.barrier()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the process group if `torchrun` started this process; yield the device to use.

    On GPUs, each process of a machine gets a device of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _several():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # This module's functions store the process group that exists at import as a default argument,
    # and any optimiser's first step imports it. An import after init_process_group would keep the
    # group's threads alive until the process ends, and they would abort the process.
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
