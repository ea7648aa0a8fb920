"""A series of checkpoints, an output of an earlier run, and what may stand there after the next one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "file": {"ema.safetensors": ()},
    "folder": {"ema": ("--max-shard-size", "30KB")},
    "two averages": {"ema_{decay}.safetensors": ("--decay", "0.7")},
}
"""Kinds of output: the name, and the options that make it."""
Contents = dict[str, str]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    status: int
    stderr: str


class Scene:
    """Inputs, and a place for outputs that is set up anew for every run.

    Args:
        root: folder of it all.
        shape: a key of ``SHAPES``.
        elements: in the largest tensor.

    """

    def __init__(self, root: Path, shape: str = "file", *, elements: int = 20_000) -> None:
        ((name, self._options),) = SHAPES[shape].items()
        self.shape = shape
        self.inputs, self.out, self._earlier = root / "inputs", root / "out", root / "earlier"
        self._output = self.out / name
        for folder in (self.inputs, self.out):
            folder.mkdir(parents=True)
        write_series(self.inputs, elements)
        self.digests = self.read(self.inputs)
        self.old = self._reference("--init", "debias")
        self.out.rename(self._earlier)
        self.out.mkdir()
        self.new = self._reference()

    def _reference(self, *more: str) -> Contents:
        ended = self.run(more=more)
        if ended.status:
            raise SystemExit(f"the program does not even run without faults: {ended.stderr}")
        return self.outputs()

    def command(self, more: tuple[str, ...] = ()) -> list[str]:
        """Return the command line of a run that replaces what is there."""
        paths = sorted(map(str, self.inputs.iterdir()))
        options = [*self._options, "--decay", "0.9", "--force", "-q", "-o", str(self._output)]
        return [sys.executable, "-m", "ema_cli", *paths, *options, *more]

    def start(self) -> subprocess.Popen[str]:
        """Start a run that replaces what is there."""
        return subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, environment: Mapping[str, str] | None = None, more: tuple[str, ...] = ()) -> Ended:
        """Run to the end."""
        done = subprocess.run(
            self.command(more),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stderr)

    def reset(self, *, earlier: bool = True) -> None:
        """Put the outputs of the earlier run there, or nothing."""
        shutil.rmtree(self.out)
        if earlier:
            shutil.copytree(self._earlier, self.out)
        else:
            self.out.mkdir()

    @staticmethod
    def read(folder: Path) -> Contents:
        """Return the digest of every file under a folder."""
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def outputs(self) -> Contents:
        """Return the digests of the files that hold weights, of which every byte is known beforehand."""
        return {name: digest for name, digest in self.read(self.out).items() if _is_output(name)}

    def leftovers(self) -> list[str]:
        """Return the hidden names beside the outputs."""
        return sorted(path.name for path in self.out.iterdir() if path.name.startswith("."))

    def whole(self, *, earlier: bool) -> list[str]:
        """Return what is wrong with the outputs: each must be the old one, or the new one, or absent if none was."""
        found = self.outputs()
        kinds = [self.old if earlier else {}, self.new]
        tops = {Path(name).parts[0] for contents in (found, *kinds) for name in contents}
        broken = [top for top in sorted(tops) if all(_under(found, top) != _under(kind, top) for kind in kinds)]
        return [f"{top} is neither the old one nor the new one" for top in broken]

    def aftermath(self) -> list[str]:
        """Return what is wrong with the inputs, and with a run without faults that comes now."""
        ended = self.run()
        checks = {
            "an input was changed": self.read(self.inputs) != self.digests,
            f"the next run ended with {ended.status}: {ended.stderr}": ended.status != 0,
            "the next run did not write the right output": self.outputs() != self.new,
            f"the next run left {self.leftovers()}": bool(self.leftovers()),
        }
        return [words for words, wrong in checks.items() if wrong]


def write_series(folder: Path, elements: int) -> None:
    """Write three checkpoints with random weights."""
    for number in (1, 2, 3):
        random = np.random.default_rng(number)
        tensors = {
            "weight": random.standard_normal(elements, dtype=np.float32),
            "bias": random.standard_normal(1000, dtype=np.float32),
            "count": np.array(number),
        }
        save_file(tensors, folder / f"ckpt_{number}.safetensors")


def _is_output(name: str) -> bool:
    return not name.startswith(".") and not name.endswith("report.json")


def _under(contents: Contents, top: str) -> Contents:
    return {name: digest for name, digest in contents.items() if Path(name).parts[0] == top}
