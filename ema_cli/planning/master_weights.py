"""Optimizers that keep the weights in 32 bits and put them over those of the model when training is resumed.

They stay those of the last checkpoint in a copy of it. Sources: ``DeepSpeedEngine._load_checkpoint``, which reads the
files of the optimizer unless only the module is loaded; ``Float16OptimizerWithFloat16Params`` of Megatron, and
``FP16_Optimizer`` of apex.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ema_cli.errors import RunWarning
from ema_cli.formats.torch.stored_file import StoredFile
from ema_cli.records.series import Checkpoint
from ema_cli.text import quoted, shortlist

_OF_DEEPSPEED = "_optim_states.pt"
_OF_MEGATRON = "fp32_from_fp16"
"""A part of the name of the list of 32-bit weights."""


def warn_of_masters(
    last: Checkpoint, stored: Iterable[StoredFile], others: Sequence[str] = ()
) -> tuple[RunWarning, ...]:
    """Return a warning if resuming from a copy of the last checkpoint would bring its own weights back.

    Args:
        last: the last checkpoint.
        stored: its files of torch with weights.
        others: the names of all other files of its folder.

    """
    files = [name for name in others if name.endswith(_OF_DEEPSPEED)]
    paths = [path for file in stored for path in file.references.paths_with(_OF_MEGATRON)]
    if not files and not paths:
        return ()
    where = shortlist(map(quoted, files or paths), most=2)
    hint = "load the weights alone to start from the averages"
    return (
        RunWarning(
            code="master-weights-kept",
            message=f"the optimizer of {quoted(last.path.name)} has the weights in 32 bits ({where}): they stay those "
            "of the last checkpoint, and its trainer puts them over the averages when training is resumed",
            hint=f"{hint}: engine.load_checkpoint(..., load_module_only=True)" if files else f"{hint}: --finetune",
        ),
    )
