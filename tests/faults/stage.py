"""A series of any form, with its contents before and after; its files are changed during a read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.faults.forms import Form, load_safetensors, random_state
from tests.faults.nursery import Nursery
from tests.faults.runs import PROGRAM

Arrays = dict[str, NDArray[np.float32]]
MODES = ("average", "resume", "continue", "diff", "verify")
_STEPS = (1, 2, 3)


class Stage:
    """A series of one form with its old contents, and another to change it into.

    Args:
        root: folder of everything.
        form: how the checkpoints are stored.
        elements: of each tensor.
        nursery: forks the processes that average the old contents.

    """

    def __init__(self, root: Path, form: Form, elements: int, nursery: Nursery) -> None:
        self._nursery = nursery
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
        """Write the series and its averages where they will be read, and copy them to ``place``."""
        self.inputs.mkdir(parents=True)
        for step, path in zip(_STEPS, self.checkpoints, strict=True):
            self._form.save(random_state(seed + step, elements), path)
        for paths, output in ((self.checkpoints[:-1], self.earlier), (self.checkpoints, self.made)):
            ended = self._nursery.run([*_average(paths), "-q", "-o", str(output)])
            if ended.status:
                raise SystemExit(f"the program does not even run without faults: {ended.stderr}")
        shutil.copytree(self.inputs, place)
        shutil.rmtree(self.run)

    def reset(self) -> None:
        """Restore everything."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self._pristine / "old", self.inputs)
        shutil.copytree(self._pristine / "new", self.new)
        self.out.mkdir()

    def load(self, path: Path) -> Arrays | None:
        """Read a checkpoint in its current state, ``None`` if the official library cannot."""
        try:
            state = load_safetensors(path) if path == self.earlier else self._form.load(path)
            return {name: tensor.numpy() for name, tensor in state.items()}
        except Exception:  # noqa: BLE001 - any error that the library raises for a damaged file
            return None

    def read(self, mode: str) -> list[Path]:
        """Return the checkpoints from which a command reads tensors, in the order of the fold."""
        return {"continue": [self.earlier, self.checkpoints[-1]], "diff": self.checkpoints[:2]}.get(
            mode, self.checkpoints
        )

    def victims(self, mode: str) -> list[Path]:
        """Return the files that a command depends on, and their folders."""
        tops = [*self.read(mode), *([self.made] if mode == "verify" else [])]
        return [file for top in tops for file in ([top] if top.is_file() else sorted(top.iterdir()))]

    def command(self, mode: str) -> list[str]:
        """Return the command line."""
        if mode == "diff":
            return [*PROGRAM, "diff", "--json", *map(str, self.checkpoints[:2])]
        if mode == "verify":
            return [*PROGRAM, "verify", str(self.made)]
        more = {"resume": ["--resume"], "continue": ["--continue-from", str(self.earlier)]}.get(mode, [])
        return [*_average(self.checkpoints), *more, "-o", str(self.out / "ema.safetensors")]


def _average(paths: list[Path]) -> list[str]:
    return [*PROGRAM, *map(str, paths), "--decay", "0.5", "--order", "name"]
