"""Folders of torch.distributed.checkpoint (DCP), as FSDP, tensor-parallel and many other trainers save.

A folder holds ``.metadata``, which is written last, and files ``__<rank>_<number>.distcp``. A tensor lies in one
chunk or in several, wherever the ranks that had a part of it saved that; no process group is needed to read them.
Reference: ``torch/distributed/checkpoint/filesystem.py``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.chunks import Chunks
from ema_cli.formats.dcp.data_files import Files
from ema_cli.formats.dcp.metadata import parse_metadata
from ema_cli.formats.dcp.placing import Placing
from ema_cli.formats.dcp.saved_step import read_dcp_steps
from ema_cli.formats.dcp.saved_tree import Chosen, choose
from ema_cli.formats.dcp.signature import signature
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import beside
from ema_cli.formats.model_files import find_companions
from ema_cli.formats.structure import Structure
from ema_cli.storage.extents import LayoutPool

METADATA = ".metadata"
_DATA_SUFFIX = ".distcp"
_OF_ONE_RANK = re.compile(r"__\d+\.metadata")
_LARGEST_METADATA = 1 << 27


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What checkpoints with equal metadata have in common."""

    chosen: Chosen
    chunks: Chunks = field(default_factory=Chunks)


def is_dcp(folder: Folder) -> bool:
    """Whether a folder was saved by torch.distributed.checkpoint, to the end or not."""
    return METADATA in folder.files or any(map(_is_data, folder.files))


def read_dcp(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read the structure of a DCP folder; equal metadata are parsed once per ``pool``.

    Args:
        folder: the folder; the files that hold weights stay open in it.
        key: dotted path to the weights; ``None`` to find them.
        pool: where layouts are shared between the checkpoints of a run.

    Raises:
        UsageError: there is nothing under ``key``.
        InputRefused: the save is incomplete, of an unknown kind, or does not fit together.

    """
    _refuse_unfinished(folder)
    raw = folder.read(METADATA, most=_LARGEST_METADATA)
    known = pool.remember(("dcp", signature(raw), key), lambda: _Known(chosen=choose(parse_metadata(raw), key)))
    files = Files(folder, known.chosen.files, known.chosen.ends)
    placing = Placing(files, known.chunks)
    placing.announce(known.chosen.tensors.values())
    for name, tensor in known.chosen.tensors.items():
        placing.add(name, tensor)
    placing.raise_faults()
    companions = find_companions(folder.files)
    return Structure(
        format="DCP",
        layouts=tuple(placing.layouts),
        offsets=tuple(placing.offsets),
        files=tuple(placing.files),
        records=placing.checksums(),
        unreadable=tuple(placing.unreadable),
        digest=hashlib.sha256(raw).digest(),
        key=known.chosen.key,
        steps=read_dcp_steps(known.chosen.counters, files),
        ignored=(*known.chosen.ignored, *beside(folder, [*companions, *filter(_is_data, folder.files)])),
        notes=known.chosen.notes,
        companions=companions,
    )


def _is_data(name: str) -> bool:
    return name.endswith(_DATA_SUFFIX)


def _refuse_unfinished(folder: Folder) -> None:
    if METADATA in folder.files:
        return
    if any(map(_OF_ONE_RANK.fullmatch, folder.files)):
        raise InputRefused(
            "holds the metadata of single ranks only: they saved it without telling each other",
            hint="save with use_collectives=True, so that there is one .metadata for all ranks",
        )
    raise InputRefused(
        "has no .metadata, which is written last: the save did not finish, or the copy left hidden files out",
        hint="leave it out, or fetch it again",
    )
