"""Build records from plain JSON values, by the types of their fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any


def build(kind: Any, value: Any) -> Any:  # noqa: ANN401 - walks the types of the records
    """Build a value of the annotated type ``kind`` from plain JSON values.

    Raises:
        KeyError: a field is missing.
        TypeError: a value is of another type.

    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints, optional = _fields(kind)
        if not isinstance(value, dict):
            raise TypeError(kind)
        known = [name for name in hints if name in value or name not in optional]
        return kind(**{name: build(hints[name], value[name]) for name in known})
    if isinstance(kind, types.UnionType):
        return None if value is None else build(typing.get_args(kind)[0], value)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError(kind)
        return tuple(build(typing.get_args(kind)[0], item) for item in value)
    return _checked(kind, value)


@cache
def _fields(kind: type[Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of the fields of a record, and which of them have a default."""
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    return (
        {field.name: hints[field.name] for field in fields},
        frozenset(field.name for field in fields if field.default is not dataclasses.MISSING),
    )


def _checked(kind: Any, value: Any) -> Any:  # noqa: ANN401
    """Return a plain value if it is of its type; JSON has one kind of number, so an integer is a float too."""
    allowed: Any = {float: (float, int), int: int, str: str, bool: bool}.get(kind, object)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind in (int, float)):
        raise TypeError(kind)
    return value
