"""Inputs that are changed during a run: the run fails, or its result is of the old contents or the new, never a mix."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from faults.case import Case
from faults.forms import FORMS, Form, load_safetensors, random_state
from faults.shim import RUN, Fault, Shim
from faults.tamper import IN_PLACE, KINDS

_TAMPER = Path(__file__).with_name("tamper.py")
Arrays = dict[str, NDArray[np.float32]]
_STEPS = (1, 2, 3)
_MOST_CALLS = 60
"""Of one kind on the inputs, unless a run has shown that there are fewer."""
_REFUSED = (3, 4, 7)
"""How a run may end that met a change: refused, changed, missing."""
MODES = ("average", "resume", "continue", "diff", "verify")
_TOLD = "was replaced or removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Stage:
    """A series of one form with its old contents, and another to change it into.

    Args:
        root: folder of it all.
        form: how the checkpoints are stored.
        elements: of each tensor.

    """

    def __init__(self, root: Path, form: Form, elements: int) -> None:
        self._form, self._pristine = form, root / "pristine"
        self.run = root / "run"
        self.inputs, self.new, self.out = (self.run / name for name in ("in", "new", "out"))
        for seed, age in enumerate(("new", "old")):
            self._make(self._pristine / age, 10 * seed, elements)
        self.reset()
        self.old = {path: self.load(path) for path in (*self.checkpoints, self.earlier)}

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints of the series, in order."""
        return [self.inputs / self._form.name.format(step) for step in _STEPS]

    @property
    def earlier(self) -> Path:
        """An average of all but the last checkpoint."""
        return self.inputs / "earlier.safetensors"

    @property
    def made(self) -> Path:
        """An average of all."""
        return self.inputs / "made.safetensors"

    def _make(self, place: Path, seed: int, elements: int) -> None:
        """Write the series and its averages where they will be read, and keep them at ``place``."""
        self.inputs.mkdir(parents=True)
        for step, path in zip(_STEPS, self.checkpoints, strict=True):
            self._form.save(random_state(seed + step, elements), path)
        for paths, output in ((self.checkpoints[:-1], self.earlier), (self.checkpoints, self.made)):
            subprocess.run([*_average(paths), "-q", "-o", str(output)], check=True)
        shutil.copytree(self.inputs, place)
        shutil.rmtree(self.run)

    def reset(self) -> None:
        """Put everything back as it was."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self._pristine / "old", self.inputs)
        shutil.copytree(self._pristine / "new", self.new)
        self.out.mkdir()

    def load(self, path: Path) -> Arrays | None:
        """Read a checkpoint as it lies there, ``None`` if the official library cannot."""
        try:
            state = load_safetensors(path) if path == self.earlier else self._form.load(path)
            return {name: tensor.numpy() for name, tensor in state.items()}
        except Exception:  # noqa: BLE001 - whatever the library says of what was cut up
            return None

    def read(self, mode: str) -> list[Path]:
        """Return the checkpoints whose tensors a command reads, in the order of the fold."""
        return {"continue": [self.earlier, self.checkpoints[-1]], "diff": self.checkpoints[:2]}.get(
            mode, self.checkpoints
        )

    def victims(self, mode: str) -> list[Path]:
        """Return the files that a command depends on, and the folders that hold them."""
        tops = [*self.read(mode), *([self.made] if mode == "verify" else [])]
        return [file for top in tops for file in ([top] if top.is_file() else sorted(top.iterdir()))]

    def command(self, mode: str) -> list[str]:
        """Return the command line."""
        if mode == "diff":
            return [sys.executable, "-m", "ema_cli", "diff", "--json", *map(str, self.checkpoints[:2])]
        if mode == "verify":
            return [sys.executable, "-m", "ema_cli", "verify", str(self.made)]
        more = {"resume": ["--resume"], "continue": ["--continue-from", str(self.earlier)]}.get(mode, [])
        return [*_average(self.checkpoints), *more, "-o", str(self.out / "ema.safetensors")]


def _average(paths: list[Path]) -> list[str]:
    return [sys.executable, "-m", "ema_cli", *map(str, paths), "--decay", "0.5", "--order", "name"]


def changes(root: Path, random: Random) -> Iterator[Case]:
    """Before every open and every read of an input, a file of the series, or its folder, is changed."""
    shim = Shim(root)
    stages: dict[str, Stage] = {}
    known: dict[tuple[object, ...], int] = {}
    while True:
        name, mode, kind = random.choice([*FORMS]), random.choice(MODES), random.choice([*KINDS])
        stage = _stage(stages, root, name, 9_000)
        call, options = random.choice(("open", "pread")), _options(mode, random)
        stage.reset()
        victim = _victim(stage, mode, kind, random)
        number = random.randint(1, known.get((name, mode, call, *options), _MOST_CALLS))
        command = shlex.join([sys.executable, "-ES", str(_TAMPER), kind, str(victim), str(_other(stage, victim))])
        fault = Fault(call=call, number=number, code=RUN, folder=stage.inputs, command=command)
        ended = _run(stage, mode, options, shim.environment(fault))
        if not shim.hit():
            known[name, mode, call, *options] = max(1, number - 1)
            continue
        place = f"before {call} {number}, of {Path(shim.hit()).name}"
        tried = f"{name}, {mode} {' '.join(options)}: {kind} {victim.name} {place}"
        yield Case(tried, judge(stage, mode, kind, ended, surely=True))


def random_changes(root: Path, random: Random) -> Iterator[Case]:
    """At any time a file of a series, or its folder, is changed."""
    stages: dict[str, Stage] = {}
    while True:
        name, mode, kind = random.choice([*FORMS]), random.choice(MODES), random.choice([*KINDS])
        stage, options = _stage(stages, root, name, 400_000), _options(mode, random)
        stage.reset()
        victim = _victim(stage, mode, kind, random)
        started = time.monotonic()
        _run(stage, mode, options, {})
        after = random.uniform(0.1, 1.05) * (time.monotonic() - started)
        stage.reset()
        with _start(stage, mode, options, {}) as process:
            time.sleep(after)
            KINDS[kind](victim, _other(stage, victim))
            stdout, stderr = process.communicate()
        ended = Ended(status=process.returncode, stdout=stdout, stderr=stderr)
        tried = f"{name}, {mode} {' '.join(options)}: {kind} {victim.name} after {after:.3f} s"
        yield Case(tried, judge(stage, mode, kind, ended, surely=False))


def _stage(stages: dict[str, Stage], root: Path, name: str, elements: int) -> Stage:
    """Return the stage of a form, set up when it is needed first."""
    if name not in stages:
        stages[name] = Stage(root / name, FORMS[name], elements)
    return stages[name]


def _victim(stage: Stage, mode: str, kind: str, random: Random) -> Path:
    if kind == "swap-folder":
        return random.choice([stage.inputs, *(path for path in stage.read(mode) if path.is_dir())])
    return random.choice(stage.victims(mode))


def _other(stage: Stage, victim: Path) -> Path:
    return stage.new / victim.relative_to(stage.inputs)


def _options(mode: str, random: Random) -> list[str]:
    """Return options that change how a run reads, and in front of them how many files it may have open."""
    more = random.choice(([], ["--threads", "1", "--max-memory", "150KB"], ["--sha256"]))
    return [random.choice(("16", "20", "1024")), *(more if mode in ("average", "resume", "continue") else [])]


def _start(stage: Stage, mode: str, options: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    limited = ["bash", "-c", f'ulimit -n {options[0]}; exec "$@"', "_"]
    return subprocess.Popen(
        [*limited, *stage.command(mode), *options[1:]],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(stage: Stage, mode: str, options: list[str], environment: Mapping[str, str]) -> Ended:
    with _start(stage, mode, options, environment) as process:
        stdout, stderr = process.communicate()
    return Ended(status=process.returncode, stdout=stdout, stderr=stderr)


def judge(stage: Stage, mode: str, kind: str, ended: Ended, *, surely: bool) -> list[str]:
    """Say what is wrong after a change; ``surely`` if it came before the last look at the inputs."""
    succeeded = ended.status in ((0, 1) if mode == "diff" else (0,))
    allowed = (*_REFUSED, 10) if mode == "verify" else _REFUSED
    if not succeeded:
        left = sorted(path.name for path in stage.out.iterdir())
        return [
            *([f"ended with {ended.status}: {ended.stderr}"] if ended.status not in allowed else []),
            *([f"failed and left {left}"] if left else []),
        ]
    if mode == "verify":
        return ["verified, and the old contents are gone"] if surely and kind in IN_PLACE else []
    return _of_one_age(stage, mode, kind, ended, surely=surely)


def _of_one_age(stage: Stage, mode: str, kind: str, ended: Ended, *, surely: bool) -> list[str]:
    """Say what is wrong with a result: each checkpoint must have taken part as it was, or as it is now."""
    read = stage.read(mode)
    ages = [[stage.old[path], stage.load(path)] for path in read]
    fits = [
        choice
        for choice in product((1, 0), repeat=len(read))
        if _is_of(mode, ended, stage, [versions[age] for versions, age in zip(ages, choice, strict=True)])
    ]
    if not fits:
        return ["the result is of neither the old contents nor the new ones"]
    if any(all(choice) for choice in fits) or not surely:
        return []
    if kind in IN_PLACE:
        return ["the result is of the old contents, which were gone"] if kind != "grow" else ["growth was not noticed"]
    return [] if _TOLD in ended.stderr else [f"does not tell that old contents were read: {ended.stderr}"]


def _is_of(mode: str, ended: Ended, stage: Stage, contents: list[Arrays | None]) -> bool:
    """Whether a result is that of these contents, worked out by hand."""
    known = [arrays for arrays in contents if arrays is not None]
    if len(known) < len(contents) or len({frozenset(arrays) for arrays in known}) > 1:
        return False
    if mode == "diff":
        told = {one["name"]: one["max_abs"] for one in json.loads(ended.stdout)["tensors"]}
        a, b = known
        return told == {name: float(np.max(np.abs(a[name].astype(float) - b[name].astype(float)))) for name in b}
    result = {name: tensor.numpy() for name, tensor in load_safetensors(stage.out / "ema.safetensors").items()}
    return result.keys() == known[-1].keys() and all(
        np.array_equal(result[name], _folded([arrays[name] for arrays in known])) for name in result
    )


def _folded(series: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the average with a decay of one half: its weights are powers of two, and exact."""
    count = len(series)
    weights = [0.5 ** min(count - 1, count - number) for number in range(count)]
    total = np.zeros(series[0].shape)
    for weight, array in zip(weights, series, strict=True):
        total = total + weight * array.astype(np.float64)
    return total.astype(np.float32)
