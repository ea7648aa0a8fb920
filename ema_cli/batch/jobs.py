"""The jobs of a batch: one run each, with its own paths, checked against each other before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ema_cli.errors import UsageError
from ema_cli.naming import fill_run, run_name
from ema_cli.options.average import Options
from ema_cli.planning.outputs import output_path
from ema_cli.report.beside import report_path
from ema_cli.storage.locations import Location, locate
from ema_cli.storage.url import Url
from ema_cli.text import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run and what is made of it."""

    run: str
    """The folder, as it is named to people."""
    options: Options


def make_job(options: Options, run: str) -> Job:
    """Return the job of a run: ``{run}`` and ``{name}`` in its paths are filled in."""

    def fill(path: Location) -> Location:
        return locate(fill_run(str(path), run, run_name(run)))

    return Job(
        run=run,
        options=replace(
            options,
            run=run,
            report=tuple(map(fill, options.report)),
            continue_from=fill(options.continue_from) if options.continue_from else None,
        ),
    )


def check_jobs(jobs: Sequence[Job], index: Path | None = None) -> None:
    """Raise, before anything is read, if the jobs cannot be carried out side by side.

    Raises:
        UsageError: a decay is missing, or two jobs would write one file.

    """
    if not jobs:
        raise UsageError("no run was named", hint="ema-avg batch runs/ --half-life 4")
    places: dict[str, str] = {} if index is None else {_place(index): "the index"}
    for job in jobs:
        if job.options.lacks_decay and job.options.continue_from is None:
            hint = f"--half-life 4; ema-avg plan {job.run} shows what some choices would do"
            raise UsageError("neither --decay nor --half-life was given", hint=hint)
        mine = {_place(path): path for path in _written(job.options)}
        for place, path in mine.items():
            other = places.get(place)
            if other is not None:
                message = f"{quoted(job.run)} and {other} would both write {quoted(str(path))}"
                raise UsageError(message, hint="-o '{run}/ema.safetensors', or '{name}' where names differ")
        places |= dict.fromkeys(mine, quoted(job.run))


def _written(options: Options) -> Iterator[Location]:
    """Yield what a job writes."""
    for output in _outputs(options):
        yield output
        yield report_path(output)
    yield from options.report


def _outputs(options: Options) -> list[Location]:
    if options.output is None or options.continue_from is not None:  # the method is known when that file is read
        run = options.run or ""
        return [locate(fill_run(str(options.output), run, run_name(run)))] if options.output else []
    return [output_path(method, options) for method in options.expand()]


def _place(path: Location) -> str:
    """Return what two names of one file have in common, whether it exists or not."""
    if isinstance(path, Url):
        return path.address
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
