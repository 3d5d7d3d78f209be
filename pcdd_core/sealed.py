"""JSON files with a checksum, so that damage does not pass as content."""

import hashlib
import json
import re
from typing import Any

KEY = "sha256"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with the SHA-256 of all other entries as its last entry."""
    # as JSON gives it back, which turns all keys into text
    return {**content, KEY: _digest(json.loads(json.dumps(content)))}


def unsealed(content: dict[str, Any], required: bool = False) -> dict[str, Any]:
    """Return the content without its checksum.

    required: refuse content without a checksum; files of older versions have none
    Raises ValueError if the content differs from its checksum.
    """
    # An entry that looks like a checksum under another key is a damaged key.
    seals = [
        key
        for key, value in content.items()
        if key == KEY or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value))
    ]
    rest = {key: value for key, value in content.items() if key not in seals}
    if not seals and required:
        raise ValueError("it has no checksum")
    if any(content[key] != _digest(rest) for key in seals):
        raise ValueError("its content differs from its checksum")
    return rest


def parsed(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError if the text is another thing or nested too deeply."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not an object of JSON")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
