"""One seed, split per use.

Every random draw names what it is for and at which iteration, and its generator is made from that name alone.
No generator state lives anywhere, so a resumed run draws what an unbroken one would have drawn, and evaluation does
not depend on how long distillation ran.
"""

import hashlib

import torch


def generator(seed: int, *use: str | int) -> torch.Generator:
    """A CPU generator for one use, for instance `generator(seed, "batch", iteration)`.

    Drawing on the CPU and moving the result keeps the draws equal on every device.
    """
    digest = hashlib.sha256(repr((seed, *use)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
