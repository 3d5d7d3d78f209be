"""Several processes for one run, on as many GPUs or machines: each matches some of the classes, all move the points alike.

Given the network, what moves a class's points depends on no other class (gradient matching, distribution matching, maximum
mean discrepancy). So each process, a rank of `torchrun`, takes every so-many-th class; losses and gradients are summed; and every rank
makes the same step. A point's gradient comes from one class, so the sum is exact, and the run is
the same bit for bit as in one process (on a CPU, with as many threads).
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

INDEPENDENT_CLASSES = (
    "gradient_matching",
    "distribution_matching",
    "maximum_mean_discrepancy",
    "sorted_feature_matching",
)  # objectives


def rank() -> int:
    """The number of this process among those of the run: 0 if it is alone."""
    return dist.get_rank() if _several() else 0


def count() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if _several() else 1


def first_of_torchrun() -> bool:
    """Whether this process reports what came of the run, also when it has left the others."""
    return int(os.environ.get("RANK", "0")) == 0


def own_classes(classes: int) -> list[int]:
    """The classes that this process matches."""
    return list(range(rank(), classes, count()))


def sum_over_ranks(*tensors: Tensor) -> None:
    """Each tensor becomes, in place, its sum over all processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def wait_for_all() -> None:
    """Return when every process is here."""
    if count() > 1:
        dist.barrier()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes if `torchrun` started this one; the device to use, on GPUs one for each process of a machine."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _several():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Functions of this module hold the group that there is when it is first imported (by any optimiser's first step), as the
    # default of an argument. Imported later, they would keep the group's threads to the end of the process, which they abort.
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
