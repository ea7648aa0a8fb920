"""A series of checkpoints, the output of an earlier run, and the outputs that the next run may leave."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tests.faults.nursery import Nursery
from tests.faults.runs import PROGRAM, Ended, run
from tests.faults.series import write_series

SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "file": {"ema.safetensors": ()},
    "file and page": {"ema.safetensors": ("--report", "{out}/all.html")},
    "folder": {"ema": ("--max-shard-size", "30KB")},
    "folder with a foreign file": {"ema": ("--max-shard-size", "30KB")},
    "two averages": {"ema_{decay}.safetensors": ("--decay", "0.7")},
    "resumed file": {"ema.safetensors": ("--resume",)},
    "DCP folder": {"ema": ("--format", "dcp")},
    "two resumed averages": {"ema_{decay}.safetensors": ("--decay", "0.7", "--resume")},
}
"""Kinds of output: the name, and the options that make it."""
FOREIGN = "README.md"
"""A file of the user in an output folder, which every run keeps."""
Contents = dict[str, str]
T = TypeVar("T")


class Scene:
    """Inputs, and a folder for outputs that is set up again for every run.

    Args:
        root: folder of everything.
        shape: a key of ``SHAPES``.
        elements: in the largest tensor.
        tensors: how many of them there are.
        form: of the inputs, a key of ``tests.faults.forms.FORMS``.
        out: where the outputs go, if not under ``root``.
        nursery: forks the processes; without it, each is started by a command.

    """

    def __init__(
        self,
        root: Path,
        shape: str = "file",
        *,
        elements: int = 20_000,
        tensors: int = 1,
        form: str = "safetensors",
        out: Path | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        ((name, self._options),) = SHAPES[shape].items()
        self.shape, self.form, self._nursery = shape, form, nursery
        self.inputs, self.out, self._earlier = root / "inputs", out or root / "out", root / "earlier"
        self.output = self.out / name
        for folder in (self.inputs, self.out):
            folder.mkdir(parents=True)
        write_series(self.inputs, elements, form, tensors=tensors)
        self.digests = self.read(self.inputs)
        self.old = self._reference("--init", "debias")
        if "foreign" in shape:
            (self.output / FOREIGN).write_text("the card of the model")
        shutil.copytree(self.out, self._earlier)
        self.reset(earlier=False)
        self.seconds = 0.0
        """How long the last run without faults took."""
        self.new = self._timed(self._reference)

    def _reference(self, *more: str) -> Contents:
        ended = self.run(more=more)
        if ended.status:
            raise SystemExit(f"the program does not even run without faults: {ended.stderr}")
        return self.outputs()

    def _timed(self, run: Callable[[], T]) -> T:
        started = time.monotonic()
        result = run()
        self.seconds = time.monotonic() - started
        return result

    def command(self, *more: str) -> list[str]:
        """Return the command line of a run that replaces the outputs."""
        paths = sorted(map(str, self.inputs.iterdir()))
        options = [
            *(option.replace("{out}", str(self.out)) for option in self._options),
            "--decay",
            "0.9",
            "--force",
            "-o",
            str(self.output),
        ]
        return [*PROGRAM, *paths, *options, *more]

    def start(self, environment: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[str]:
        """Start a run that replaces the outputs; ``how`` is passed to ``Popen``."""
        standard = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            self.command("-q"), env={**os.environ, **(environment or {})}, text=True, **{**standard, **how}
        )

    def run(
        self,
        environment: Mapping[str, str] | None = None,
        more: tuple[str, ...] = (),
        *,
        loud: bool = False,
        **how: Any,
    ) -> Ended:
        """Run to the end, quietly unless ``loud``; ``how`` is passed to ``Popen``."""
        command = self.command(*more, *(() if loud else ("-q",)))
        if self._nursery and not how:
            return self._nursery.run(command, environment)
        return run(command, environment, **how)

    def ask(self, command: list[str]) -> Ended:
        """Run another command of the program, without faults."""
        return self._nursery.run(command) if self._nursery else run(command)

    def reset(self, *, earlier: bool = True) -> None:
        """Restore the outputs of the earlier run, or remove all outputs."""
        self._has_foreign = earlier and "foreign" in self.shape
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
        """Return the digests of the weight files; their bytes are known in advance."""
        return {name: digest for name, digest in self.read(self.out).items() if _is_output(name)}

    def changed(self, *, earlier: bool = True) -> set[str]:
        """Return the names of the outputs and reports that are not those of the earlier run, if there was one."""
        old, found = self.read(self._earlier) if earlier else {}, self.read(self.out)
        tops = {Path(name).parts[0] for name in found if not name.startswith(".")}
        return {top for top in tops if _under(found, top) != _under(old, top)}

    def untouched(self, *, earlier: bool = True) -> bool:
        """Whether the outputs and their reports are those of the earlier run, or nothing if there was none."""
        return self.read(self.out) == (self.read(self._earlier) if earlier else {})

    def leftovers(self) -> list[str]:
        """Return the hidden names next to the outputs."""
        return sorted(path.name for path in self.out.iterdir() if path.name.startswith("."))

    def whole(self, *, earlier: bool) -> list[str]:
        """Return the problems of the outputs: each must be the old or the new output, or absent if there was none."""
        found = self.outputs()
        kinds = [self.old if earlier else {}, self.new]
        tops = {Path(name).parts[0] for contents in (found, *kinds) for name in contents}
        broken = [top for top in sorted(tops) if all(_under(found, top) != _under(kind, top) for kind in kinds)]
        return [f"{top} is neither the old one nor the new one" for top in broken] + self._lost()

    def _lost(self) -> list[str]:
        lost = self._has_foreign and not (self.output / FOREIGN).is_file()
        return [f"{FOREIGN}, a foreign file, is lost"] if lost else []

    def aftermath(self) -> list[str]:
        """Return the problems of the inputs, and of a run without faults afterwards."""
        return self.after(self._timed(self.run))

    def after(self, ended: Ended) -> list[str]:
        """Return the problems of the inputs, and of the run without faults that ended."""
        checks = {
            "an input was changed": self.read(self.inputs) != self.digests,
            f"the next run ended with {ended.status}: {ended.stderr}": ended.status != 0,
            "the next run did not write the right output": self.outputs() != self.new,
            f"the next run left {self.leftovers()}": bool(self.leftovers()),
        }
        return [words for words, wrong in checks.items() if wrong] + self._lost()


def scenes_on_demand(root: Path, **options: Any) -> Callable[[str], Scene]:
    """Return a function that makes the scene of a shape on its first call; ``options`` are those of ``Scene``."""
    return cache(lambda shape: Scene(root / shape, shape, **options))


def _is_output(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(("report.json", ".html", FOREIGN))


def _under(contents: Contents, top: str) -> Contents:
    return {name: digest for name, digest in contents.items() if Path(name).parts[0] == top}
