"""A slice of the campaign of faults: runs that are interrupted."""

from __future__ import annotations

import pytest

from tests.faults.slices import campaign


@pytest.mark.campaign
def test_a_signal_or_a_storm_of_them_ends_a_run_cleanly() -> None:
    """128 + n, the old output unchanged, and nothing left; or the signal came too late, and all outputs are there."""
    campaign("signals", 5)
