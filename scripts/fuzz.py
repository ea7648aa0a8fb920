"""Fuzz every parser of the program, and print what was executed and what was found.

``python scripts/fuzz.py --seconds 60 --seed 1 --parser zip`` mutates valid and bad seeds of the format, and holds that
nothing but our own errors is raised, nothing takes a second, the memory stays below 512 MB, and no file comes to be.
What is found lies in ``--findings`` as the bytes that did it. The same seed and count make the same inputs.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from hostile.parsers import Parser, parsers

from ema_cli.errors import EmaAvgError
from ema_cli.formats.inert_values import PickleError

_MOST_SECONDS = 1.0
_MOST_MEGABYTES = 512
_HANG_SECONDS = 20
_BATCH = 200
_SHOWN = 100


@dataclass(slots=True)
class Tally:
    """What came of one parser."""

    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


class HangError(Exception):
    """An execution did not end."""


def main() -> None:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all, shared between the parsers")
    parser.add_argument("--count", type=int, help="executions of each parser, in place of --seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parser", action="append", help="only this one; may be repeated")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        chosen = {name: made for name, made in parsers(Path(folder)).items() if name in (given.parser or [name])}
        tallies = {name: Tally() for name in chosen}
        _check_seeds(chosen)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: the catalogue has large files
        fuzz(chosen, tallies, given, Path(folder))
    _print(tallies, given.seed)
    sys.exit(any(tally.findings for tally in tallies.values()))


def fuzz(chosen: dict[str, Parser], tallies: dict[str, Tally], given: argparse.Namespace, folder: Path) -> None:
    """Give each parser a batch in turn, until the time or the count is used up."""
    randoms = {name: Random(f"{given.seed}/{name}") for name in chosen}
    names = sorted(str(path) for path in folder.rglob("*"))
    share = given.seconds / max(1, len(chosen))
    left = set(chosen)
    while left:
        for name in sorted(left):
            tally = tallies[name]
            _batch(name, chosen[name], tally, randoms[name], given.findings)
            gc.collect()
            if (given.count is None and tally.seconds >= share) or (given.count and tally.executions >= given.count):
                left.discard(name)
        _check_memory(tallies)
        made = sorted(str(path) for path in folder.rglob("*") if path.name not in _WRITTEN)
        if made != [name for name in names if Path(name).name not in _WRITTEN]:
            raise SystemExit(f"files came to be: {sorted(set(made) - set(names))}")


_WRITTEN = {"model.safetensors.index.json", "trainer_state.json", "ema-avg.toml"}
"""What the fuzzer itself puts there."""


def _batch(name: str, parser: Parser, tally: Tally, random: Random, findings: Path) -> None:
    began = time.monotonic()
    for _ in range(_BATCH):
        data = parser.mutate(random.choice(parser.seeds), random)
        problem = _execute(parser, data, tally)
        tally.executions += 1
        if problem:
            findings.mkdir(parents=True, exist_ok=True)
            (findings / f"{name}-{len(tally.findings)}.bin").write_bytes(data)
            tally.findings.append(problem)
    tally.seconds += time.monotonic() - began


def _execute(parser: Parser, data: bytes, tally: Tally) -> str:
    """Parse once; return what is wrong with how that went."""
    began = time.process_time()
    try:
        with _alarm():
            parser.run(data)
        tally.accepted += 1
    except (EmaAvgError, PickleError) as error:
        if not str(error).isascii() and not str(error).replace("\n", "").isprintable():
            return f"a message that is not printable: {str(error)[:_SHOWN]!a}"
    except HangError:
        return f"no end after {_HANG_SECONDS} s"
    except BaseException as error:  # noqa: BLE001 - what must not be
        return f"{type(error).__name__}: {str(error)[:_SHOWN]!a}"
    took = time.process_time() - began
    return f"{took:.1f} s" if took > _MOST_SECONDS else ""


@contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, _HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(_: int, __: FrameType | None) -> None:
    raise HangError


def _check_seeds(chosen: dict[str, Parser]) -> None:
    """Of the seeds of every parser some are good: a fuzzer of what is always refused finds nothing."""
    for name, parser in chosen.items():
        tally = Tally()
        for seed in parser.seeds:
            problem = _execute(parser, seed, tally)
            if problem:
                raise SystemExit(f"a seed of {name}: {problem}")
        if not tally.accepted:
            raise SystemExit(f"no seed of {name} is accepted")


def _check_memory(tallies: dict[str, Tally]) -> None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM") and int(line.split()[1]) > _MOST_MEGABYTES * 1024:
            raise SystemExit(f"memory: {line}; executions so far: {tallies}")


def _print(tallies: dict[str, Tally], seed: int) -> None:
    print(f"seed {seed}\n\n| Parser | Executions | Accepted | Executions/s | Findings |\n|---|---|---|---|---|")
    for name, tally in tallies.items():
        rate = tally.executions / max(tally.seconds, 1e-9)
        print(f"| {name} | {tally.executions:,} | {tally.accepted:,} | {rate:,.0f} | {len(tally.findings)} |")
    for name, tally in tallies.items():
        for number, problem in enumerate(tally.findings[:20]):
            print(f"{name}-{number}.bin: {problem}")


if __name__ == "__main__":
    main()
