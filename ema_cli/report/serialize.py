"""Report records <-> JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ema_cli.records.record_types import build
from ema_cli.report.model import Report

LARGEST_REPORT_BYTES = 1 << 28
"""Of what is read as a report."""


def to_json(report: Report) -> str:
    """Return the report as JSON, ASCII only, without NaN."""
    return json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Return the report that ``to_json`` wrote.

    Fields that this version does not know are ignored; those that an earlier one did not know have their defaults.

    Raises:
        ValueError: it is not a report.

    """
    try:
        made = build(Report, json.loads(text, parse_constant=_refuse_constant))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a report") from error
    assert isinstance(made, Report)  # noqa: S101 - for the type checker
    return made


def _refuse_constant(name: str) -> Any:  # noqa: ANN401 - json asks for it
    """NaN and infinity are not JSON, and stand in no report."""
    raise ValueError(name)
