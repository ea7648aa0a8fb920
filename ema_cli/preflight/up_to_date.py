"""Whether an output is up to date: its files begin with the planned headers, and its report lists the same inputs.

The version of the program in a header does not count: what an earlier version wrote stays up to date.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ema_cli.errors import EmaAvgError, NothingNew, OutputError
from ema_cli.formats.json_text import parse_object
from ema_cli.formats.own_outputs import is_as_reported
from ema_cli.options.average import Options
from ema_cli.options.output_options import OUR_METADATA
from ema_cli.preflight.replaced_folders import examine_output_folder
from ema_cli.records.files import PlannedFile, is_weights
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.reported_output import Output
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import join_reports, read_report
from ema_cli.report.model import Report
from ema_cli.report.redaction import redacted_report
from ema_cli.storage.locations import Location, exists, open_source
from ema_cli.storage.url import Url
from ema_cli.text import quoted, shortlist
from ema_cli.write.temp_names import is_nonempty_folder

_LENGTH_BYTES = 8
"""Of a safetensors file: its first bytes are the length of the header."""
_LONGEST_VERSION = 64
"""Bytes by which headers of two versions may differ."""
_NO_REPORT = "without a readable report beside it"


def find_up_to_date(plan: Plan, options: Options) -> Report | None:
    """Return the report of the existing outputs if they are exactly what the plan would write, else ``None``.

    Raises:
        OutputError: an output exists, is not up to date, and ``--force`` was not given.
        NothingNew: nothing new would be averaged, and the previous average is not what the options ask for.

    """
    if plan.series.nothing_new:
        return _find_previous(plan, options)
    if options.force:
        return None
    found = [_examine(output, plan, options) for output in plan.outputs]
    reports = [report for report in found if isinstance(report, Report)]
    if len(reports) == len(found):
        return join_reports(reports)
    for output in plan.outputs:
        if output.folder and isinstance(output.path, Path):
            examine_output_folder(output)  # where --force would not help, it is not proposed
    in_the_way = [
        f"{quoted(str(output.path))} already exists, {reason}"
        for output, reason in zip(plan.outputs, found, strict=True)
        if isinstance(reason, str) and _is_in_the_way(output)
    ]
    if in_the_way:
        raise OutputError(
            shortlist(in_the_way, most=2), hint="choose another name with -o, or overwrite it with --force"
        )
    return None


def _find_previous(plan: Plan, options: Options) -> Report:
    """Return the report of a previous average that would be continued into itself and contains all checkpoints.

    Raises:
        NothingNew: the options ask for something else, and there are no checkpoints to make it from.

    """
    (output,) = plan.outputs
    report = read_report(output.path)
    reason = _NO_REPORT
    if report is not None and report.inputs and len(report.averages) == 1:
        reason = _difference(output, report, options)
        if not reason:
            return _with_current_paths(output, report)
    raise NothingNew(
        f"there are no new checkpoints, and {quoted(str(output.path))} cannot be made again ({reason})",
        hint="average all checkpoints at once, without --continue-from",
    )


def _examine(output: PlannedOutput, plan: Plan, options: Options) -> Report | str:
    """Return the report of an output that is up to date, or how it differs from the plan."""
    report = read_report(output.path)
    if report is None:
        return _NO_REPORT
    if report.batch_norm is not None:
        return "made by ema-avg update-bn"
    fingerprints = [known.fingerprint for known in report.inputs]
    weights = [average.weights for average in report.averages]
    none_known = not {checkpoint.fingerprint for checkpoint in plan.checkpoints} & set(fingerprints)
    if weights != [output.weighting.weights] or len(fingerprints) != len(plan.checkpoints) or none_known:
        return "made with other inputs or settings"
    for checkpoint, fingerprint in zip(plan.checkpoints, fingerprints, strict=True):
        if checkpoint.fingerprint != fingerprint:
            return f"made before {quoted(str(checkpoint.path))} was changed or touched"
    newer = _newer_side_file(output, report.averages[0].output) if output.placement is not None else None
    if newer is not None:
        return f"made before {quoted(str(newer))} was changed or touched"
    return _difference(output, report, options) or _with_current_paths(output, report, plan.checkpoints)


def _newer_side_file(output: PlannedOutput, written: Output) -> Path | None:
    """Return a file of the last checkpoint that was modified after it was copied whole; ``None`` if there is none."""
    times = {file.name: file.modified_ns for file in written.files}
    for side in output.beside:
        if isinstance(side.source, Path) and _modified_ns(side.source) > times.get(side.name, 0):
            return side.source
    return None


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _difference(output: PlannedOutput, report: Report, options: Options) -> str:
    """Return how an output differs from its report and from the plan; empty if it does not."""
    if options.sha256 and not all(known.sha256 for known in report.inputs):
        return "made without --sha256"
    written = report.averages[0].output
    if written.format != output.format:
        return f"made with --format {written.format}"
    if not _has_options(output, report):
        return "made with other options or by another version"
    if isinstance(output.path, Path) and not _is_as_written(output, written):
        return "changed after it was written"
    return ""


def _has_options(output: PlannedOutput, report: Report) -> bool:
    """Whether an output has the planned headers; one without headers has the options of the plan, by its report."""
    if output.placement is not None:
        return report.averages[0].output.options_fingerprint == output.fingerprint
    return all(_has_header(output.path / file.name if output.folder else output.path, file) for file in output.files)


def _is_in_the_way(output: PlannedOutput) -> bool:
    """Whether something exists at the path of an output; an empty folder may be replaced."""
    if isinstance(output.path, Url) or not output.folder:
        return exists(output.path)
    try:
        return is_nonempty_folder(output.path)
    except OSError:
        return True


def _with_current_paths(output: PlannedOutput, report: Report, inputs: Sequence[Checkpoint] = ()) -> Report:
    """Return the report with the current paths of the output and, if they are known, of its ``inputs``.

    One of an older version may have secrets.
    """
    (average,) = report.averages
    moved = dataclasses.replace(average, output=dataclasses.replace(average.output, path=str(output.path)))
    found = report.inputs
    if inputs:
        found = tuple(
            dataclasses.replace(known, path=str(checkpoint.path))
            for known, checkpoint in zip(report.inputs, inputs, strict=True)
        )
    return redacted_report(dataclasses.replace(report, inputs=found, averages=(moved,)))


def _has_header(path: Location, planned: PlannedFile) -> bool:
    """Whether a file has the planned header and size; an object in a store is only ever replaced as a whole."""
    try:
        with open_source(path) as source:
            length = source.size() - planned.data_bytes
            if not 0 < length < len(planned.header) + _LONGEST_VERSION:
                return False
            header = source.read(0, length)
            return header == planned.header or _without_version(header) == _without_version(planned.header)
    except (EmaAvgError, ValueError):
        return False


def _without_version(header: bytes) -> tuple[dict[str, object], dict[str, object]]:
    """Return the tensors and the metadata of a header, without the version that wrote it.

    Raises:
        ValueError: it is no header.

    """
    length, raw = header[:_LENGTH_BYTES], header[_LENGTH_BYTES:]
    tensors = parse_object(raw)
    metadata = tensors.pop("__metadata__", None)
    if int.from_bytes(length, "little") != len(raw) or not isinstance(metadata, dict):
        raise ValueError
    return tensors, {key: value for key, value in metadata.items() if key != f"{OUR_METADATA}version"}


def _is_as_written(output: PlannedOutput, written: Output) -> bool:
    """Whether the files of an output are those of its report and of the plan, and unchanged."""
    if not output.folder:
        return not written.files and is_as_reported(output.local, written)
    known, planned = {file.name: file for file in written.files}, output.sizes
    try:
        weights = {path.name for path in output.local.iterdir() if is_weights(path.name)}
    except OSError:
        return False
    return (
        known.keys() == planned.keys()
        and all(known[name].bytes == nbytes for name, nbytes in planned.items() if nbytes is not None)
        and weights <= known.keys()
        and all(is_as_reported(output.local / name, file) for name, file in known.items())
    )
