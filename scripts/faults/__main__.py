"""Run the parts in turn, each for its share of the time, and print what was tried and what held."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from faults.case import Case
from faults.parts import NEED_COMPILER, PARTS
from faults.shim import compiler


@dataclass(slots=True)
class Tally:
    """What came of one part."""

    name: str
    tried: int = 0
    failed: list[Case] = field(default_factory=list)
    ended: str = ""
    """Why there are not more: all cases were tried, the time was over, or they cannot be."""


def run_part(name: str, seed: int, seconds: float, most: int) -> Tally:
    """Try the cases of a part until the time, or the number of cases, is used up."""
    tally = Tally(name)
    if name in NEED_COMPILER and compiler() is None:
        tally.ended = "skipped: no C compiler"
        return tally
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for case in PARTS[name](Path(folder), Random(f"{seed}/{name}")):
            tally.tried += 1
            if case.problems:
                tally.failed.append(case)
                print(f"FAILED {name}: {case.tried}: {'; '.join(case.problems)}", flush=True)
            if tally.tried == most or time.monotonic() > deadline:
                tally.ended = "cases used up" if tally.tried == most else "time used up"
                return tally
    tally.ended = "all of them"
    return tally


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together")
    parser.add_argument("--cases", type=int, default=0, help="at most so many of each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts; repeatable")
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
        tallies.append(run_part(name, given.seed, left / (len(names) - done), given.cases))
    print("| part | what | tried | held | failed | ended | again |\n|---|---|---|---|---|---|---|")
    for tally in tallies:
        again = f"`scripts/campaign --only {tally.name} --seed {given.seed}`"
        counts = f"{tally.tried} | {tally.tried - len(tally.failed)} | {len(tally.failed)}"
        print(f"| {tally.name} | {PARTS[tally.name].__doc__} | {counts} | {tally.ended} | {again} |")
    sys.exit(any(tally.failed for tally in tallies))


if __name__ == "__main__":
    main()
