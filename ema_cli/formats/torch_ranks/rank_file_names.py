"""The names of files that the ranks of a training saved side by side; apart from their reader, which few folders need.

``rank_0.pt`` (torch), ``model_world_size_2_rank_0.pt`` (verl), ``pytorch_model_fsdp_rank0.bin`` (accelerate). The files
of one checkpoint differ in the number of the rank alone. A run may have the files of all its checkpoints in one folder
(``step_100_rank_0.pt``): then the file of rank 0 stands for the checkpoint. Sources:
``verl/utils/checkpoint/fsdp_checkpoint_manager.py``, ``accelerate/utils/fsdp_utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ema_cli.formats.file_names import is_weights, skeleton
from ema_cli.formats.folder import Folder
from ema_cli.text import regex

_RANK = regex(
    r"(?<![a-z])(?<!mp_)(?<!tp_)(?<!pp_)(?<!lora_)(?P<word>rank[_=.-]?)(?P<number>[0-9]{1,6})(?![0-9a-z])",
    re.IGNORECASE,
)
_BESIDE = regex(r"(?<![a-z])extra_state(?![a-z])", re.IGNORECASE)
"""In the name of a file of a rank that holds no weights: random states and the like of verl."""
_FEWEST = 2


def is_torch_ranks(folder: Folder) -> bool:
    """Whether a folder has the files of all ranks of one checkpoint, numbered from 0, judged by names alone."""
    groups = rank_groups(folder.files)
    return len(groups) == 1 and _are_all(next(iter(groups.values())))


def is_rank_file(name: str) -> bool:
    """Whether a file is called like that of a rank."""
    return _rank_in(name) is not None


def group_of_first(folder: Folder, name: str) -> dict[int, str]:
    """Return the files of all ranks, by rank, if ``name`` is that of rank 0; else nothing."""
    return next((one for one in rank_groups(folder.files).values() if one.get(0) == name), {})


def later_ranks(names: Iterable[str]) -> set[str]:
    """Return the files of other ranks than the first in a run with the files of several checkpoints in one folder."""
    groups = rank_groups(names)
    alike = len({skeleton(form) for form in groups}) == 1
    if not alike or not all(map(_are_all, groups.values())):
        return set()
    return {name for group in groups.values() for rank, name in group.items() if rank}


def rank_groups(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Return the names of files of ranks with weights: by the name without the number of the rank, then by rank."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        found = _rank_in(name)
        if found is not None and is_weights(name) and not _BESIDE.search(name):
            form = f"{name[: found.start('number')]}*{name[found.end('number') :]}"
            groups.setdefault(form, {}).setdefault(int(found["number"]), name)
    return groups


def _rank_in(name: str) -> re.Match[str] | None:
    return _RANK.search(name) if "rank" in name.lower() else None


def _are_all(group: dict[int, str]) -> bool:
    return len(group) >= _FEWEST and max(group) == len(group) - 1
