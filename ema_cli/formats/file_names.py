"""What a file's name says before it is opened: weights, a shard, state of the trainer, a checkpoint of a series."""

from __future__ import annotations

import re

from ema_cli.record import record
from ema_cli.text import regex

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
"""Suffixes of the checkpoint files that are searched for in a folder."""
NAME_A_CHECKPOINT = (
    f"name a {SUFFIXES[0]} file, a {', '.join(SUFFIXES[1:-1])} or {SUFFIXES[-1]} file of torch.save, or a folder of "
    "Hugging Face, Lightning, torch.distributed, DeepSpeed or Megatron (ema-avg help formats)"
)
"""All that can be read, as the end of the hint of an error about another format."""
TRAINER_STATE = regex(
    r"optim|sched|scaler|rng_state|random_states|training_args|trainer_state|^data\.pt$", re.IGNORECASE
)
"""Names of files beside the weights that are not weights; ``data.pt`` is the position in the data (verl)."""
_SHARD = regex(r"(.+)-([0-9]{1,6})-of-([0-9]{1,6})(?:\.[A-Za-z]\w*)?\.(safetensors|bin|pt|pth|ckpt)")
_CLOCK = regex(r"(?:^|[^a-z])(?:(?:global_?)?steps?|iter(?:ation)?s?|updates?|epochs?|ep)[=_.-]?$", re.IGNORECASE)
_NUMBERED = regex(
    r"(?<![a-z])(?:checkpoints?|ckpt|chkpt|(?:global_?)?steps?|iter(?:ation)?s?|updates?|epochs?|ep|ba|snapshot)"
    r"[=_.-]?[0-9]|^[0-9]+$",
    re.IGNORECASE,
)


@record
class ShardName:
    """The parts of a shard's name."""

    stem: str
    number: int
    """Of the shard; most writers count from 1."""
    count: int
    """Of the shards in the set."""
    suffix: str

    @property
    def shard_set(self) -> tuple[str, int, str]:
        """The part of the name that all shards of one set share."""
        return self.stem, self.count, self.suffix


def parse_shard_name(name: str) -> ShardName | None:
    """Return the parts of a name like ``model-00001-of-00003.safetensors``; ``None`` if it is not a shard's name."""
    found = _SHARD.fullmatch(name)
    if found is None or counts_steps(found[1]):
        return None
    stem, number, count, suffix = found.groups()
    return ShardName(stem=stem, number=int(number), count=int(count), suffix=suffix)


def counts_steps(before: str) -> bool:
    """Whether the text before a number says that it is a step: ``epoch-3-of-10`` is no shard."""
    return _CLOCK.search(before) is not None


def is_numbered(name: str) -> bool:
    """Whether a name is that of one checkpoint of a series: ``checkpoint-500``, ``iter_0001000``, ``300``."""
    return _NUMBERED.search(name) is not None


def is_weights(name: str) -> bool:
    """Whether a file may hold weights, judged by its name: it has the suffix, and is not state of the trainer."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and TRAINER_STATE.search(name) is None


def skeleton(name: str) -> str:
    """Return the common form of the names of a series: ``checkpoint-0`` for ``checkpoint-500``."""
    return re.sub(r"[0-9]+", "0", name)
