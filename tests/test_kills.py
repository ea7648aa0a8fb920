"""A slice of the campaign of faults: runs that are killed, and runs that write one output together."""

from __future__ import annotations

import pytest

from tests.faults.slices import campaign


@pytest.mark.campaign
def test_a_run_killed_at_a_system_call_leaves_a_whole_output_or_none() -> None:
    """The next run succeeds, and removes the leftovers."""
    campaign("kills", 8)


@pytest.mark.campaign
def test_a_run_killed_at_any_time_leaves_a_whole_output_or_none() -> None:
    """The next run succeeds, and removes the leftovers."""
    campaign("random-kills", 4)


@pytest.mark.campaign
def test_runs_that_write_one_output_together_leave_that_of_one() -> None:
    """At least one run succeeds, the others succeed or are locked out, and nothing is left."""
    campaign("writers", 1)
