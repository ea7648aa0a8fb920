"""The reports as files: staged before any output has its name, published after it."""

from __future__ import annotations

from contextlib import ExitStack

from ema_cli.options.average import Options
from ema_cli.records.plan import Plan
from ema_cli.report.beside import report_path
from ema_cli.report.model import Report
from ema_cli.report.render import render_report
from ema_cli.report.split import of_one
from ema_cli.storage.locations import Location
from ema_cli.write.target import Small, make_small


def stage_reports(plan: Plan, report: Report, options: Options, unpublished: ExitStack) -> list[Small]:
    """Write the report of each output, and the whole one wherever it was asked for; none has its name yet.

    No output has its name before all reports are on the disk: what there is no room for must not be half of a pair.

    Args:
        plan: has the outputs.
        report: of all of them.
        options: ask for further reports.
        unpublished: discards what was written.

    Raises:
        OutputError: one cannot be written.

    """
    contents: dict[Location, bytes] = {
        report_path(output.path): render_report(of_one(report, k), ".json") for k, output in enumerate(plan.outputs)
    }
    return _stage(contents | _asked_for(report, options), unpublished)


def write_asked_reports(report: Report, options: Options) -> None:
    """Write the whole report wherever it was asked for.

    Raises:
        OutputError: one cannot be written.

    """
    with ExitStack() as unpublished:
        for file in _stage(_asked_for(report, options), unpublished):
            file.publish()


def _asked_for(report: Report, options: Options) -> dict[Location, bytes]:
    return {place: render_report(report, place.suffix) for place in options.report}


def _stage(contents: dict[Location, bytes], unpublished: ExitStack) -> list[Small]:
    files = []
    for place, data in contents.items():
        file = make_small(place)
        unpublished.callback(file.discard)
        file.write(data)
        files.append(file)
    return files
