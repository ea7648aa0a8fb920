"""Whether a checkpoint changed while it was read, checked after the last read and before anything is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from ema_cli.errors import InputRefused, RunWarning
from ema_cli.events import Listener, WarningIssued
from ema_cli.records.series import Checkpoint
from ema_cli.storage.url import Url
from ema_cli.text import quoted

if TYPE_CHECKING:
    from ema_cli.storage.remote.daemon_pool import DaemonPool

_CHECKERS = 16
"""Threads for objects in stores, each of which may be a request."""


def check_unchanged(checkpoints: Iterable[Checkpoint], listener: Listener) -> list[RunWarning]:
    """Warn of checkpoints that were replaced or removed; the old file was read completely.

    Raises:
        InputChanged: a checkpoint was written to while it was read.

    """
    asked = [(checkpoint, _ask(checkpoint)) for checkpoint in checkpoints]
    warnings = []
    for checkpoint, is_replaced in asked:
        if is_replaced():
            message = f"{quoted(str(checkpoint.path))} was replaced or removed during the run; the old file was read"
            warnings.append(RunWarning(code="input-replaced", message=message))
            listener(WarningIssued(warning=warnings[-1]))
    return warnings


def _ask(checkpoint: Checkpoint) -> Callable[[], bool]:
    """Return a function that raises if a checkpoint changed; of one in a store, the question is on its way."""
    question = checkpoint.index.raise_if_changed
    return _checkers().submit(question).result if isinstance(checkpoint.path, Url) else question


@cache
def _checkers() -> DaemonPool:
    """Return the threads that ask stores, the same for all runs."""
    from ema_cli.storage.remote.daemon_pool import DaemonPool  # noqa: PLC0415 - local files need none of it

    return DaemonPool("check", threads=_CHECKERS)


@contextmanager
def blaming_changed_inputs(checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """Report a change of a checkpoint since it was opened as the cause of damaged data.

    Raises:
        InputChanged: instead of ``InputRefused``, if a checkpoint was changed.

    """
    try:
        yield
    except InputRefused:
        for is_replaced in [_ask(checkpoint) for checkpoint in checkpoints]:
            is_replaced()
        raise
