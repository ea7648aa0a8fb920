"""Averages that trainers keep in their checkpoints, beside the raw weights or in their place.

Sources: ``lightning/pytorch/callbacks/weight_averaging.py``, ``torch/optim/swa_utils.py``; the names under which timm,
ultralytics and others keep theirs have ``ema`` or ``swa`` in them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ema_cli.text import quoted, shortlist

RAW_BESIDE_AVERAGE = "current_model_state"
"""Lightning's ``WeightAveraging`` puts the raw weights here, and its average where they would be."""
RAW_USUALLY = "state_dict"
"""Where Lightning puts the raw weights if it keeps no average."""
COUNTER = "n_averaged"
"""Of torch's ``AveragedModel``, beside the averaged ``module``."""
OF_AVERAGED_MODEL = "the weights are those of torch's AveragedModel: this averages averages"
_AVERAGES = re.compile(r"(?:^|[_.])(?:ema|swa|averaged?)(?:[_.]|$)", re.IGNORECASE)


def is_average(name: str) -> bool:
    """Whether a part of a checkpoint is an average, by its name."""
    return _AVERAGES.search(name) is not None


def is_averaged_model(names: Collection[str]) -> bool:
    """Whether tensors of these names are an ``AveragedModel``: a counter, and everything else below ``module``."""
    others = [name for name in names if name != COUNTER]
    return len(others) < len(names) and bool(others) and all(name.startswith("module.") for name in others)


def note_on_choice(chosen: str, averages: Sequence[str]) -> str:
    """Say which weights were used where a checkpoint has averages too; empty if it has none."""
    if not averages:
        return ""
    if chosen in averages:
        return f"the only weights are the trainer's own average {quoted(chosen)}: this averages averages"
    names = shortlist(quoted(name) for name in averages)
    return f"the raw weights are used, not the trainer's own average {names} (--key chooses that)"
