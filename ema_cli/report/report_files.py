"""The report files of a run: written before any output is published, each published after its output."""

from __future__ import annotations

from contextlib import ExitStack

from ema_cli.options.average import Options
from ema_cli.records.plan import Plan
from ema_cli.report.beside import report_of_average, report_path
from ema_cli.report.model import Report
from ema_cli.report.render import render_report
from ema_cli.storage.locations import Location
from ema_cli.write.make_target import make_small
from ema_cli.write.publication import Finished, publish_all


def stage_reports(plan: Plan, report: Report, options: Options, unpublished: ExitStack) -> list[Finished]:
    """Write the report of each output, then that of the run to each requested path, under temporary names.

    No output is published before all reports are on disk: a full disk must not leave an output without its report.
    On exit, ``unpublished`` discards the files that were not published.

    Raises:
        OutputError: a report cannot be written.

    """
    contents: dict[Location, bytes] = {
        report_path(output.path): render_report(report_of_average(report, k), ".json")
        for k, output in enumerate(plan.outputs)
    }
    return _stage(contents | _requested(report, options), unpublished)


def write_requested_reports(report: Report, options: Options) -> None:
    """Write the report of the run to each requested path.

    Raises:
        OutputError: a report cannot be written.

    """
    with ExitStack() as unpublished:
        publish_all(_stage(_requested(report, options), unpublished))


def _requested(report: Report, options: Options) -> dict[Location, bytes]:
    return {path: render_report(report, path.suffix) for path in options.report}


def _stage(contents: dict[Location, bytes], unpublished: ExitStack) -> list[Finished]:
    files = []
    for path, data in contents.items():
        file = make_small(path)
        unpublished.callback(file.discard)
        file.write(data)
        files.append(Finished(path=path, target=file))
    return files
