"""A batch as people see it: a line for every job that ends, a bar over all of them, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from rich.table import Table
from rich.text import Text

from ema_cli.batch.run_batch import BatchEvent, JobEnded, JobResult, JobStarted, JobWorking, Status
from ema_cli.cli.console import Console, clean
from ema_cli.events import Event, Opening, Progress
from ema_cli.report.batch_index import BatchIndex, JobEntry, JobError
from ema_cli.text import human_bytes, plural, safe_text, shortlist

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_HEARTBEAT_SECONDS = 10.0
_MOST_ROWS = 24
_WORDS = {"written": "wrote", "up_to_date": "up to date", "planned": "would write", "failed": "failed"}
_COLORS = {"failed": "red", "up_to_date": "dim"}


class BatchDisplay:
    """Shows the events of a batch while the context is open."""

    def __init__(
        self, console: Console, total: int, done: list[JobResult], describe: Callable[[Exception], JobError]
    ) -> None:
        self._console = console
        self._total = total
        self._done = done
        self._describe = describe
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.interactive and not self._console.style.quiet and self._total > 1:
            from rich import progress  # noqa: PLC0415 - only on a terminal

            self._bar = progress.Progress(
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}", markup=False),
                console=self._console.rich,
                transient=True,
            )
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: BatchEvent) -> None:
        """Show where the batch stands."""
        match event:
            case JobStarted(job=job):
                self._activity(clean(job.run))
            case JobWorking(job=job, event=inner):
                self._work(job.run, inner)
            case JobEnded(result=result):
                self._end(result)

    def _work(self, run: str, event: Event) -> None:
        activity = _activity(event)
        if not activity:
            return
        self._activity(clean(f"{run}: {activity}"))
        now = time.monotonic()
        if self._bar is None and now - self._spoke >= _HEARTBEAT_SECONDS:
            self._spoke = now
            self._console.talk(clean(f"{self._place()} {run}: {activity}"))

    def _activity(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def _end(self, result: JobResult) -> None:
        self._done.append(result)
        self._spoke = time.monotonic()
        if result.error is not None:
            why = self._describe(result.error)
            self._console.failure(f"{self._place()} {safe_text(result.job.run)}: {why.message}", why.hint)
        else:
            self._console.talk(Text(clean(f"{self._place()} {_line(result)}")))
        if self._console.style.verbose:
            for warning in result.warnings:
                self._console.warning(warning)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=len(self._done))

    def _place(self) -> str:
        width = len(f"{self._total}")
        return f"{len(self._done):{width}}/{self._total}"


def results(index: BatchIndex, found: Sequence[JobResult], console: Console) -> None:
    """Show how every job came out, and the sum on stdout."""
    shown = index.jobs if console.style.verbose else _cut(index.jobs)
    if len(found) > 1:
        console.talk(_table(shown))
    if len(shown) < len(found):
        console.talk(f"and {plural(len(found) - len(shown), 'more run')} that did not fail (-v shows them)")
    warned = {code: sum(code in entry.warnings for entry in index.jobs) for e in index.jobs for code in e.warnings}
    if warned and not console.style.verbose:
        told = shortlist(f"{code} ({plural(count, 'run')})" for code, count in warned.items())
        console.talk(f"warnings, in the reports and with -v: {told}")
    counts = ((getattr(index.summary, status), word) for status, word in _COUNTED.items())
    told = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    console.result(f"{plural(index.summary.jobs, 'run')}: {told}  {index.summary.seconds:.2f} s", essential=False)


_COUNTED = {"written": "written", "up_to_date": "up to date", "planned": "to be written", "failed": "failed"}


def _cut(entries: Sequence[JobEntry]) -> list[JobEntry]:
    """Return every entry of a job that failed, and as many others as a screen holds, in order."""
    room = _MOST_ROWS - sum(entry.error is not None for entry in entries)
    others = [entry for entry in entries if entry.error is None][: max(room, 0)]
    return [entry for entry in entries if entry.error is not None or entry in others]


def _table(entries: Sequence[JobEntry]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("run", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("checkpoints", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("")  # the one that gives way where the line is short
    for entry in entries:
        table.add_row(
            Text(safe_text(entry.run)),
            Text(_WORDS[entry.status], style=_COLORS.get(entry.status, "")),
            f"{entry.checkpoints:,}" if entry.checkpoints else "",
            f"{entry.seconds:.2f}",
            Text(_one_line(entry.error.message) if entry.error else "", no_wrap=True, overflow="ellipsis"),
        )
    return table


def _one_line(message: str) -> str:
    return clean(" ".join(message.split()))


def _line(result: JobResult) -> str:
    """Return one line on a job that did not fail."""
    outputs = shortlist(map(str, result.outputs), most=3)
    took = f"  {result.seconds:.2f} s" if result.status is Status.WRITTEN else ""
    warned = f"  ({plural(len(result.warnings), 'warning')})" if result.warnings else ""
    return f"{_WORDS[result.status]} {outputs}  {plural(result.checkpoints, 'checkpoint')}{took}{warned}"


def _activity(event: Event) -> str:
    match event:
        case Opening(done=done, total=total):
            return f"reading the structure of checkpoint {done + 1:,} of {total:,}"
        case Progress(activity=activity, done_bytes=done, total_bytes=total):
            return f"{activity} {human_bytes(done)} of {human_bytes(total)}"
    return ""
