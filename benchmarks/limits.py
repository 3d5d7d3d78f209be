"""What this machine can do, measured: matrix products and copies per second; and what an iteration must do at least.

The floor of a computation is its floating-point operations at the first rate or its bytes at the second, whichever takes
longer; `floor_fraction` in the results is that time over ours.
"""

import time
from collections.abc import Callable
from functools import partial

import torch


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, what it left to the device included."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def best_seconds(work: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """The shortest of so many calls, after one to warm up."""
    return min([seconds_of(work, device) for _ in range(rounds + 1)][1:])


def rates(device: torch.device) -> dict[str, float]:
    """`float32`, `bfloat16`: operations per second in matrix products of that precision, the fastest of a plain one and of 1x1 and
    3x3 convolutions (which are matrix products by another library); `bytes`: read and written per second in a copy of 256 MiB."""
    found = {
        precision: _operations_per_second(device, getattr(torch, precision))
        for precision in ("float32", "bfloat16")
    }
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    return found | {"bytes": 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)}


def _operations_per_second(device: torch.device, precision: torch.dtype) -> float:
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    found = [2 * size**3 / best_seconds(lambda: a @ b, device)]
    images, channels = (64, 128) if device.type == "cpu" else (1024, 256)
    seen = torch.randn(images, channels, 14, 14, device=device).to(precision)
    for kernel in (1, 3):
        weight = torch.randn(channels, channels, kernel, kernel, device=device).to(precision)
        operations = 2 * images * (14 + 1 - kernel) ** 2 * channels**2 * kernel**2
        found.append(operations / best_seconds(partial(torch.conv2d, seen, weight), device))
    return max(found)


def convolution_operations(size: int, width: int, layers: int, first_padding: int = 1) -> list[int]:
    """Floating-point operations of each 3x3 convolution of a ConvNet for one image of `size` pixels along each side."""
    operations, channels = [], 1
    for layer in range(layers):
        size += 2 * ((first_padding if layer == 0 else 1) - 1)
        operations.append(2 * 9 * size**2 * channels * width)
        channels, size = width, size // 2
    return operations


def training_operations(size: int, width: int, layers: int, first_padding: int = 1) -> int:
    """Of one image's forward and backward pass: a backward pass costs two forward passes, of the first layer one."""
    first, *others = convolution_operations(size, width, layers, first_padding)
    return 2 * first + 3 * sum(others)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
