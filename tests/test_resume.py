"""``--resume``: an interrupted run is continued, and writes the same bytes as an uninterrupted run."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import InputRefused, OutputError, UsageError
from ema_cli.events import Event, Info, Progress
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from ema_cli.report.model import Report
from ema_cli.write.journal import Journal
from tests.helpers.series import write_sparse

COUNT = 12


class Stopped(BaseException):
    """Used in place of a signal."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints of some tensors; one is copied, one is empty."""
    folder = tmp_path / "run"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        tensors = {f"w{n}": torch.randn(40, 50, generator=generator) for n in range(COUNT - 2)}
        save_file({**tensors, "n": torch.tensor(step), "e": torch.zeros(0)}, folder / f"c_{step}.safetensors")
    return folder


def average(run: Path, listener: Any = lambda _: None, **options: Any) -> Report:
    """Average with two decays at once, so that there are two partial outputs."""
    made = make_options(run, decay=[0.5, 0.9], output=run.parent / "e_{decay}.safetensors", **options)
    return run_average(made, listener).report


def interrupt(run: Path, **options: Any) -> None:
    """Run until everything is folded, and stop there."""

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "folding" and event.done_bytes == event.total_bytes:
            raise Stopped

    with pytest.raises(Stopped):
        average(run, stop, resume=True, **options)


def partial(run: Path) -> list[Path]:
    """Return the files that an interrupted run left."""
    return [run.parent / ".e_0.5.safetensors.resume.partial", run.parent / ".e_0.9.safetensors.resume.partial"]


def journal(run: Path) -> Path:
    """Return the journal of the first output."""
    return run.parent / ".e_0.5.safetensors.journal"


def results(run: Path) -> list[bytes]:
    """Return the outputs."""
    return [(run.parent / f"e_{decay}.safetensors").read_bytes() for decay in (0.5, 0.9)]


def facts(report: Report) -> dict[str, Any]:
    """Return the part of a report that does not depend on when it was made, or on whether it was resumed."""
    plain = dataclasses.asdict(report)
    for average in plain["averages"]:
        for file in [average["output"], *(average["output"].get("files") or [])]:
            file.pop("modified_ns", None)
    return {key: plain[key] for key in ("inputs", "averages", "geometry", "warnings")}


@pytest.fixture
def whole(run: Path) -> Iterator[tuple[list[bytes], Report]]:
    """The outputs of a run that is not interrupted."""
    report = average(run)
    expected = results(run)
    for path in run.parent.glob("e_*"):
        path.unlink()
    yield expected, report
    assert not list(run.parent.glob(".*")), "leftovers"


def said(events: list[Event]) -> list[str]:
    """Return the messages among the events."""
    return [event.message for event in events if isinstance(event, Info)]


@pytest.mark.parametrize("kept", [COUNT, COUNT // 2, 1, 0])
def test_what_is_complete_is_not_folded_again(kept: int, run: Path, whole: tuple[list[bytes], Report]) -> None:
    """Whatever part of the journal survives, the outputs and the findings are those of an uninterrupted run."""
    interrupt(run)
    lines = journal(run).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + COUNT
    journal(run).write_bytes(b"".join(lines[: 1 + kept]) + lines[-1][: -(len(lines[-1]) // 2)])
    for path in partial(run):  # parts that the journal does not confirm may have any bytes
        path.write_bytes(path.read_bytes() if kept == COUNT else spoil(path, lines[1 + kept :]))
    events: list[Event] = []
    report = average(run, events.append, resume=True)
    assert report.summary.resumed_tensors == kept
    assert results(run) == whole[0]
    assert facts(report) == facts(whole[1])
    assert (f"{kept} of {COUNT} tensors" in " ".join(said(events))) == bool(kept)
    if kept == COUNT:
        assert report.summary.bytes_read == 0


def spoil(path: Path, lines: list[bytes]) -> bytes:
    """Return a partial output that has wrong bytes in the tensors of some journal lines."""
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__")
    entries = sorted(header.values(), key=lambda entry: entry["data_offsets"])
    base = 8 + int.from_bytes(data[:8], "little")
    for line in lines:
        begin, end = entries[json.loads(line.partition(b" ")[2])["number"]]["data_offsets"]
        data[base + begin : base + end] = bytes(end - begin)
    return bytes(data)


def test_a_damaged_partial_output_is_folded_again_where_it_is_damaged(
    run: Path, whole: tuple[list[bytes], Report]
) -> None:
    """A tensor with other bytes than the journal states is computed again, and the result is right."""
    interrupt(run)
    path = partial(run)[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = average(run, resume=True)
    assert report.summary.resumed_tensors == COUNT - 1
    assert results(run) == whole[0]


def forged(document: dict[str, Any]) -> bytes:
    """Return a line of the journal with a checksum that is right."""
    raw = json.dumps(document).encode()
    return b"%08x %s\n" % (zlib.crc32(raw), raw)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 1000},
        {"number": -1},
        {"number": True},
        {"number": "0"},
        {"written_crc32": [1]},
        {"written_crc32": "ab"},
        {"read_crc32": [1]},
        {"statistics": []},
        {"statistics": [{"norm": math.inf, "drift": None, "cosine": None}] * 2},
        {"sample": "\u00e9"},
        {"sample": None},
    ],
)
def test_a_line_that_no_run_wrote_counts_for_nothing(
    run: Path, change: dict[str, Any], whole: tuple[list[bytes], Report]
) -> None:
    """A line with a right checksum that does not fit the plan is treated as truncated."""
    interrupt(run)
    lines = journal(run).read_bytes().splitlines(keepends=True)
    document = json.loads(lines[1].partition(b" ")[2])
    journal(run).write_bytes(lines[0] + forged({**document, **change}) + b"".join(lines[2:]))
    report = average(run, resume=True)
    assert report.summary.resumed_tensors < COUNT
    assert results(run) == whole[0]
    assert facts(report) == facts(whole[1])


@pytest.mark.parametrize("change", ["inputs", "options", "size"])
def test_a_journal_of_another_run_is_ignored_with_a_message(change: str, run: Path) -> None:
    """With changed inputs or options the run starts anew; the result is that of the new ones."""
    interrupt(run)
    options: dict[str, Any] = {}
    if change == "inputs":
        save_file({"w0": torch.ones(40, 50)}, run / "c_4.safetensors")
        options = {"include": ["w0"]}
    elif change == "options":
        options = {"dtype": "bfloat16"}
    else:
        partial(run)[0].write_bytes(b"short")
    events: list[Event] = []
    report = average(run, events.append, resume=True, **options)
    assert report.summary.resumed_tensors == (change == "size")  # the empty tensor is always complete
    assert (change == "size") != any("a run with other inputs or options" in message for message in said(events))
    resumed = results(run)
    average(run, force=True, **options)
    assert results(run) == resumed
    assert not list(run.parent.glob(".*"))


def test_a_run_without_resume_sweeps_what_is_left(run: Path, whole: tuple[list[bytes], Report]) -> None:
    """A run without ``--resume`` removes the partial outputs and the journal."""
    interrupt(run)
    assert all(path.exists() for path in [*partial(run), journal(run)])
    average(run)
    assert results(run) == whole[0]


def test_a_run_that_fails_keeps_nothing(run: Path) -> None:
    """An input that is refused would be refused again: there is nothing to continue."""
    save_file({"w0": torch.full((40, 50), float("nan"))}, run / "c_4.safetensors")
    with pytest.raises(InputRefused, match="holds nan"):
        average(run, resume=True, include=["w0"])
    assert not list(run.parent.glob(".*"))


def test_what_cannot_be_resumed_is_refused(run: Path) -> None:
    """A folder of shards is not kept."""
    with pytest.raises(UsageError, match="one partial file"):
        ema_cli.average(run, decay=0.5, output=f"{run.parent}/out/", resume=True)


@pytest.mark.slow
def test_killed_and_interrupted_runs_are_continued(tmp_path: Path) -> None:
    """However often a run is killed or terminated, with ``--resume`` it ends with the bytes of an undisturbed run."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in range(4):
        tensors = {f"w{n}": torch.full((500_000,), float(step + n)) for n in range(40)}
        save_file(tensors, folder / f"c_{step}.safetensors")
    command = [sys.executable, "-m", "ema_cli", "run", "--decay", "0.5", "--threads", "1", "-o"]
    subprocess.run([*command, "whole.safetensors"], cwd=tmp_path, check=True, capture_output=True)
    journal = tmp_path / ".e.safetensors.journal"
    chance = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [*command, "e.safetensors", "--resume"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(number)
        _, talk = process.communicate(timeout=30)
        assert process.returncode in (0, -number, 128 + number), talk
    done = subprocess.run([*command, "e.safetensors", "--resume"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_continue(tmp_path: Path) -> None:
    """A signal under ``--resume`` keeps the complete tensors, and the message says so."""
    for step in range(6):
        write_sparse(tmp_path / "run" / f"s_{step}.safetensors", **{f"w{n}": 4_000_000 for n in range(10)})
    process = subprocess.Popen(
        [sys.executable, "-m", "ema_cli", "run", "--decay", "0.5", "-o", "e.safetensors", "--resume", "--threads", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".*.journal")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, talk
    assert "finished tensors are kept, and the same command continues" in talk
    assert not (tmp_path / "e.safetensors").exists()
    assert (tmp_path / ".e.safetensors.resume.partial").exists()


def test_a_journal_that_cannot_be_looked_at_is_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only decides whether a message is shown; the journal is read anyway."""
    left = Journal(run.parent / "e.safetensors", "a run")
    left.path.touch()
    assert left.exists()
    original = os.stat

    def failing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if path == left.path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", failing)
    assert not left.exists()


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journals of other ranks are looked for: a failure is one of the output, and none once it has its name."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal(tmp_path / "ema.safetensors", "run")
    journal.begin([])
    monkeypatch.setattr("ema_cli.write.journal.journals_of_ranks", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        journal.read()
    journal.remove()
    assert not journal.exists()
