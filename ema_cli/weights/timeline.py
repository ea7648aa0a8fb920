"""The steps of the checkpoints of an average: everything that weights depend on, besides the method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from ema_cli.record import record


@record
class Timeline:
    """The steps t_1 < ... < t_N of N checkpoints, if they are known."""

    count: int
    """N."""
    steps: tuple[int, ...] | None = None
    """t_i, increasing; ``None`` if they are unknown, or the checkpoints are not in their order."""
    unit: str = "checkpoint"
    """Unit of the steps: ``step``, ``epoch``, ``token`` or ``sample``; ``checkpoint`` if there are none."""
    given_weights: tuple[float, ...] | None = None
    """Weights given by the user."""
    after_live: bool = False
    """The first checkpoint is a snapshot of a live EMA: what was before it is in it."""

    @classmethod
    def of(cls, steps: Sequence[int | None], unit: str, given_weights: Sequence[float] = ()) -> Self:
        """Return the timeline of checkpoints from their steps in fold order; ``None`` is an unknown step."""
        found = tuple(step for step in steps if step is not None)
        known = len(found) == len(steps) and all(a < b for a, b in pairwise(found))
        return cls(
            count=len(steps),
            steps=found if known else None,
            unit=unit if known else "checkpoint",
            given_weights=tuple(given_weights) or None,
        )

    @property
    def span(self) -> int:
        """T - t_1, in steps if they are known, else in checkpoints."""
        return self.steps[-1] - self.steps[0] if self.steps else self.count - 1

    @property
    def median_gap(self) -> float:
        """The median of t_i - t_(i-1); 1 if there are no steps."""
        return float(median(gaps(self.steps))) if self.steps and self.count > 1 else 1.0

    def ages(self) -> list[int]:
        """Return t_N - t_i of every checkpoint."""
        times = self.steps or range(self.count)
        return [times[-1] - time for time in times]

    def until(self, count: int) -> Timeline:
        """Return the timeline of the first ``count`` checkpoints."""
        return Timeline(count=count, steps=self.steps[:count] if self.steps else None, unit=self.unit)


def median(values: Sequence[float]) -> float:
    """Return the middle of the values, or the mean of the two in the middle; a module for it takes 3 ms to import."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def gaps(steps: Sequence[int]) -> list[int]:
    """Return ``t_i - t_(i-1)`` for i > 1."""
    return [later - earlier for earlier, later in pairwise(steps)]
