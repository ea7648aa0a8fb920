"""The part with unusual streams, environments and working directories."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.case import Case, wrong
from tests.faults.nursery import Nursery
from tests.faults.runs import Ended, run
from tests.faults.scene import SHAPES, Scene, scenes_on_demand

_OUTPUT = 5
_CANNOT_PRINT = "standard output cannot be written"
_ENVIRONMENTS: tuple[dict[str, str | None], ...] = (
    {"HOME": None},
    {"HOME": "/nonexistent"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LANG": "xx_YY.unknown", "LC_ALL": None},
    {"TERM": "dumb"},
    {"TERM": None},
    {"COLUMNS": "1"},
    {"COLUMNS": "0"},
    {"COLUMNS": "-3"},
    {"COLUMNS": "wide"},
    {"COLUMNS": "100000"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "utf-16"},
    {"PYTHONWARNINGS": "error"},
    {"PYTHONDEVMODE": "1"},
    {"PYTHONHASHSEED": "1"},
    {"PYTHONSAFEPATH": "1"},
    {"TZ": "Not/A_Zone"},
    {"TZ": "Asia/Kathmandu"},
    {"TMPDIR": "/nonexistent"},
    {"PATH": None},
    {"FORCE_COLOR": "1"},
    {"NO_COLOR": "1", "FORCE_COLOR": "1"},
    {"XDG_CONFIG_HOME": "/nonexistent"},
)


@dataclass(frozen=True, slots=True)
class Surrounding:
    """Unusual surroundings of a run."""

    name: str
    how: dict[str, Any] = field(default_factory=dict)
    """For ``Popen``."""
    environment: dict[str, str | None] = field(default_factory=dict)
    is_full: bool = False
    """Whether standard output accepts no bytes, which is an error for a command that prints its result."""


def terminals(root: Path, random: Random) -> Iterator[Case]:
    """Streams are closed, full or broken, the environment is odd, the working directory is gone; for all commands."""
    scenes = scenes_on_demand(root, nursery=Nursery())
    averages: list[tuple[str, tuple[str, ...]]] = [
        (shape, more) for shape in SHAPES for more in ((), ("--json",), ("--verbose",))
    ]
    whats: list[str | tuple[str, tuple[str, ...]]] = [*averages, *_OTHERS]
    points = [(what, around) for what in whats for around in _SURROUNDINGS]
    random.shuffle(points)
    for what, surrounded in points:
        with surrounded() as around:
            if isinstance(what, str):
                scene = scenes("file")
                scene.reset()
                problems, status = _other(scene, _OTHERS[what](scene), around)
            else:
                problems, status = _average(scenes(what[0]), what[1], around)
            name = what if isinstance(what, str) else " ".join((what[0], *what[1]))
            yield Case(f"{name}, {around.name}: exit {status}", problems)


def _average(scene: Scene, more: tuple[str, ...], around: Surrounding) -> tuple[list[str], int]:
    """Average: the output must be the expected one; only ``--json`` may fail, on a full standard output."""
    scene.reset()
    ended = _run(scene.command(*more), around)
    full = around.is_full and "--json" in more and ended.status == _OUTPUT
    checks = {
        f"ended with {ended.status}: {ended.stderr}": ended.status and not full,
        "the output is not the expected one": scene.outputs() != scene.new,
        f"left {scene.leftovers()}": bool(scene.leftovers()),
        f"does not say why: {ended.stderr}": full and _CANNOT_PRINT not in ended.stderr,
    }
    return [*_tracebacks(ended), *wrong(checks)], ended.status


def _other(scene: Scene, command: list[str], around: Surrounding) -> tuple[list[str], int]:
    """Run a command that writes no files."""
    expected, ended = _expected(tuple(command)), _run(command, around)
    full = around.is_full and ended.status == _OUTPUT
    checks = {
        f"ended with {ended.status} instead of {expected}: {ended.stderr}": ended.status != expected and not full,
        "something was changed": not scene.untouched(),
        f"does not say why: {ended.stderr}": full and _CANNOT_PRINT not in ended.stderr,
    }
    return [*_tracebacks(ended), *wrong(checks)], ended.status


@cache
def _expected(command: tuple[str, ...]) -> int:
    """Return how a command ends in ordinary surroundings."""
    return run(list(command)).status


def _tracebacks(ended: Ended) -> list[str]:
    return wrong(
        {
            "exit 70": ended.status == 70,
            f"a traceback: {ended.stderr}": "Traceback" in ended.stderr or "Exception ignored" in ended.stderr,
        }
    )


def _run(command: list[str], around: Surrounding) -> Ended:
    kept = {name: value for name, value in os.environ.items() if name not in around.environment}
    changed = {name: value for name, value in around.environment.items() if value is not None}
    return run(command, env={**kept, "PYTHONPATH": str(_ROOT), **changed}, **around.how)


def _commands() -> dict[str, Callable[[Scene], list[str]]]:
    program = [sys.executable, "-m", "ema_cli"]

    def checkpoints(scene: Scene) -> list[str]:
        return sorted(map(str, scene.inputs.iterdir()))

    def output(scene: Scene) -> str:
        return str(scene.output)

    return {
        "--help": lambda _: [*program, "--help"],
        "no arguments": lambda _: program,
        "--version": lambda _: [*program, "--version"],
        "batch --help": lambda _: [*program, "batch", "--help"],
        "diff --help": lambda _: [*program, "diff", "--help"],
        "--show-completion": lambda _: [*program, "--show-completion", "bash"],
        "a misspelled option": lambda _: [*program, "--decya", "0.9"],
        "--show-config": lambda _: [*program, "--show-config", "--decay", "0.9"],
        "plan": lambda scene: [*program, "plan", *checkpoints(scene), "--decay", "0.9"],
        "plan --json": lambda scene: [*program, "plan", *checkpoints(scene), "--decay", "0.9", "--json"],
        "inspect": lambda scene: [*program, "inspect", *checkpoints(scene)],
        "inspect --json": lambda scene: [*program, "inspect", *checkpoints(scene), "--json"],
        "diff": lambda scene: [*program, "diff", *checkpoints(scene)[:2]],
        "diff --json": lambda scene: [*program, "diff", *checkpoints(scene)[:2], "--json"],
        "verify": lambda scene: [*program, "verify", output(scene)],
        "verify --json": lambda scene: [*program, "verify", output(scene), "--json"],
        "a missing file": lambda scene: [*program, str(scene.inputs / "none.pt"), "--decay", "0.9", "-o", "x"],
        "batch --dry-run": lambda scene: [*program, "batch", str(scene.inputs), "--decay", "0.9", "--dry-run"],
    }


def _without(*descriptors: int) -> Callable[[], contextlib.AbstractContextManager[Surrounding]]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    names = " and ".join(("stdin", "stdout", "stderr")[descriptor] for descriptor in descriptors)
    standard = {"stdin": 0, "stdout": 1, "stderr": 2}
    how = {name: None if number in descriptors else subprocess.PIPE for name, number in standard.items() if number}
    return lambda: contextlib.nullcontext(Surrounding(f"{names} closed", {**how, "preexec_fn": close}))


@contextlib.contextmanager
def _full(name: str) -> Iterator[Surrounding]:
    with open("/dev/full", "w") as device:  # noqa: PTH123
        yield Surrounding(f"{name} is full", {name: device}, is_full=name == "stdout")


@contextlib.contextmanager
def _broken(name: str) -> Iterator[Surrounding]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield Surrounding(f"{name} is a pipe that nobody reads", {name: writer})
    finally:
        os.close(writer)


@contextlib.contextmanager
def _gone() -> Iterator[Surrounding]:
    with tempfile.TemporaryDirectory() as folder:
        yield Surrounding("the working directory is gone", {"preexec_fn": lambda: _leave(Path(folder, "inner"))})


def _leave(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def _odd(environment: dict[str, str | None]) -> Callable[[], contextlib.AbstractContextManager[Surrounding]]:
    words = ", ".join(f"no {name}" if value is None else f"{name}={value}" for name, value in environment.items())
    return lambda: contextlib.nullcontext(Surrounding(words, environment=environment))


_ROOT = Path(__file__).parents[2]
_OTHERS = _commands()
_SURROUNDINGS: tuple[Callable[[], contextlib.AbstractContextManager[Surrounding]], ...] = (
    *(_without(*closed) for closed in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2))),
    *((lambda name=name: _full(name)) for name in ("stdout", "stderr")),
    *((lambda name=name: _broken(name)) for name in ("stdout", "stderr")),
    _gone,
    *(_odd(environment) for environment in _ENVIRONMENTS),
)
