"""Listeners to the events of a run."""

from __future__ import annotations

from collections.abc import Callable

from ema_cli.events import Event, Planned


def during(action: Callable[[], None]) -> Callable[[Event], None]:
    """Return a listener that acts once, when the plan stands and nothing has been folded."""

    def listen(event: Event) -> None:
        if isinstance(event, Planned):
            action()

    return listen
