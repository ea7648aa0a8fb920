"""A report in the form that the suffix of a file asks for; and whether a file is a report of this program."""

from __future__ import annotations

from pathlib import Path

from ema_cli.report.model import Report
from ema_cli.report.serialize import from_json, to_json

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


def is_report(path: Path) -> bool:
    """Whether a file that is there was written by ``render_report``."""
    try:
        if path.suffix == ".json":
            from_json(path.read_text(encoding="utf-8"))
            return True
    except (OSError, ValueError):
        return False
    return is_page(path)


def is_page(path: Path) -> bool:
    """Whether a file is HTML or Markdown of this program, by the mark at its beginning."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.startswith(b"<!-- ema-avg report -->") or b'<meta name="generator" content="ema-avg ' in head
