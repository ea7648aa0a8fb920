"""The averages of the weights that trainers keep beside them: their names, and what is known about each trainer.

A name says that something is an average, not that everything else is raw: some trainers swap the two when they save.
Sources: ``lightning/pytorch/callbacks/weight_averaging.py``, ``mmengine/hooks/ema_hook.py``
(``_swap_ema_state_dict``), ``torch/optim/swa_utils.py``; timm (``state_dict_ema``), ultralytics (``ema``), icefall
(``model_avg``) and torchtitan (``ema_optimizer``) put an average beside the weights.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence

from ema_cli.text import quoted, regex, safe_text, shortlist

RAW_BESIDE_AVERAGE = "current_model_state"
"""Lightning's ``WeightAveraging`` puts the raw weights here, and its average in their usual place."""
USUAL_IN_LIGHTNING = "state_dict"
"""The usual place of the weights in Lightning and in mmengine."""
SWAPPED = "ema_state_dict"
"""Where mmengine's ``EMAHook`` puts the raw weights: it swaps them with its average in every save."""
COUNTERS = ("n_averaged", "steps")
"""Counters beside the averaged ``module``: of torch's ``AveragedModel`` and of mmengine's."""
AVERAGED_MODEL_NOTE = "the weights are those of torch's AveragedModel: this averages averages"
_AVERAGES = regex(
    r"(?:^|[_.])(?:ema|swa|averaged?)(?:[_.]|$)|^avg_|_avg$",
    re.IGNORECASE,
)
_COPIES = regex(
    r"teacher|target|best|momentum|master|shadow|average|polyak|backup|initial|pretrained|frozen|original|previous"
    r"|reference|anchor|lookahead|(?<![a-z])(?:avg|copy|fp32|init|k|key|mean|old|prev|ref|slow|tgt)(?![a-z])",
    re.IGNORECASE,
)
"""Names of copies: averages that follow the weights (DINO, MoCo, BYOL, DQN), the best or first ones."""


def is_average(name: str) -> bool:
    """Whether a part of a checkpoint is an average, judged by its name."""
    return _AVERAGES.search(name) is not None


def is_copy(name: str) -> bool:
    """Whether a part with the names of the weights is a copy of them, judged by its name: not a second model."""
    return is_average(name) or _COPIES.search(name) is not None


def is_of_another_model(average: Counter[tuple[int, ...]], weights: Counter[tuple[int, ...]]) -> bool:
    """Whether an average cannot be that of these weights, judged by the shapes of the matrices in both.

    An average may be of some of the weights, or have further copies of them; a list of tensors has no names to compare.
    """
    return bool(average) and (not weights or not (average <= weights or weights <= average))


def wrapped_counter(names: Collection[str]) -> str | None:
    """Return the counter of an averaged model: one counter, and everything else under ``module``; else ``None``."""
    others = [name for name in names if not name.startswith("module.")]
    return others[0] if len(others) == 1 and others[0] in COUNTERS and len(names) > 1 else None


def is_swapped(chosen: str, averages: Collection[str], counters: Collection[str]) -> bool:
    """Whether the chosen weights are mmengine's average: ``ema_state_dict``, with its counter, has the raw weights."""
    return chosen == USUAL_IN_LIGHTNING and SWAPPED in averages and "steps" in counters


def key_flag(path: str) -> str:
    """Return the option that chooses the part at a path, as a shell takes it."""
    return f"--key {shlex.quote(safe_text(path or '.'))}"


def describe_beside(chosen: str, beside: Sequence[tuple[str, str, bool]]) -> str:
    """Return what there is beside the chosen weights, in words; empty if nothing.

    Args:
        chosen: the key of the weights.
        beside: path of each average and of each other copy, what it is, and whether its tensors have names.

    """
    if chosen.rpartition(".")[2] == RAW_BESIDE_AVERAGE:
        usual = next((path for path, _, _ in beside if path.rpartition(".")[2] == USUAL_IN_LIGHTNING), "")
        return (
            f"the weights are those under {quoted(chosen)}, where Lightning keeps the raw weights; its own average is "
            f"under {quoted(usual)}, chosen by {key_flag(usual)}"
        )
    if not beside:
        return ""
    where = f"the weights are those under {quoted(chosen)}" if chosen else "the weights are those at the top level"
    found = shortlist(f"{quoted(path)} ({kind})" for path, kind, _ in beside)
    flags = shortlist(key_flag(path) for path, _, is_named in beside if is_named)
    return f"{where}; also there, and not used: {found}" + (f"; chosen by {flags}" if flags else "")


def warn_of_swap(chosen: str, raw: str) -> str:
    """Return the warning that the chosen weights are an average, as mmengine saves them."""
    return (
        f"{quoted(chosen)} is the average of mmengine's EMAHook, which swaps it with the weights when it saves: this "
        f"averages averages; {key_flag(raw)} takes the raw weights"
    )


def warn_of_average(chosen: str) -> str:
    """Return the warning that there is nothing but an average."""
    return f"the only weights are under {quoted(chosen)}, by its name an average of the trainer: this averages averages"
