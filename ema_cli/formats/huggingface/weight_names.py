"""The files of a folder that are weights, by the names that Hugging Face libraries give them.

A model is one file (``model.safetensors``, ``pytorch_model.bin``), or shards with an index of the file of each
tensor (``model.safetensors.index.json``). The same holds for an adapter and for a part of a diffusion pipeline.
References: ``transformers.utils`` (``WEIGHTS_NAME`` and the like), ``diffusers.utils.constants``, ``peft.utils``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from ema_cli.formats.file_names import TRAINER_STATE, is_numbered, is_weights, parse_shard_name
from ema_cli.formats.structure import SeveralModels
from ema_cli.record import record
from ema_cli.text import quoted, regex, shortlist

_MODEL = {
    "model": "model",
    "pytorch_model": "model",
    "pytorch_model_fsdp": "model",
    "adapter_model": "adapter_model",
    "pytorch_lora_weights": "pytorch_lora_weights",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
}
"""The model that a name of weights means; two names of one model are two copies of it."""
_SINGLE = regex(r"(.+?)(?:\.([A-Za-z]\w*))?\.(safetensors|bin)")
_INDEX = regex(r"(.+)\.(safetensors|bin)\.index(?:\.([A-Za-z]\w*))?\.json")
_FURTHER = regex(r"(?:pytorch_)?model(?:_fsdp)?_[0-9]+\.(?:safetensors|bin)")
"""The second and further models of one training, as accelerate names them."""
_CONFIGURATION = ("config.json", "adapter_config.json", "trainer_state.json")


@record
class Weights:
    """One copy of a model in a folder."""

    model: str
    """The name of the output of an average."""
    variant: str
    """``fp16`` in ``model.fp16.safetensors``; empty for none."""
    suffix: str
    index: str = ""
    """Name of the file with the file of each tensor; empty if there is none."""
    files: tuple[str, ...] = ()
    """The one file, or the shards if there is no index."""

    @property
    def sharded(self) -> bool:
        """Whether the weights are shards."""
        return bool(self.index) or parse_shard_name(self.files[0]) is not None

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.index or self.files[0]


def holds_weights(files: Iterable[str]) -> bool:
    """Whether a folder with these files is one model, not a series of numbered files or of unknown names."""
    names = frozenset(files)
    found = _all_weights(names)
    known = {name for weights in found for name in weights.files}
    others = [name for name in names - known if is_weights(name) and parse_shard_name(name) is None]
    if not found or any(is_numbered(name) for name in others):
        return False
    sharded = any(weights.sharded for weights in found)
    return sharded or not others or any(name in _CONFIGURATION or TRAINER_STATE.search(name) for name in names)


def is_index(name: str) -> bool:
    """Whether a name is that of the index of shards: ``model.safetensors.index.json``."""
    return _INDEX.fullmatch(name) is not None


def weights_of_index(name: str) -> Weights:
    """Return the weights whose index has this name."""
    found = _INDEX.fullmatch(name)
    if found is None:
        raise ValueError(name)
    return _weights_of(found)


def names_of_weights(files: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the files, or of the indexes, that are the weights of a whole model."""
    return tuple(sorted(one.name for one in _all_weights(frozenset(files))))


def files_of_weights(files: Iterable[str]) -> tuple[str, ...]:
    """Return the names of all files that are weights of a whole model, in one copy or another, with their shards."""
    names = frozenset(files)
    single = (name for one in _all_weights(names) for name in one.files)
    return tuple(sorted({*single, *(name for name in names if parse_shard_name(name) is not None)}))


def find_weights(files: Iterable[str]) -> Weights:
    """Return the weights in a folder: safetensors rather than pickles, as the libraries choose.

    Raises:
        InputRefused: there are several models.

    """
    names = frozenset(files)
    found = _all_weights(names)
    usual = [one for one in found if not one.variant] or found
    best = [one for one in usual if one.suffix == "safetensors"] or usual
    more = [name for name in names if _FURTHER.fullmatch(name)]
    if len({one.model for one in usual}) > 1 or len(best) > 1 or more:
        models = sorted([*(one.name for one in usual), *more], key=lambda name: ("adapter" in name, name))
        refused = SeveralModels(
            f"holds several models, or two copies of one: {shortlist(map(quoted, models))}",
            hint="name one of the files, or move the others out of the folder",
        )
        refused.models = tuple(models)
        raise refused
    return best[0]


def _all_weights(names: frozenset[str]) -> list[Weights]:
    found = [*_indexed(names), *_single_files(names)]
    return found or _sets_of_shards(names)


def _indexed(names: frozenset[str]) -> list[Weights]:
    """Return the weights with an index; those of unknown names only if there are no others."""
    found = [_weights_of(one) for one in map(_INDEX.fullmatch, names) if one is not None]
    return [one for one in found if one.model in _MODEL.values()] or found


def _weights_of(index: re.Match[str]) -> Weights:
    stem, suffix, variant = index.groups()
    return Weights(model=_MODEL.get(stem, stem), variant=variant or "", suffix=suffix, index=index[0])


def _single_files(names: frozenset[str]) -> list[Weights]:
    return [
        Weights(model=_MODEL[one[1]], variant=one[2] or "", suffix=one[3], files=(one[0],))
        for one in map(_SINGLE.fullmatch, names)
        if one is not None and one[1] in _MODEL and parse_shard_name(one[0]) is None
    ]


def _sets_of_shards(names: frozenset[str]) -> list[Weights]:
    """Return the sets of shards, without an index."""
    sets: dict[tuple[str, int, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        one = parse_shard_name(name)
        if one is not None and TRAINER_STATE.search(name) is None:
            sets[one.shard_set].append((one.number, name))
    return [
        Weights(model=_MODEL.get(stem, stem), variant="", suffix=suffix, files=tuple(name for _, name in sorted(parts)))
        for (stem, _, suffix), parts in sets.items()
    ]
