"""The formats of checkpoint folders: a folder is recognized by the names in it, and read by its format."""

from __future__ import annotations

from collections.abc import Callable

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.dcp_names import is_dcp, is_sharded_safetensors
from ema_cli.formats.deepspeed.rank_names import is_deepspeed_folder
from ema_cli.formats.file_names import TRAINER_STATE
from ema_cli.formats.folder import Folder
from ema_cli.formats.foreign_folders import is_foreign_folder, refuse_foreign_folder
from ema_cli.formats.huggingface.model_folder import is_model_folder, is_pipeline, read_model_folder, refuse_pipeline
from ema_cli.formats.huggingface.trainer_files import add_trainer_files
from ema_cli.formats.megatron import is_megatron_folder, read_megatron
from ema_cli.formats.structure import Keys, Structure, refusal_of
from ema_cli.formats.torch_ranks.rank_file_names import is_torch_ranks
from ema_cli.record import record
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import quoted, regex, shortlist

Reader = Callable[[Folder, Keys, LayoutPool], Structure]
"""Reads the structure of a folder; its files stay open in it. The second argument is ``--key``."""
_MOST_NAMES = 4
_FSDP = regex(r"pytorch_model_fsdp_[0-9]+")
_DEEPSPEED = regex(r"global_step[0-9]+|pytorch_model")


@record
class FolderFormat:
    """One layout of a checkpoint in a folder."""

    recognize: Callable[[Folder], bool]
    """Whether a folder is of this format, complete or not, judged by names alone; nothing is opened."""
    read: Reader


def folders_of_weights(folder: Folder) -> list[str]:
    """Return the names of the folders inside a trainer's checkpoint that hold the weights; empty if it is not one.

    With FSDP the weights are a folder of ``torch.distributed.checkpoint``, with DeepSpeed a folder of DeepSpeed. A
    trainer puts its own state beside that folder; DeepSpeed, saving a whole run, does not. References:
    ``accelerate/utils/fsdp_utils.py``, ``Accelerator.save_state``, ``transformers/trainer.py``.
    """
    fsdp = sorted(name for name in folder.folders if _FSDP.fullmatch(name))
    if fsdp or not any(TRAINER_STATE.search(name) for name in folder.files):
        return fsdp
    named = sorted(name for name in folder.folders if _DEEPSPEED.fullmatch(name))
    return [name for name in named if is_deepspeed_folder(folder.inside(name))]


def _read_dcp(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    from ema_cli.formats.dcp.folder import read_dcp  # noqa: PLC0415 - ten modules, for this format alone

    return read_dcp(folder, keys, pool)


def _read_rank_files(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    from ema_cli.formats.dcp.rank_files import read_sharded_safetensors  # noqa: PLC0415

    return read_sharded_safetensors(folder, keys, pool)


def _read_deepspeed(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    from ema_cli.formats.deepspeed.folder import read_deepspeed  # noqa: PLC0415

    return read_deepspeed(folder, keys, pool)


def _read_torch_ranks(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    from ema_cli.formats.torch_ranks.folder import read_torch_ranks  # noqa: PLC0415

    return read_torch_ranks(folder, keys, pool)


def _read_inside(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read a checkpoint with its weights in a folder inside it."""
    names = folders_of_weights(folder)
    if len(names) > 1:
        raise InputRefused(
            f"holds several models: {shortlist(map(quoted, names))}", hint="name the folder of one of them"
        )
    try:
        structure = read_folder(folder.inside(names[0]), keys, pool)
    except InputRefused as refused:
        raise refusal_of(names[0], refused) from refused
    return add_trainer_files(folder, structure, pool, *names)


FORMATS: tuple[FolderFormat, ...] = (
    FolderFormat(recognize=is_dcp, read=_read_dcp),
    FolderFormat(recognize=is_sharded_safetensors, read=_read_rank_files),
    FolderFormat(recognize=is_model_folder, read=read_model_folder),
    FolderFormat(recognize=is_deepspeed_folder, read=_read_deepspeed),
    FolderFormat(recognize=is_megatron_folder, read=read_megatron),
    FolderFormat(recognize=is_torch_ranks, read=_read_torch_ranks),
    FolderFormat(recognize=lambda folder: bool(folders_of_weights(folder)), read=_read_inside),
    FolderFormat(recognize=is_pipeline, read=refuse_pipeline),
    FolderFormat(recognize=is_foreign_folder, read=refuse_foreign_folder),
)
"""In this order; the first format that recognizes a folder reads it."""


def format_of(folder: Folder) -> FolderFormat | None:
    """Return the format of a checkpoint folder; ``None`` if it is not a checkpoint. Only names are examined."""
    return next((known for known in FORMATS if known.recognize(folder)), None)


def read_folder(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint folder; its files stay open in ``folder.sources``.

    Raises:
        InputRefused: it is not a checkpoint, or cannot be used.

    """
    known = format_of(folder)
    if known is None:
        raise InputRefused(f"is a folder, but not a checkpoint: {contents_of(folder)}")
    return known.read(folder, keys, pool)


def contents_of(folder: Folder) -> str:
    """Return what a folder that is no checkpoint has inside, in words."""
    names = [*sorted(folder.files), *(f"{name}/" for name in sorted(folder.folders))]
    return f"it contains {shortlist(map(quoted, names), most=_MOST_NAMES)}" if names else "it is empty"
