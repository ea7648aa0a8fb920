"""Strict JSON from untrusted files: no duplicate keys, no NaN unless it is expected, and bounded memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, regex

MOST_CONFIG_BYTES = 1 << 24
"""Of a configuration file, such as ``config.json``."""

_MOST_BYTES = 330_000_000
"""Memory that a text and its values may take. A safetensors header of 300,000 tensors takes two thirds of it."""
_OBJECT_BYTES = 240
_LIST_BYTES = 72
_VALUE_BYTES = 44
_ASTRAL = regex(rb"[\xf0-\xff]")
"""The first byte of a character that makes every character of its string take four bytes."""
_ASTRAL_ESCAPE = regex(rb"\\u[dD][89abAB]")


class JsonError(ValueError):
    """Why a text is refused; the message continues "it": ``is not JSON``."""


def parse_object(
    raw: bytes,
    *,
    most: int | None = None,
    nan: bool = False,
    short: Callable[[dict[str, object]], object] | None = None,
) -> dict[str, object]:
    """Parse a JSON object.

    Args:
        raw: the text in UTF-8.
        most: the limit of entries, in all objects and lists together; checked before any is made.
        nan: accept NaN and infinity, which Python writes although JSON does not have them.
        short: returns what is kept in memory instead of an inner object, as soon as that is read.

    Raises:
        JsonError: it is not a JSON object, or too large.

    """
    if most is not None and sum(raw.count(mark) for mark in (b",", b"{", b"[")) > most:  # one of these per entry
        raise JsonError(f"has more than {most:,} entries")
    refuse_large(raw)
    try:
        constant = None if nan else _no_constant
        made = _unique if short is None else lambda pairs: short(_unique(pairs))
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=made, parse_constant=constant)
    except JsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonError("is not JSON") from error
    if not isinstance(value, dict):
        if short is not None:  # which may have taken the outer object for an inner one
            return parse_object(raw, most=most, nan=nan)
        raise JsonError("is not a JSON object")
    return value


def read_config(source: ByteSource) -> dict[str, object]:
    """Parse a configuration file, which may have NaN.

    Raises:
        JsonError: it is not a JSON object, or too large.

    """
    if source.size() > MOST_CONFIG_BYTES:
        raise JsonError(f"has more than {MOST_CONFIG_BYTES:,} bytes")
    return parse_object(source.read(0, source.size()), nan=True)


def refuse_large(raw: bytes) -> None:
    """Raise if a text and its values could exceed the memory limit.

    Raises:
        JsonError: they could.

    """
    width = 4 if _ASTRAL.search(raw) else 1 if raw.isascii() else 2
    escaped = 4 if _ASTRAL_ESCAPE.search(raw) else 2 if b"\\u" in raw else 1
    values = _OBJECT_BYTES * raw.count(b"{") + _LIST_BYTES * raw.count(b"[") + _VALUE_BYTES * raw.count(b",")
    if len(raw) * (1 + width + max(width, escaped)) + values > _MOST_BYTES:
        raise JsonError(f"would take more than {_MOST_BYTES:,} bytes of memory")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object; refuse duplicate keys, as readers disagree on which of them counts."""
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise JsonError(f"names {quoted(counts.most_common(1)[0][0])} twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"contains {name}")
