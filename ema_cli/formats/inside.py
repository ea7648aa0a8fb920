"""Which folder inside a checkpoint folder holds the weights, where a trainer lets another library save them.

With FSDP the weights are a folder of ``torch.distributed.checkpoint`` in the checkpoint, with DeepSpeed a folder of
DeepSpeed. References: ``accelerate/utils/fsdp_utils.py``, ``Accelerator.save_state``, ``transformers/trainer.py``.
"""

from __future__ import annotations

import re

from ema_cli.formats.deepspeed import is_deepspeed_folder
from ema_cli.formats.file_names import TRAINER_STATE
from ema_cli.formats.folder import Folder

_FSDP = re.compile(r"pytorch_model_fsdp_[0-9]+")
_DEEPSPEED = re.compile(r"global_step[0-9]+|pytorch_model")


def folders_of_weights(folder: Folder) -> list[str]:
    """Return the names of the folders that hold the weights of a trainer's checkpoint; nothing if it is not one.

    A folder that a trainer saved has state of the trainer in it; one in which DeepSpeed saved a whole run has not.
    """
    fsdp = sorted(name for name in folder.folders if _FSDP.fullmatch(name))
    if fsdp or not any(TRAINER_STATE.search(name) for name in folder.files):
        return fsdp
    named = sorted(name for name in folder.folders if _DEEPSPEED.fullmatch(name))
    return [name for name in named if is_deepspeed_folder(folder.inside(name))]
