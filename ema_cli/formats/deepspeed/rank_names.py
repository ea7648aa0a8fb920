"""The names of the files in a checkpoint folder of DeepSpeed, and the ranks in them.

Up to ZeRO stage 2 ``mp_rank_00_model_states.pt`` has the model; at stage 3 each rank has model states of its own,
``zero_pp_rank_1_mp_rank_00_model_states.pt``. ``zero_pp_rank_1_mp_rank_00_optim_states.pt`` has the partition of a
rank, with ``bf16_`` or ``fp16_`` in front in some versions.
Reference: ``deepspeed/runtime/engine.py`` (``_get_ckpt_name``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.name_numbers import MOST_DIGITS
from ema_cli.record import record
from ema_cli.text import plural, quoted, regex, shortlist

_MODEL_STATES = regex(r"(?:zero_pp_rank_(?P<rank>[0-9]+)_)?mp_rank_(?P<model>[0-9]+(?:_[0-9]+)*)_model_states\.pt")
_OPTIMIZER_STATES = regex(
    r"(?:(?:bf16|fp16)_)?zero_pp_rank_(?P<rank>[0-9]+)_mp_rank_(?P<model>[0-9]+(?:_[0-9]+)*)_optim_states\.pt"
)
_STAGES = regex(r"layer_[0-9]+-model_(?:[0-9]+-model_)?states\.pt")
_EXPERTS = regex(r"(?:layer_[0-9]+_)?expert_[0-9]+_mp_rank_[0-9]+_model_states\.pt")


def is_deepspeed_folder(folder: Folder) -> bool:
    """Whether a folder has model states of DeepSpeed, or of the layers of a pipeline."""
    return any(_MODEL_STATES.fullmatch(name) or _STAGES.fullmatch(name) for name in folder.files)


def is_pipeline_layer(name: str) -> bool:
    """Whether a file is called like one layer of a pipeline-parallel model."""
    return _STAGES.fullmatch(name) is not None


@record
class RankNames:
    """The files of a checkpoint by their ranks."""

    model: str
    """The only file with the model, which every rank has; empty if each rank has model states of its own."""
    model_states: Mapping[int, str]
    """The model states by rank, of ZeRO stage 3."""
    optimizer_states: Mapping[int, str]


def find_ranks(folder: Folder) -> RankNames:
    """Return the files of a checkpoint that is not split by model parallelism.

    Raises:
        InputRefused: it is, or there are several files of a rank.

    """
    _refuse_other_splits(folder)
    model_states = _by_rank(folder, _MODEL_STATES)
    model = model_states.pop(-1, "")
    if model and model_states:
        split = quoted(next(iter(model_states.values())))
        raise InputRefused(
            f"holds two saves: {quoted(model)} is of ZeRO stage 2 or lower, {split} of stage 3",
            hint="remove the files of the older save",
        )
    return RankNames(model=model, model_states=model_states, optimizer_states=_by_rank(folder, _OPTIMIZER_STATES))


def _refuse_other_splits(folder: Folder) -> None:
    """Refuse the stages of a pipeline, experts, and parts of model parallelism."""
    if any(_STAGES.fullmatch(name) for name in folder.files):
        raise InputRefused(
            "is split by pipeline parallelism (layer_*-model_states.pt), and the stages cannot be joined here"
        )
    experts = sorted(filter(_EXPERTS.fullmatch, folder.files))
    if experts:
        raise InputRefused(
            f"has experts in files of their own, which cannot be joined here: {shortlist(map(quoted, experts))}",
            hint="join them first, with ds_to_universal.py or the script of the training framework",
        )
    names = [name for name in folder.files if _MODEL_STATES.fullmatch(name)]
    ranks = {found["model"] for name in folder.files if (found := _matched(name))}
    if len(ranks) > 1:
        raise InputRefused(
            f"is split into {plural(len(ranks), 'part')} by model parallelism: {shortlist(map(quoted, sorted(names)))}",
            hint="merge the parts first, with ds_to_universal.py or the script of the training framework",
        )


def _matched(name: str) -> re.Match[str] | None:
    return _MODEL_STATES.fullmatch(name) or _OPTIMIZER_STATES.fullmatch(name)


def _by_rank(folder: Folder, pattern: re.Pattern[str]) -> dict[int, str]:
    """Return the files of a kind by rank, in order; -1 is the rank of a file without one."""
    found: dict[int, str] = {}
    for name in sorted(folder.files):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        digits = match["rank"] or "-1"
        if len(digits) > MOST_DIGITS:
            raise InputRefused(f"has a file of a rank that is too large: {quoted(name)}")
        first = found.setdefault(int(digits), name)
        if first != name:
            raise InputRefused(
                f"holds two files of rank {int(digits)}: {quoted(first)} and {quoted(name)}",
                hint="remove the files of the older save",
            )
    return dict(sorted(found.items()))
