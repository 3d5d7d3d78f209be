"""Images of digits: MNIST in torchvision's layout, and scikit-learn's embedded digits."""

import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

# name: (magic number, dimensions) of the files in torchvision's layout, folder/MNIST/raw/name
MNIST_FILES = {
    "train-images-idx3-ubyte": (2051, (60000, 28, 28)),
    "train-labels-idx1-ubyte": (2049, (60000,)),
    "t10k-images-idx3-ubyte": (2051, (10000, 28, 28)),
    "t10k-labels-idx1-ubyte": (2049, (10000,)),
}


def read_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load MNIST through torchvision: brightness in [0, 1] and labels, training, then test."""
    from torchvision.datasets import MNIST

    raw = root / "MNIST" / "raw"
    if not any((raw / name).exists() for name in MNIST_FILES):
        created = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
            MNIST(root, download=True)
        except (RuntimeError, OSError) as error:
            for empty in (raw, raw.parent, *created):  # remove what the failed download left
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()
            reason = " ".join(str(error).split())
            raise InputError(
                f"MNIST is not in {raw} and could not be downloaded ({reason}). "
                "Do one of the following: give the folder that contains MNIST/raw with --data DIR; "
                "set the environment variable PCDD_DATA to that folder; run once with a network "
                "connection, which downloads MNIST; or take data.name=digits, which needs no files"
            ) from None
    for name, (magic, shape) in MNIST_FILES.items():
        _check_idx(raw / name, magic, shape)
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    for name, labels in zip(list(MNIST_FILES)[1::2], (train.targets, test.targets)):
        if labels.max() > 9:
            raise InputError(
                f"{raw / name}: label {int(labels.max())}; MNIST's labels are 0 to 9; "
                "put the original file there"
            )
    return train.data / 255, train.targets.long(), test.data / 255, test.targets.long()


def _check_idx(path: Path, magic: int, shape: tuple[int, ...]) -> None:
    """Check an IDX file before anything reads it.

    Raises InputError if the file is missing, truncated or of another kind.
    """
    remedy = "delete the folder to download it again, or put the original file there"
    if not path.is_file():
        raise InputError(f"{path}: missing, while other files of MNIST exist; {remedy}")
    header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
    with path.open("rb") as file:
        start = file.read(len(header))
    if start[:4] != header[:4]:
        raise InputError(
            f"{path}: not an IDX file of MNIST "
            f"(it starts with {start[:4].hex()}, not {header[:4].hex()}); {remedy}"
        )
    expected = len(header) + int(np.prod(shape))
    if start != header or path.stat().st_size != expected:
        raise InputError(
            f"{path}: damaged or cut short ({path.stat().st_size} bytes, expected {expected}); "
            f"{remedy}"
        )


def read_digits() -> tuple[Tensor, Tensor]:
    """Load scikit-learn's 1,797 embedded digits of 8 x 8 pixels: brightness in [0, 1], labels.

    Images are resized to 20 x 20 pixels, with a padding of 4 on each side as in MNIST.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images / 16).float()[:, None]
    images = F.pad(
        F.interpolate(images, (20, 20), mode="bicubic", align_corners=False).clamp(0, 1)[:, 0],
        (4, 4, 4, 4),
    )
    return images, torch.from_numpy(data.target).long()
