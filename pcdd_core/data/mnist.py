"""Images of digits: MNIST in torchvision's layout, and scikit-learn's embedded digits."""

import hashlib
import math
import struct
import warnings
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

# name: shape and SHA-256 of the original files in torchvision's layout, folder/MNIST/raw/name
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        (60000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        (60000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        (10000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        (10000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
REMEDY = "delete the folder to download MNIST again, or put the original file there"


def read_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load MNIST: brightness in [0, 1] and labels, training, then test.

    Images: float32 (images, 28, 28); labels: int64 (images,)
    Missing files are downloaded by torchvision. Another set in the same format, such as
    Fashion-MNIST, is read with a warning. Raises InputError if a file is damaged, if images and
    labels differ in number, or if a label is above 9.
    """
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
    images, labels, other = _read_split(raw, "train")
    test_images, test_labels, other_test = _read_split(raw, "t10k")
    if other + other_test:
        warnings.warn(
            f"{raw}: not the original MNIST, by the checksum of {', '.join(other + other_test)}; "
            "if it is meant to be, put the original files there",
            stacklevel=2,
        )
    return images, labels, test_images, test_labels


def _read_split(raw: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """Read images and labels of one split, and the names of its files that are not the original."""
    files = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
    (images, first), (labels, second) = read_idx(raw / files[0], 3), read_idx(raw / files[1], 1)
    if images.shape[1:] != (28, 28):
        height, width = images.shape[1:]
        raise InputError(f"{raw / files[0]}: images of {height} x {width} pixels; expected 28 x 28")
    if len(images) != len(labels):
        raise InputError(
            f"{raw / files[1]}: {len(labels)} labels for {len(images)} images in {files[0]}; "
            "put files of the same set there"
        )
    if labels.max() > 9:
        raise InputError(
            f"{raw / files[1]}: label {labels.max()}; MNIST's labels are 0 to 9; "
            "put the original file there"
        )
    sums = zip(files, (first, second))
    other = [name for name, checksum in sums if checksum != MNIST_FILES[name][1]]
    return torch.from_numpy(images) / 255, torch.from_numpy(labels).long(), other


def read_idx(path: Path, dimensions: int) -> tuple[np.ndarray, str]:
    """Read an IDX file of bytes: the array, uint8, and the SHA-256 of the file.

    Source: the description of the format at yann.lecun.com/exdb/mnist
    Raises InputError if the file is missing, of another kind, or cut short.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing, while other files of MNIST exist; {REMEDY}")
    magic, header = struct.pack(">I", 2048 + dimensions), 4 + 4 * dimensions
    with path.open("rb") as file:
        start = file.read(header)
    if start[:4] != magic:
        raise InputError(
            f"{path}: not an IDX file of {dimensions} dimensions "
            f"(it starts with {start[:4].hex()}, not {magic.hex()}); {REMEDY}"
        )
    shape = struct.unpack(f">{dimensions}I", start[4:]) if len(start) == header else ()
    size, expected = path.stat().st_size, header + math.prod(shape)
    if not shape or size != expected:
        raise InputError(
            f"{path}: damaged or cut short ({size} bytes, expected {expected}); {REMEDY}"
        )
    if 0 in shape:
        raise InputError(f"{path}: an empty array of shape {shape}; {REMEDY}")
    content = np.fromfile(path, np.uint8)
    return content[header:].reshape(shape), hashlib.sha256(content.data).hexdigest()


def read_digits() -> tuple[Tensor, Tensor]:
    """Load scikit-learn's 1,797 embedded digits of 8 x 8 pixels: brightness in [0, 1], labels.

    Images are resized to 20 x 20 pixels, with a padding of 4 on each side as in MNIST.
    """
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    data = cast(Bunch, load_digits())
    images = torch.from_numpy(data.images / 16).float()[:, None]
    images = F.pad(
        F.interpolate(images, (20, 20), mode="bicubic", align_corners=False).clamp(0, 1)[:, 0],
        (4, 4, 4, 4),
    )
    return images, torch.from_numpy(data.target).long()
