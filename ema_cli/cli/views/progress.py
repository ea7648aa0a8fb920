"""Events of a run: warnings and messages at once; progress as a bar on a terminal, as a line every 10 s in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ema_cli.cli.console import Console
from ema_cli.events import BatchDone, Event, Info, Opening, Progress, WarningIssued
from ema_cli.text import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

HEARTBEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 0.5
"""Shorter activities show no bar."""


class ProgressDisplay:
    """Shows events until it is closed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._activity = ""
        self._started = time.monotonic()
        self._last_line = self._started

    def show(self, event: Event) -> None:
        """Show a warning, a message, or the progress."""
        match event:
            case WarningIssued(warning=warning):
                self._console.warning(warning)
            case Info(message=message):
                self._console.talk(message)
            case Opening():
                self._heartbeat(describe_progress(event))
            case Progress():
                self._show_bytes(event)
            case BatchDone():
                self._show_batches(event)

    def _show_bytes(self, event: Progress) -> None:
        now = time.monotonic()
        if event.activity != self._activity:
            self.close()
            self._activity, self._started, self._last_line = event.activity, now, now
        if self._console.style.quiet:
            return
        if self._console.interactive:
            if now - self._started > _PATIENCE_SECONDS:
                self._draw(event)
            return
        speed = event.done_bytes / max(now - self._started, 1e-9)
        left = (event.total_bytes - event.done_bytes) / max(speed, 1)
        self._heartbeat(f"{describe_progress(event)}, {human_bytes(speed)}/s, {_clock(left)} left")

    def _show_batches(self, event: BatchDone) -> None:
        if self._console.style.quiet:
            return
        if not self._console.interactive:
            self._heartbeat(describe_progress(event))
        elif time.monotonic() - self._started > _PATIENCE_SECONDS:
            self._draw_batches(event)

    def _draw_batches(self, event: BatchDone) -> None:
        if self._bar is None or self._task is None:
            from rich import progress  # noqa: PLC0415 - only on a terminal, only for long work

            self._bar = progress.Progress(
                progress.TextColumn("batches"),
                progress.BarColumn(bar_width=None),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=self._console.rich,
                transient=True,
            )
            self._task = self._bar.add_task("batches", total=event.total)
            self._bar.start()
        self._bar.update(self._task, completed=event.done, total=event.total)

    def _heartbeat(self, line: str) -> None:
        """Show a line, unless another one was shown a few seconds ago."""
        now = time.monotonic()
        if now - self._last_line >= HEARTBEAT_SECONDS and self._bar is None:
            self._last_line = now
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

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def describe_progress(event: Event) -> str:
    """Return the progress in one line; empty for an event of another kind."""
    match event:
        case Opening(done=done, total=total):
            return f"reading the structure of checkpoint {done + 1:,} of {total:,}"
        case BatchDone(done=done, total=total):
            return f"batch {done:,}" + (f" of {total:,}" if total is not None else "")
        case Progress(activity=activity, done_bytes=done, total_bytes=total):
            return f"{activity} {human_bytes(done)} of {human_bytes(total)}"
    return ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
