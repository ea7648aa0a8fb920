"""A model in several files (shards), with or without an index of the file of each tensor.

The index is ``{"metadata": {...}, "weight_map": {tensor: file}}``; reference: ``huggingface_hub.serialization``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ema_cli.errors import InputRefused, RunWarning
from ema_cli.formats.file_names import parse_shard_name
from ema_cli.formats.folder import Folder
from ema_cli.formats.huggingface.weight_names import Weights
from ema_cli.formats.members import Member, MergedTensors, joint_digest, merged_structure, read_json, read_member
from ema_cli.formats.state_dict.leaves_among import WEIGHTS_DROPPED
from ema_cli.formats.structure import Keys, Structure
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted, shortlist


def read_shards(folder: Folder, weights: Weights, keys: Keys, pool: LayoutPool) -> Structure:
    """Read a model in several files.

    Raises:
        InputRefused: a shard is missing or cannot be used, or the shards contradict the index.

    """
    index, digest = _read_index(folder, weights.index, pool) if weights.index else ({}, b"")
    if not weights.index:
        _refuse_incomplete(weights.files)
    names = tuple(dict.fromkeys(index.values())) or weights.files
    shards = [read_member(folder, name, keys, pool.branch(name)) for name in names]
    digests = [digest, *(one.structure.digest for one in shards)]
    merged = pool.remember(("shards", *digests, keys), lambda: _merge(shards, index, weights.index))
    form = f"{shards[0].structure.format}, {plural(len(shards), 'shard')}"
    structure = merged_structure(shards, merged, form=form, digest=joint_digest(digests))
    return replace(
        structure,
        dropped=(*structure.dropped, *_warn_of_unnamed(folder, names, weights.index)),
        steps=shards[0].structure.steps,
        ignored=(*merged.dropped, *(name for one in shards for name in one.structure.ignored)),
        warnings=_warnings(merged.dropped, weights.index),
    )


def _warn_of_unnamed(folder: Folder, names: Sequence[str], index: str) -> Iterator[RunWarning]:
    """Yield a warning if an index names fewer shards than their names count: it is of another save, or was edited."""
    named = {name: found.shard_set for name in names if (found := parse_shard_name(name)) is not None}
    for shard_set in dict.fromkeys(named.values() if index else ()):
        have, count = list(named.values()).count(shard_set), shard_set[1]
        if have >= count:
            continue
        beside = [name for name in sorted(folder.files) if name not in named and _is_of(name, shard_set)]
        rest = f"the tensors of {shortlist(map(quoted, beside))}" if beside else "those of the other shards"
        yield RunWarning(
            code=WEIGHTS_DROPPED,
            message=f"{quoted(index)} names {have:,} of {plural(count, 'shard')}; {rest} are not in the output",
            hint="save the checkpoint again, or correct the weight_map of the index",
        )


def _is_of(name: str, shard_set: tuple[str, int, str]) -> bool:
    found = parse_shard_name(name)
    return found is not None and found.shard_set == shard_set


def _warnings(unmapped: Sequence[str], index: str) -> tuple[str, ...]:
    if not unmapped:
        return ()
    some = shortlist(map(quoted, unmapped))
    verb = "is" if len(unmapped) == 1 else "are"
    return (f"{plural(len(unmapped), 'tensor')} of the shards {verb} not in {quoted(index)}, and ignored: {some}",)


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
        raise InputRefused(f"{quoted(name)} refers to {some}, but shards must be in the folder of their index")
    missing = [file for file in files if file not in folder.files]
    if missing:
        some = shortlist(map(quoted, missing))
        raise InputRefused(
            f"is incomplete: {len(missing):,} of {plural(len(files), 'file')} in {quoted(name)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {some}"
        )
    return index, digest


def _refuse_incomplete(names: Sequence[str]) -> None:
    """Refuse an incomplete set of shards without an index, judged by the counts in their names."""
    found = [one for one in map(parse_shard_name, names) if one is not None]
    count = found[0].count
    numbers = sorted(one.number for one in found)
    if numbers not in (list(range(1, count + 1)), list(range(count))):
        raise InputRefused(
            f"is incomplete: it has {len(names):,} of {plural(count, 'shard')} and no index: "
            f"{shortlist(map(quoted, names))}"
        )


def _merge(shards: Sequence[Member], index: Mapping[str, str], index_name: str) -> MergedTensors:
    """Put the tensors of all shards into one order, by shard."""
    found: dict[str, tuple[int, int]] = {}
    twice: dict[str, str] = {}
    unmapped: list[str] = []
    for which, one in enumerate(shards):
        for position, layout in enumerate(one.structure.layouts):
            if index and index.get(layout.name) != one.name:
                unmapped.append(layout.name)
            elif layout.name in found:
                twice.setdefault(layout.name, f"{quoted(shards[found[layout.name][0]].name)} and {quoted(one.name)}")
            else:
                found[layout.name] = which, position
    if twice:
        name, shards_of_it = next(iter(twice.items()))
        raise InputRefused(
            f"holds {plural(len(twice), 'tensor')} in two shards or more, and has no index, such as {quoted(name)} in "
            f"{shards_of_it}",
            hint="the index, *.index.json, says which are right: copy it too, or save the model again; if the files "
            "are checkpoints of their own, give them names without -of-",
        )
    _refuse_absent(shards, index, index_name, found)
    return MergedTensors(
        layouts=tuple(shards[which].structure.layouts[position] for which, position in found.values()),
        origins=tuple(found.values()),
        dropped=tuple(unmapped),
    )


def _refuse_absent(
    shards: Sequence[Member], index: Mapping[str, str], index_name: str, found: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse an index with tensors that their files do not hold."""
    unreadable = {name for one in shards for name, _ in one.structure.unreadable}
    known = unreadable.union(*(one.structure.ignored for one in shards))
    absent = [name for name in index if name not in found and name not in known]
    if absent:
        some = shortlist(f"{quoted(name)} in {quoted(index[name])}" for name in absent)
        raise InputRefused(
            f"{plural(len(absent), 'tensor')} of {quoted(index_name)} {'is' if len(absent) == 1 else 'are'} "
            f"missing from the shards: {some}",
            hint="the folder holds files of several saves: save the checkpoint again",
        )
