"""Is an output already there? Its files must begin with the planned headers, its report name the same inputs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from ema_cli.errors import EmaAvgError, NothingNew, OutputError
from ema_cli.options.average import Options
from ema_cli.records.files import PlannedFile, is_weights
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.report.beside import join_reports, read_report
from ema_cli.report.model import File, Output, Report
from ema_cli.storage.locations import Location, exists, open_source
from ema_cli.storage.url import Url
from ema_cli.text import quoted, shortlist
from ema_cli.write.temp_names import holds_something


def find_earlier(plan: Plan, options: Options) -> Report | None:
    """Return the report of an earlier run that left what the plan would make; see the two cases below."""
    return _find_unchanged(plan, options) if plan.series.nothing_new else find_up_to_date(plan, options)


def find_up_to_date(plan: Plan, options: Options) -> Report | None:
    """Return the report of an earlier run that wrote exactly these outputs from these inputs, if there was one.

    Raises:
        OutputError: an output exists, is not up to date, and ``--force`` was not given.

    """
    found = [_look(output, plan, options) for output in plan.outputs]
    reports = [report for report in found if isinstance(report, Report)]
    if options.force:
        return None
    if len(reports) == len(found):
        return join_reports(reports)
    in_the_way = [
        f"{quoted(str(output.path))} exists: {reason}"
        for output, reason in zip(plan.outputs, found, strict=True)
        if isinstance(reason, str) and _is_in_the_way(output)
    ]
    if in_the_way:
        raise OutputError(
            shortlist(in_the_way, most=2), hint="choose another name with -o, or overwrite it with --force"
        )
    return None


def _find_unchanged(plan: Plan, options: Options) -> Report:
    """Return the report of an average that would be gone on from into itself, and has all checkpoints already.

    Raises:
        NothingNew: the options ask for something else than what is there, and there is nothing to make it from.

    """
    (output,) = plan.outputs
    report = read_report(output.path)
    reason = "there is no report beside it that says what it is"
    if report is not None and report.inputs and len(report.averages) == 1:
        reason = _changed(output, report, options)
        if not reason:
            return _at(output, report)
    raise NothingNew(
        f"nothing is new, and {quoted(str(output.path))} cannot be made again: {reason}",
        hint="average all checkpoints at once, without --continue-from",
    )


def _look(output: PlannedOutput, plan: Plan, options: Options) -> Report | str:
    """Return the report of an output that is up to date, or why it is not."""
    report = read_report(output.path)
    if report is None:
        return "there is no report beside it that says what it is"
    if [average.weights for average in report.averages] != [output.weighting.weights]:
        return "its report tells of another average"
    known = [one.fingerprint for one in report.inputs]
    touched = [c.path for c, then in zip(plan.checkpoints, known, strict=False) if c.fingerprint != then]
    if len(known) != len(plan.checkpoints):
        return "its report tells of other checkpoints"
    if touched:
        return f"since then {quoted(str(touched[0]))} was changed or touched"
    return _changed(output, report, options) or _at(output, report)


def _changed(output: PlannedOutput, report: Report, options: Options) -> str:
    """Return why an output is not what its report and the plan say; empty if it is."""
    if options.sha256 and not all(known.sha256 for known in report.inputs):
        return "its report has no digests of the inputs, which --sha256 asks for"
    if options.geometry == "full" and (report.geometry is None or report.geometry.sampled_fraction < 1):
        return "its report has no exact distances, which --geometry full asks for"
    if not all(_has_header(_place(output, file), file) for file in output.files):
        return "it was made with other options, or by another version"
    if isinstance(output.path, Path) and not _is_as_written(output, report.averages[0].output):
        return "it was changed after it was written"
    return ""


def _place(output: PlannedOutput, file: PlannedFile) -> Location:
    return output.path / file.name if output.folder else output.path


def _is_in_the_way(output: PlannedOutput) -> bool:
    """Whether something stands where an output is to be; an empty folder makes way for one."""
    if isinstance(output.path, Url) or not output.folder:
        return exists(output.path)
    try:
        return holds_something(output.path)
    except OSError:
        return True


def _at(output: PlannedOutput, report: Report) -> Report:
    """Return the report with the path that the output has now."""
    (average,) = report.averages
    here = dataclasses.replace(average, output=dataclasses.replace(average.output, path=str(output.path)))
    return dataclasses.replace(report, averages=(here,))


def _has_header(path: Location, planned: PlannedFile) -> bool:
    """Whether a file begins as planned and has the size; an object in a store is changed as a whole, or not at all."""
    try:
        with open_source(path) as source:
            return source.size() == planned.nbytes and source.read(0, len(planned.header)) == planned.header
    except EmaAvgError:
        return False


def _is_as_written(output: PlannedOutput, written: Output) -> bool:
    """Whether the files of an output are those of its report, and of the plan, and are as they were written."""
    if not output.folder:
        return _is_untouched(output.local, written)
    known = {file.name: file for file in written.files}
    planned = {file.name: file.nbytes for file in output.files} | {side.name: side.nbytes for side in output.beside}
    try:
        weights = {path.name for path in output.local.iterdir() if is_weights(path.name)}
    except OSError:
        return False
    return (
        {name: file.bytes for name, file in known.items()} == planned
        and weights == {name for name in planned if is_weights(name)}
        and all(_is_untouched(output.local / name, file) for name, file in known.items())
    )


def _is_untouched(path: Path, written: Output | File) -> bool:
    """Whether a file was not touched since it was written or, if it was, still has the digest of its report."""
    try:
        if path.stat().st_mtime_ns == written.modified_ns:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == written.sha256
    except OSError:
        return False
