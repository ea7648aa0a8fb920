"""Write the JSON Schema of the report into the package, after its records changed: python scripts/make_schema.py."""

from __future__ import annotations

from pathlib import Path

from ema_cli.report import schema

if __name__ == "__main__":
    Path(schema.__file__).with_name("report.schema.json").write_text(schema.schema_text(), encoding="utf-8")
