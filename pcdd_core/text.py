"""Make names safe to show: on a terminal, in Markdown, CSV and LaTeX, and in pictures.

Names of classes, presets and records come from files that others made. They can contain escape
sequences of terminals, line breaks, markup and formulas.
"""

import unicodedata
from typing import Any

# Control, format (bidirectional overrides too), surrogate, line and paragraph separators.
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also full-width forms
DRAWN = 24  # characters of a name in a picture


def printable(text: object, keep: str = "") -> str:
    """Return a text on one line, with escapes such as \\n and \\x1b for characters without a shape.

    keep: characters that stay as they are
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in UNSEEN and letter not in keep
        else letter
        for letter in str(text)
    )


def markdown_entry(value: object) -> str:
    """Return a value as an entry of a Markdown table: no markup, HTML, link or new column."""
    text = printable(value).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("](", "]\\(")


def csv_entry(value: Any) -> Any:
    """Return a value for a CSV file. An apostrophe precedes text that a spreadsheet would compute.

    Numbers and None stay as they are.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def drawable(name: str) -> str:
    """Return a name for a picture: one line, at most DRAWN characters."""
    text = printable(name)
    return text if len(text) <= DRAWN else f"{text[: DRAWN - 1]}\u2026"
