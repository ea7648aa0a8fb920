"""The Trainer of transformers that calls a callback: it passes itself to none of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

try:
    from transformers import Trainer
except ImportError:
    Trainer = ()


def trainer_of(callback: object) -> Any:  # noqa: ANN401 - transformers may be missing
    """Return the trainer that calls an event of this callback; ``None`` if another program does."""
    return next((trainer for trainer, _ in _calls_of(callback)), None)


def resumed_from(callback: object) -> Path | None:
    """Return the checkpoint folder that the training resumes from; ``None`` for a new training."""
    name = "resume_from_checkpoint"  # a parameter of the method that calls on_train_begin
    path = next((frame.f_locals[name] for _, frame in _calls_of(callback) if name in frame.f_locals), None)
    return Path(path) if path else None


def run_folder(callback: object, args: Any) -> Path:  # noqa: ANN401
    """Return the folder of the checkpoints: ``output_dir``, or that of the trial in a hyperparameter search."""
    trainer = trainer_of(callback)
    trial = getattr(trainer, "_trial", None)
    return Path(args.output_dir if trial is None else trainer._get_output_dir(trial))  # noqa: SLF001


def _calls_of(callback: object) -> Iterator[tuple[Any, FrameType]]:
    """Yield the trainer of this callback with each of its calls, from the innermost."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the documented way to the callers
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and any(one is callback for one in caller.callback_handler.callbacks):
            yield caller, frame
        frame = frame.f_back
