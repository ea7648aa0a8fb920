"""What ``ema-avg batch`` does between its options and the console."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.batch.find_runs import find_runs
from ema_cli.batch.jobs import Job, check_jobs, make_job
from ema_cli.batch.run_batch import MOST_WORKERS, JobResult, Status, run_batch
from ema_cli.cli.batch_options import BatchCommandLine, given_by
from ema_cli.cli.config.command import configured
from ema_cli.cli.config.manifest import read_manifest
from ema_cli.cli.config.precedence import resolve
from ema_cli.cli.console import Console
from ema_cli.cli.exit import ExitCode, describe_bug, exit_code
from ema_cli.cli.options import Given
from ema_cli.cli.process import Terminated
from ema_cli.cli.views.batch_view import BatchDisplay, show_batch
from ema_cli.errors import EmaAvgError, OutputError, UsageError
from ema_cli.options.average import make_options
from ema_cli.options.config_used import ConfigUsed
from ema_cli.report.batch_index import BatchIndex, BatchSummary, JobEntry, JobError
from ema_cli.report.model import SCHEMA_VERSION, Command, Tool
from ema_cli.report.render import INDEX_SUFFIXES, is_index, render_index
from ema_cli.report.serialize import to_json
from ema_cli.storage.locations import Location, full_name
from ema_cli.storage.url import Url
from ema_cli.text import plural, quoted, safe_text
from ema_cli.write.small_file import write_atomically
from ema_cli.write.writable import check_writable


def batch(
    names: Sequence[str],
    given: Given,
    options: BatchCommandLine,
    *,
    context: Any,  # noqa: ANN401 - Click's
    console: Console,
    argv: Sequence[str],
) -> ExitCode:
    """Average every run, show the results, and return the exit status."""
    if not 1 <= options.jobs <= MOST_WORKERS:
        raise UsageError(f"--jobs {options.jobs} must be from 1 to {MOST_WORKERS}")
    jobs = [*_manifest_jobs(options, context), *_named_jobs(names, given, console)]
    check_jobs(jobs, options.index)
    _check_index(options, force=bool(given["force"]))
    started = time.monotonic()
    done: list[JobResult] = []
    try:
        with BatchDisplay(console, len(jobs), done, describe) as display:
            found = run_batch(jobs, display.show, workers=options.jobs, dry_run=options.dry_run, argv=argv)
    except Terminated as signalled:
        finished = sum(one.status in (Status.WRITTEN, Status.UP_TO_DATE) for one in done)
        left = f"{finished:,} of {plural(len(jobs), 'run')} are done, and their outputs stay"
        signalled.left = f"{left}; the same command continues"
        raise
    index = _index(found, options, argv, given["config"], time.monotonic() - started)
    _show(index, options, console)
    return ExitCode.BATCH_FAILED if any(one.status is Status.FAILED for one in found) else ExitCode.OK


def describe(error: Exception) -> JobError:
    """Return why a job failed, with the exit code that the main job would have had."""
    known = error if isinstance(error, EmaAvgError) else describe_bug(error)
    code = exit_code(known) if known is error else ExitCode.BUG
    return JobError(exit_code=int(code), message=known.message, hint=known.hint)


def _named_jobs(names: Sequence[str], given: Given, console: Console) -> Iterator[Job]:
    """Yield the jobs of the runs on the command line."""
    if not names:
        return
    found = find_runs(names)
    for warning in found.warnings:
        console.warning(warning)
    for folder in found.folders:
        yield make_job(make_options([full_name(folder)], **given), full_name(folder))


def _manifest_jobs(options: BatchCommandLine, context: Any) -> Iterator[Job]:  # noqa: ANN401
    """Yield the jobs of the manifest. Precedence: flags, the table of the job, ``[defaults]``, configuration."""
    if options.manifest is None:
        return
    found = configured(context)
    flags, *rest = found.layers
    for job in read_manifest(options.manifest, found.options):
        settings, _ = resolve((flags, *job.layers, *rest))
        try:
            config = {"config": found.config_used(settings), "config_warnings": found.ignored}
            asked = make_options(job.paths, **given_by(context, settings), **config)
        except UsageError as error:
            raise UsageError(f"{job.place}: {error.message}", hint=error.hint) from error
        yield make_job(asked, job.run)


def _check_index(options: BatchCommandLine, *, force: bool) -> None:
    """Raise, before the work, if the index cannot be written after it."""
    path = options.index
    if path is None:
        return
    if path.suffix not in INDEX_SUFFIXES:
        message = f"--index {quoted(str(path))}: there is no index format {quoted(path.suffix)} yet"
        raise UsageError(message, hint=f"name it {' or '.join(INDEX_SUFFIXES)}")
    check_writable(path)
    if path.exists() and not force and not is_index(path):
        message = f"{quoted(str(path))} exists and is not an index of ema-avg"
        raise OutputError(message, hint="choose another name, or overwrite it with --force")


def _show(index: BatchIndex, options: BatchCommandLine, console: Console) -> None:
    """Write the index, and show the results."""
    if options.index is not None and not options.dry_run:
        _write_index(index, options.index)
    if console.style.json:
        console.raw_document(to_json(index))
    show_batch(index, console, dry_run=options.dry_run)
    if options.index is not None:
        label = "index not written (dry run):" if options.dry_run else "index"
        console.talk(f"{label} {safe_text(str(options.index))}")


def _write_index(index: BatchIndex, path: Path) -> None:
    """Write the index; if that fails, the error says what became of the runs."""
    try:
        write_atomically(path, render_index(index, path.suffix))
    except OutputError as error:
        counts = index.summary
        done = f"{counts.written:,} written, {counts.up_to_date:,} up to date, {counts.failed:,} failed"
        again = "run the same command again: what is done is up to date"
        hint = f"{error.hint}; then {again}" if error.hint else again
        raise OutputError(f"{error.message}; the runs are done: {done}", hint=hint) from error


def _index(
    found: Sequence[JobResult],
    options: BatchCommandLine,
    argv: Sequence[str],
    config: ConfigUsed | None,
    seconds: float,
) -> BatchIndex:
    folder = Path() if options.index is None else options.index.parent
    counts = {status: sum(one.status is status for one in found) for status in Status}
    return BatchIndex(
        schema_version=SCHEMA_VERSION,
        tool=Tool(name="ema-avg", version=__version__),
        command=Command(argv=tuple(argv), options={"jobs": options.jobs, "dry_run": options.dry_run}, config=config),
        jobs=tuple(_entry(one, folder) for one in found),
        summary=BatchSummary(
            jobs=len(found),
            written=counts[Status.WRITTEN],
            up_to_date=counts[Status.UP_TO_DATE],
            planned=counts[Status.PLANNED],
            failed=counts[Status.FAILED],
            seconds=seconds,
        ),
    )


def _entry(result: JobResult, folder: Path) -> JobEntry:
    return JobEntry(
        run=result.job.run,
        status=str(result.status),
        outputs=tuple(_relative_to(folder, path) for path in result.outputs),
        reports=tuple(_relative_to(folder, path) for path in result.reports),
        checkpoints=result.checkpoints,
        seconds=result.seconds,
        warnings=tuple(warning.code for warning in result.warnings),
        error=None if result.error is None else describe(result.error),
    )


def _relative_to(folder: Path, path: Location) -> str:
    return str(path) if isinstance(path, Url) else os.path.relpath(path, folder)
