"""Parts with several ranks: one is killed, gets a signal or fails, and all must end without half an output."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.faults.calls import CALLS, HARMLESS
from tests.faults.case import Case, wrong
from tests.faults.crew import MOMENTS, Crew, crews_on_demand
from tests.faults.launch import AloneRanks, End, Orders, Ranks, TorchrunRanks
from tests.faults.series import write_series
from tests.faults.shim import EOF, KILL, RUN, SHORT, STOP, Shim

COUNTS = (2, 4)
SHAPES = ("file", "folder", "resumed file", "DCP folder")
LAUNCHERS = ("alone", "alone", "torchrun")
"""Ranks that torchrun starts take seconds more to start, and are the rarer ones."""
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_TAMPER = Path(__file__).with_name("tamper.py")
_CHANGES = ("truncate", "overwrite", "grow", "replace")
_PRIVATE = shutil.which("unshare") and os.geteuid() == 0
"""Whether a rank can get a view of the files of its own."""


def rank_kills(root: Path, random: Random) -> Iterator[Case]:
    """One rank of 2 or 4 is killed, or gets a signal, at a call: while planning, folding, finishing, publishing."""
    shim, crews = crews_on_demand(root)
    while True:
        crew, victim, launcher = _drawn(crews, random)
        moment, number = random.choice(MOMENTS), random.choice(_SIGNALS)
        if (point := crew.point(victim, moment, random)) is None:
            continue
        earlier = random.random() < 0.7
        crew.reset(earlier=earlier)
        killed = number == signal.SIGKILL
        fault = crew.fault(point, KILL) if killed else crew.fault(point, RUN, f"kill -{number.value} $PPID")
        end = crew.start(launcher, {victim: Orders(variables=shim.environment(fault))}).end()
        if (took := _since_hit(shim, end)) is not None:
            tried = f"{_named(crew, launcher, victim)}: {number.name} while {moment}, {point[0]} {point[1]}"
            problems = crew.judge(end, earlier=earlier)
            yield Case(tried, [*problems, *crew.aftermath(_next(random))], took)


def rank_signals(root: Path, random: Random) -> Iterator[Case]:
    """At any time one rank, all ranks, or torchrun gets a signal; or a rank does not even start."""
    _, crews = crews_on_demand(root)
    while True:
        crew, victim, launcher = _drawn(crews, random)
        whom = random.choice(("one", "one", "all", "torchrun", "start")) if launcher == "torchrun" else "one"
        number, earlier = random.choice((*_SIGNALS, signal.SIGHUP)), random.random() < 0.7
        after = random.uniform(0, 1.05) * crew.seconds
        crew.reset(earlier=earlier)
        if whom == "start":
            orders = {victim: Orders(prefix=["sh", "-c", f"sleep {after:.3f}; kill -{number.value} $$; exit 1"])}
            end = crew.start(launcher, orders).end()
            crew.watched()
            tried, sent = f"{_named(crew, launcher, victim)} ends before its start", None
        else:
            ranks = crew.start(launcher, {victim: crew.watched()})
            _wait_for(ranks, victim, after)
            sent = time.time()
            _send(number, _receivers(ranks, crew, whom, victim))
            end = ranks.end()
            tried = f"{_named(crew, launcher, victim)}: {number.name} to {whom} after {after:.3f} s"
        met = whom == "torchrun" or crew.has_begun()
        took = None if sent is None or not any(end.statuses) or end.asked else end.at - sent
        tried += "" if met else ", before it met the others"
        yield Case(tried, [*crew.judge(end, earlier=earlier, met=met), *crew.aftermath(_next(random))], took)


def _wait_for(ranks: Ranks, victim: int, after: float) -> None:
    """Wait until a rank has started, and some seconds more."""
    while ranks.pid(victim) is None:
        time.sleep(0.002)
    time.sleep(after)


def _receivers(ranks: Ranks, crew: Crew, whom: str, victim: int) -> list[int | None]:
    """Return the process ids that get a signal."""
    if whom == "torchrun" and isinstance(ranks, TorchrunRanks):
        return [ranks.launcher.pid]
    return [ranks.pid(rank) for rank in (range(crew.ranks) if whom == "all" else [victim])]


def _send(number: int, pids: list[int | None]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, number)


def rank_stops(root: Path, random: Random) -> Iterator[Case]:
    """One rank of 2 or 4 stops without a word; the others end, another run follows, and the rank wakes up again."""
    shim, crews = crews_on_demand(root)
    while True:
        crew, victim, _ = _drawn(crews, random)
        moment = random.choice(MOMENTS)
        if (point := crew.point(victim, moment, random)) is None:
            continue
        earlier = random.random() < 0.7
        crew.reset(earlier=earlier)
        ranks = crew.start("alone", {victim: Orders(variables=shim.environment(crew.fault(point, STOP)))})
        assert isinstance(ranks, AloneRanks)
        statuses, at = ranks.end_of_others(victim)
        if not shim.hit():
            ranks.end()
            continue
        took = at - shim.hit_at()
        problems = [*_after_stop(crew, statuses, earlier=earlier), *(crew.aftermath(None) if victim else [])]
        os.kill(ranks.pid(victim), signal.SIGCONT)
        end = ranks.end()
        problems += wrong({f"the rank that woke up hangs: {end.stderr}": end.hung or end.asked})
        problems += crew.aftermath(None) if victim == 0 else crew.scene.whole(earlier=earlier)
        tried = f"{_named(crew, 'alone', victim)} stops while {moment}, {point[0]} {point[1]}"
        yield Case(tried, problems, took if any(statuses) else None)


def _after_stop(crew: Crew, statuses: list[int | None], *, earlier: bool) -> list[str]:
    """Return the problems of the other ranks, which end with 0 only if the output is complete."""
    is_new = crew.scene.outputs() == crew.scene.new
    checks = {
        f"the others did not end: {statuses}": None in statuses,
        f"the others ended with {statuses}, and the output is not the new one": 0 in statuses and not is_new,
    }
    return [*wrong(checks), *crew.scene.whole(earlier=earlier)]


def rank_errors(root: Path, random: Random) -> Iterator[Case]:
    """A call of one rank of 2 or 4 fails: a full disk, an I/O error, a read that ends early."""
    shim, crews = crews_on_demand(root)
    while True:
        crew, victim, launcher = _drawn(crews, random)
        if (point := crew.point(victim, random.choice(MOMENTS), random)) is None or point[0] not in CALLS:
            continue
        code, earlier = random.choice(CALLS[point[0]]), random.random() < 0.7
        fault = crew.fault(point, code)
        crew.reset(earlier=earlier)
        end = crew.start(launcher, {victim: Orders(variables=shim.environment(fault))}).end()
        if (took := _since_hit(shim, end)) is not None:
            needless = point[0] in HARMLESS or code in (SHORT, errno.EINTR)
            problems = [*crew.judge(end, earlier=earlier), *_unexplained(end, code, needless=needless)]
            tried = f"{_named(crew, launcher, victim)}: {fault}, {Path(shim.hit()).parent.name}"
            yield Case(tried, [*problems, *crew.aftermath(_next(random))], took if any(end.statuses) else None)


def _unexplained(end: End, code: int, *, needless: bool) -> list[str]:
    """Return the problems of the message of a run in which a call failed."""
    lines = [line for line in end.stderr.splitlines() if "error:" in line]
    reason = "" if code in (EOF, SHORT) else os.strerror(code)
    return wrong(
        {
            f"a failure that harms nothing ended the run: {end.stderr}": needless and any(end.statuses),
            f"no rank states the reason {reason!r}: {end.stderr}": any(end.statuses)
            and not any(reason in line for line in lines),
        }
    )


def rank_inputs(root: Path, random: Random) -> Iterator[Case]:
    """An input changes while one rank folds; or one rank sees fewer files, or other ones, under the same names."""
    shim, crews = crews_on_demand(root)
    while True:
        crew, victim, launcher = _drawn(crews, random)
        earlier = random.random() < 0.7
        crew.reset(earlier=earlier)
        path = random.choice(sorted(crew.scene.inputs.iterdir()))
        other = crew.folder.with_name("other")
        views = _PRIVATE and random.random() < 0.5
        kind = random.choice(("fewer files", "other files") if views else _CHANGES)
        _write_other(crew, other, sizes=kind == "other files")
        if views:
            launcher = "torchrun"
            if kind == "fewer files":
                (other / path.name).unlink()
            end = crew.start(launcher, {victim: Orders(prefix=_view(other, crew.scene.inputs))}).end()
            problems = wrong({"ranks that see other files succeeded": 0 in end.statuses})
            problems += [] if "rank" in end.stderr else [f"no message on the ranks: {end.stderr}"]
            took = None
        else:
            if (point := crew.point(victim, "folding", random)) is None:
                continue
            command = shlex.join([sys.executable, "-ES", str(_TAMPER), kind, str(path), str(other / path.name)])
            fault = crew.fault(point, RUN, command)
            end = crew.start(launcher, {victim: Orders(variables=shim.environment(fault))}).end()
            if (took := _since_hit(shim, end)) is None:
                continue
            kind, problems = f"{kind} before {point[0]} {point[1]}", []
        problems += crew.judge(end, earlier=earlier)
        crew.restore_inputs()
        tried = f"{_named(crew, launcher, victim)}: {kind}, {path.name}"
        yield Case(tried, [*problems, *crew.aftermath(_next(random))], took if any(end.statuses) else None)


def _write_other(crew: Crew, other: Path, *, sizes: bool) -> None:
    """Write a folder with files of the same names: with tensors of other ``sizes``, or with other numbers."""
    shutil.rmtree(other, ignore_errors=True)
    if sizes:
        other.mkdir()
        write_series(other, 1000, tensors=3)
        return
    shutil.copytree(crew.scene.inputs, other)
    for path in other.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def _view(other: Path, folder: Path) -> list[str]:
    """Return the command prefix of a process that sees one folder in the place of another."""
    mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, str(other), str(folder)]


def _drawn(crews: Callable[[str, int], Crew], random: Random) -> tuple[Crew, int, str]:
    """Draw a crew, a rank of it, which is the first in half of the cases, and how the ranks are started."""
    crew = crews(random.choice(SHAPES), random.choice(COUNTS))
    victim = 0 if random.random() < 0.5 else random.randrange(1, crew.ranks)
    return crew, victim, random.choice(LAUNCHERS)


def _since_hit(shim: Shim, end: End) -> float | None:
    """Return how long after the fault all had ended, ``None`` if the rank did not make the call."""
    return end.at - shim.hit_at() if shim.hit() else None


def _named(crew: Crew, launcher: str, victim: int) -> str:
    return f"{crew.scene.shape}, rank {victim} of {crew.ranks}, {launcher}"


def _next(random: Random) -> str | None:
    """Return how the next run is started, mostly as one process."""
    return random.choice((None, None, None, "alone"))
