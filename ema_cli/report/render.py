"""A report in the form that the suffix of a file asks for; and whether a file is a report of this program."""

from __future__ import annotations

from ema_cli.errors import EmaAvgError
from ema_cli.formats.json_text import refuse_large
from ema_cli.report.model import Report
from ema_cli.report.serialize import LARGEST_REPORT_BYTES, from_json, to_json
from ema_cli.storage.locations import Location, open_source

_HEAD_BYTES = 4096


def render_report(report: Report, suffix: str) -> bytes:
    """Return the report as JSON, Markdown or one HTML page."""
    if suffix == ".html":
        from ema_cli.report.html import to_html  # noqa: PLC0415 - jinja2 takes a moment

        text = to_html(report)
    elif suffix == ".md":
        from ema_cli.report.markdown import to_markdown  # noqa: PLC0415

        text = to_markdown(report)
    else:
        text = to_json(report)
    return text.encode(errors="backslashreplace")


def is_report(place: Location) -> bool:
    """Whether a file that is there was written by ``render_report``."""
    if place.suffix != ".json":
        return is_page(place)
    try:
        with open_source(place) as source:
            raw = source.read(0, source.size()) if source.size() <= LARGEST_REPORT_BYTES else b""
        refuse_large(raw)
        from_json(raw.decode())
    except (EmaAvgError, OSError, ValueError):
        return False
    return True


def is_page(place: Location) -> bool:
    """Whether a file is HTML or Markdown of this program, by the mark at its beginning."""
    try:
        with open_source(place) as source:
            head = source.read(0, min(_HEAD_BYTES, source.size()))
    except (EmaAvgError, OSError):
        return False
    return head.startswith(b"<!-- ema-avg report -->") or b'<meta name="generator" content="ema-avg ' in head
