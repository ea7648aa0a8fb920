"""Write the JSON Schema of the report into the package, after its records changed: python scripts/make_schema.py."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ema_cli.errors import RunWarning
from ema_cli.records import reported_output
from ema_cli.records.record_types import describe, field_types, required_fields
from ema_cli.report import model

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def report_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of report 1.x. Later minor versions add fields, so unknown ones are allowed."""
    definitions = {
        name: _record(record)
        for name, record in sorted({**_classes(model), **_classes(reported_output)}.items())
        if dataclasses.is_dataclass(record) and record is not model.Report
    }
    report = _record(model.Report)
    report["properties"]["schema_version"]["pattern"] = r"^1\.\d+$"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ema-avg report",
        **report,
        "$defs": definitions,
    }


def _classes(module: ModuleType) -> dict[str, Any]:
    return dict(inspect.getmembers(module, inspect.isclass))


def _record(record: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the schema of a record. Fields with a default were added after 1.0, except the hint of a warning."""
    fields = field_types(record)
    required = required_fields(record) | ({"hint"} if record is RunWarning else set())
    return {
        "type": "object",
        "description": inspect.getdoc(record),
        "properties": {name: _type(hint) for name, hint in fields.items()},
        "required": [name for name in fields if name in required],
    }


def _type(hint: Any) -> dict[str, Any]:  # noqa: ANN401 - a type hint
    match describe(hint):
        case "record", record:
            return {"$ref": f"#/$defs/{record.__name__}"}
        case "optional", content:
            return {"anyOf": [_type(content), {"type": "null"}]}
        case "tuple", item:
            return {"type": "array", "items": _type(item)}
        case _, plain:
            return {"type": _PLAIN[plain]}


if __name__ == "__main__":
    text = json.dumps(report_schema(), indent=1) + "\n"
    Path(model.__file__).with_name("report.schema.json").write_text(text, encoding="utf-8")
