"""Reports of runs that were killed after an output got its name, and before its report got its own.

All reports are complete under hidden names before any output is published. The next run gives such a report its name:
otherwise the output would be described by the report of the output that it replaced.
"""

from __future__ import annotations

from pathlib import Path

from ema_cli.errors import EmaAvgError
from ema_cli.records.reported_output import File, Output
from ema_cli.report.beside import load_report, report_path
from ema_cli.write.publish import publish
from ema_cli.write.temp_names import leftovers_of


def publish_staged_report(output: Path) -> None:
    """Give the report of an output its name, if a killed run left it under a hidden name. Only under the lock.

    Raises:
        OSError: it cannot be renamed.

    """
    path = report_path(output)
    for staged in leftovers_of(path):
        try:
            report = load_report(staged)
        except EmaAvgError:
            continue
        if all(_is_described(output, average.output) for average in report.averages):
            publish(staged, path)
            return


def _is_described(path: Path, written: Output) -> bool:
    """Whether exactly these files were written: size and time of every file are those in the report."""
    if not written.files:
        return _is_file(path, written.bytes, written.modified_ns)
    return all(_is_listed(path, file) for file in written.files)


def _is_listed(folder: Path, file: File) -> bool:
    return _is_file(folder / file.name, file.bytes, file.modified_ns)


def _is_file(path: Path, size: int, modified_ns: int | None) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (size, modified_ns)
