"""Many runs, one average each: keeps going where a job fails, and tells in the end how each came out.

Input -> output: jobs -> their results, in the order of the jobs. What happens on the way is told to a listener.
Invariant: a job that fails leaves its output as it was, and takes no other job with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from ema_cli.batch.jobs import Job
from ema_cli.errors import EmaAvgError, RunWarning
from ema_cli.events import Event, WarningIssued
from ema_cli.pipeline import planned, run_average
from ema_cli.planning.make_plan import default_threads
from ema_cli.preflight.destinations import check_places
from ema_cli.preflight.strict import fail_if_strict
from ema_cli.preflight.up_to_date import find_earlier
from ema_cli.report.beside import report_path
from ema_cli.storage.locations import Location, locate

MOST_WORKERS = 64


class Status(StrEnum):
    """How a job came out."""

    WRITTEN = "written"
    UP_TO_DATE = "up_to_date"
    PLANNED = "planned"
    """In a dry run: it would be written."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job came out."""

    job: Job
    status: Status
    outputs: tuple[Location, ...]
    """Those that are there, or would be; none of a job that failed."""
    checkpoints: int
    seconds: float
    warnings: tuple[RunWarning, ...]
    error: Exception | None = None
    """Of a job that failed: an ``EmaAvgError``, or anything else for a bug."""

    @property
    def reports(self) -> tuple[Location, ...]:
        """The report beside each output, and those asked for besides."""
        if self.status in (Status.FAILED, Status.PLANNED):
            return ()
        return (*map(report_path, self.outputs), *self.job.options.report)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted:
    """A job begins."""

    number: int
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWorking:
    """Something happens in a job."""

    number: int
    job: Job
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """A job is done."""

    number: int
    result: JobResult


BatchEvent = JobStarted | JobWorking | JobEnded
BatchListener = Callable[[BatchEvent], None]


class _Stopped(BaseException):
    """The batch ends, and the job in this thread with it; no ``Exception``, so that no job takes it for its own."""


def run_batch(
    jobs: Sequence[Job],
    listener: BatchListener,
    *,
    workers: int = 1,
    dry_run: bool = False,
    argv: Sequence[str] = (),
) -> tuple[JobResult, ...]:
    """Carry out the jobs; return their results in the same order.

    Args:
        jobs: checked by ``ema_cli.batch.jobs.check_jobs``.
        listener: told of what happens, never by two threads at once.
        workers: how many jobs run at a time.
        dry_run: plan each job, and write nothing.
        argv: the command line, for the reports.

    Raises:
        BaseException: what the calling thread was interrupted by, when all jobs have cleaned up.

    """
    work = partial(_carry_out, average=_plan if dry_run else partial(_average, argv=argv))
    if min(workers, len(jobs)) <= 1:
        return tuple(work(number, job, listener) for number, job in enumerate(jobs))
    return _in_threads([_sharing(job, min(workers, len(jobs))) for job in jobs], work, listener, workers)


def _sharing(job: Job, workers: int) -> Job:
    """Return a job that leaves the others their part of the cores; the bytes do not depend on the threads."""
    if job.options.threads is not None:
        return job
    return replace(job, options=replace(job.options, threads=max(1, default_threads() // workers)))


_Work = Callable[[int, Job, BatchListener], JobResult]


def _in_threads(jobs: Sequence[Job], work: _Work, listener: BatchListener, workers: int) -> tuple[JobResult, ...]:
    """Carry out jobs in threads.

    Threads, not processes: the fold releases the interpreter's lock, and a small job mostly waits for the disk to
    make its output durable. Processes would import everything again for each worker, hold one GPU context each, and
    have to be told of signals; a thread stops at the next event that it tells.
    """
    stopped, lock = threading.Event(), threading.Lock()

    def tell(event: BatchEvent) -> None:
        if stopped.is_set():
            raise _Stopped
        with lock:
            listener(event)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="job")
    try:
        futures: list[Future[JobResult]] = [pool.submit(work, number, job, tell) for number, job in enumerate(jobs)]
        wait(futures, return_when=FIRST_EXCEPTION)
        return tuple(future.result() for future in futures)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


_Outcome = tuple[Status, tuple[Location, ...], int]
"""Status, outputs, and number of checkpoints."""


def _carry_out(
    number: int, job: Job, tell: BatchListener, average: Callable[[Job, Callable[[Event], None]], _Outcome]
) -> JobResult:
    """Carry out one job; whatever goes wrong with it is its result."""
    started, warnings = time.monotonic(), list[RunWarning]()

    def listen(event: Event) -> None:
        if isinstance(event, WarningIssued):
            warnings.append(event.warning)
        tell(JobWorking(number=number, job=job, event=event))

    tell(JobStarted(number=number, job=job))
    error: Exception | None = None
    try:
        status, outputs, checkpoints = average(job, listen)
    except Exception as failure:  # noqa: BLE001 - one job's bug must not end the others
        status, outputs, checkpoints, error = Status.FAILED, (), 0, _light(failure)
    result = JobResult(
        job=job,
        status=status,
        outputs=outputs,
        checkpoints=checkpoints,
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
        error=error,
    )
    tell(JobEnded(number=number, result=result))
    return result


def _light(failure: Exception) -> Exception:
    """Take off what an expected failure holds on to: the frames of its job, with all that they read."""
    if isinstance(failure, EmaAvgError):
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
    return failure


def _average(job: Job, listen: Callable[[Event], None], argv: Sequence[str]) -> _Outcome:
    done = run_average(job.options, listen, argv)
    paths = tuple(locate(average.output.path) for average in done.report.averages)
    count = len(done.report.averages[0].diagnostics.implied_lr)  # those inside an earlier average included
    return (Status.UP_TO_DATE if done.up_to_date else Status.WRITTEN), paths, count


def _plan(job: Job, listen: Callable[[Event], None]) -> _Outcome:
    """Find out what a job would do, or what would keep it from that."""
    with planned(job.options, listen) as plan:
        fail_if_strict(plan.warnings, job.options)
        check_places(plan, job.options)
        status = Status.UP_TO_DATE if find_earlier(plan, job.options) else Status.PLANNED
        return status, tuple(output.path for output in plan.outputs), len(plan.series.folded)
