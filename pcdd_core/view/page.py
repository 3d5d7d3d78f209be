"""The HTML page of a recording, and the encoding of recordings for player.js.

The page contains player.js, which also draws the live view. It needs no other file and no network.
"""

import base64
import gzip
import html
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..files import atomic_write_text
from ..geometry.clouds import Grid
from .recording import Recording

SCRIPT = Path(__file__).with_name("player.js")
# Steps per cell of coordinates in the page and the live view. A power of 2 keeps cells exact.
STEPS = 256
# Gradients in the page and the live view: levels 0 to 255 of a logarithmic scale, 1e-8 to 1e2 per
# cell.
LOWEST_DECADE, LEVELS_PER_DECADE = -8, 25.5


def steps_per_cell(grid: Grid) -> int:
    """Return STEPS, halved until the coordinates of the grid fit into 16 bits."""
    steps = STEPS
    while steps > 1 and steps * max(grid) > 2**16:
        steps //= 2
    return steps


def quantised(coordinates: np.ndarray, grid: Grid) -> np.ndarray:
    """Quantise coordinates (..., points, 3) in cells to uint16 (..., 3, points) in steps.

    Values are rounded down, so that each point stays in its cell. The view adds half a step, so its
    error is at most half a step.
    """
    return np.floor(coordinates.swapaxes(-1, -2) * np.float32(steps_per_cell(grid))).astype(
        np.uint16
    )


def gradient_levels(gradients: np.ndarray) -> np.ndarray:
    """Convert lengths of gradients, of any shape, to uint8 levels of the logarithmic scale."""
    decades = np.log10(np.maximum(gradients, 10.0**LOWEST_DECADE)) - LOWEST_DECADE
    return (decades * LEVELS_PER_DECADE).round().clip(0, 255).astype(np.uint8)


def encode(*recordings: Recording, names: Sequence[str] = ("",)) -> bytes:
    """Encode a recording, or several that are shown side by side, for `decode` in player.js.

    recordings: of equal updates, numbers of points and classes
    names: what tells the recordings apart

    The result is gzipped: length of the header, header in JSON, arrays. Coordinates and gradients
    are stored as differences between frames, modulo their range. Low and high bytes of coordinates
    are separate arrays, because points move little between frames and most high bytes are 0.
    """
    first, clouds = recordings[0], recordings[0].clouds
    gradients = [part.gradients for part in recordings if part.gradients is not None]
    has_gradients = len(gradients) == len(recordings)
    offsets = [
        part.clouds.offsets[1:] + i * len(clouds.coordinates) for i, part in enumerate(recordings)
    ]
    header = {
        "runs": names,
        "grid": clouds.grid,
        "labels": torch.cat([recording.clouds.labels for recording in recordings]).tolist(),
        "offsets": [0, *torch.cat(offsets).tolist()],
        "class_names": clouds.class_names,
        "updates": first.updates.tolist(),
        "iterations": first.iterations,
        "curve_length": len(first.matching_loss),
        "has_gradients": has_gradients,
        "steps": steps_per_cell(clouds.grid),
        "lowest_decade": LOWEST_DECADE,
        "levels_per_decade": LEVELS_PER_DECADE,
    }
    text = json.dumps(header).encode()
    coordinates = np.concatenate([recording.coordinates for recording in recordings], axis=1)
    places = _differences(quantised(coordinates, clouds.grid))
    low, high = places.astype(np.uint8), (places >> 8).astype(np.uint8)
    parts = [struct.pack("<I", len(text)), text, low.tobytes(), high.tobytes()]
    if has_gradients:
        parts.append(_differences(gradient_levels(np.concatenate(gradients, axis=1))).tobytes())
    for curve in ("matching_loss", "mean_absolute_gradient"):
        parts += [getattr(recording, curve).astype("<f4").tobytes() for recording in recordings]
    return gzip.compress(b"".join(parts), 6, mtime=0)


def _differences(frames: np.ndarray) -> np.ndarray:
    """Subtract from each frame the one before, modulo the range of the type. The first stays."""
    return np.concatenate([frames[:1], frames[1:] - frames[:-1]])


def save_player(
    recording: Recording, path: Path | str, *others: Recording, names: Sequence[str] = ("",)
) -> None:
    """Write an HTML page that plays the recording, atomically.

    The page is one file and needs no network.
    others, names: recordings to show beside it, and the names of all, see `encode`
    Raises InputError if `path` has another suffix than .html or .htm, or if the folder is not
    writable.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: the player is an HTML page; expected a name that ends in .html")
    atomic_write_text(path, page_of(recording, *others, names=names))


def page_of(recording: Recording, *others: Recording, names: Sequence[str] = ("",)) -> str:
    """Return an HTML page that plays recordings. It needs no other file and no network."""
    title = "Moving points: " + ", ".join(dict.fromkeys(recording.names()))
    return page_of_encoded(title, encode(recording, *others, names=names))


def page_of_encoded(title: str, encoded: bytes) -> str:
    """Return an HTML page with this title that plays what `encode` returned."""
    parts = {
        "title": html.escape(title),
        "script": SCRIPT.read_text(encoding="utf-8"),
        "data": base64.b64encode(encoded).decode(),
    }
    # In one pass: the parts themselves can contain "{title}", "{script}" or "{data}".
    return re.sub("{(title|script|data)}", lambda match: parts[match[1]], PAGE)


def encoded_in(page: str) -> bytes:
    """Return the encoded recordings in an HTML page of `page_of_encoded`."""
    found = re.search(r'atob\("([^"]*)"\)', page)
    assert found, "every such page holds its recordings"
    return base64.b64decode(found[1])


def folded(recording: Recording, *others: Recording, names: Sequence[str] = ("",)) -> str:
    """Return HTML with the page of the recordings in a frame, which opens at a click."""
    source = html.escape(page_of(recording, *others, names=names), quote=True)
    return (
        "<details><summary>Play the recording (needs no kernel)</summary>"
        f'<iframe srcdoc="{source}" sandbox="allow-scripts" loading="lazy" width="100%" '
        'height="660" style="border: 0"></iframe></details>'
    )


# The content security policy forbids all requests, so the page cannot load anything. Text from data
# occurs in the title, where it is escaped, and in the recording. The recording is base64 here, and
# player.js writes its text by `textContent` and to canvases only.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark }
body { margin: 12px auto; padding: 0 12px; max-width: 1100px }
</style>
</head>
<body>
<main id="player">This page needs JavaScript and a browser from 2023 or later.</main>
<script type="module">
{script}
const bytes = Uint8Array.from(atob("{data}"), (character) => character.charCodeAt(0));
mount(document.getElementById("player")).show(await decode(bytes));
</script>
</body>
</html>
"""
