"""A DeepSpeed checkpoint: ``global_step500/mp_rank_00_model_states.pt``, with the optimizer's state beside it.

Up to ZeRO stage 2 every rank has the whole model, and one file holds it under ``module``. Stage 3 splits every
parameter over the ranks; DeepSpeed puts a script beside the checkpoint that joins them.
Reference: ``deepspeed/runtime/engine.py`` (``_save_checkpoint``) and ``deepspeed/utils/zero_to_fp32.py``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import read_only_member
from ema_cli.formats.structure import Keys, Structure
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, names_in
from ema_cli.text import plural, quoted, shortlist

_MODEL_STATES = re.compile(r"(zero_pp_rank_[0-9]+_)?mp_rank_[0-9]+(?:_[0-9]+)*_model_states\.pt")
_STAGES = re.compile(r"layer_[0-9]+-model_(?:[0-9]+-model_)?states\.pt")
_MODULE = "module"
_SCRIPT = "zero_to_fp32.py"


def is_deepspeed_folder(folder: Folder) -> bool:
    """Whether a folder has model states of DeepSpeed, or of the layers of a pipeline."""
    return any(_MODEL_STATES.fullmatch(name) or _STAGES.fullmatch(name) for name in folder.files)


def is_pipeline_layer(name: str) -> bool:
    """Whether a file is called like one layer of a pipeline-parallel model."""
    return _STAGES.fullmatch(name) is not None


def read_deepspeed(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the weights of a checkpoint of ZeRO stage 0, 1 or 2.

    Raises:
        InputRefused: the model is split over several files, or not there.

    """
    states = sorted(name for name in folder.files if _MODEL_STATES.fullmatch(name))
    if any(name.startswith("zero_pp_rank_") for name in states):
        raise _stage_3(folder.location)
    if any(_STAGES.fullmatch(name) for name in folder.files):
        raise InputRefused(
            "is split by pipeline parallelism (layer_*-model_states.pt), and the stages cannot be joined here"
        )
    if len(states) > 1:
        raise InputRefused(
            f"is split into {plural(len(states), 'part')} by model parallelism: {shortlist(map(quoted, states))}",
            hint="merge the parts first, with ds_to_universal.py or the script of the training framework",
        )
    try:
        structure = _read_module(folder, states[0], keys, pool)
    except UsageError as error:
        if keys:
            raise
        raise InputRefused(f'{quoted(states[0])} has no tensors under "module"', hint=error.hint) from error
    if _is_placeholders(structure):
        raise _stage_3(folder.location)
    return replace(structure, ignored=(*structure.ignored, *folder.others([])))


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


def _stage_3(location: Location) -> InputRefused:
    """Return the refusal of a checkpoint with split parameters, with the command that joins them."""
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
    return InputRefused(message, hint=f"join the parameters first: python {script} {arguments}")
