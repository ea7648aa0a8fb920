"""Reports and batch indexes without secrets: no text of a user or a library leaves this room in another way.

Names of tensors stay as they are, as the output has them. The function is applied when a report is made and again
when one is shown, because it may have been read from a file of an older version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ema_cli.report.batch_index import BatchIndex, JobEntry
from ema_cli.report.model import Average, Command, Report
from ema_cli.text import is_redacted, redacted, without_secrets

REMOVED = "Passwords, signatures and tokens were removed from this report: paths with *** are not whole."
"""What a reader has to know about such a report."""


def redacted_report(report: Report) -> Report:
    """Return a report without secrets; ``command.secrets_removed`` is set if there were any."""
    paths = [without_secrets(known.path, whole=True) for known in report.inputs]
    inputs = tuple(
        replace(
            known,
            path=path,
            notes=tuple(map(without_secrets, known.notes)),
            path_from_output=redacted(known.path_from_output),
        )
        for known, path in zip(report.inputs, paths, strict=True)
    )
    averages = tuple(map(_average, report.averages))
    shown = [*paths, *(average.output.path for average in averages)]
    command = _command(report.command, removed=(inputs, averages) != (report.inputs, report.averages) or _any(shown))
    return replace(report, command=command, inputs=inputs, averages=averages)


def redacted_index(index: BatchIndex) -> BatchIndex:
    """Return the index of a batch without secrets."""
    jobs = tuple(map(_job, index.jobs))
    command = _command(index.command, removed=jobs != index.jobs or _any(map(str, jobs)))
    return replace(index, command=command, jobs=jobs)


def _any(texts: Iterable[str]) -> bool:
    """Whether a secret was removed from one of some texts, maybe before: a ``Url`` never shows one."""
    return any(map(is_redacted, texts))


def _command(command: Command, *, removed: bool) -> Command:
    argv, options = redacted(tuple(command.argv)), redacted(command.options)
    removed = removed or command.secrets_removed or (argv, options) != (tuple(command.argv), command.options)
    return replace(command, argv=argv, options=options, secrets_removed=removed)


def _average(average: Average) -> Average:
    return replace(average, output=replace(average.output, path=without_secrets(average.output.path, whole=True)))


def _job(job: JobEntry) -> JobEntry:
    error = job.error
    if error is not None:
        error = replace(error, message=without_secrets(error.message), hint=without_secrets(error.hint))
    return replace(
        job,
        run=without_secrets(job.run, whole=True),
        outputs=redacted(job.outputs),
        reports=redacted(job.reports),
        error=error,
    )
