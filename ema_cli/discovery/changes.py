"""Whether a checkpoint changed while it was read, checked after the last read and before anything is published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ema_cli.errors import InputRefused, RunWarning
from ema_cli.events import Listener, WarningIssued
from ema_cli.records.series import Checkpoint
from ema_cli.text import quoted


def check_unchanged(checkpoints: Iterable[Checkpoint], listener: Listener) -> list[RunWarning]:
    """Warn of checkpoints that were replaced or removed; the old file was read completely.

    Raises:
        InputChanged: a checkpoint was written to while it was read.

    """
    warnings = []
    for checkpoint in checkpoints:
        if checkpoint.index.raise_if_changed():
            message = f"{quoted(str(checkpoint.path))} was replaced or removed during the run; the old file was read"
            warnings.append(RunWarning(code="input-replaced", message=message))
            listener(WarningIssued(warning=warnings[-1]))
    return warnings


@contextmanager
def blaming_changed_inputs(checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """Report a change of a checkpoint since it was opened as the cause of damaged data.

    Raises:
        InputChanged: instead of ``InputRefused``, if a checkpoint was changed.

    """
    try:
        yield
    except InputRefused:
        for checkpoint in checkpoints:
            checkpoint.index.raise_if_changed()
        raise
