"""Inputs that change during a run: the run fails, or its result has the old contents or the new, never a mix."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from tests.faults.ages import judge
from tests.faults.case import Case
from tests.faults.forms import FORMS
from tests.faults.nursery import Nursery
from tests.faults.shim import RUN, Fault, Shim
from tests.faults.stage import MODES, Stage
from tests.faults.tamper import KINDS

_TAMPER = Path(__file__).with_name("tamper.py")
_FEW = 20
"""Descriptors that are too few to keep all files of a series open."""
_MOST_CALLS = 60
"""Of one kind on the inputs, unless a run showed that there are fewer."""


def changes(root: Path, random: Random) -> Iterator[Case]:
    """Before every open and every read of an input, a file of the series, or its folder, is changed."""
    shim = Shim(root)
    nursery = Nursery(shim)
    stages: dict[str, Stage] = {}
    known: dict[tuple[object, ...], int] = {}
    while True:
        name, mode, kind = random.choice([*FORMS]), random.choice(MODES), random.choice([*KINDS])
        stage = _stage(stages, root, name, 9_000, nursery)
        call, options, descriptors = random.choice(("open", "pread")), _options(mode, random), _descriptors(random)
        stage.reset()
        victim = _victim(stage, mode, kind, random)
        number = random.randint(1, known.get((name, mode, call, descriptors, *options), _MOST_CALLS))
        command = shlex.join([sys.executable, "-ES", str(_TAMPER), kind, str(victim), str(_other(stage, victim))])
        fault = Fault(call=call, number=number, code=RUN, folder=stage.inputs, command=command)
        line = [*stage.command(mode), *options]
        ended = nursery.run(line, shim.environment(fault), descriptors=descriptors)
        if not shim.hit():
            known[name, mode, call, descriptors, *options] = max(1, number - 1)
            continue
        moment = f"before {call} {number}, of {Path(shim.hit()).name}"
        tried = f"{name}, {mode} {' '.join(options)}, {descriptors} descriptors: {kind} {victim.name} {moment}"
        # With few descriptors every file is opened once more for the last check, one after the other.
        surely = call != "open" or descriptors > _FEW or Path(shim.hit()) == victim
        yield Case(tried, judge(stage, mode, kind, ended, surely=surely))


def random_changes(root: Path, random: Random) -> Iterator[Case]:
    """At any time a file of a series, or its folder, is changed."""
    nursery = Nursery()
    stages: dict[str, Stage] = {}
    seconds: dict[tuple[object, ...], float] = {}
    while True:
        name, mode, kind = random.choice([*FORMS]), random.choice(MODES), random.choice([*KINDS])
        stage = _stage(stages, root, name, 400_000, nursery)
        options, descriptors = _options(mode, random), _descriptors(random)
        line = [*stage.command(mode), *options]
        if (settings := (name, mode, descriptors, *options)) not in seconds:
            stage.reset()
            started = time.monotonic()
            nursery.run(line, descriptors=descriptors)
            seconds[settings] = time.monotonic() - started
        stage.reset()
        victim, after = _victim(stage, mode, kind, random), random.uniform(0, 1.05) * seconds[settings]
        change = partial(_change, kind, victim, _other(stage, victim), after)
        ended = nursery.run(line, descriptors=descriptors, meanwhile=change)
        tried = (
            f"{name}, {mode} {' '.join(options)}, {descriptors} descriptors: {kind} {victim.name} after {after:.3f} s"
        )
        yield Case(tried, judge(stage, mode, kind, ended, surely=False))


def _change(kind: str, victim: Path, other: Path, after: float) -> None:
    time.sleep(after)
    KINDS[kind](victim, other)


def _stage(stages: dict[str, Stage], root: Path, name: str, elements: int, nursery: Nursery) -> Stage:
    """Return the stage of a form, set up on the first call."""
    if name not in stages:
        stages[name] = Stage(root / name, FORMS[name], elements, nursery)
    return stages[name]


def _victim(stage: Stage, mode: str, kind: str, random: Random) -> Path:
    if kind == "swap-folder":
        return random.choice([stage.inputs, *(path for path in stage.read(mode) if path.is_dir())])
    return random.choice(stage.victims(mode))


def _other(stage: Stage, victim: Path) -> Path:
    return stage.new / victim.relative_to(stage.inputs)


def _options(mode: str, random: Random) -> list[str]:
    """Return options that change how a run reads."""
    more = random.choice(([], ["--threads", "1", "--max-memory", "150KB"], ["--sha256"]))
    return more if mode in ("average", "resume", "continue") else []


def _descriptors(random: Random) -> int:
    """Return how many files a run may have open."""
    return random.choice((16, _FEW, 1024))
