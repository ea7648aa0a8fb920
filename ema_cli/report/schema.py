"""The JSON Schema of the report, made from its records: what is documented is what is written."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from typing import Any

from ema_cli.report import model

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def report_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of report 1.0. Later minor versions add fields, so unknown ones are allowed."""
    definitions = {
        name: _record(kind)
        for name, kind in inspect.getmembers(model, inspect.isclass)
        if dataclasses.is_dataclass(kind) and kind is not model.Report
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ema-avg report",
        **_record(model.Report),
        "$defs": definitions,
    }


def schema_text() -> str:
    """Return the schema as it lies in the package."""
    return json.dumps(report_schema(), indent=1) + "\n"


def _record(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    found: dict[str, Any] = {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": {field.name: _type(hints[field.name]) for field in fields},
        "required": [field.name for field in fields if field.default is dataclasses.MISSING],
    }
    if kind is model.Report:
        found["properties"]["schema_version"] = {"type": "string", "pattern": r"^1\.\d+$"}
    return found


def _type(hint: Any) -> dict[str, Any]:  # noqa: ANN401 - walks the types of the records
    if isinstance(hint, types.UnionType):
        first, *_ = typing.get_args(hint)
        return {"anyOf": [_type(first), {"type": "null"}]}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": _type(typing.get_args(hint)[0])}
    if typing.get_origin(hint) is dict:
        return {"type": "object"}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": _PLAIN[hint]}
