"""Derive random generators from one seed, one for each use.

Each random draw names its use and its iteration. Seed and name alone determine the generator, and
no generator state is kept. So a resumed run draws the same values as an uninterrupted one, and
evaluation does not depend on the length of the distillation.
"""

import hashlib

import torch


def generator(seed: int, *use: str | int) -> torch.Generator:
    """Return a CPU generator for one use, for instance `generator(seed, "batch", iteration)`.

    Draw on the CPU and move the result: the draws are then equal on every device.
    """
    digest = hashlib.sha256(repr((seed, *use)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
