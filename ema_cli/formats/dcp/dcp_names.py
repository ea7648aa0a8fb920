"""The names of the files of torch.distributed.checkpoint; apart from the readers, which other folders do not need."""

from __future__ import annotations

from ema_cli.formats.folder import Folder
from ema_cli.text import regex

METADATA = ".metadata"
_DATA_SUFFIX = ".distcp"
_SHARD_OF_A_RANK = regex(r"shard-[0-9]{5,}-model-[0-9]{5,}-of-[0-9]{5,}\.safetensors")


def is_dcp(folder: Folder) -> bool:
    """Whether a folder was saved by torch.distributed.checkpoint, completely or not."""
    return METADATA in folder.files or any(map(is_data, folder.files))


def is_data(name: str) -> bool:
    """Whether a file has the name of one with data."""
    return name.endswith(_DATA_SUFFIX)


def data_name(number: int) -> str:
    """Return the name of a file with data of the first rank."""
    return f"__0_{number}{_DATA_SUFFIX}"


def is_sharded_safetensors(folder: Folder) -> bool:
    """Whether ranks saved their pieces in a folder as safetensors files."""
    return any(map(is_shard_of_a_rank, folder.files))


def is_shard_of_a_rank(name: str) -> bool:
    """Whether a file has the name that ``HuggingFaceStorageWriter`` gives to the file of one rank."""
    return _SHARD_OF_A_RANK.fullmatch(name) is not None
