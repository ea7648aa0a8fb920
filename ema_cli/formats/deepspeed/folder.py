"""A DeepSpeed checkpoint: ``global_step500/mp_rank_00_model_states.pt``, with the optimizer's state beside it.

Up to ZeRO stage 2 every rank has the whole model, and one file holds it under ``module``; the optimizer states of the
ranks have float32 partitions of the same weights, which ``--key fp32`` takes. Stage 3 splits every parameter over the
ranks, and has the weights in these partitions alone. A universal checkpoint has one file per parameter.
Reference: ``deepspeed/runtime/engine.py`` (``_save_checkpoint``) and ``deepspeed/utils/zero_to_fp32.py``.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.deepspeed.partitioned_weights import NoPartitions, read_partitioned, read_universal
from ema_cli.formats.deepspeed.rank_names import RankNames, find_ranks
from ema_cli.formats.deepspeed.universal import is_universal
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import read_only_member
from ema_cli.formats.structure import Keys, Structure
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, names_in
from ema_cli.text import plural, quoted

_MODULE = "module"
_FLOAT32 = "fp32"
_SCRIPT = "zero_to_fp32.py"


def read_deepspeed(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the weights of a checkpoint: the model, or the float32 partitions of the ranks.

    Raises:
        InputRefused: the model is split in a way that cannot be joined, incomplete, or not there.

    """
    ranks = find_ranks(folder)
    if is_universal(folder) and keys in ((), (_FLOAT32,)):
        structure = read_universal(folder, ranks, pool)
    elif keys == (_FLOAT32,) or (ranks.model_states and not keys):
        structure = _read_partitions(folder, ranks, pool)
    else:
        structure = _read_model(folder, ranks, keys, pool)
    return replace(structure, ignored=(*structure.ignored, *folder.others([])))


def _read_model(folder: Folder, ranks: RankNames, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the model that one file has; at stage 3 only what the user names with ``keys``."""
    name = ranks.model or next(iter(ranks.model_states.values()))
    try:
        structure = _read_module(folder, name, keys, pool)
    except UsageError as error:
        if keys:
            raise
        raise InputRefused(f'{quoted(name)} has no tensors under "module"', hint=error.hint) from error
    if _is_placeholders(structure):
        raise _stage_3(folder.location)
    if structure.key != _MODULE or not ranks.optimizer_states:
        return structure
    held = f"float32 partitions in {plural(len(ranks.optimizer_states), 'file')} of optimizer states"
    others = sorted({one.dtype.torch_name for one in structure.layouts if one.dtype.averaged} - {"float32"})
    choice = (f'the weights are those of "module", in {" and ".join(others)}; --key fp32 takes the {held}',)
    return replace(structure, choice=(*structure.choice, *(choice if others else ())))


def _read_module(folder: Folder, name: str, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the weights of a rank's file: those under its own ``module``, whatever a trainer put beside it."""
    try:
        structure = read_only_member(folder, name, keys, pool)
    except InputRefused:
        if keys:
            raise
    else:
        if keys or structure.key == _MODULE:
            return structure
    return read_only_member(folder, name, (_MODULE,), pool)


def _is_placeholders(structure: Structure) -> bool:
    """Whether most tensors are empty: ZeRO stage 3 leaves such placeholders for the parameters."""
    return 2 * sum(layout.shape == (0,) for layout in structure.layouts) > len(structure.layouts)


def _read_partitions(folder: Folder, ranks: RankNames, pool: LayoutPool) -> Structure:
    try:
        return read_partitioned(folder, ranks, pool)
    except NoPartitions as refused:
        if ranks.model:
            raise
        raise _stage_3(folder.location, refused.message) from refused


def _stage_3(location: Location, reason: str = "") -> InputRefused:
    """Return the refusal of a checkpoint whose weights are not there, with the command that joins them elsewhere."""
    parent = location.parent
    try:
        homes = [folder for folder in (parent, location) if _SCRIPT in names_in(folder)]
    except OSError:
        homes = []
    message = "is a checkpoint of ZeRO stage 3, which splits every parameter over the ranks"
    joined = parent / f"{location.name}_joined"
    arguments = (
        f"{shlex.quote(str(parent))} {shlex.quote(str(joined))} -t {shlex.quote(location.name)} --safe_serialization"
    )
    script = shlex.quote(str(homes[0] / _SCRIPT)) if homes else "-m deepspeed.utils.zero_to_fp32"
    return InputRefused(
        f"{message}, and {reason or 'this file has only placeholders'}",
        hint=f"copy the files of all ranks, or join the parameters where they are: python {script} {arguments}",
    )
