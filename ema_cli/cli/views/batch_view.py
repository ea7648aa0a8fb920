"""A batch on the terminal: a line for each finished job, a progress bar, and the table at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

from ema_cli.batch.run_batch import BatchEvent, JobEnded, JobResult, JobStarted, JobWorking, Status
from ema_cli.cli.console import Console, clean
from ema_cli.cli.table import Cell, Column, Table, numbers, whole_name
from ema_cli.cli.views.progress import HEARTBEAT_SECONDS, describe_progress
from ema_cli.cli.wrapping import Styled
from ema_cli.events import Event, Planned
from ema_cli.report import words
from ema_cli.report.batch_index import BatchIndex, JobEntry, JobError
from ema_cli.text import plural, safe_text, shortlist

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_MOST_ROWS = 24
_VERBS = {"written": "wrote", "up_to_date": "up to date", "planned": "would write", "failed": "failed"}
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
        self._last_line = time.monotonic()
        self._side_files: dict[str, str] = {}
        """The side files that a run copies, in words, by the run."""

    def __enter__(self) -> Self:
        if self._console.interactive and not self._console.style.quiet and self._total > 1:
            from rich import progress  # noqa: PLC0415 - only on a terminal
            from rich.table import Column as RichColumn  # noqa: PLC0415

            self._bar = progress.Progress(
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=RichColumn(no_wrap=True, overflow="ellipsis", ratio=1),
                ),
                expand=True,
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
        """Show the start, the progress or the result of a job."""
        match event:
            case JobStarted(job=job):
                self._update_bar(clean(job.run))
            case JobWorking(job=job, event=Planned(plan=plan)):
                self._side_files[job.run] = words.planned_side_files(plan.outputs[0])
            case JobWorking(job=job, event=inner):
                self._show_progress(job.run, inner)
            case JobEnded(result=result):
                self._show_result(result)

    def _show_progress(self, run: str, event: Event) -> None:
        progress = describe_progress(event)
        if not progress:
            return
        self._update_bar(clean(f"{run}: {progress}"))
        now = time.monotonic()
        if self._bar is None and now - self._last_line >= HEARTBEAT_SECONDS:
            self._last_line = now
            self._console.talk(f"{self._count()} {run}: {progress}")

    def _update_bar(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def _show_result(self, result: JobResult) -> None:
        self._done.append(result)
        self._last_line = time.monotonic()
        if result.error is not None:
            error = self._describe(result.error)
            self._console.failure(f"{self._count()} {safe_text(result.job.run)}: {error.message}", error.hint)
        else:
            line = _result_line(result, self._side_files.pop(result.job.run, ""))
            self._console.talk(f"{self._count()} {line}")
        if self._console.style.verbose:
            for warning in result.warnings:
                self._console.warning(warning)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=len(self._done))

    def _count(self) -> str:
        """Return how many jobs are done, of all."""
        width = len(f"{self._total}")
        return f"{len(self._done):{width}}/{self._total}"


def show_batch(index: BatchIndex, console: Console, *, dry_run: bool) -> None:
    """Show on stdout the result of every job, and the totals. They may be lost, unless nothing was to be written."""
    show = partial(console.result, essential=dry_run)
    shown = index.jobs if console.style.verbose else _select(index.jobs)
    if len(index.jobs) > 1:
        show(_table(shown))
    if len(shown) < len(index.jobs):
        show(f"and {plural(len(index.jobs) - len(shown), 'more run')} that did not fail (-v shows them)")
    warned = Counter(code for entry in index.jobs for code in dict.fromkeys(entry.warnings))
    if warned and not console.style.verbose:
        listed = shortlist(f"{code} ({plural(count, 'run')})" for code, count in warned.items())
        show(f"warnings (details in the reports, or with -v): {listed}")
    counts = {status: getattr(index.summary, status) for status in _VERBS}
    totals = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in counts.items() if count)
    show(f"{plural(index.summary.jobs, 'run')}: {totals}  {index.summary.seconds:,.2f} s")


def _select(entries: Sequence[JobEntry]) -> list[JobEntry]:
    """Return the entries of all failed jobs, and as many others as fit on a screen, in order."""
    room = _MOST_ROWS - sum(entry.error is not None for entry in entries)
    others = [entry for entry in entries if entry.error is None][: max(room, 0)]
    return [entry for entry in entries if entry.error is not None or entry in others]


def _table(entries: Sequence[JobEntry]) -> Table:
    columns = [Column(title="run", name=True), Column(title="result"), *numbers("checkpoints", "seconds")]
    rows = [[*_cells(entry)] for entry in entries]
    return Table(columns=[*columns, Column(rest=True)], rows=rows)


def _cells(entry: JobEntry) -> Iterator[Cell]:
    """Yield run, result, checkpoints, seconds, and the error."""
    yield whole_name(entry.run)
    yield Styled((_VERBS[entry.status], _COLORS.get(entry.status, "")))
    yield f"{entry.checkpoints:,}" if entry.checkpoints else ""
    yield f"{entry.seconds:,.2f}"
    yield clean(" ".join(entry.error.message.split())) if entry.error else ""


def _result_line(result: JobResult, side_files: str) -> str:
    """Return the line of a job that did not fail."""
    outputs = shortlist(map(str, result.outputs), most=3) + (f" with {side_files}" if side_files else "")
    took = f"  {result.seconds:,.2f} s" if result.status is Status.WRITTEN else ""
    warned = f"  ({plural(len(result.warnings), 'warning')})" if result.warnings else ""
    return f"{_VERBS[result.status]} {outputs}  {plural(result.checkpoints, 'checkpoint')}{took}{warned}"
