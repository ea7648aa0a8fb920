"""Report records <-> JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any, NoReturn, TypeGuard

from ema_cli.records.record_types import build
from ema_cli.report.batch_index import BatchIndex
from ema_cli.report.model import Report
from ema_cli.report.redaction import redacted_index, redacted_report


def to_json(document: Report | BatchIndex) -> str:
    """Return a report or the index of a batch as JSON, ASCII only, without NaN and without secrets."""
    return to_json_bytes(document).decode("ascii")


def to_json_bytes(document: Report | BatchIndex) -> bytes:
    """Return the same as bytes.

    The text is that of ``json.dumps`` with an indentation of one space. The report of a model with 100,000 tensors has
    50 MB, so it is not made of dictionaries first.
    """
    public = redacted_report(document) if isinstance(document, Report) else redacted_index(document)
    out = BytesIO()
    _write(public, "\n", out.write)
    out.write(b"\n")
    return out.getvalue()


def _write(value: object, newline: str, write: Callable[[bytes], object]) -> None:
    """Write a value; records in tuples are written one by one. ``newline`` ends with the indentation of the value."""
    kind: Any = type(value)
    if _is_list_of_records(value):
        between = b"["
        for record in value:
            write(between + f"{newline} {_text(record, newline + ' ')}".encode("ascii"))
            between = b","
        write(f"{newline}]".encode("ascii"))
    elif dataclasses.is_dataclass(value):
        between = b"{"
        for name, key in _keys(kind):
            write(between + f"{newline} {key}".encode("ascii"))
            _write(getattr(value, name), newline + " ", write)
            between = b","
        write(f"{newline}}}".encode("ascii"))
    else:
        write(_text(value, newline).encode("ascii"))


def _text(value: object, newline: str) -> str:
    """Return a value as JSON."""
    kind: Any = type(value)
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain(value)
    inner = f"{newline} "
    if dataclasses.is_dataclass(value):
        fields = [(key, getattr(value, name)) for name, key in _keys(kind)]
        texts = [f"{key}{plain(v) if (plain := _PLAIN.get(type(v))) else _text(v, inner)}" for key, v in fields]
        return f"{{{inner}{f',{inner}'.join(texts)}{newline}}}"
    if isinstance(value, tuple):
        return f"[{inner}{f',{inner}'.join([_text(item, inner) for item in value])}{newline}]" if value else "[]"
    return json.dumps(value, indent=1, allow_nan=False, default=dataclasses.asdict).replace("\n", newline)


def _is_list_of_records(value: object) -> TypeGuard[tuple[object, ...]]:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


@cache
def _keys(record: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - a type
    """Return the fields of a record, each with its key as JSON."""
    return tuple((field.name, f'"{field.name}": ') for field in dataclasses.fields(record))


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"Out of range float values are not JSON compliant: {value}")
    return float.__repr__(value)


_PLAIN: dict[type, Callable[[Any], str]] = {
    str: json.encoder.encode_basestring_ascii,
    float: _number,
    int: int.__repr__,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): lambda _: "null",
}
"""How plain values are written, by their type."""


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
