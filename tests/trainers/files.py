"""The files of a training run: weights that move little between checkpoints, and what trainers put around them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.helpers import dcp_makers
from tests.helpers.series import State

_SHAPES = {"body.weight": (32, 16), "body.bias": (32,), "head.weight": (8, 32)}
WEIGHTS = frozenset(_SHAPES)
"""The names of the tensors of a small model."""
ADAM = {
    "state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(32, 16), "exp_avg_sq": torch.ones(32, 16)}},
    "param_groups": [{"lr": 1e-3, "params": [0]}],
}
"""The state of an optimizer."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A moment of a run at which a checkpoint is saved."""

    number: int
    """How many were saved, this one included; the weights depend on it."""
    at: int
    """What the trainer counts: a step, an epoch, or images."""


@dataclass(frozen=True)
class Link:
    """A symbolic link, or a hard one to a file of the run."""

    target: str
    hard: bool = False


@dataclass(frozen=True)
class Dcp:
    """A folder of ``torch.distributed.checkpoint``."""

    state: Mapping[str, object]


@dataclass(frozen=True)
class Safe:
    """A safetensors file with metadata."""

    state: State
    metadata: Mapping[str, str]


Files = Mapping[str, object]
"""What is in each file, by its path in the run."""


def nothing(_: Sequence[Point]) -> Files:
    """Return the files of a run with nothing beside its checkpoints."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The files of one trainer, and what an average of them must find. Paths are relative to the run."""

    source: str
    """Where the trainer names and fills its files."""
    at: tuple[int, ...] = (8, 9, 10, 11)
    """When it saves; 10 comes after 9, unlike in the alphabet."""
    save: Callable[[Point], Files]
    """The files of one checkpoint; the first is expected in the series."""
    beside: Callable[[Sequence[Point]], Files] = nothing
    """What else is in the run in the end."""
    paths: tuple[str, ...] = ("",)
    """What a user names."""
    options: Mapping[str, Any] = field(default_factory=dict)
    last: tuple[str, ...] = ()
    """Files beside the checkpoints that belong to the end of the series."""
    skipped: tuple[str, ...] = ()
    """Files that must be listed as skipped."""
    key: str | None = ""
    """Where the weights are; ``None``: in several places."""
    names: frozenset[str] = WEIGHTS
    """The tensors of the average."""
    warned: tuple[str, ...] = ()
    """Words of the only warnings that are right, in the code or the message."""
    allowed: tuple[str, ...] = ()
    """Words of warnings that may be there or not."""
    refused: tuple[str, ...] = ()
    """Regular expressions of the error, if there is no right average."""

    @property
    def points(self) -> list[Point]:
        """The moments at which the run saved a checkpoint."""
        return [Point(number=number, at=at) for number, at in enumerate(self.at, 1)]

    @property
    def series(self) -> list[str]:
        """The expected checkpoints, oldest first."""
        return [*(next(iter(self.save(point))) for point in self.points), *self.last]

    def write(self, run: Path) -> None:
        """Write the run."""
        for point in self.points:
            _write_all(run, self.save(point))
        _write_all(run, self.beside(self.points))


def weights(point: Point, prefix: str = "") -> State:
    """Return the weights at a point: a common start and small steps, as training takes them."""
    return {f"{prefix}{name}": tensor.clone() for name, tensor in _walk(point.number).items()}


def average(point: Point, prefix: str = "") -> State:
    """Return a trainer's own average of the weights up to a point."""
    walked = [_walk(number) for number in range(1, point.number + 1)]
    return {f"{prefix}{name}": torch.stack([one[name] for one in walked]).mean(0) for name in walked[0]}


def other_model(point: Point, prefix: str = "") -> State:
    """Return the weights of a second model of the run, of other shapes: a discriminator, a projection."""
    generator = torch.Generator().manual_seed(1000)
    return {f"{prefix}score.weight": torch.randn(4, 6, generator=generator) * (1 + 0.01 * point.number)}


@cache
def _walk(number: int) -> State:
    generator = torch.Generator().manual_seed(number)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in _SHAPES.items()}
    return drawn if number == 0 else {name: tensor + 0.02 * drawn[name] for name, tensor in _walk(number - 1).items()}


class Detector(nn.Module):
    """A model that is pickled whole, in half precision."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 8, bias=False)
        self.names = {0: "person"}
        self.load_state_dict(state)
        self.half()


def names(prefix: str) -> frozenset[str]:
    """Return the names of the tensors with a prefix that stays."""
    return frozenset(f"{prefix}{name}" for name in WEIGHTS)


def _write_all(run: Path, files: Files) -> None:
    for name, value in files.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, value)


def _write(path: Path, value: object) -> None:
    match value:
        case Link(target=target, hard=True):
            os.link(path.parent / target, path)
        case Link(target=target):
            path.symlink_to(target)
        case Dcp(state=state):
            dcp_makers.save(path, state)
        case Safe(state=state, metadata=metadata):
            save_file(state, path, {**metadata})
        case str():
            path.write_text(value)
        case bytes():
            path.write_bytes(value)
        case dict() if path.suffix == ".json":
            path.write_text(json.dumps(value))
        case dict() if path.suffix == ".safetensors":
            save_file(value, path, {"format": "pt"})
        case _:
            torch.save(value, path)
