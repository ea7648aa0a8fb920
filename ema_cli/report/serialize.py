"""Report records <-> JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import NoReturn

from ema_cli.records.record_types import build
from ema_cli.report.batch_index import BatchIndex
from ema_cli.report.model import Report
from ema_cli.report.redaction import redacted_index, redacted_report


def to_json(document: Report | BatchIndex) -> str:
    """Return a report or the index of a batch as JSON, ASCII only, without NaN and without secrets."""
    public = redacted_report(document) if isinstance(document, Report) else redacted_index(document)
    return json.dumps(dataclasses.asdict(public), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Return the report that ``to_json`` wrote.

    Raises:
        ValueError: ``text`` is not a report.

    """
    try:
        return from_plain(json.loads(text, parse_constant=_refuse_constant))
    except RecursionError as error:
        raise ValueError("not a report") from error


def from_plain(document: object) -> Report:
    """Return the report in a document of plain values.

    Unknown fields, of a newer version, are ignored; missing ones, of an older version, have their defaults.

    Raises:
        ValueError: it is not a report.

    """
    try:
        report = build(Report, document)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a report") from error
    assert isinstance(report, Report)  # noqa: S101 - for the type checker
    return report


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinity, which are not JSON."""
    raise ValueError(name)
