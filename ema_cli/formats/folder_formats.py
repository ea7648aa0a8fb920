"""Recognise a folder that is one checkpoint by the names in it, and read it as what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.folder import is_dcp, read_dcp
from ema_cli.formats.dcp.rank_files import is_sharded_safetensors, read_sharded_safetensors
from ema_cli.formats.deepspeed import is_deepspeed_folder, read_deepspeed
from ema_cli.formats.folder import Folder
from ema_cli.formats.huggingface.model_folder import is_model_folder, read_model_folder
from ema_cli.formats.huggingface.pipelines import is_pipeline, refuse_pipeline
from ema_cli.formats.huggingface.trainer import with_what_lies_beside
from ema_cli.formats.inside import folders_of_weights
from ema_cli.formats.megatron import is_megatron_folder, read_megatron
from ema_cli.formats.structure import Structure
from ema_cli.formats.wording import refusal_of
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import quoted, shortlist

Reader = Callable[[Folder, str | None, LayoutPool], Structure]
"""Reads the structure of a folder; the second argument is ``--key``."""
_MOST_TOLD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFormat:
    """A way in which a checkpoint is laid out in a folder."""

    recognise: Callable[[Folder], bool]
    """Whether a folder is of this format, complete or not, by the names in it and in its folders: nothing is opened."""
    read: Reader


def _read_inside(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read a checkpoint whose weights lie in a folder inside it."""
    names = folders_of_weights(folder)
    if len(names) > 1:
        raise InputRefused(f"holds several models: {shortlist(map(quoted, names))}", hint="name the folder of one")
    try:
        structure = read_folder(folder.inside(names[0]), key, pool)
    except InputRefused as refused:
        raise refusal_of(names[0], refused) from refused
    return with_what_lies_beside(folder, structure, pool, *names)


FORMATS: tuple[FolderFormat, ...] = (
    FolderFormat(recognise=is_dcp, read=read_dcp),
    FolderFormat(recognise=is_sharded_safetensors, read=read_sharded_safetensors),
    FolderFormat(recognise=is_model_folder, read=read_model_folder),
    FolderFormat(recognise=is_deepspeed_folder, read=read_deepspeed),
    FolderFormat(recognise=is_megatron_folder, read=read_megatron),
    FolderFormat(recognise=lambda folder: bool(folders_of_weights(folder)), read=_read_inside),
    FolderFormat(recognise=is_pipeline, read=refuse_pipeline),
)
"""In the order in which they are asked; the first that recognises a folder reads it."""


def format_of(folder: Folder) -> FolderFormat | None:
    """Return the format of a checkpoint folder, ``None`` if it is not one. Only names are looked at."""
    return next((known for known in FORMATS if known.recognise(folder)), None)


def read_folder(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint folder; its files stay open in ``folder.sources``.

    Raises:
        InputRefused: it is not a checkpoint, or cannot be used.

    """
    known = format_of(folder)
    if known is None:
        raise InputRefused(f"is a folder, but not one that is a checkpoint: {_told(folder)}")
    return known.read(folder, key, pool)


def _told(folder: Folder) -> str:
    """Say what lies in a folder."""
    names = [*sorted(folder.files), *(f"{name}/" for name in sorted(folder.folders))]
    return f"it holds {shortlist(map(quoted, names), most=_MOST_TOLD)}" if names else "it is empty"
