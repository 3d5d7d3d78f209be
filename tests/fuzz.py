"""Mutations of small valid files, for tests that a damaged file is refused in a known way.

A fixed sample of mutations is tried by default. PCDD_FUZZ_EXAMPLES=5000 tries that many new ones
per test.
"""

import os
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SAMPLE = 100  # mutations per test without PCDD_FUZZ_EXAMPLES
# bytes that formats read as counts, signs, separators and special numbers
TOKENS = (
    b"\x00", b"\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x00" * 8, b"\xff" * 8, b"-1",
    b"0", b"9", b"1e308", b"1e-320", b"nan", b"inf", b".", b",", b" ", b"\n", b"#", b"(", b"'",
    b"|O", b"<c16", b"<U1", b"<M8[s]", b"\xed\xa0\x80",
)  # fmt: skip


def fuzzed(test):
    """Set the number of examples of a hypothesis test that damages files."""
    fresh = int(os.environ.get("PCDD_FUZZ_EXAMPLES", "0"))
    return settings(
        max_examples=fresh or SAMPLE,
        derandomize=not fresh,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )(test)


@st.composite
def mutations(draw, valid: Sequence[bytes]) -> bytes:
    """Draw one of the `valid` contents with one to three changes.

    A change flips bits, cuts the end, removes or repeats a part, inserts or overwrites bytes, or
    joins the start of one content to the end of another.
    """
    content = draw(st.sampled_from(list(valid)))
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(CHANGES))
        content = change(draw, content, valid)
    return content


def _place(draw, content: bytes) -> int:
    """Draw a place in a content; every second one is near the start, where headers are."""
    last = len(content) if draw(st.booleans()) else min(len(content), 128)
    return draw(st.integers(0, last))


def _flip(draw, content: bytes, _valid) -> bytes:
    if not content:
        return content
    place = min(_place(draw, content), len(content) - 1)
    flipped = content[place] ^ (1 << draw(st.integers(0, 7)))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def _cut(draw, content: bytes, _valid) -> bytes:
    return content[: _place(draw, content)]


def _remove(draw, content: bytes, _valid) -> bytes:
    place = _place(draw, content)
    return content[:place] + content[place + draw(st.integers(1, 64)) :]


def _repeat(draw, content: bytes, _valid) -> bytes:
    place = _place(draw, content)
    return content[: place + draw(st.integers(1, 64))] + content[place:]


def _insert(draw, content: bytes, _valid) -> bytes:
    place = _place(draw, content)
    return content[:place] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + content[place:]


def _overwrite(draw, content: bytes, _valid) -> bytes:
    place = _place(draw, content)
    written = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
    return content[:place] + written + content[place + len(written) :]


def _splice(draw, content: bytes, valid) -> bytes:
    other = draw(st.sampled_from(list(valid)))
    return content[: _place(draw, content)] + other[_place(draw, other) :]


CHANGES = (_flip, _flip, _cut, _remove, _repeat, _insert, _overwrite, _splice)
