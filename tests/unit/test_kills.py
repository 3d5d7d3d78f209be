"""Runs that are killed at random moments and resumed; see kills.py for more of them."""

import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_runs_killed_at_random_moments_end_in_the_same_clouds(tmp_path):
    from kills import kills

    counts = kills(6, tmp_path)
    assert sum(count["kills"] for count in counts.values()) == 6
    for name, count in counts.items():
        assert count["equal"] == count["runs"] and not count["left over"], (name, count)
