"""The weights of an output folder, split into files as Hugging Face libraries name and index them.

``model.safetensors`` if one file is enough; else ``model-00001-of-00003.safetensors`` and so on, with
``model.safetensors.index.json``, which maps every tensor to its file. Tensors stay in the order of the data section
and are never split, so the concatenated data sections of the files are that of a single file.
Reference: ``split_torch_state_dict_into_shards`` of huggingface_hub, for the names, the index and the greedy filling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ema_cli.errors import UsageError
from ema_cli.formats.safetensors import Stored, build_header
from ema_cli.records.files import FileRole, PlannedFile, SideFile

_MOST_FILES = 99_999
"""The names have five digits."""


def plan_files(
    tensors: Sequence[Stored], metadata: Mapping[str, str], stem: str, max_shard_size: int
) -> tuple[tuple[PlannedFile, ...], tuple[SideFile, ...]]:
    """Return the files of a folder, and their index if there are several.

    A file has at most ``max_shard_size`` bytes of tensors, or one larger tensor; its name begins with ``stem``.

    Raises:
        UsageError: there would be too many files.

    """
    shards = _fill(tensors, max_shard_size)
    if len(shards) > _MOST_FILES:
        message = f"--max-shard-size {max_shard_size:,} would make {len(shards):,} files, more than {_MOST_FILES:,}"
        raise UsageError(message, hint="--max-shard-size 5GB")
    names = _names(stem, len(shards))
    files: list[PlannedFile] = []
    begin = 0
    for name, shard in zip(names, shards, strict=True):
        data_bytes = sum(tensor.nbytes for tensor in shard)
        header, _ = build_header(shard, metadata)
        files.append(PlannedFile(name=name, header=header, begin=begin, data_bytes=data_bytes))
        begin += data_bytes
    return tuple(files), (_index(stem, names, shards, begin),) if len(files) > 1 else ()


def _fill(tensors: Sequence[Stored], max_shard_size: int) -> list[list[Stored]]:
    """Split the tensors into groups of at most ``max_shard_size`` bytes, or of one larger tensor."""
    shards: list[list[Stored]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _index(stem: str, names: Sequence[str], shards: Sequence[Sequence[Stored]], total_bytes: int) -> SideFile:
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    document = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    content = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    return SideFile(name=f"{stem}.safetensors.index.json", role=FileRole.INDEX, nbytes=len(content), content=content)
