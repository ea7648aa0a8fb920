"""Report records <-> JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, islice, repeat
from operator import add
from typing import Any, NoReturn

from ema_cli.records.record_types import build
from ema_cli.report.batch_index import BatchIndex
from ema_cli.report.model import Average, Report
from ema_cli.report.redaction import redacted_index, redacted_report

_TEXTS_IN_PIECE = 256
"""Mostly one per tensor, of 400 characters."""
_LARGE = (Report, Average, BatchIndex)
"""Records that are not made one text: they have a record per tensor or per job."""


def to_json(document: Report | BatchIndex) -> str:
    """Return a report or the index of a batch as JSON, ASCII only, without NaN and without secrets."""
    return b"".join(to_json_pieces(document)).decode("ascii")


def to_json_pieces(document: Report | BatchIndex) -> list[bytes]:
    """Return the same as bytes, cut into pieces.

    The text is that of ``json.dumps`` with an indentation of one space. The report of a model with 100,000 tensors has
    50 MB, so it is not made of dictionaries first, and never is in one piece.
    """
    public = redacted_report(document) if isinstance(document, Report) else redacted_index(document)
    texts, pieces = chain(_texts(public, "\n"), "\n"), list[bytes]()
    while some := "".join(islice(texts, _TEXTS_IN_PIECE)):
        pieces.append(some.encode("ascii"))
    return pieces


def _texts(value: object, newline: str) -> Iterator[str]:
    """Yield the text of a value, that of a large one in parts. ``newline`` ends with the indentation of the value."""
    inner = f"{newline} "
    if isinstance(value, _LARGE):
        kind: Any = type(value)
        between = "{"
        for name, key in zip(*_fields(kind), strict=True):
            yield f"{between}{inner}{key}"
            yield from _texts(getattr(value, name), inner)
            between = ","
        yield f"{newline}}}"
    elif isinstance(value, tuple) and value:
        between = "["
        for item in value:
            yield f"{between}{inner}"
            yield from _texts(item, inner) if isinstance(item, _LARGE) else (_text(item, inner),)
            between = ","
        yield f"{newline}]"
    else:
        yield _text(value, newline)


def _text(value: object, newline: str) -> str:
    """Return a value as JSON."""
    kind: Any = type(value)
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain(value)
    inner = f"{newline} "
    if dataclasses.is_dataclass(value):
        names, keys = _fields(kind)
        values = map(getattr, repeat(value), names)
        texts = [plain(v) if (plain := _PLAIN.get(type(v))) else _text(v, inner) for v in values]
        return f"{{{inner}{f',{inner}'.join(map(add, keys, texts))}{newline}}}"
    if isinstance(value, tuple):
        return f"[{inner}{f',{inner}'.join([_text(item, inner) for item in value])}{newline}]" if value else "[]"
    return json.dumps(value, indent=1, allow_nan=False, default=dataclasses.asdict).replace("\n", newline)


@cache
def _fields(record: Any) -> tuple[list[str], list[str]]:  # noqa: ANN401 - a type
    """Return the names of the fields of a record, and their keys in JSON."""
    names = [field.name for field in dataclasses.fields(record)]
    return names, [f'"{name}": ' for name in names]


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
