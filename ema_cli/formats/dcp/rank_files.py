"""Folders in which every rank saved its pieces as a safetensors file (``HuggingFaceStorageWriter``).

The files are called ``shard-00001-model-00001-of-00002.safetensors``: the first number is the rank's. A tensor is as
large as its pieces reach, and they must tile it. Source: ``torch/distributed/checkpoint/hf_storage.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import add

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.piece_header import SHARDING_INFO, is_shard_of_a_rank, origins
from ema_cli.formats.dcp.tiling import check_tiling
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import beside, joint_digest
from ema_cli.formats.model_files import find_companions
from ema_cli.formats.safetensors import read_safetensors
from ema_cli.formats.structure import Structure
from ema_cli.formats.wording import refusal_of
from ema_cli.storage.extents import LayoutPool, Part, TensorLayout
from ema_cli.text import plural, quoted, shortlist


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    number: int
    """Of the opened file."""
    structure: Structure
    origins: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A rectangle of a tensor in one of the shards."""

    origin: tuple[int, ...]
    layout: TensorLayout
    shard: int
    position: int
    """Among the tensors of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merged:
    """What checkpoints of equal structure have in common."""

    layouts: tuple[TensorLayout, ...]
    pieces: tuple[_Piece, ...]
    """Of all tensors, in their order."""


def is_sharded_safetensors(folder: Folder) -> bool:
    """Whether ranks saved their pieces here."""
    return any(map(is_shard_of_a_rank, folder.files))


def read_sharded_safetensors(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read the structure of a folder of such files.

    Args:
        folder: the folder, with or without an index.
        key: must be ``None``: the tensors are not nested.
        pool: where layouts are shared between the checkpoints of a run.

    Raises:
        InputRefused: a file cannot be used, or the pieces do not fit together.

    """
    if key is not None:
        raise InputRefused("holds safetensors files, whose tensors are not nested: --key does not apply")
    names = sorted(filter(is_shard_of_a_rank, folder.files))
    shards = [_read_shard(folder, name, pool.branch(name)) for name in names]
    digest = joint_digest(shard.structure.digest for shard in shards)
    merged = pool.remember(("pieces", digest), lambda: _merge(shards))
    companions = find_companions(folder.files)
    return Structure(
        format=f"safetensors, pieces in {plural(len(shards), 'file')}",
        layouts=merged.layouts,
        offsets=tuple(shards[piece.shard].structure.offsets[piece.position] for piece in merged.pieces),
        files=tuple(shards[piece.shard].number for piece in merged.pieces),
        digest=digest,
        unreadable=tuple({name: why for shard in shards for name, why in shard.structure.unreadable}.items()),
        metadata={key: text for key, text in (shards[0].structure.metadata or {}).items() if key != SHARDING_INFO},
        companions=companions,
        ignored=beside(folder, companions),
    )


def _read_shard(folder: Folder, name: str, pool: LayoutPool) -> _Shard:
    number = folder.open(name)
    try:
        structure = read_safetensors(folder.sources[number], pool)
        return _Shard(number=number, structure=structure, origins=origins(structure))
    except InputRefused as refused:
        raise refusal_of(name, refused) from refused


def _merge(shards: list[_Shard]) -> _Merged:
    """Put the pieces of each tensor together, in the order in which the tensors first appear."""
    pieces: dict[str, list[_Piece]] = {}
    for piece in _pieces(shards):
        pieces.setdefault(piece.layout.name, []).append(piece)
    layouts, ordered, faults = [], [], list[str]()
    for name, found in pieces.items():
        try:
            layout, solid = _join(found)
        except InputRefused as refused:
            faults.append(f"tensor {quoted(name)} {refused.message}")
        else:
            layouts.append(layout)
            ordered.extend(solid)
    if faults:
        raise InputRefused(shortlist(faults), hint="does the folder hold the files of all ranks, and of one save?")
    return _Merged(layouts=tuple(layouts), pieces=tuple(ordered))


def _pieces(shards: list[_Shard]) -> Iterator[_Piece]:
    for number, shard in enumerate(shards):
        for position, layout in enumerate(shard.structure.layouts):
            origin = shard.origins.get(layout.name, (0,) * len(layout.shape))
            yield _Piece(origin=origin, layout=layout, shard=number, position=position)


def _join(pieces: list[_Piece]) -> tuple[TensorLayout, list[_Piece]]:
    """Return the whole tensor, and the pieces of it that have elements, or one that has none."""
    first = pieces[0].layout
    if any(len(piece.origin) != len(first.shape) or len(piece.layout.shape) != len(first.shape) for piece in pieces):
        raise InputRefused("has pieces of different dimensions")
    if any(piece.layout.dtype != first.dtype for piece in pieces):
        raise InputRefused("has pieces of different types")
    ends = (map(add, piece.origin, piece.layout.shape) for piece in pieces)
    shape = tuple(map(max, zip(*ends, strict=True)))
    check_tiling(shape, [(piece.origin, piece.layout.shape) for piece in pieces])
    solid = sorted((piece for piece in pieces if piece.layout.elements), key=lambda piece: piece.origin) or pieces[:1]
    parts = tuple(Part(origin=piece.origin, shape=piece.layout.shape, strides=None) for piece in solid)
    whole = TensorLayout(
        name=first.name, dtype=first.dtype, shape=shape, strides=None, parts=parts if len(parts) > 1 else ()
    )
    return whole, solid
