"""The types of the fields of a record, described once; and records built from plain JSON values by their types.

A record is a frozen dataclass. Each field is a record, a tuple, ``X | None``, or plain: text, a number, a dict.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

Builder = Callable[[Any], Any]


@cache
def describe(hint: Any) -> tuple[Literal["record", "optional", "tuple", "plain"], Any]:  # noqa: ANN401 - a type hint
    """Return what kind of type a hint is, with its content.

    The content of an optional is the type beside ``None``, that of a tuple the type of its items (the first type, for
    a tuple of fixed length). Records and plain types are their own content, without type arguments.
    """
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "record", hint
    if isinstance(hint, types.UnionType):
        return "optional", typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        return "tuple", typing.get_args(hint)[0]
    return "plain", typing.get_origin(hint) or hint


@cache
def field_types(record: type[Any]) -> dict[str, Any]:
    """Return the type hint of each field of a record, in order."""
    hints = typing.get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


@cache
def required_fields(record: type[Any]) -> frozenset[str]:
    """Return the names of the fields without a default."""
    return frozenset(field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING)


def build(hint: Any, value: Any) -> Any:  # noqa: ANN401
    """Build a value of the annotated type ``hint`` from plain JSON values. Unknown fields are ignored.

    Raises:
        KeyError: a required field is missing.
        TypeError: a value has another type.

    """
    return _builder(hint)(value)


@cache
def _builder(hint: Any) -> Builder:  # noqa: ANN401
    """Return the function that builds a value of a type: a report of 100,000 tensors has millions of values."""
    match describe(hint):
        case "record", record:
            return _record_builder(record)
        case "optional", content:
            of_content = _builder(content)
            return lambda value: None if value is None else of_content(value)
        case "tuple", item:
            of_item = _builder(item)
            return lambda value: tuple(map(of_item, _checked(list, value)))
        case _, plain:
            return partial(_checked, plain)


def _record_builder(record: type[Any]) -> Builder:
    kind: Any = record
    required = required_fields(kind)
    fields = [(name, _builder(hint), name in required) for name, hint in field_types(kind).items()]

    def make(value: Any) -> Any:  # noqa: ANN401
        values = _checked(dict, value)
        return record(**{name: of(values[name]) for name, of, needed in fields if needed or name in values})

    return make


def _checked(kind: Any, value: Any) -> Any:  # noqa: ANN401
    """Return a plain value of its type. JSON has one kind of number: an integer is a float too; a bool is neither."""
    if type(value) is kind:
        return value
    allowed: Any = {float: (float, int), object: object}.get(kind, kind)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind in (int, float)):
        raise TypeError(kind)
    return value
