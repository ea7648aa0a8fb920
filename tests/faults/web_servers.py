"""Runs the program against every mode of the hostile web server, with the real time-outs, and prints the table.

    python -m tests.faults.web_servers [--jobs 4] [--only WORDS]

Each row has the exit code, the seconds, the peak memory of the process, and the message. A mode begins with the first
request, or after four right answers. The exit status is 1 if a row is not as expected. It takes about ten minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.helpers.hostile_modes import MODES, HostileMode
from tests.helpers.hostile_places import PLACES, HostilePlace
from tests.helpers.hostile_server import HostileServer
from tests.helpers.program import PROGRAM

_FILES = {
    f"c_{step}.safetensors": save({"w": np.random.default_rng(step).standard_normal(1_000_000).astype(np.float32)})
    for step in (1, 2)
}
_RIGHT_ANSWERS = 4
_MEASURE = """
import pathlib, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code % 256)
"""
"""Starts the program from a small process: the peak memory of a process includes that of the one that starts it."""
_MOST_SECONDS = 400
"""A run that takes longer is stopped, and is a failure."""
_MOST_BYTES = 400 << 20
"""A run that takes more memory is a failure."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A run and how it ended."""

    name: str
    code: int
    expected: int
    seconds: float
    peak_bytes: int
    stderr: str
    words: str
    left: list[str] = field(default_factory=list)
    """Files that the run left."""

    @property
    def message(self) -> str:
        """The first line of the message, without the address."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("error: 2 inputs")]
        text = re.sub(r'(error: )?"https?://127[^"]*c_[12][^"]*" ?', "", lines[0] if lines else "")
        return text.split("; the same")[0].strip()

    @property
    def problems(self) -> list[str]:
        """What is not as expected."""
        found = []
        if self.code != self.expected:
            found.append(f"exit code {self.code} instead of {self.expected}")
        if not re.search(self.words, self.stderr):
            found.append(f"the message does not match {self.words!r}")
        if "Traceback" in self.stderr or len(self.stderr.splitlines()) > 5:
            found.append("more than a message on standard error")
        if self.peak_bytes > _MOST_BYTES or self.seconds > _MOST_SECONDS:
            found.append("too much memory or time")
        if self.code and self.left:
            found.append(f"left {self.left}")
        return found


def _run(name: str, address: str, environment: Mapping[str, str], expected: tuple[int, str]) -> _Row:
    """Average the files of a server."""
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as peak:
        urls = [f"{address}/{file}" for file in _FILES]
        command = [*PROGRAM, *urls, "--decay", "0.5", "-o", f"{folder}/ema.safetensors", "-q"]
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, peak.name, "timeout", "-k", "5", str(_MOST_SECONDS), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            check=False,
        )
        return _Row(
            name=name,
            code=done.returncode,
            expected=expected[0],
            seconds=time.monotonic() - begin,
            peak_bytes=int(Path(peak.name).read_text()) << 10,
            stderr=done.stdout.decode(errors="backslashreplace"),
            words=expected[1],
            left=sorted(path.name for path in Path(folder).iterdir()),
        )


def _of_mode(mode: HostileMode, right_answers: int) -> _Row:
    with HostileServer(mode=mode.serve, files=_FILES, right_answers=right_answers) as server:
        name = f"{mode.name}, later" if right_answers else mode.name
        return _run(name, server.address, {}, mode.expected(right_answers))


def _of_place(place: HostilePlace) -> _Row:
    with place.open(_FILES) as reached:
        return _run(place.name, reached.address, reached.environment, (place.code, place.words))


def _work(only: str) -> Iterator[tuple[bool, Callable[[], _Row]]]:
    """Yield every run, and whether it waits for a time-out."""
    for mode in MODES.values():
        for right_answers in (0, _RIGHT_ANSWERS):
            if re.search(only, mode.name):
                yield mode.is_slow, lambda mode=mode, after=right_answers: _of_mode(mode, after)  # type: ignore[misc]
    for place in PLACES.values():
        if re.search(only, place.name):
            yield place.is_slow, lambda place=place: _of_place(place)  # type: ignore[misc]


def _table(rows: Iterable[_Row]) -> Iterator[str]:
    yield "| the server | exit | seconds | memory | message |"
    yield "|---|---:|---:|---:|---|"
    for row in rows:
        message = row.message.replace("|", "\\|")
        yield f"| {row.name} | {row.code} | {row.seconds:.1f} | {row.peak_bytes / 1e6:.0f} MB | {message} |"


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="runs at the same time; those that only wait: six times")
    parser.add_argument("--only", default="", help="a regular expression: modes with such a name")
    given = parser.parse_args()
    work = list(_work(given.only))
    with ThreadPoolExecutor(6 * given.jobs) as waiting, ThreadPoolExecutor(given.jobs) as busy:
        rows = [(waiting if slow else busy).submit(one) for slow, one in work]
        done = [row.result() for row in rows]
    print("\n".join(_table(done)))
    wrong = [row for row in done if row.problems]
    for row in wrong:
        print(f"\nWRONG: {row.name}: {'; '.join(row.problems)}\n{row.stderr[:2000]}")
    print(f"\n{len(done) - len(wrong)} of {len(done)} as expected")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
