"""Fuzz every parser of the program, and print what was executed and what was found.

``python -m tests.hostile.fuzz --seconds 60 --seed 1 --parser zip`` mutates valid and bad seeds of the format. It checks
that only errors of our own are raised, that no message contains what a terminal or a CI log would act on, that no parse
takes a second, that the memory stays below 512 MB, that no file is created, and that nothing is connected, started, or
written outside of one folder. The bytes that caused a finding are
stored in ``--findings``. The same seed and count make the same inputs.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from ema_cli.errors import EmaAvgError
from ema_cli.formats.inert_pickle.values import PickleError
from tests.helpers.canary import CANARY
from tests.hostile.parser import Parser
from tests.hostile.parsers import parsers

_MOST_SECONDS = 1.0
_MOST_MEGABYTES = 512
_HANG_SECONDS = 20
_BATCH = 500
_SHOWN = 100
_LONGEST_MESSAGE = 4_000
_MEMORY = Path("/dev/shm")
"""The folder of files for parsers that open them by name; it is in memory, so no parser waits for a disk."""


@dataclass(slots=True)
class Tally:
    """The results of one parser."""

    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


class HangError(Exception):
    """An execution did not end."""


def main() -> None:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60, help="in all; every parser gets the same time of the processor"
    )
    parser.add_argument("--count", type=int, help="executions of each parser, in place of --seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parser", action="append", help="only this one; may be repeated")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        watch = Watch(Path(folder))
        chosen = {name: made for name, made in parsers(Path(folder)).items() if name in (given.parser or [name])}
        tallies = {name: Tally() for name in chosen}
        _check_seeds(chosen, watch)
        gc.collect()
        gc.freeze()  # the seeds and the catalogue stay
        Path("/proc/self/clear_refs").write_text("5")  # the peak is reset: the catalogue has large files
        fuzz(chosen, tallies, given, Path(folder), watch)
    _print(tallies, given.seed)
    sys.exit(any(tally.findings for tally in tallies.values()))


class Watch:
    """Ends an execution that does not end: two ticks of a clock see the same one.

    Args:
        folder: where an execution may write files.

    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.executions = 0
        self.running = False
        self._seen = -1
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, _HANG_SECONDS, _HANG_SECONDS)

    def _tick(self, _: int, __: FrameType | None) -> None:
        if self.running and self._seen == self.executions:
            raise HangError
        self._seen = self.executions


def fuzz(
    chosen: dict[str, Parser], tallies: dict[str, Tally], given: argparse.Namespace, folder: Path, watch: Watch
) -> None:
    """Give a batch to the parser with the least processor time, until the time or the count is used up."""
    randoms = {name: Random(f"{given.seed}/{name}") for name in chosen}
    names = sorted(str(path) for path in folder.rglob("*"))
    left, end = set(chosen), time.monotonic() + given.seconds
    while left and (given.count or time.monotonic() < end):
        name = min(sorted(left), key=lambda name: tallies[name].seconds)
        tally = tallies[name]
        batch = min(_BATCH, given.count - tally.executions) if given.count else _BATCH
        for data in _batch(chosen[name], tally, randoms[name], batch, watch):
            given.findings.mkdir(parents=True, exist_ok=True)
            (given.findings / f"{name}-{len(tally.findings) - 1}.bin").write_bytes(data)
        gc.collect()
        if given.count and tally.executions >= given.count:
            left.discard(name)
        _check_memory(tallies)
        made = sorted(str(path) for path in folder.rglob("*"))
        if made != names:
            raise SystemExit(f"files came to be, or went: {sorted(set(made) ^ set(names))}")


def _batch(parser: Parser, tally: Tally, random: Random, count: int, watch: Watch) -> Iterator[bytes]:
    """Execute so many times; yield the inputs that are findings, and count them in the tally."""
    began = time.process_time()
    for _ in range(count):
        data = parser.mutate(random.choice(parser.seeds), random)
        problem = execute(parser, data, tally, watch)
        tally.executions += 1
        if problem:
            tally.findings.append(problem)
            yield data
    tally.seconds += time.process_time() - began


def execute(parser: Parser, data: bytes, tally: Tally, watch: Watch) -> str:
    """Parse once; return what went wrong."""
    began = time.perf_counter()
    with CANARY.armed(watch.folder) as events:
        problem = _parse(parser, data, tally, watch)
    problem = f"forbidden: {events[0][:_SHOWN]!a}" if events else problem
    if problem or time.perf_counter() - began < _MOST_SECONDS:
        return problem
    began = time.process_time()  # it may have waited for the processor, so measure again
    _parse(parser, data, Tally(), watch)
    took = time.process_time() - began
    return f"{took:.1f} s" if took > _MOST_SECONDS else ""


def _parse(parser: Parser, data: bytes, tally: Tally, watch: Watch) -> str:
    watch.executions += 1
    watch.running = True
    try:
        parser.run(data)
        tally.accepted += 1
    except (EmaAvgError, PickleError) as error:
        return _fault_of(f"{error}\n{getattr(error, 'hint', '')}")
    except HangError:
        return f"no end after {_HANG_SECONDS} s"
    except BaseException as error:  # noqa: BLE001 - what must not be
        return f"{type(error).__name__}: {str(error)[:_SHOWN]!a}"
    finally:
        watch.running = False
    return ""


def _fault_of(message: str) -> str:
    """Return what is wrong with a message: it may have no control character but the newline, and no direction mark."""
    if len(message) > _LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters: {message[:_SHOWN]!a}"
    if not message.replace("\n", "").isprintable():
        return f"a message that is not printable: {message[:_SHOWN]!a}"
    if any(line.lstrip().startswith(("::", "##")) for line in message.splitlines()):
        return f"a message with a command: {message[:_SHOWN]!a}"
    return ""


def _check_seeds(chosen: dict[str, Parser], watch: Watch) -> None:
    """Every parser has some good seeds: a fuzzer with only refused seeds finds nothing."""
    for name, parser in chosen.items():
        tally = Tally()
        for seed in parser.seeds:
            problem = execute(parser, seed, tally, watch)
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
