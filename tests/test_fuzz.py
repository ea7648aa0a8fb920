"""A slice of the fuzzing of every parser, and tests that the fuzzer finds what it must find."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from ema_cli.errors import InputRefused
from tests.hostile import fuzz
from tests.hostile.in_memory import MemorySource
from tests.hostile.mutate import JSON_WORDS, mutated
from tests.hostile.parser import Parser
from tests.hostile.parsers import parsers
from tests.hostile.report_parsers import report_parsers

ROOT = Path(__file__).parent.parent
NAMES = (
    *("pickle", "zip", "legacy", "safetensors", "foreign"),
    *("index", "beside", "dcp", "pieces", "ranks", "rank-files", "trainers", "partitions", "layouts"),
    *("report", "earlier", "journal", "config", "manifest"),
    *("verified", "verified-folder", "continued", "current", "pages", "batch-index"),
)


@pytest.mark.slow
def test_a_slice_finds_nothing(tmp_path: Path) -> None:
    """Hundreds of mutations for each parser: our errors only, no second, no memory, no file."""
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--count", "400", "--seed", "7", "--findings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^\| ([\w-]+) \| (\d+) \|.* \| 0 \|$", done.stdout, re.MULTILINE))
    assert rows == dict.fromkeys(NAMES, "400")
    assert not list(tmp_path.iterdir())


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    """A finding can be made again from its seed."""
    parser = parsers(tmp_path)["zip"]

    def made() -> list[bytes]:
        random = Random(5)
        return [parser.mutate(random.choice(parser.seeds), random) for _ in range(50)]

    assert made() == made()
    assert len(set(made())) > 40


def test_mutations_change_most_seeds() -> None:
    """A mutation is made from the seed, and seldom equals it."""
    random = Random(1)
    seed = b'{"weight_map": {"a": "b"}}'
    assert sum(mutated(seed, [seed], JSON_WORDS, random) != seed for _ in range(200)) > 150


def _crash(data: bytes) -> None:
    raise IndexError(data)


def _loop(_: bytes) -> None:
    while True:
        pass


def _talk(message: str, hint: str = "") -> Callable[[bytes], None]:
    def run(_: bytes) -> None:
        raise InputRefused(message, hint=hint)

    return run


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (_crash, "IndexError"),
        (_loop, "no end"),
        (_talk("\x1b[31mred"), "not printable"),
        (_talk("fine", hint="a \u202eb"), "not printable"),
        (_talk("carriage\rreturn"), "not printable"),
        (_talk("a\n ::error::b"), "a command"),
        (_talk("n" * 5000), "5,001 characters"),
        (_talk("two\nlines"), ""),
    ],
)
def test_the_fuzzer_finds_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[bytes], object], found: str
) -> None:
    """A parser with other errors, without an end, or with a message that a terminal would act on, is a finding."""
    monkeypatch.setattr(fuzz, "_HANG_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    try:
        parser = Parser(seeds=[b""], mutate=lambda seed, _: seed, run=run)
        problem = fuzz.execute(parser, b"x", fuzz.Tally(), fuzz.Watch())
        assert found in problem
        assert bool(found) == bool(problem)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _connect(_: bytes) -> None:
    with contextlib.suppress(OSError), socket.socket() as line:
        line.connect(("127.0.0.1", 9))


def _resolve(_: bytes) -> None:
    with contextlib.suppress(OSError):
        socket.getaddrinfo("localhost", 9)


def _in_a_thread(run: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def start(data: bytes) -> None:
        thread = threading.Thread(target=run, args=(data,))
        thread.start()
        thread.join()

    return start


def _start(_: bytes) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["true"], check=False)


def _write(name: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with contextlib.suppress(OSError):
            Path(name).write_bytes(data)

    return run


def _rename(_: bytes) -> None:
    with contextlib.suppress(OSError):
        Path("inside/kept").rename("outside")


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (_connect, "socket.connect"),
        (_in_a_thread(_connect), "socket.connect"),
        (_resolve, "socket.getaddrinfo"),
        (_start, "subprocess.Popen"),
        (_write("outside"), "open to write"),
        (_write("inside/../outside"), "open to write"),
        (_rename, "os.rename"),
        (_write("inside/kept"), ""),
    ],
)
def test_the_fuzzer_finds_what_is_forbidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[[bytes], object], found: str
) -> None:
    """A connection, a program, or a write outside of the folder is a finding, although the parser hides the error."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "kept").touch()
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGALRM)
    try:
        parser = Parser(seeds=[b""], mutate=lambda seed, _: seed, run=run)
        problem = fuzz.execute(parser, b"x", fuzz.Tally(), fuzz.Watch(tmp_path / "inside"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (found in problem, bool(problem)) == (True, bool(found))
    assert not (tmp_path / "outside").exists()


def test_documents_are_varied_and_most_are_reports(tmp_path: Path) -> None:
    """Changed by their schema, many reports are still valid; the others are refused in many places."""
    found = report_parsers(tmp_path)["pages"]
    random, outcomes = Random(3), Counter[str]()
    for _ in range(300):
        try:
            found.run(found.mutate(random.choice(found.seeds), random))
        except InputRefused as refused:
            outcomes[re.sub(r'[\d,]+|".*"', "", refused.message)] += 1
        else:
            outcomes["valid"] += 1
    assert outcomes["valid"] > 50
    assert len(outcomes) > 10


def test_a_read_outside_the_file_is_a_finding() -> None:
    """The source of the fuzzer does not accept a read beyond its end."""
    with pytest.raises(AssertionError, match="read of 2 bytes at 3 of 4"):
        MemorySource(b"abcd").read(3, 2)
