"""Parts in which the system limits a process: size of files, memory, descriptors."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save_file

from tests.faults.case import Case, wrong
from tests.faults.nursery import Nursery
from tests.faults.outcome import OUTPUT, RESOURCES, after_refusal, has_reason
from tests.faults.runs import run
from tests.faults.scene import SHAPES, Scene, scenes_on_demand

_EXHAUSTED = (os.strerror(errno.ENOMEM), "memory", "thread", "failed to map", os.strerror(errno.EMFILE))
_INPUT_CHANGED = 4
_SHARDS, _CHECKPOINTS = 500, 1000
_MOST_SIZES = 25
_ENOUGH = 16
"""Every run must succeed with this many descriptors."""
_ENOUGH_TO_REMOVE = 12
"""A failed run with this many descriptors must remove its folder."""


def file_limits(root: Path, random: Random) -> Iterator[Case]:
    """No file may become larger than a limit: zero, a block, a part of the output, all but a byte, all, more."""
    scenes = scenes_on_demand(root, nursery=Nursery())
    points = [
        (shape, number, earlier) for shape in SHAPES for number in range(_MOST_SIZES) for earlier in (True, False)
    ]
    random.shuffle(points)
    for shape, number, earlier in points:
        scene = scenes(shape)
        scene.reset()
        sizes, largest = _sizes(scene), _largest(scene)
        if number >= len(sizes):
            continue
        limit = sizes[number]
        scene.reset(earlier=earlier)
        ended = scene.run(preexec_fn=limited(resource.RLIMIT_FSIZE, limit))
        problems = after_refusal(scene, ended, [os.strerror(errno.EFBIG)], earlier=earlier)
        if limit < largest:
            problems += wrong({"an output larger than the limit was written": ended.status == 0})
        yield Case(f"{scene.shape}, {limit:,} bytes: exit {ended.status}", [*problems, *scene.aftermath()])


def _sizes(scene: Scene) -> list[int]:
    """Return limits around the sizes of the files that are written."""
    sizes = {path.stat().st_size for path in scene.out.rglob("*") if path.is_file()}
    around = {limit for size in sizes for limit in (size // 2, size - 1, size, size + 1, 2 * size)}
    return sorted({0, 1, 512, 4096, *around})


def _largest(scene: Scene) -> int:
    return max(path.stat().st_size for path in scene.out.rglob("*") if path.suffix in (".safetensors", ".distcp"))


def memory_limits(root: Path, random: Random) -> Iterator[Case]:
    """The address space is limited, from what Python itself needs upwards."""
    scenes = scenes_on_demand(root, nursery=Nursery())
    while True:
        scene, earlier = scenes(random.choice(list(SHAPES))), random.random() < 0.5
        limit = int(2 ** random.uniform(24.5, 30.5))
        if not _python_starts(limit):
            continue
        scene.reset(earlier=earlier)
        ended = scene.run(preexec_fn=limited(resource.RLIMIT_AS, limit))
        problems = after_refusal(scene, ended, _EXHAUSTED, statuses=(OUTPUT, RESOURCES), earlier=earlier)
        yield Case(f"{scene.shape}, {limit >> 20} MiB: exit {ended.status}", [*problems, *scene.aftermath()])


def _python_starts(limit: int) -> bool:
    command = [sys.executable, "-c", "pass"]
    started = subprocess.run(command, preexec_fn=limited(resource.RLIMIT_AS, limit), capture_output=True, check=False)
    return started.returncode == 0


def descriptors(root: Path, random: Random) -> Iterator[Case]:
    """Few descriptors are allowed, for 1,000 checkpoints and for folders of 500 shards."""
    makers: dict[str, Callable[[Path], Crowd]] = {
        "500 shards": _many_shards,
        "1,000 .safetensors": _many_safetensors,
        "1,000 .pt": _many_torch,
    }
    for name in random.sample(sorted(makers), len(makers)):
        crowd = makers[name](root / name)
        for limit in (64, 48, 32, 24, 20, 16, 12, 10, 8, 6):
            yield _crowded(name, crowd, limit)


class Crowd:
    """Many files to average, and the output of a run without a limit."""

    def __init__(self, inputs: list[Path], options: list[str], out: Path) -> None:
        out.mkdir(parents=True)
        self.out = out
        self.command = [sys.executable, "-m", "ema_cli", *map(str, inputs), "--decay", "0.9", "-q", *options]
        ended = run(self.command)
        if ended.status:
            raise SystemExit(f"the program does not even run without faults: {ended.stderr}")
        self.new = self.weights()

    def weights(self) -> dict[str, str]:
        """Return the digests of the outputs that are there."""
        return {name: digest for name, digest in Scene.read(self.out).items() if "report" not in name}


def _many_shards(root: Path) -> Crowd:
    """Three checkpoints of 500 shards, averaged into as many."""
    folders = []
    for number in (1, 2, 3):
        tensors = {f"w{i:03}": np.full(2, i + number, np.float32) for i in range(_SHARDS)}
        places = {name: f"model-{i + 1:05}-of-{_SHARDS:05}.safetensors" for i, name in enumerate(tensors)}
        folders.append(root / f"checkpoint-{number}")
        folders[-1].mkdir(parents=True)
        for name, tensor in tensors.items():
            save_file({name: tensor}, folders[-1] / places[name])
        index = {"metadata": {}, "weight_map": places}
        (folders[-1] / "model.safetensors.index.json").write_text(json.dumps(index))
    out = root / "out"
    return Crowd(folders, ["-o", f"{out / 'ema'}/", "--max-shard-size", "8B"], out)


def _many_safetensors(root: Path) -> Crowd:
    root.mkdir()
    paths = [root / f"ckpt_{number}.safetensors" for number in range(_CHECKPOINTS)]
    for number, path in enumerate(paths):
        save_file({"w": np.full(8, number, np.float32)}, path)
    return Crowd([root / "ckpt_*.safetensors"], ["-o", str(root / "out" / "ema.safetensors")], root / "out")


def _many_torch(root: Path) -> Crowd:
    import torch  # noqa: PLC0415 - takes seconds

    root.mkdir()
    for number in range(_CHECKPOINTS):
        torch.save({"w": torch.full((8,), float(number))}, root / f"ckpt_{number}.pt")
    return Crowd([root / "ckpt_*.pt"], ["-o", str(root / "out" / "ema.safetensors")], root / "out")


def _crowded(name: str, crowd: Crowd, limit: int) -> Case:
    shutil.rmtree(crowd.out)
    crowd.out.mkdir()
    ended = run(crowd.command, preexec_fn=limited(resource.RLIMIT_NOFILE, limit))
    checks = {
        f"ended with {ended.status}: {ended.stderr}": ended.status not in (0, _INPUT_CHANGED, OUTPUT, RESOURCES)
        or (limit >= _ENOUGH and ended.status),
        "the output is not that of a run without a limit": ended.status == 0 and crowd.weights() != crowd.new,
        # It takes a few descriptors to remove a folder; the next run removes it.
        "a failed run left something": ended.status and limit >= _ENOUGH_TO_REMOVE and list(crowd.out.iterdir()),
        f"does not state the reason in one line: {ended.stderr}": ended.status and not has_reason(ended, _EXHAUSTED),
    }
    return Case(f"{name}, {limit} descriptors: exit {ended.status}", wrong(checks))


def limited(kind: int, limit: int) -> Callable[[], None]:
    """Return a function that limits the process that calls it."""
    return lambda: resource.setrlimit(kind, (limit, limit))
