"""Many runs, one average each: continues when a job fails, and returns the result of every job.

Input -> output: jobs -> their results, in the order of the jobs. A listener receives the events.
Invariant: a job that fails leaves its output unchanged, or its error lists what is new; it does not affect other jobs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from enum import StrEnum
from functools import partial

from ema_cli.batch.jobs import Job
from ema_cli.errors import EmaAvgError, RunWarning
from ema_cli.events import Event, WarningIssued
from ema_cli.pipeline import announce, examine, planned, run_average
from ema_cli.planning.make_plan import default_threads
from ema_cli.record import record
from ema_cli.report.beside import report_path
from ema_cli.storage.locations import Location, locate

MOST_WORKERS = 64


class Status(StrEnum):
    """The result of a job."""

    WRITTEN = "written"
    UP_TO_DATE = "up_to_date"
    PLANNED = "planned"
    """In a dry run: the output would be written."""
    FAILED = "failed"


@record
class JobResult:
    """The result of a job."""

    job: Job
    status: Status
    outputs: tuple[Location, ...]
    """The outputs, existing or planned; empty for a job that failed."""
    checkpoints: int
    seconds: float
    warnings: tuple[RunWarning, ...]
    error: Exception | None = None
    """Why the job failed: an ``EmaAvgError``, or any other exception for a bug."""

    @property
    def reports(self) -> tuple[Location, ...]:
        """The report beside each output, and further reports."""
        if self.status in (Status.FAILED, Status.PLANNED):
            return ()
        return (*map(report_path, self.outputs), *self.job.options.report)


@record
class JobStarted:
    """A job has started."""

    job: Job


@record
class JobWorking:
    """An event of a running job."""

    job: Job
    event: Event


@record
class JobEnded:
    """A job has ended."""

    result: JobResult


BatchEvent = JobStarted | JobWorking | JobEnded
BatchListener = Callable[[BatchEvent], None]


class _Stopped(BaseException):
    """Ends the job in a thread when the batch is interrupted; not an ``Exception``, so that no job catches it."""


def run_batch(
    jobs: Sequence[Job],
    listener: BatchListener,
    *,
    workers: int = 1,
    dry_run: bool = False,
    argv: Sequence[str] = (),
) -> tuple[JobResult, ...]:
    """Carry out jobs that ``ema_cli.batch.jobs.check_jobs`` accepted, ``workers`` of them at a time.

    A dry run plans each job, and writes nothing. The listener is never called by two threads at once.

    Raises:
        BaseException: the interruption of the calling thread, after all jobs have cleaned up.

    """
    work = partial(_carry_out, average=_plan if dry_run else partial(_average, argv=argv))
    if min(workers, len(jobs)) <= 1:
        return tuple(work(job, listener) for job in jobs)
    return _in_threads([_sharing(job, min(workers, len(jobs))) for job in jobs], work, listener, workers)


def _sharing(job: Job, workers: int) -> Job:
    """Return a job with its part of the threads; the output does not depend on their number."""
    if job.options.threads is not None:
        return job
    return replace(job, options=replace(job.options, threads=max(1, default_threads() // workers)))


_Work = Callable[[Job, BatchListener], JobResult]


def _in_threads(jobs: Sequence[Job], work: _Work, listener: BatchListener, workers: int) -> tuple[JobResult, ...]:
    """Carry out jobs in threads.

    Threads, not processes: the fold releases the interpreter's lock, and a small job mostly waits for the disk.
    Processes would import everything again in each worker, hold one GPU context each, and need signals forwarded; a
    thread stops at its next event.
    """
    stopped, lock = threading.Event(), threading.Lock()

    def forward(event: BatchEvent) -> None:
        if stopped.is_set():
            raise _Stopped
        with lock:
            listener(event)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="job")
    try:
        futures: list[Future[JobResult]] = [pool.submit(work, job, forward) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        return tuple(future.result() for future in futures)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


_Outcome = tuple[Status, tuple[Location, ...], int]
"""Status, outputs, and number of checkpoints."""


def _carry_out(
    job: Job, listener: BatchListener, average: Callable[[Job, Callable[[Event], None]], _Outcome]
) -> JobResult:
    """Carry out one job; an error becomes part of its result."""
    started, warnings = time.monotonic(), list[RunWarning]()

    def listen(event: Event) -> None:
        if isinstance(event, WarningIssued):
            warnings.append(event.warning)
        listener(JobWorking(job=job, event=event))

    listener(JobStarted(job=job))
    error: Exception | None = None
    try:
        status, outputs, checkpoints = average(job, listen)
    except Exception as failure:  # noqa: BLE001 - one job's bug must not end the others
        status, outputs, checkpoints, error = Status.FAILED, (), 0, _without_frames(failure)
    result = JobResult(
        job=job,
        status=status,
        outputs=outputs,
        checkpoints=checkpoints,
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
        error=error,
    )
    listener(JobEnded(result=result))
    return result


def _without_frames(failure: Exception) -> Exception:
    """Drop the traceback of an expected failure: its frames would keep everything the job read in memory."""
    if isinstance(failure, EmaAvgError):
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
    return failure


def _average(job: Job, listen: Callable[[Event], None], argv: Sequence[str]) -> _Outcome:
    done = run_average(job.options, listen, argv)
    paths = tuple(locate(average.output.path) for average in done.report.averages)
    count = len(done.report.averages[0].diagnostics.implied_lr)  # including those inside a previous average
    return (Status.UP_TO_DATE if done.up_to_date else Status.WRITTEN), paths, count


def _plan(job: Job, listen: Callable[[Event], None]) -> _Outcome:
    """Plan a job and check it as its run would."""
    with planned(job.options, listen) as plan:
        examined, checked = examine(plan, job.options)
        announce(examined, checked, job.options, listen)
        status = Status.UP_TO_DATE if checked.up_to_date is not None else Status.PLANNED
        return status, tuple(output.path for output in plan.outputs), len(plan.series.folded)
