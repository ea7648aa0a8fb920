"""Whether the checkpoints are what they were: asked when all of them have been read, and nothing is published yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ema_cli.errors import InputRefused, RunWarning
from ema_cli.events import Listener, WarningIssued
from ema_cli.records.series import Checkpoint
from ema_cli.text import quoted


def check_unchanged(checkpoints: Iterable[Checkpoint], listener: Listener) -> list[RunWarning]:
    """Warn of checkpoints whose names mean other files by now: what was read is whole, and it is the old one.

    Raises:
        InputChanged: one was written to while it was read.

    """
    warnings = []
    for checkpoint in checkpoints:
        if checkpoint.index.raise_if_changed():
            message = f"{quoted(str(checkpoint.path))} was replaced or removed during the run; the old file was read"
            warnings.append(RunWarning(code="input-replaced", message=message))
            listener(WarningIssued(warning=warnings[-1]))
    return warnings


@contextmanager
def damage_means_change(checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """See to it that data which cannot be used is not blamed on a file that was sound until it was written to.

    Raises:
        InputChanged: instead of ``InputRefused``, if a checkpoint was changed since it was opened.

    """
    try:
        yield
    except InputRefused:
        for checkpoint in checkpoints:
            checkpoint.index.raise_if_changed()
        raise
