"""One model in several files, with or without an index that says which tensor lies in which file.

The index is ``{"metadata": {...}, "weight_map": {tensor: file}}``; reference: ``huggingface_hub.serialization``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import shard
from ema_cli.formats.folder import Folder
from ema_cli.formats.huggingface.weight_names import Weights
from ema_cli.formats.members import joint_digest, read_json, read_member
from ema_cli.formats.structure import Structure
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.text import plural, quoted, shortlist


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    number: int
    """Of the opened file."""
    name: str
    structure: Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merged:
    """What checkpoints of equal structure have in common."""

    layouts: tuple[TensorLayout, ...]
    places: tuple[tuple[int, int], ...]
    """Of each tensor the position of its shard, and its position in that."""
    unmapped: tuple[str, ...]
    """Tensors of the shards that the index does not know."""


def read_shards(folder: Folder, weights: Weights, key: str | None, pool: LayoutPool) -> Structure:
    """Read a model that lies in several files.

    Raises:
        InputRefused: a shard is missing or cannot be used, or the shards are not what the index says.

    """
    index, digest = _read_index(folder, weights.index, pool) if weights.index else ({}, b"")
    if not weights.index:
        _refuse_incomplete(weights.files)
    names = tuple(dict.fromkeys(index.values())) or weights.files
    shards = [_read_shard(folder, name, key, pool) for name in names]
    digests = [digest, *(one.structure.digest for one in shards)]
    merged = pool.remember(("shards", *digests, key), lambda: _merge(shards, index, weights.index))
    return Structure(
        format=f"{shards[0].structure.format}, {plural(len(shards), 'shard')}",
        layouts=merged.layouts,
        offsets=tuple(shards[which].structure.offsets[position] for which, position in merged.places),
        files=tuple(shards[which].number for which, _ in merged.places),
        records={one.number: one.structure.records[0] for one in shards if one.structure.records},
        digest=joint_digest(digests),
        metadata=shards[0].structure.metadata,
        steps=shards[0].structure.steps,
        unreadable=tuple(fault for one in shards for fault in one.structure.unreadable),
        ignored=merged.unmapped,
        notes=_notes(merged.unmapped, weights.index),
    )


def _notes(unmapped: Sequence[str], index: str) -> tuple[str, ...]:
    if not unmapped:
        return ()
    some = shortlist(map(quoted, unmapped))
    return (f"the shards hold {plural(len(unmapped), 'tensor')} that {quoted(index)} does not name, left out: {some}",)


def _read_index(folder: Folder, name: str, pool: LayoutPool) -> tuple[Mapping[str, str], bytes]:
    """Return the file of each tensor, and a hash of the index."""
    document, digest = read_json(folder, name, pool)
    index = document.get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise InputRefused(f"{quoted(name)} is damaged: it has no weight_map of tensors to files")
    files = dict.fromkeys(index.values())
    outside = [file for file in files if re.search(r"[/\\]|^\.{0,2}$", file)]
    if outside:
        some = shortlist(map(quoted, outside))
        raise InputRefused(f"{quoted(name)} refers to {some}, and a shard lies in the folder of its index")
    missing = [file for file in files if file not in folder.files]
    if missing:
        some = shortlist(map(quoted, missing))
        raise InputRefused(
            f"is incomplete: of the {plural(len(files), 'file')} that {quoted(name)} names, "
            f"{len(missing):,} {'is' if len(missing) == 1 else 'are'} not there: {some}"
        )
    return index, digest


def _refuse_incomplete(names: Sequence[str]) -> None:
    """Refuse a set of shards without an index of which some are missing: nothing else says that they are."""
    found = [one for one in map(shard, names) if one is not None]
    count = found[0].count
    numbers = sorted(one.number for one in found)
    if numbers not in (list(range(1, count + 1)), list(range(count))):
        raise InputRefused(
            f"is incomplete: there {'is' if len(names) == 1 else 'are'} {len(names):,} of {plural(count, 'shard')}, "
            f"and no index: {shortlist(map(quoted, names))}"
        )


def _read_shard(folder: Folder, name: str, key: str | None, pool: LayoutPool) -> _Shard:
    number, structure = read_member(folder, name, key, pool.branch(name))
    return _Shard(number=number, name=name, structure=structure)


def _merge(shards: Sequence[_Shard], index: Mapping[str, str], index_name: str) -> _Merged:
    """Put the tensors of all shards into one series, in the order of the index or of the shards."""
    found: dict[str, tuple[int, int]] = {}
    twice: list[str] = []
    unmapped: list[str] = []
    for which, one in enumerate(shards):
        for position, layout in enumerate(one.structure.layouts):
            if index and index.get(layout.name) != one.name:
                unmapped.append(layout.name)
            elif layout.name in found:
                twice.append(
                    f"{quoted(layout.name)} in {quoted(shards[found[layout.name][0]].name)} and {quoted(one.name)}"
                )
            else:
                found[layout.name] = which, position
    if twice:
        raise InputRefused(f"holds tensors in two shards, and has no index: {shortlist(twice)}")
    _refuse_absent(shards, index, index_name, found)
    return _Merged(
        layouts=tuple(shards[which].structure.layouts[position] for which, position in found.values()),
        places=tuple(found.values()),
        unmapped=tuple(unmapped),
    )


def _refuse_absent(
    shards: Sequence[_Shard], index: Mapping[str, str], index_name: str, found: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse an index that names tensors which are not in their files."""
    unreadable = {name for one in shards for name, _ in one.structure.unreadable}
    absent = [name for name in index if name not in found and name not in unreadable]
    if absent:
        some = shortlist(f"{quoted(name)} in {quoted(index[name])}" for name in absent)
        raise InputRefused(
            f"{quoted(index_name)} names {plural(len(absent), 'tensor')} that {'is' if len(absent) == 1 else 'are'} "
            f"not there: {some}",
            hint="the folder holds files of several saves: save the checkpoint again",
        )
