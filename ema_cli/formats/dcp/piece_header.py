"""Safetensors files that hold pieces of tensors, as torch's ``HuggingFaceStorageWriter`` saves them.

Where each piece belongs stands in the metadata: ``DCP_SHARDING_INFO: {"w": {"saved_offsets": [0, 3]}}``. Nothing says
how large the whole is. Source: ``torch/distributed/checkpoint/_hf_utils.py`` and ``hf_storage.py``.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from ema_cli.errors import InputRefused
from ema_cli.formats.json_text import JsonError, parse_object
from ema_cli.formats.structure import Structure
from ema_cli.text import quoted

SHARDING_INFO = "DCP_SHARDING_INFO"
_SHARD_OF_A_RANK = re.compile(r"shard-[0-9]{5,}-model-[0-9]{5,}-of-[0-9]{5,}\.safetensors")
_MOST_ENTRIES = 4_000_000
_LIMIT = 1 << 62


def is_shard_of_a_rank(name: str) -> bool:
    """Whether a file is called as the writer calls what one rank saves."""
    return _SHARD_OF_A_RANK.fullmatch(name) is not None


def origins(structure: Structure) -> dict[str, tuple[int, ...]]:
    """Return where in its whole each tensor of a file begins; nothing for those of which the file does not say.

    Raises:
        InputRefused: what it says is damaged.

    """
    text = (structure.metadata or {}).get(SHARDING_INFO)
    if text is None:
        return {}
    try:
        told = parse_object(text.encode(), most=_MOST_ENTRIES)
    except JsonError as error:
        raise InputRefused(f"has damaged {SHARDING_INFO}: it {error}") from error
    return {name: _origin(name, told[name]) for name in told}


def refuse_lone_piece(structure: Structure, name: str) -> None:
    """Raise if a safetensors file that is named by itself holds pieces of tensors.

    Args:
        structure: of the file.
        name: of the file. The first rank's pieces begin where the wholes do, and only the name tells.

    Raises:
        InputRefused: it does, naming the folder as what to read.

    """
    if SHARDING_INFO not in (structure.metadata or {}):
        return
    if is_shard_of_a_rank(PurePath(name).name) or any(any(origin) for origin in origins(structure).values()):
        raise InputRefused(
            "holds pieces of tensors, one rank's part of a checkpoint that torch.distributed.checkpoint saved",
            hint="name the folder in which all ranks saved theirs, under the names shard-*-model-*.safetensors",
        )


def _origin(name: str, entry: object) -> tuple[int, ...]:
    match entry:
        case {"saved_offsets": [*numbers]} if all(type(number) is int and 0 <= number < _LIMIT for number in numbers):
            return tuple(numbers)
    raise InputRefused(f"has damaged {SHARDING_INFO} for tensor {quoted(name)}")
