"""What the names of files say before anything is opened: weights, a shard of them, state of the trainer, a series."""

from __future__ import annotations

import re
from dataclasses import dataclass

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
"""What checkpoint files are called, where a folder is searched for them."""
TRAINER_STATE = re.compile(r"optim|sched|scaler|rng_state|random_states|training_args|trainer_state", re.IGNORECASE)
"""Names of files that lie beside a model and are none."""
_SHARD = re.compile(r"(.+)-([0-9]{1,6})-of-([0-9]{1,6})(?:\.[A-Za-z]\w*)?\.(safetensors|bin|pt|pth|ckpt)")
_NUMBERED = re.compile(
    r"(?<![a-z])(?:checkpoints?|ckpt|chkpt|(?:global_?)?steps?|iter(?:ation)?s?|updates?|epochs?|ep|ba|snapshot)"
    r"[=_.-]?[0-9]|^[0-9]+$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardName:
    """What the name of a shard says."""

    stem: str
    number: int
    """Of the shard, mostly from 1 on."""
    count: int
    """How many there are."""
    suffix: str

    @property
    def of(self) -> tuple[str, int, str]:
        """What all shards of one set have in common."""
        return self.stem, self.count, self.suffix


def shard(name: str) -> ShardName | None:
    """Return what a name like ``model-00001-of-00003.safetensors`` says, ``None`` if it is not that of a shard."""
    found = _SHARD.fullmatch(name)
    if found is None:
        return None
    stem, number, count, suffix = found.groups()
    return ShardName(stem=stem, number=int(number), count=int(count), suffix=suffix)


def is_numbered(name: str) -> bool:
    """Whether a name says that it is one checkpoint of a series: ``checkpoint-500``, ``iter_0001000``, ``300``."""
    return _NUMBERED.search(name) is not None


def is_weights(name: str) -> bool:
    """Whether a file may hold weights by its name: it has the suffix, and is not state of the trainer."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and TRAINER_STATE.search(name) is None


def skeleton(name: str) -> str:
    """Return what the names of one series have in common: ``checkpoint-0`` for ``checkpoint-500``."""
    return re.sub(r"[0-9]+", "0", name)
