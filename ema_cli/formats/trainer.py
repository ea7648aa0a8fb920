"""What a trainer leaves beside the weights in a checkpoint folder: where training stood, and state that is no model.

Reference: ``TrainerState`` and ``Trainer._save_checkpoint`` in transformers.
"""

from __future__ import annotations

from dataclasses import replace

from ema_cli.formats.companions import find_companions
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import beside, joint_digest, read_json
from ema_cli.formats.structure import Structure
from ema_cli.records import FoundStep
from ema_cli.storage.extents import LayoutPool

_STATE = "trainer_state.json"
_LARGEST_STEP = 1 << 62


def with_what_lies_beside(folder: Folder, structure: Structure, pool: LayoutPool, *inside: str) -> Structure:
    """Return the structure of the weights in a folder, with the step, the companions and what else the folder holds.

    Args:
        folder: that holds them.
        structure: of the weights.
        pool: of the run.
        inside: folders in it that the weights lie in.

    Raises:
        InputRefused: what should say the step is damaged.

    """
    companions = find_companions(folder.files)
    steps, digest = _steps(folder, pool)
    return replace(
        structure,
        steps=(*steps, *structure.steps),
        digest=joint_digest([structure.digest, digest]),
        companions=(*companions, *structure.companions),
        ignored=(*structure.ignored, *beside(folder, [*inside, *companions])),
    )


def _steps(folder: Folder, pool: LayoutPool) -> tuple[tuple[FoundStep, ...], bytes]:
    """Read where training stood, from a file that may hold NaN: it keeps the log of the losses."""
    if _STATE not in folder.files:
        return (), b""
    state, digest = read_json(folder, _STATE, pool, nan=True)
    step = state.get("global_step")
    if type(step) is not int or not 0 <= step < _LARGEST_STEP:
        return (), digest
    return (FoundStep(value=step, unit="step", source=f"inside: {_STATE}"),), digest
