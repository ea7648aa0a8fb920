"""Run the parts in turn, each for its share of the time, and print how many cases were tried and passed."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tests.faults.campaign import run_part
from tests.faults.parts import PARTS


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together")
    parser.add_argument("--cases", type=int, default=0, help="at most this many of each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts; repeatable")
    parser.add_argument("--verbose", action="store_true", help="print each case")
    return parser.parse_args()


def main() -> None:
    """Run the campaign; exit 1 if a case failed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also when it runs in the background
    given = arguments()
    names = given.only or list(PARTS)
    begun = time.monotonic()
    tallies = []
    for done, name in enumerate(names):
        left = 60 * given.minutes - (time.monotonic() - begun)
        tallies.append(run_part(name, given.seed, left / (len(names) - done), given.cases, verbose=given.verbose))
    print("| part | what was tried | tried | passed | failed | ended | command |\n|---|---|---|---|---|---|---|")
    for tally in tallies:
        command = f"`scripts/campaign --only {tally.name} --seed {given.seed}`"
        counts = f"{tally.tried} | {tally.tried - len(tally.failed)} | {len(tally.failed)}"
        print(f"| {tally.name} | {PARTS[tally.name].__doc__} | {counts} | {tally.ended}{tally.pace()} | {command} |")
    sys.exit(any(tally.failed for tally in tallies))


if __name__ == "__main__":
    main()
