"""Try damaged files: mutations of small valid files, which a reader must read or refuse.

    python tests/fuzz.py --examples 3000 --record benchmarks/records/fuzz.json

Runs all tests with the mark `fuzz`, prints the seed and a table of what was tried, and exits with 1
if a test fails. The test suite itself tries the same small sample each time.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcdd_core.experiments import machine
from pcdd_core.files import atomic_write_text

ROOT = Path(__file__).parents[1]
LONGEST = 600  # characters of a message
SAMPLE = 100  # mutations per test of the test suite
EXAMPLES = "PCDD_FUZZ_EXAMPLES"  # environment variable: mutations per test, new ones
FIELDS = ("tried", "read", "refused")
# bytes that formats read as counts, signs, separators and special numbers
TOKENS = (
    b"\x00", b"\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x00" * 8, b"\xff" * 8, b"-1",
    b"0", b"9", b"1e308", b"1e-320", b"nan", b"inf", b".", b",", b" ", b"\n", b"#", b"(", b"'",
    b"|O", b"<c16", b"<U1", b"<M8[s]", b"\xed\xa0\x80",
)  # fmt: skip


def attack(
    name: str,
    contents: st.SearchStrategy,
    read: Callable[..., bool],
    record_property: Callable[[str, object], None],
) -> Counter:
    """Call `read` with contents that the strategy draws.

    name: what is damaged, for the table
    read: fails if the content is neither read nor refused as it should; True: it was read
    record_property: fixture of the test
    Returns the number of contents that were tried, read and refused.
    """
    fresh, counts = int(os.environ.get(EXAMPLES, "0")), Counter()

    @settings(
        max_examples=fresh or SAMPLE,
        derandomize=not fresh,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(contents)
    def one(content):
        counts["tried"] += 1
        counts["read" if read(content) else "refused"] += 1

    try:
        one()
    finally:
        record_property("attack", {"attack": name, **{field: counts[field] for field in FIELDS}})
    return counts


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


class Attacks:
    """A plugin of pytest that collects what `attack` recorded."""

    def __init__(self):
        self.rows: list[dict] = []

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call":
            made = dict(report.user_properties)["attack"]
            self.rows.append({**made, "failed": int(report.failed)})


def assert_clear(error: Exception, name: str) -> None:
    """Fail unless the message is one line of readable length that names the file or folder."""
    message = str(error)
    assert name in message and "\n" not in message and len(message) < LONGEST + len(name)


def markdown(rows: list[dict]) -> str:
    """Format a table with one line per attack, and their sum."""
    fields = (*FIELDS, "failed")
    total = {"attack": "all", **{field: sum(row[field] for row in rows) for field in fields}}
    lines = [["damaged", *fields], ["---"] * 5]
    lines += [[row["attack"], *(f"{row[field]:,}" for field in fields)] for row in [*rows, total]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="mutations per test (1000)")
    parser.add_argument(
        "--seed", type=int, help="repeat the mutations of this seed (by the same code)"
    )
    parser.add_argument("--record", type=Path, help="write the table to this file (JSON)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    os.environ[EXAMPLES] = str(options.examples)
    begun, attacks = time.monotonic(), Attacks()
    words = ["-q", "-m", "fuzz", f"--hypothesis-seed={seed}", "--disable-warnings"]
    code = pytest.main([*words, str(ROOT / "tests" / "unit")], plugins=[attacks])
    print(markdown(attacks.rows))
    if options.record:
        record = {
            "command": f"python tests/fuzz.py --examples {options.examples} --seed {seed} "
            f"--record {options.record}",
            "examples": options.examples,
            "seed": seed,
            "machine": machine.describe(torch.device("cpu")),
            "seconds": time.monotonic() - begun,
            "rows": attacks.rows,
        }
        atomic_write_text(options.record, json.dumps(record, indent=1))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
