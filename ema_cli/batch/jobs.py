"""The jobs of a batch: one per run, with its own paths, checked against each other before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.errors import UsageError
from ema_cli.naming import fill_output_name, run_fields
from ema_cli.options.average import Options
from ema_cli.planning.outputs import output_path
from ema_cli.record import record
from ema_cli.report.beside import report_path
from ema_cli.storage.locations import Location, full_name, locate
from ema_cli.storage.url import Url
from ema_cli.text import quoted


@record
class Job:
    """A run folder and the options of its average."""

    run: str
    """The folder, as it was named. It may have a secret."""
    options: Options


def make_job(options: Options, run: str) -> Job:
    """Return the job of a run, with ``{run}`` and ``{name}`` filled in in its paths."""
    report = tuple(_fill(path, run) for path in options.report)
    continue_from = _fill(options.continue_from, run) if options.continue_from else None
    return Job(run=run, options=replace(options, run=run, report=report, continue_from=continue_from))


def _fill(path: Location, run: str) -> Location:
    return locate(fill_output_name(full_name(path), run_fields(run)))


def check_jobs(jobs: Sequence[Job], index: Path | None = None) -> None:
    """Raise if the jobs cannot be carried out together; nothing is read.

    Raises:
        UsageError: there are no jobs, a decay is missing, or two jobs would write the same file.

    """
    if not jobs:
        raise UsageError("no run was named", hint="ema-avg batch RUNS/ --half-life 4")
    taken: dict[str, str] = {} if index is None else {_real_path(index): "the index"}
    for job in jobs:
        if job.options.lacks_decay and job.options.continue_from is None:
            raise UsageError(
                "neither --decay nor --half-life was given",
                hint="--half-life 4; a run alone compares some choices: ema-avg plan RUN",
            )
        mine = {_real_path(path): path for path in _written(job.options)}
        for real_path, path in mine.items():
            other = taken.get(real_path)
            if other is not None:
                message = f"{quoted(job.run)} and {other} would both write {quoted(str(path))}"
                raise UsageError(message, hint="-o '{run}/ema.safetensors', or use '{name}' if the names differ")
        taken |= dict.fromkeys(mine, quoted(job.run))


def _written(options: Options) -> Iterator[Location]:
    """Yield everything a job writes."""
    for output in _outputs(options):
        yield output
        yield report_path(output)
    yield from options.report


def _outputs(options: Options) -> list[Location]:
    if options.continue_from is not None:  # the method is in that file
        return [_fill(options.destination, options.run or "")]
    return [output_path(method, options) for method in options.expand()]


def _real_path(path: Location) -> str:
    """Return the real path, which two names of one file share, whether it exists or not."""
    if isinstance(path, Url):
        return path.address
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
