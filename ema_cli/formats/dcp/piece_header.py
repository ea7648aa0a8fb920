"""Safetensors files with pieces of tensors, as torch's ``HuggingFaceStorageWriter`` saves them.

The origin of each piece is in the metadata: ``DCP_SHARDING_INFO: {"w": {"saved_offsets": [0, 3]}}``. The shape of the
whole tensor is not. Source: ``torch/distributed/checkpoint/_hf_utils.py`` and ``hf_storage.py``.
"""

from __future__ import annotations

from pathlib import PurePath

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.dcp_names import is_shard_of_a_rank
from ema_cli.formats.json_text import JsonError, parse_object
from ema_cli.formats.structure import Structure, are_sizes
from ema_cli.text import quoted

SHARDING_INFO = "DCP_SHARDING_INFO"
_MOST_ENTRIES = 4_000_000


def piece_origins(structure: Structure) -> dict[str, tuple[int, ...]]:
    """Return the index in the whole tensor of the first element of each piece, as far as the file states it.

    Raises:
        InputRefused: the metadata are damaged.

    """
    text = (structure.metadata or {}).get(SHARDING_INFO)
    if text is None:
        return {}
    try:
        declared = parse_object(text.encode(), most=_MOST_ENTRIES)
    except JsonError as error:
        raise InputRefused(f"has damaged {SHARDING_INFO}: it {error}") from error
    return {name: _origin(name, entry) for name, entry in declared.items()}


def refuse_lone_piece(structure: Structure, name: str) -> None:
    """Raise if a single safetensors file holds pieces of tensors.

    Args:
        structure: of the file.
        name: of the file. The pieces of the first rank may all begin at 0; then only the name shows what they are.

    Raises:
        InputRefused: it holds pieces; the hint is to name the folder instead.

    """
    if SHARDING_INFO not in (structure.metadata or {}):
        return
    if is_shard_of_a_rank(PurePath(name).name) or any(any(origin) for origin in piece_origins(structure).values()):
        raise InputRefused(
            "holds pieces of tensors: one rank's part of a checkpoint of torch.distributed.checkpoint",
            hint="name the folder with the files of all ranks, shard-*-model-*.safetensors",
        )


def _origin(name: str, entry: object) -> tuple[int, ...]:
    match entry:
        case {"saved_offsets": [*numbers]} if are_sizes(numbers):
            return tuple(numbers)
    raise InputRefused(f"has damaged {SHARDING_INFO} for tensor {quoted(name)}")
