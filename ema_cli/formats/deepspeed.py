"""A DeepSpeed checkpoint: ``global_step500/mp_rank_00_model_states.pt``, with the optimizer's state beside it.

Up to ZeRO stage 2 every rank has the whole model, and one file holds it under ``module``. Stage 3 cuts every parameter
into as many pieces as there are ranks; DeepSpeed puts a script beside the checkpoint that joins them.
Reference: ``deepspeed/runtime/engine.py`` (``_save_checkpoint``) and ``deepspeed/utils/zero_to_fp32.py``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import beside, read_only_member
from ema_cli.formats.structure import Structure
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, names_in
from ema_cli.text import plural, quoted, shortlist

_MODEL_STATES = re.compile(r"(zero_pp_rank_[0-9]+_)?mp_rank_[0-9]+(?:_[0-9]+)*_model_states\.pt")
_STAGES = re.compile(r"layer_[0-9]+-model_(?:[0-9]+-model_)?states\.pt")
_SCRIPT = "zero_to_fp32.py"


def is_deepspeed_folder(folder: Folder) -> bool:
    """Whether model states of DeepSpeed lie in a folder."""
    return any(_MODEL_STATES.fullmatch(name) for name in folder.files)


def read_deepspeed(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read the weights of a checkpoint of ZeRO stage 0, 1 or 2.

    Raises:
        InputRefused: the model lies in several files, or it is not there.

    """
    states = sorted(name for name in folder.files if _MODEL_STATES.fullmatch(name))
    if any(name.startswith("zero_pp_rank_") for name in states):
        raise _stage_3(folder.location)
    if any(_STAGES.fullmatch(name) for name in folder.files):
        raise InputRefused("is cut into the stages of a pipeline (layer_*-model_states.pt), which are not joined")
    if len(states) > 1:
        raise InputRefused(
            f"is cut into {plural(len(states), 'part')} by model parallelism: {shortlist(map(quoted, states))}",
            hint="convert it to one part first, with ds_to_universal.py or the script of the training framework",
        )
    try:
        structure = read_only_member(folder, states[0], "module" if key is None else key, pool)
    except UsageError as error:
        if key is not None:
            raise
        raise InputRefused(f'{quoted(states[0])} holds no tensors under "module"', hint=error.hint) from error
    if _is_placeholders(structure):
        raise _stage_3(folder.location)
    return replace(structure, ignored=(*structure.ignored, *beside(folder, [])))


def _is_placeholders(structure: Structure) -> bool:
    """Whether most tensors are empty: ZeRO stage 3 leaves those in place of the parameters."""
    return 2 * sum(layout.shape == (0,) for layout in structure.layouts) > len(structure.layouts)


def _stage_3(location: Location) -> InputRefused:
    """Return the refusal of a checkpoint whose parameters are cut, with the command that joins them."""
    parent = location.parent
    try:
        there = [folder for folder in (parent, location) if _SCRIPT in names_in(folder)]
    except OSError:
        there = []
    message = "is a checkpoint of ZeRO stage 3, whose parameters are cut into one piece per rank"
    joined = parent / f"{location.name}_joined"
    tag = f"{shlex.quote(str(parent))} {shlex.quote(str(joined))} -t {shlex.quote(location.name)} --safe_serialization"
    if there:
        script = shlex.quote(str(there[0] / _SCRIPT))
        return InputRefused(message, hint=f"join them with the script that lies there: python {script} {tag}")
    hint = f"{_SCRIPT}, which DeepSpeed puts beside its checkpoints, is not there; it is a module, too"
    return InputRefused(message, hint=f"{hint}: python -m deepspeed.utils.zero_to_fp32 {tag}")
