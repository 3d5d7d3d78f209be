"""The machine a run is on: which device, what it is, how much memory was used, and habits that make CPUs fast."""

import contextlib
import ctypes
import platform
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from .errors import InputError

LIBRARIES = ("torchvision", "numpy", "scikit-learn", "MinkowskiEngine")


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, or the GPU if there is one, else the CPU. Raises InputError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
        found = (
            f"{device.type}:{device.index or 0}" in there
            if device.type == "cuda"
            else device.type == "cpu"
        )
    except RuntimeError:
        found = False
    if not found:
        raise InputError(f"device {name!r} is not there; this machine has: {', '.join(there)}")
    return device


def keep_freed_memory() -> None:
    """Have glibc keep the memory that freed tensors leave, rather than return it to the kernel each time.

    Networks of this size allocate megabytes many times a second, and fetching them anew page by page took half of the
    time on CPU. A thread that has memory of its own (the live view's) returns it all the same, so all share the main
    thread's. Does nothing where the C library is another one.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # names of malloc.h
        libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak would begin at that of the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> dict:
    """What a record says of the place a run was made at: device, threads, versions, commit."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, **_versions()},
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    """Of the libraries that are installed: MinkowskiEngine need not be."""
    installed = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _commit() -> str | None:
    """The commit of the source this package runs from, marked if it was changed since; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", str(Path(__file__).parent))
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
