"""AdrenalMNIST3D of MedMNIST v2 (Yang et al., Scientific Data 10, 41, 2023; CC BY 4.0).

Its shapes are masks of adrenal glands from abdominal CT, in a box of 64 mm on 28 x 28 x 28 cells.
"""

import hashlib
import http.client
import urllib.request
import warnings
from pathlib import Path

import numpy as np

from ..arrays import read_arrays
from ..errors import InputError
from ..files import atomic_write

FILE = Path("MedMNIST", "adrenalmnist3d.npz")  # in the data folder
URL = "https://zenodo.org/records/10519652/files/adrenalmnist3d.npz?download=1"
SHA256 = "8ffd78c0f000265deb7cf4ee0b454136fb3170f9839ecaa7bb01adf9f88aa7d1"
CLASSES = ("normal", "hyperplasia")
CELLS = 28  # along each axis
SPLITS = ("train", "val", "test")
LARGEST_SET = 2**26  # bytes of all arrays; the published ones have 35 MB
PATIENCE = 30  # seconds without an answer from the server

Split = tuple[np.ndarray, np.ndarray]  # occupied cells and labels of the volumes


def read_adrenal(root: Path) -> list[Split]:
    """Read the training, validation and test split, in this order.

    Each is bool (volumes, 28, 28, 28) and int64 (volumes,). A missing file is downloaded. Another
    set in the same format is read with a warning. Raises InputError if the file is damaged or of
    another format, and if it is missing and the download fails.
    """
    path = root / FILE
    if not path.exists():
        download(path)
    fields = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    arrays = read_arrays(path, fields, LARGEST_SET)
    splits = [_split(path, arrays, split) for split in SPLITS]
    if _sha256(path.read_bytes()) != SHA256:
        warnings.warn(
            f"{path}: not the original AdrenalMNIST3D, by its checksum; if it is meant to be, "
            "delete the file to download it again",
            stacklevel=2,
        )
    return splits


def download(path: Path) -> None:
    """Download AdrenalMNIST3D to `path`. Only the file with the right checksum is written.

    Raises InputError if the server does not answer or sends another file.
    """
    ways = (
        "Do one of the following: give the folder that contains MedMNIST with --data DIR; set the "
        "environment variable PCDD_DATA to that folder; or run once with a network connection, "
        "which downloads it"
    )
    try:
        with urllib.request.urlopen(URL, timeout=PATIENCE) as answer:
            content = answer.read(LARGEST_SET)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"AdrenalMNIST3D is not at {path} and could not be downloaded ({reason}). {ways}"
        ) from None
    if (checksum := _sha256(content)) != SHA256:
        raise InputError(
            f"AdrenalMNIST3D is not at {path}, and {URL} sent another file ({len(content)} bytes, "
            f"SHA-256 {checksum[:8]}..., expected {SHA256[:8]}...). {ways}"
        )
    atomic_write(path, lambda file: file.write(content))


def _split(path: Path, arrays: dict[str, np.ndarray], split: str) -> Split:
    """Return occupied cells and labels of a split. Raises InputError that names the field."""
    for kind in ("images", "labels"):
        if f"{split}_{kind}" not in arrays:
            raise InputError(
                f"{path}: field '{split}_{kind}' is missing; expected the file of AdrenalMNIST3D"
            )
    volumes, labels = (arrays[f"{split}_{kind}"] for kind in ("images", "labels"))
    place = f"{path}: field '{split}_images'"
    if volumes.ndim != 4 or volumes.shape[1:] != (CELLS,) * 3 or len(volumes) == 0:
        raise InputError(
            f"{place} is of shape {volumes.shape}; expected (volumes, {CELLS}, {CELLS}, {CELLS})"
        )
    if volumes.dtype != np.uint8:
        raise InputError(f"{place} is of type {volumes.dtype}; expected uint8")
    if (other := volumes[(volumes != 0) & (volumes != 255)]).size:
        raise InputError(f"{place} has the value {other[0]}; expected 0 (empty) and 255 only")
    occupied = volumes > 0
    if (empty := np.flatnonzero(~occupied.any(axis=(1, 2, 3)))).size:
        raise InputError(f"{place}: volume {empty[0]} has no occupied cell")
    place = f"{path}: field '{split}_labels'"
    if labels.shape not in ((len(volumes),), (len(volumes), 1)):
        raise InputError(
            f"{place} is of shape {labels.shape}; expected one for each of {len(volumes)} volumes"
        )
    labels = labels.reshape(-1)
    if (wrong := np.flatnonzero(~np.isin(labels, range(len(CLASSES))))).size:
        raise InputError(f"{place} is {labels[wrong[0]]} at volume {wrong[0]}; expected 0 or 1")
    return occupied, labels.astype(np.int64)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
