"""Listeners to the events of a run."""

from __future__ import annotations

from collections.abc import Callable

from ema_cli.events import Event, Planned


def during(action: Callable[[], None]) -> Callable[[Event], None]:
    """Return a listener that acts once, after planning and before the fold."""

    def listen(event: Event) -> None:
        if isinstance(event, Planned):
            action()

    return listen
