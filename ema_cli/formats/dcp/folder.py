"""Folders of torch.distributed.checkpoint (DCP), as FSDP, tensor-parallel and many other trainers save.

A folder holds ``.metadata``, which is written last, and files ``__<rank>_<number>.distcp``. A tensor is in one chunk
or in several, as the ranks that had a part of it saved that part; no process group is needed to read them.
Reference: ``torch/distributed/checkpoint/filesystem.py``.
"""

from __future__ import annotations

import hashlib
import pickle  # for the names of the opcodes only: nothing is ever unpickled
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import field

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.chunks import ChunkReader, open_archive
from ema_cli.formats.dcp.data_files import DataFiles
from ema_cli.formats.dcp.dcp_names import METADATA, is_data
from ema_cli.formats.dcp.metadata import parse_metadata
from ema_cli.formats.dcp.placing import Placing
from ema_cli.formats.dcp.saved_items import ByteRange, TreePath
from ema_cli.formats.dcp.saved_tree import ChosenItems, choose
from ema_cli.formats.folder import Folder
from ema_cli.formats.inert_pickle.values import Inert
from ema_cli.formats.members import find_side_files
from ema_cli.formats.state_dict.flat_parameters import warn_of_flat
from ema_cli.formats.state_dict.leaves_among import warn_of_leaves
from ema_cli.formats.state_dict.step_keys import INSIDE, KEYS
from ema_cli.formats.state_dict.steps import read_steps
from ema_cli.formats.structure import Keys, Structure
from ema_cli.formats.weights_beside import add_weights_beside
from ema_cli.record import record
from ema_cli.records.series import FoundStep
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import regex

_RANK_METADATA = regex(r"__\d+\.metadata")
_LARGEST_METADATA = 1 << 27
_SAVE_NAMES = regex(rb"checkpoint_id.{1,4096}?save_id.{1,8}?[0-9a-f-]{36}", re.DOTALL)
"""The fields of ``StorageMeta`` in ``torch/distributed/checkpoint/metadata.py``: folder and random id of a save."""
_FRAME = pickle.FRAME
_FRAME_HEADER_BYTES = 9
_FIRST_FRAME = 2
"""After the opcode of the protocol."""


@record
class _SharedStructure:
    """The part of the structure that checkpoints with equal metadata share."""

    chosen: ChosenItems
    chunks: ChunkReader = field(default_factory=ChunkReader)


def read_dcp(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a DCP folder; equal metadata are parsed once per ``pool``.

    Raises:
        UsageError: there are no tensors under one of ``keys``.
        InputRefused: the save is incomplete, of an unknown kind, or inconsistent.

    """
    _refuse_unfinished(folder)
    raw = folder.read(METADATA, most=_LARGEST_METADATA)
    shared = pool.remember(
        ("dcp", items_digest(raw), keys), lambda: _SharedStructure(chosen=choose(parse_metadata(raw), keys))
    )
    chosen = shared.chosen
    files = DataFiles(folder, chosen.files)
    placing = Placing(files, shared.chunks)
    placing.announce(chosen.tensors.values())
    for name, tensor in chosen.tensors.items():
        placing.add(name, tensor)
    placing.raise_faults()
    side_files = find_side_files(folder.files)
    structure = Structure(
        format="DCP",
        layouts=tuple(placing.layouts),
        offsets=tuple(placing.offsets),
        files=tuple(placing.files),
        records=placing.checksums(),
        unreadable=tuple(placing.unreadable),
        digest=hashlib.sha256(raw).digest(),
        key=chosen.key,
        steps=_read_steps(chosen.counters, files),
        ignored=(*chosen.ignored, *folder.others([*side_files, *filter(is_data, folder.files)])),
        choice=chosen.choice,
        warnings=(*chosen.warnings, *warn_of_flat(chosen.tensors)),
        dropped=(*chosen.dropped, *warn_of_leaves(list(_read_objects(chosen.objects, files)))),
        side_files=side_files,
        paths=_paths_of_readable(chosen, placing),
    )
    return add_weights_beside(folder, structure)


def _paths_of_readable(chosen: ChosenItems, placing: Placing) -> tuple[TreePath, ...]:
    """Return the path of each tensor that was located: the same tuple for all checkpoints with equal metadata."""
    if not placing.unreadable:
        return chosen.paths
    paths = dict(zip(chosen.tensors, chosen.paths, strict=True))
    return tuple(paths[layout.name] for layout in placing.layouts)


def _refuse_unfinished(folder: Folder) -> None:
    if METADATA in folder.files:
        return
    if any(map(_RANK_METADATA.fullmatch, folder.files)):
        raise InputRefused(
            "has only the metadata of single ranks, which saved without coordination",
            hint="save with use_collectives=True, so that there is one .metadata for all ranks",
        )
    raise InputRefused(
        "has no .metadata, which is written last: the save did not finish, or a copy omitted hidden files",
        hint="copy it again, or name only the other checkpoints",
    )


def items_digest(raw: bytes) -> bytes:
    """Return a hash that is equal for the metadata of two saves that declare the same items.

    The metadata of the checkpoints of a run mostly differ only in two fields of no use to a reader, the folder and
    the random id of the save. Without those they are equal, and are parsed once: parsing 60,000 chunks takes three
    seconds, hashing them ten milliseconds. The headers of frames are skipped too: they cut a pickle up for reading,
    and the last one depends on the length of these fields.
    """
    content = b"".join(_unframed(raw))
    begin = content.rfind(b"checkpoint_id")
    found = _SAVE_NAMES.match(content, begin) if begin >= 0 else None
    if found is not None:
        content = content[: found.start()] + content[found.end() :]
    return hashlib.sha256(content).digest()


def _unframed(raw: bytes) -> list[bytes]:
    """Return the parts of a pickle between the headers of its frames."""
    parts, position = [raw[:_FIRST_FRAME]], _FIRST_FRAME
    while raw[position : position + 1] == _FRAME:
        begin = position + _FRAME_HEADER_BYTES
        position = begin + int.from_bytes(raw[position + 1 : begin], "little")
        parts.append(raw[begin:position])
    return [*parts, raw[position:]]


def _read_objects(objects: Mapping[str, ByteRange], files: DataFiles) -> Iterator[tuple[str, object]]:
    """Yield name and inert value of the objects that can be read."""
    for name, stored in objects.items():
        with suppress(InputRefused):
            yield name, open_archive(files.window(stored))[1]


def _read_steps(counters: Mapping[str, ByteRange], files: DataFiles) -> tuple[FoundStep, ...]:
    """Return the steps in the items that may hold one, best first: pickled objects, or tensors of one number.

    Raises:
        InputRefused: an item is damaged.

    """
    found: list[FoundStep] = []
    for path, stored in counters.items():
        window = files.window(stored)
        archive, value = open_archive(window)
        if isinstance(value, Inert) and isinstance(value.state, dict):
            value = value.state  # the attributes of an object such as a dataclass of the trainer
        found.extend(read_steps({path: value}, window, archive.storage))
    best = {f"{INSIDE}{key}": rank for rank, key in enumerate(KEYS)}
    return tuple(sorted(found, key=lambda step: best.get(step.source, len(best))))
