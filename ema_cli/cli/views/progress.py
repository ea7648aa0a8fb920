"""Progress from events: a bar in bytes on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from ema_cli.cli.console import Console
from ema_cli.events import Event, Opening, Progress
from ema_cli.text import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_HEARTBEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 0.5
"""What is done sooner needs no bar."""


class ProgressDisplay:
    """Shows ``Progress`` and ``Opening`` events while the context is open."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._activity = ""
        self._started = time.monotonic()
        self._spoke = self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def show(self, event: Event) -> None:
        """Show where the work stands."""
        if isinstance(event, Opening):
            self._beat(f"reading the structure of checkpoint {event.done + 1:,} of {event.total:,}")
        elif isinstance(event, Progress):
            self._show_bytes(event)

    def _show_bytes(self, event: Progress) -> None:
        now = time.monotonic()
        if event.activity != self._activity:
            self._stop()
            self._activity, self._started, self._spoke = event.activity, now, now
        if self._console.style.quiet:
            return
        if self._console.interactive:
            if now - self._started > _PATIENCE_SECONDS:
                self._draw(event)
            return
        speed = event.done_bytes / max(now - self._started, 1e-9)
        left = (event.total_bytes - event.done_bytes) / max(speed, 1)
        done = f"{human_bytes(event.done_bytes)} of {human_bytes(event.total_bytes)}"
        self._beat(f"{event.activity} {done}, {human_bytes(speed)}/s, {_clock(left)} left")

    def _beat(self, line: str) -> None:
        """Say that the program is alive, not too often."""
        now = time.monotonic()
        if now - self._spoke >= _HEARTBEAT_SECONDS and self._bar is None:
            self._spoke = now
            self._console.talk(line)

    def _draw(self, event: Progress) -> None:
        if self._bar is None or self._task is None:
            from rich import progress  # noqa: PLC0415 - only on a terminal, only for long work

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=None),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=self._console.rich,
                transient=True,
            )
            self._task = self._bar.add_task(event.activity, total=event.total_bytes)
            self._bar.start()
        self._bar.update(self._task, completed=event.done_bytes)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
