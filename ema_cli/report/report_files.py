"""The report files of a run: written before any output is published, each published after its output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from ema_cli.errors import EmaAvgError, NothingMatched, OutputError
from ema_cli.naming import report_name
from ema_cli.options.average import Options
from ema_cli.options.output_options import check_report_name
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.report.beside import report_of_average, report_path
from ema_cli.report.model import Report
from ema_cli.report.render import is_report, render_report
from ema_cli.storage.locations import Location, open_source
from ema_cli.text import quoted
from ema_cli.write.make_target import make_small
from ema_cli.write.publication import Finished, IdentifyingReport, publish_all
from ema_cli.write.target import SmallTarget


def stage_reports(plan: Plan, report: Report, options: Options, unpublished: ExitStack) -> list[Finished]:
    """Write the report of each output, then that of the run to each requested path, under temporary names.

    No output is published before all reports are on disk: a full disk must not leave an output without its report.
    On exit, ``unpublished`` discards the files that were not published.

    Raises:
        OutputError: a report cannot be written.

    """
    outputs = {report_path(output.path): output for output in plan.outputs}
    contents: dict[Location, list[bytes]] = {
        path: render_report(report_of_average(report, k), ".json") for k, path in enumerate(outputs)
    }
    return _stage(contents | _requested(report, options), unpublished, outputs)


def finished_report(path: Location, target: SmallTarget, output: PlannedOutput | None) -> Finished:
    """Return a report that is complete: that of an output, or a further one."""
    if output is not None and (output.folder or output.placement is not None):
        return IdentifyingReport(path=path, target=target, output=output.path)
    return Finished(path=path, target=target)


def write_requested_reports(report: Report, options: Options) -> None:
    """Write the report of the run to each requested path.

    Raises:
        OutputError: a report cannot be written.

    """
    with ExitStack() as unpublished:
        publish_all(_stage(_requested(report, options), unpublished))


def save_report(report: Report, path: Location, *, force: bool) -> None:
    """Write a report in the format of the suffix of ``path``.

    Raises:
        UsageError: there is no such format.
        OutputError: another file has this name, unless ``force``; or the report cannot be written.

    """
    check_report_name(path)
    if not force:
        refuse_foreign_file(path, "choose another name, or overwrite it with --force")
        if len(report.averages) > 1 and path.name.endswith(report_name("")) and _is_there(path):
            message = f"{quoted(str(path))} is the report of one output, and this report has several averages"
            raise OutputError(message, hint="choose another name")
    with ExitStack() as unpublished:
        publish_all(_stage({path: render_report(report, path.suffix)}, unpublished))


def refuse_foreign_file(report: Location, hint: str) -> None:
    """Raise if a file with the name of a report is none, or its store does not tell.

    Raises:
        OutputError: naming the file, with the ``hint``.

    """
    try:
        foreign = _is_there(report) and not is_report(report)
    except EmaAvgError as error:
        raise OutputError(error.message, hint=error.hint) from error
    if foreign:
        raise OutputError(f"{quoted(str(report))} exists and is not a report of ema-avg", hint=hint)


def _is_there(report: Location) -> bool:
    if isinstance(report, Path):
        return os.path.exists(report)  # noqa: PTH110 - no name is an error
    try:
        open_source(report).close()
    except NothingMatched:
        return False
    return True


def _requested(report: Report, options: Options) -> dict[Location, list[bytes]]:
    return {path: render_report(report, path.suffix) for path in options.report}


def _stage(
    contents: Mapping[Location, list[bytes]],
    unpublished: ExitStack,
    outputs: Mapping[Location, PlannedOutput] = MappingProxyType({}),
) -> list[Finished]:
    """Write reports under hidden names; ``outputs``: those that reports are of, by the path of the report."""
    files = []
    for path, pieces in contents.items():
        file = make_small(path)
        unpublished.callback(file.discard)
        file.write(*pieces)
        files.append(finished_report(path, file, outputs.get(path)))
    return files
