"""The JSON Schema in the package is that of the records, and real reports conform to it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

import ema_cli
from ema_cli.report.model import Report
from ema_cli.report.serialize import to_json
from tests.helpers.program import Run
from tests.helpers.reports import SCHEMA, check, reports
from tests.helpers.series import random_states, write_series

ROOT = Path(__file__).parent.parent


def test_the_schema_is_made_from_the_records() -> None:
    """The file must equal the schema of the records (scripts/make_schema.py)."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    script = runpy.run_path(str(ROOT / "scripts" / "make_schema.py"))
    assert script["report_schema"]() == SCHEMA


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0.5},
        {"decay": [0.5, 0.9], "output": "e_{decay}.safetensors"},
        {"per": "step", "half_life": 100, "sha256": True, "geometry": "sample"},
        {"method": "power", "sigma_rel": 0.1, "geometry": "none"},
        {"method": "uniform", "last": 1},
    ],
    ids=str,
)
def test_real_reports_keep_to_the_schema(options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever was averaged, the report of the output is valid."""
    output = tmp_path / options.pop("output", "e.safetensors")
    report = ema_cli.average(write_series(tmp_path / "run", random_states(4)), output=output, **options)
    check(json.loads(to_json(report)))


def test_the_report_on_stdout_keeps_to_the_schema(run_folder: Path, ema_avg: Run) -> None:
    """The report of a continuation is valid, too; a document of another kind is not."""
    first = [run_folder / f"ckpt_{step}.pt" for step in (100, 200)]
    assert ema_avg(*first, "--decay", "0.5", "-o", "a.safetensors", "-q").returncode == 0
    check(json.loads(ema_avg(run_folder, "--continue-from", "a.safetensors", "-o", "b.safetensors", "--json").stdout))
    with pytest.raises(jsonschema.ValidationError):
        check({"schema_version": "1.0", "error": {}})


@given(reports())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_keeps_to_the_schema(report: Report) -> None:
    """Reports with undefined numbers, no averages, or names of any kind are valid."""
    document = json.loads(to_json(report))
    document["schema_version"] = "1.0"
    check(document)
