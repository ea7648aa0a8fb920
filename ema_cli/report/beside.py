"""The report beside an output: its path, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.formats.json_text import refuse_large
from ema_cli.naming import report_name
from ema_cli.report.model import Report
from ema_cli.report.serialize import LARGEST_REPORT_BYTES, from_json
from ema_cli.report.validation import find_fault
from ema_cli.storage.locations import Location, open_source
from ema_cli.storage.url import Url
from ema_cli.text import quoted

Where = TypeVar("Where", Path, Url, Location)


def report_path(output: Where) -> Where:
    """Return the path of the report beside an output."""
    return output.with_name(report_name(output.name))


def read_report(output: Location) -> Report | None:
    """Return the report beside an output, ``None`` if there is none that can be read."""
    try:
        return load_report(report_path(output))
    except EmaAvgError:
        return None


def load_report(path: Location) -> Report:
    """Return the report of one output, well formed.

    Raises:
        NothingMatched: there is none.
        InputRefused: it cannot be read, or is not such a report.

    """
    with open_source(path) as source:
        if source.size() > LARGEST_REPORT_BYTES:
            raise InputRefused(f"{quoted(str(path))} has {source.size():,} bytes, which is too much for a report")
        raw = source.read(0, source.size())
    try:
        refuse_large(raw)
        report = from_json(raw.decode("utf-8"))
        fault = find_fault(report)
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{quoted(str(path))} is not a report of ema-avg") from error
    if fault is not None:
        raise InputRefused(f"{quoted(str(path))} is not a report that can be relied on: {fault}")
    return report
