"""What a Python function does with the events of a run: issue the warnings, and show the progress if it is wanted."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager

from ema_cli.errors import EmaAvgWarning, RunWarning
from ema_cli.events import Event, Listener, WarningIssued, ignore
from ema_cli.options.keyword_messages import in_keywords

Progress = bool | Listener
"""``True`` to show the progress on standard error, or a function that is called with each event."""
_PACKAGE = __name__.partition(".")[0]


def issue(warning: RunWarning) -> None:
    """Issue a warning with ``warnings``, at the line that called into this package; not if the user accepted it.

    Raises:
        EmaAvgWarning: a filter of the user turns warnings into errors.

    """
    if warning.allowed:
        return
    text = f"{warning.code}: {in_keywords(warning.message)}"
    if warning.hint:
        text += f"\n  {'' if warning.hint.startswith('did you mean') else 'try: '}{in_keywords(warning.hint)}"
    warnings.warn(EmaAvgWarning(text), stacklevel=_levels_to_the_caller())


def _levels_to_the_caller() -> int:
    """Return the ``stacklevel`` of the first frame outside this package, for the function that asks."""
    frame = inspect.currentframe()
    levels = 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, levels = frame.f_back, levels + 1
    return levels


@contextmanager
def listening(progress: Progress) -> Iterator[Listener]:
    """Yield the listener of a run: it issues warnings, and shows or passes on the progress."""
    with _shown(progress) as show:

        def listen(event: Event) -> None:
            if isinstance(event, WarningIssued):
                issue(event.warning)
            show(event)

        yield listen


@contextmanager
def _shown(progress: Progress) -> Iterator[Listener]:
    """Yield what receives the events besides the warnings."""
    if callable(progress):
        yield progress
    elif not progress:
        yield ignore
    else:
        from ema_cli.cli.console import Console, Style  # noqa: PLC0415 - only if it is wanted
        from ema_cli.cli.views.progress import ProgressDisplay  # noqa: PLC0415

        with closing(ProgressDisplay(Console(Style()))) as display:
            yield lambda event: None if isinstance(event, WarningIssued) else display.show(event)
