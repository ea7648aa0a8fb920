"""The files that a trainer leaves beside the weights in a checkpoint folder: the step, side files, its own state.

Reference: ``TrainerState`` and ``Trainer._save_checkpoint`` in transformers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import find_side_files, joint_digest, parse_json
from ema_cli.formats.structure import Structure
from ema_cli.name_numbers import STEP_LIMIT
from ema_cli.records.series import FoundStep
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_STATE = "trainer_state.json"
_LARGE_BYTES = 1 << 20
"""A longer state of the trainer is not parsed: nearly all of it is the log."""
_HEAD_BYTES = 1 << 16
_TAIL_BYTES = 16


def add_trainer_files(folder: Folder, structure: Structure, pool: LayoutPool, *inside: str) -> Structure:
    """Return the structure of the weights in a folder, with the step, the side files and the names of all others.

    The weights may be in folders ``inside`` it.

    Raises:
        InputRefused: the file with the step is damaged.

    """
    side_files = find_side_files(folder.files)
    steps, digest = _steps(folder, pool)
    return replace(
        structure,
        steps=(*steps, *structure.steps),
        digest=joint_digest([structure.digest, digest]),
        side_files=(*side_files, *structure.side_files),
        ignored=(*structure.ignored, *folder.others([*inside, *side_files])),
    )


def _steps(folder: Folder, pool: LayoutPool) -> tuple[tuple[FoundStep, ...], bytes]:
    """Return the step of the trainer's state, and a hash of that file. It may hold NaN, as it logs the losses."""
    if _STATE not in folder.files:
        return (), b""
    source = folder.sources[folder.open(_STATE)]
    step: object
    if source.size() > _LARGE_BYTES:
        step, digest = _step_of_long_log(source)
    else:
        state, digest = parse_json(source.read(0, source.size()), _STATE, pool, nan=True)
        step = state.get("global_step")
    if type(step) is not int or not 0 <= step < STEP_LIMIT:
        return (), digest
    return (FoundStep(value=step, unit="step", source=f"inside: {_STATE}"),), digest


def _step_of_long_log(source: ByteSource) -> tuple[int | None, bytes]:
    """Find the step before the log of a long training, which may be larger than the weights.

    The trainer writes its keys in order, each on its own line, and ``global_step`` comes before ``log_history``.
    """
    head, tail = source.read(0, _HEAD_BYTES), source.read(source.size() - _TAIL_BYTES, _TAIL_BYTES)
    if not tail.rstrip().endswith(b"}"):
        raise InputRefused(f"{quoted(_STATE)} is truncated")
    found = re.search(rb'^  "global_step": ([0-9]{1,18}),?$', head, re.MULTILINE)
    return int(found[1]) if found else None, hashlib.sha256(head).digest()
