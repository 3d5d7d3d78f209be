"""The machine of a run: choice and description of the device, peak memory, memory allocation."""

import contextlib
import ctypes
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from ..errors import InputError

LIBRARIES = ("torchvision", "numpy", "scikit-learn", "MinkowskiEngine")


def choose_device(name: str | None) -> torch.device:
    """Return the device `name`; None: the GPU if there is one, else the CPU.

    Raises InputError if this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
        exists = (
            f"{device.type}:{device.index or 0}" in available
            if device.type == "cuda"
            else device.type == "cpu"
        )
    except RuntimeError:
        exists = False
    if not exists:
        raise InputError(f"no device {name!r}; this machine has: {', '.join(available)}")
    return device


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors instead of returning it to the kernel.

    Networks of this size allocate megabytes many times a second. Getting this memory back page by
    page took half of the time on a CPU. A thread with its own arena, such as that of the live view,
    returns memory nevertheless, so all threads share the arena of the main thread. With another C
    library the function does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # values of M_* in malloc.h
        libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Return peak memory in bytes: allocations on a GPU, resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # the peak of getrusage starts at the peak of the parent process
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> dict:
    """Describe the machine for a record: device, threads, versions, commit."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, **_versions()},
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    """Return the versions of installed libraries. MinkowskiEngine is optional."""
    installed = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _commit() -> str | None:
    """Return the commit of this package's source, or None outside a git checkout.

    The text ends in "with changes" if files differ from the commit.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", str(Path(__file__).parents[1]))
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
