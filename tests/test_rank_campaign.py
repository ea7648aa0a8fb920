"""A slice of the campaign of faults: several ranks, of which one is killed, stops, fails or sees other files."""

from __future__ import annotations

import pytest

from tests.faults.slices import campaign


@pytest.mark.campaign
def test_a_killed_rank_ends_all_and_leaves_a_whole_output_or_none() -> None:
    """Nobody publishes half an output; the next run succeeds, and removes the leftovers."""
    campaign("rank-kills", 1)


@pytest.mark.campaign
def test_a_rank_whose_calls_fail_ends_all() -> None:
    """One of them states the reason; the old output or the new one is there, and nothing else."""
    campaign("rank-errors", 1)


@pytest.mark.campaign
def test_a_rank_that_sees_other_files_ends_all() -> None:
    """Or an input changes while it folds: no average of two series is published."""
    campaign("rank-inputs", 1)
