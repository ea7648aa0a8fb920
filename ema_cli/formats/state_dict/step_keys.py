"""The keys under which trainers save the position in the training, and the numbers that are valid there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ema_cli.name_numbers import MOST_DIGITS, STEP_LIMIT
from ema_cli.records.series import FoundStep

STEP_KEYS = (
    "ema_avg.step",  # a snapshot of a live EMA
    "global_step",
    "global_steps",
    "step",
    "iteration",
    "num_updates",
    "iter",
    "train_state.step",
    "updates",
    "optimizer_history.num_updates",
    "step_count",  # litgpt, where iter_num counts the parts of a step
    "iter_num",  # nanoGPT
    "batch_idx_train",  # icefall
    "steps_run",  # torchtune
    "steps",
    "iterations",
    "current_iter",
    "current_step",
    "meta.iter",  # mmengine
    "optim.training_step",  # OpenNMT
    "state.timestamp.Timestamp.batch",  # Composer
    "state.timestamp.batch",
)
EPOCH_KEYS = (
    "epoch",
    "extra_state.train_iterator.epoch",  # fairseq
    "cur_epoch",
    "current_epoch",
    "epochs_run",
    "meta.epoch",
    "state.timestamp.Timestamp.epoch",
    "state.timestamp.epoch",
)
KEYS = (*STEP_KEYS, *EPOCH_KEYS)
"""Keys of a position in training, best first."""
_RESTARTING = frozenset({"step", "steps", "iteration", "iterations", "iter", "current_iter", "current_step"})
"""Last parts of keys under which some trainers count from the beginning of the epoch."""
INSIDE = "inside: "
"""The source of a step inside a file begins with it, followed by its key."""


def steps_in_texts(metadata: Mapping[str, str]) -> Iterator[FoundStep]:
    """Yield the steps in the metadata of a file, which are texts, best first."""
    for unit, keys in (("step", (*STEP_KEYS, "ss_steps")), ("epoch", (*EPOCH_KEYS, "ss_epoch"))):  # ss_: kohya
        for key in keys:
            number = whole_number(metadata.get(key))
            if number is not None:
                yield FoundStep(value=number, unit=unit, source=f"{INSIDE}{key}")


def may_restart(step: FoundStep) -> bool:
    """Whether some trainers count the number under this key from the beginning of every epoch."""
    key = step.source.removeprefix(INSIDE)
    return key in _RESTARTING or (key not in KEYS and key.rpartition(".")[2] in _RESTARTING)


def whole_number(value: object) -> int | None:
    """Return a whole number that is valid as a step: of Python, or in decimal digits."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= MOST_DIGITS:
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < STEP_LIMIT else None  # negative ones mark stripped files
