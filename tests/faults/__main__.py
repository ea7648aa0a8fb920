"""Run the parts in turn, each for its share of the time, and print what was tried and what held."""

from __future__ import annotations

import argparse
import signal
import sys
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

PROMISED_SECONDS = 2
"""A run that is told to end does so within this time."""


@dataclass(slots=True)
class Tally:
    """What came of one part."""

    name: str
    tried: int = 0
    failed: list[Case] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """What runs that were told to end took for it."""
    ended: str = ""
    """Why there are not more: all cases were tried, the time was over, or they cannot be."""

    def add(self, case: Case) -> None:
        """Count a case, and tell of it if it failed."""
        self.tried += 1
        if case.seconds is not None:
            self.seconds.append(case.seconds)
        if case.problems:
            self.failed.append(case)
            print(f"FAILED {self.name}: {case.tried}: {'; '.join(case.problems)}", flush=True)

    def pace(self) -> str:
        """Return how fast runs ended, where that was measured."""
        if not self.seconds:
            return ""
        share = sum(took <= PROMISED_SECONDS for took in self.seconds) / len(self.seconds)
        middle, most = median(self.seconds), max(self.seconds)
        return f"; ended after {middle:.2f} s (median), {most:.2f} s at most, {share:.1%} within {PROMISED_SECONDS} s"


def run_part(name: str, seed: int, seconds: float, most: int, *, verbose: bool = False) -> Tally:
    """Try the cases of a part until the time, or the number of cases, is used up."""
    tally = Tally(name)
    deadline = time.monotonic() + seconds
    tally.ended = "all of them"
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder, closing(_cases(name, folder, seed)) as cases:
            for case in cases:
                tally.add(case)
                if verbose:
                    print(f"{name}: {case.tried}", flush=True)
                if tally.tried == most or time.monotonic() > deadline:
                    tally.ended = "cases used up" if tally.tried == most else "time used up"
                    break
    except CannotBeTried as lacking:
        tally.ended = f"skipped: {lacking}"
    return tally


def _cases(name: str, folder: str, seed: int) -> Generator[Case]:
    yield from PARTS[name](Path(folder), Random(f"{seed}/{name}"))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together")
    parser.add_argument("--cases", type=int, default=0, help="at most so many of each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts; repeatable")
    parser.add_argument("--verbose", action="store_true", help="print each case")
    return parser.parse_args()


def main() -> None:
    """Run the campaign; exit 1 if anything did not hold."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # its processes are interrupted, also in the background
    given = arguments()
    names = given.only or list(PARTS)
    begun = time.monotonic()
    tallies = []
    for done, name in enumerate(names):
        left = 60 * given.minutes - (time.monotonic() - begun)
        tallies.append(run_part(name, given.seed, left / (len(names) - done), given.cases, verbose=given.verbose))
    print("| part | what | tried | held | failed | ended | again |\n|---|---|---|---|---|---|---|")
    for tally in tallies:
        again = f"`scripts/campaign --only {tally.name} --seed {given.seed}`"
        counts = f"{tally.tried} | {tally.tried - len(tally.failed)} | {len(tally.failed)}"
        print(f"| {tally.name} | {PARTS[tally.name].__doc__} | {counts} | {tally.ended}{tally.pace()} | {again} |")
    sys.exit(any(tally.failed for tally in tallies))


if __name__ == "__main__":
    main()
