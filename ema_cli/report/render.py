"""Reports and batch indexes in the format of a file's suffix; and whether this program made a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ema_cli.errors import EmaAvgError
from ema_cli.formats.json_text import parse_object
from ema_cli.records.record_types import build
from ema_cli.report.batch_index import BatchIndex
from ema_cli.report.beside import LARGEST_BYTES, parse_report
from ema_cli.report.model import Report, Tool
from ema_cli.report.serialize import to_json_pieces
from ema_cli.storage.locations import Location, open_source

INDEX_SUFFIXES = (".json", ".html")
"""The formats of ``render_index``."""
_HEAD_BYTES = 4096


def render_report(report: Report, suffix: str) -> list[bytes]:
    """Return a report as HTML (``.html``), Markdown (``.md``) or JSON, in pieces: it can be large."""
    if suffix == ".html":
        from ema_cli.report.html import to_html  # noqa: PLC0415 - jinja2 takes a moment

        return [to_html(report).encode(errors="backslashreplace")]
    if suffix == ".md":
        from ema_cli.report.markdown import to_markdown  # noqa: PLC0415

        return [to_markdown(report).encode(errors="backslashreplace")]
    return to_json_pieces(report)


def render_index(index: BatchIndex, suffix: str) -> bytes:
    """Return the index of a batch as HTML (``.html``) or JSON."""
    if suffix == ".html":
        from ema_cli.report.html import index_to_html  # noqa: PLC0415 - jinja2 takes a moment

        return index_to_html(index).encode()
    return b"".join(to_json_pieces(index))


def is_report(path: Location) -> bool:
    """Whether a file is a report that ``render_report`` made."""
    if path.suffix != ".json":
        return _is_page(path)
    try:
        parse_report(path)
    except (EmaAvgError, OSError):
        return False
    return True


def is_index(path: Path) -> bool:
    """Whether a file is an index that ``render_index`` made, so that a newer one may replace it."""
    if path.suffix == ".html":
        return _is_page(path)
    try:
        with open_source(path) as source:
            raw = source.read(0, source.size()) if source.size() <= LARGEST_BYTES else b""
        document: Any = parse_object(raw)
        return isinstance(document["jobs"], list) and build(Tool, document["tool"]).name == "ema-avg"
    except (EmaAvgError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_page(path: Location) -> bool:
    """Whether a file is HTML or Markdown of this program: the mark is near its beginning."""
    try:
        with open_source(path) as source:
            head = source.read(0, min(_HEAD_BYTES, source.size()))
    except (EmaAvgError, OSError):
        return False
    return head.startswith(b"<!-- ema-avg report -->") or b'<meta name="generator" content="ema-avg ' in head
