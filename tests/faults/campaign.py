"""Try the cases of the parts of the campaign, and count how many passed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

from tests.faults.case import CannotBeTried, Case
from tests.faults.parts import PARTS

_PROMISED_SECONDS = {"signals": 2}
"""A run that gets a signal ends within this time; of several ranks, all end within ``_RANKS_SECONDS`` of a failure."""
_RANKS_SECONDS = 10


@dataclass(slots=True)
class Tally:
    """The results of one part."""

    name: str
    tried: int = 0
    failed: list[Case] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long runs took to end after a signal, or ranks after the failure of one."""
    ended: str = ""
    """Why there are no more cases: all were tried, the time is used up, or the part cannot be tried."""

    def add(self, case: Case) -> None:
        """Count a case, and print it if it failed."""
        self.tried += 1
        if case.seconds is not None:
            self.seconds.append(case.seconds)
        if case.problems:
            self.failed.append(case)
            print(f"FAILED {self.name}: {case.tried}: {'; '.join(case.problems)}", flush=True)

    def pace(self) -> str:
        """Return how fast runs ended after a signal, if that was measured."""
        if not self.seconds:
            return ""
        promised = _PROMISED_SECONDS.get(self.name, _RANKS_SECONDS)
        share = sum(took <= promised for took in self.seconds) / len(self.seconds)
        middle, most = median(self.seconds), max(self.seconds)
        return f"; ended after {middle:.2f} s (median), {most:.2f} s at most, {share:.1%} within {promised} s"


def run_part(name: str, seed: int, seconds: float, most: int, *, verbose: bool = False) -> Tally:
    """Try the cases of a part until the time, or the number of cases, is used up."""
    tally = Tally(name)
    deadline = time.monotonic() + seconds
    tally.ended = "all cases tried"
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder, closing(_cases(name, folder, seed)) as cases:
            for case in cases:
                tally.add(case)
                if verbose:
                    took = "" if case.seconds is None else f" ({case.seconds:.2f} s)"
                    print(f"{name}: {case.tried}{took}", flush=True)
                if tally.tried == most or time.monotonic() > deadline:
                    tally.ended = "case limit" if tally.tried == most else "time limit"
                    break
    except CannotBeTried as lacking:
        tally.ended = f"skipped: {lacking}"
    return tally


def _cases(name: str, folder: str, seed: int) -> Generator[Case]:
    yield from PARTS[name](Path(folder), Random(f"{seed}/{name}"))
