"""Slices of the campaign as tests: some cases of a part; each must pass."""

from __future__ import annotations

import pytest

from tests.faults.campaign import run_part

_MOST_SECONDS = 600


def campaign(part: str, cases: int, *, seed: int = 1) -> None:
    """Try some cases of a part; skip the test where the part cannot be tried."""
    tally = run_part(part, seed, _MOST_SECONDS, cases)
    if tally.ended.startswith("skipped"):
        pytest.skip(tally.ended)
    assert not tally.failed
    assert tally.tried > 0
