"""Measure the limits of this machine, and count the necessary operations of an iteration.

The limits are the rates of matrix products and of copies. The floor of a computation is the time of
its floating-point operations at the first rate, or of its bytes at the second rate, whichever is
longer. `floor_fraction` in the results is the floor divided by the time of the engine.
"""

import time
from collections.abc import Callable
from functools import partial

import torch


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, including the work that it queued on the device."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def best_seconds(work: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Return the seconds of the fastest of `rounds` calls, after one call as a warm-up."""
    return min([seconds_of(work, device) for _ in range(rounds + 1)][1:])


def rates(device: torch.device, shrink: int = 1) -> dict[str, float]:
    """Measure operations per second (`float32`, `bfloat16`) and bytes per second (`bytes`).

    Operations are those of matrix products: the fastest of a plain product and of 1x1 and 3x3
    convolutions, which are matrix products of another library. Bytes are read and written by a copy
    of 256 MiB.
    shrink: divides the sizes, to try the code quickly; the rates are then too low
    """
    operations = {
        precision: _operations_per_second(device, getattr(torch, precision), shrink)
        for precision in ("float32", "bfloat16")
    }
    source = torch.randn(2**26 // shrink, device=device)
    target = torch.empty_like(source)
    return operations | {
        "bytes": 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)
    }


def _operations_per_second(device: torch.device, precision: torch.dtype, shrink: int) -> float:
    size = (2048 if device.type == "cpu" else 8192) // shrink
    a, b = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    results = [2 * size**3 / best_seconds(lambda: a @ b, device)]
    images, channels = (64, 128) if device.type == "cpu" else (1024, 256)
    images //= shrink
    inputs = torch.randn(images, channels, 14, 14, device=device).to(precision)
    for kernel in (1, 3):
        weight = torch.randn(channels, channels, kernel, kernel, device=device).to(precision)
        operations = 2 * images * (14 + 1 - kernel) ** 2 * channels**2 * kernel**2
        results.append(operations / best_seconds(partial(torch.conv2d, inputs, weight), device))
    return max(results)


def convolution_operations(size: int, width: int, layers: int, first_padding: int = 1) -> list[int]:
    """Count the floating-point operations of each 3x3 convolution of a ConvNet for one image.

    size: pixels along each side. width: channels of each layer.
    """
    operations, channels = [], 1
    for layer in range(layers):
        size += 2 * ((first_padding if layer == 0 else 1) - 1)
        operations.append(2 * 9 * size**2 * channels * width)
        channels, size = width, size // 2
    return operations


def training_operations(size: int, width: int, layers: int, first_padding: int = 1) -> int:
    """Count the operations of a forward and a backward pass for one image.

    A backward pass costs two forward passes; for the first layer it costs one.
    """
    first, *others = convolution_operations(size, width, layers, first_padding)
    return 2 * first + 3 * sum(others)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
