"""Folders in which every rank saved its pieces as a safetensors file (``HuggingFaceStorageWriter``).

The files are called ``shard-00001-model-00001-of-00002.safetensors``; the first number is that of the rank. The shape
of a tensor follows from its pieces, which must tile it. Source: ``torch/distributed/checkpoint/hf_storage.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import add

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.dcp_names import is_shard_of_a_rank
from ema_cli.formats.dcp.piece_header import SHARDING_INFO, piece_origins
from ema_cli.formats.dcp.tiling import check_tiling
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import (
    Member,
    MergedTensors,
    find_side_files,
    joint_digest,
    merged_structure,
    read_member,
)
from ema_cli.formats.safetensors import read_safetensors
from ema_cli.formats.structure import Keys, Structure, refusal_of, refuse_keys
from ema_cli.record import record
from ema_cli.storage.extents import LayoutPool, Part, TensorLayout
from ema_cli.text import plural, quoted, shortlist


@record
class _RankPiece:
    """A rectangle of a tensor in the file of one rank."""

    origin: tuple[int, ...]
    """Index in the tensor of its first element."""
    layout: TensorLayout
    member: int
    position: int
    """Among the tensors of the file."""


def read_sharded_safetensors(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a folder of such files, with or without an index.

    Raises:
        InputRefused: there are ``keys``, a file cannot be used, or the pieces do not fit together.

    """
    if keys:
        raise refuse_keys("holds safetensors files: --key does not apply, as their tensors are not nested")
    names = sorted(filter(is_shard_of_a_rank, folder.files))
    members = [
        read_member(folder, name, (), pool.branch(name), read=lambda source, _, own: read_safetensors(source, own))
        for name in names
    ]
    digest = joint_digest(member.structure.digest for member in members)
    merged = pool.remember(("pieces", digest), lambda: _merge(members))
    form = f"safetensors, pieces in {plural(len(members), 'file')}"
    structure = merged_structure(members, merged, form=form, digest=digest)
    side_files = find_side_files(folder.files)
    return replace(
        structure,
        metadata={key: text for key, text in (structure.metadata or {}).items() if key != SHARDING_INFO},
        side_files=side_files,
        ignored=folder.others(side_files),
    )


def _merge(members: list[Member]) -> MergedTensors:
    """Join the pieces of each tensor, in the order in which the tensors first appear."""
    pieces: dict[str, list[_RankPiece]] = {}
    for piece in _pieces(members):
        pieces.setdefault(piece.layout.name, []).append(piece)
    layouts, ordered, faults = [], list[_RankPiece](), list[str]()
    for name, found in pieces.items():
        try:
            layout, solid = _join(found)
        except InputRefused as refused:
            faults.append(f"tensor {quoted(name)} {refused.message}")
        else:
            layouts.append(layout)
            ordered.extend(solid)
    if faults:
        raise InputRefused(
            shortlist(faults), hint="check that the folder holds the files of all ranks, and of a single save"
        )
    return MergedTensors(layouts=tuple(layouts), origins=tuple((piece.member, piece.position) for piece in ordered))


def _pieces(members: list[Member]) -> Iterator[_RankPiece]:
    for number, member in enumerate(members):
        try:
            origins = piece_origins(member.structure)
        except InputRefused as refused:
            raise refusal_of(member.name, refused) from refused
        for position, layout in enumerate(member.structure.layouts):
            origin = origins.get(layout.name, (0,) * len(layout.shape))
            yield _RankPiece(origin=origin, layout=layout, member=number, position=position)


def _join(pieces: list[_RankPiece]) -> tuple[TensorLayout, list[_RankPiece]]:
    """Return the whole tensor, and its pieces that have elements, or one piece if none has."""
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
