"""The report: true to the run, JSON without NaN, and readable again."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import ema_cli
from ema_cli.fold.kernel import lane_name
from ema_cli.report import model
from ema_cli.report.build import peak_memory_bytes
from ema_cli.report.preview import checkpoint_document, plan_document
from ema_cli.report.serialize import from_json, to_json
from tests.helpers.reports import reports
from tests.helpers.series import random_states, save_zip, write_one, write_series


@given(reports())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reports_survive_json(report: model.Report) -> None:
    """``to_json`` writes ASCII, and ``from_json`` reads the very same report back."""
    text = to_json(report)
    assert text.isascii()
    assert text.endswith("}\n")
    assert from_json(text) == report


def test_json_never_holds_nan(tmp_path: Path) -> None:
    """NaN in a report is a bug that stops the run, never a document that other readers refuse."""
    report = ema_cli.average(write_series(tmp_path, random_states(2)), decay=0.5, output=tmp_path / "e.safetensors")
    broken = dataclasses.replace(report, summary=dataclasses.replace(report.summary, seconds=math.nan))
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(broken)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", "{}", '{"schema_version": "1.0"}', "{", '"report"', "[" * 100_000]
)
def test_what_is_not_a_report_is_refused(text: str) -> None:
    """Damaged or foreign JSON is a ``ValueError``, never another failure."""
    with pytest.raises(ValueError, match=r"not a report|Expecting|recursion"):
        from_json(text)


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    """A later minor version of the schema can be read."""
    report = ema_cli.average(write_series(tmp_path, random_states(2)), decay=0.5, output=tmp_path / "e.safetensors")
    document = json.loads(to_json(report))
    document["new"] = {"field": 1}
    document["averages"][0]["new"] = 2
    assert from_json(json.dumps(document)) == report


def test_the_report_is_the_file_next_to_the_output(tmp_path: Path) -> None:
    """The call returns the report that was written, and any JSON reader reads it."""
    output = tmp_path / "ema_0.5.safetensors"
    report = ema_cli.average(write_series(tmp_path, random_states(3)), decay=0.5, output=output)
    assert from_json((tmp_path / "ema_0.5.report.json").read_text()) == report
    document = json.loads((tmp_path / "ema_0.5.report.json").read_text())
    assert document["schema_version"] == "1.6"
    assert document["tool"] == {"name": "ema-avg", "version": ema_cli.__version__}


def test_the_report_describes_the_run(tmp_path: Path) -> None:
    """Inputs with their steps, weights, diagnostics, tensors and the summary are those of the run."""
    paths = write_series(tmp_path, [{"w": torch.randn(100), "n": torch.tensor(3)} for _ in range(3)])
    output = tmp_path / "ema.safetensors"
    report = ema_cli.average(paths, decay=0.5, output=output, sha256=True)
    assert [found.path for found in report.inputs] == [str(path) for path in paths]
    assert [found.step for found in report.inputs] == [100, 200, 300]
    assert {found.step_source for found in report.inputs} == {"name"}
    assert [found.bytes for found in report.inputs] == [path.stat().st_size for path in paths]
    (average,) = report.averages
    assert average.weights == (0.25, 0.25, 0.5)
    assert average.diagnostics.mean_age == pytest.approx(0.25 * 200 + 0.25 * 100)
    assert average.diagnostics.mean_age_unit == "step"
    assert average.diagnostics.implied_lr == (1.0, 0.75, 0.5)
    assert [(t.name, t.dtype, t.shape, t.action) for t in average.tensors] == [
        ("n", "I64", (), "copied"),
        ("w", "F32", (100,), "averaged"),
    ]
    assert average.method == model.MethodUsed(
        name="ema", decay=0.5, one_minus_decay=0.5, half_life=None, per="checkpoint", init="first"
    )
    assert report.summary.tensors == 2
    assert report.summary.parameters == 100
    assert report.summary.bytes_read == 3 * 400 + 8
    assert report.summary.bytes_written == output.stat().st_size
    assert report.summary.seconds >= report.summary.fold_seconds > 0
    assert report.environment.python == platform.python_version()
    assert (report.environment.device, report.environment.lane) == ("cpu", lane_name())
    assert report.command.options["decays"] == [0.5]
    assert report.command.options["output"] == str(output)


def test_ties_count_once_as_parameters(tmp_path: Path) -> None:
    """A tensor and its tied copy are one set of parameters."""
    shared = torch.ones(10)
    paths = write_series(tmp_path, [{"a": shared, "b": shared, "c": torch.ones(1)}] * 2)
    report = ema_cli.average(paths, decay=0.5, output=tmp_path / "e.safetensors")
    assert report.summary.parameters == 11
    assert {t.name: t.tied_to for t in report.averages[0].tensors}["b"] == "a"


def test_a_report_never_holds_nan(tmp_path: Path) -> None:
    """Undefined and infinite statistics are null, even with non-finite inputs."""
    states = [{"w": torch.tensor([math.nan, 1.0]), "z": torch.zeros(2), "e": torch.zeros(0)}] * 2
    states[1]["w"] = torch.tensor([math.inf, 1.0])
    output = tmp_path / "e.safetensors"
    ema_cli.average(write_series(tmp_path, states), decay=0.5, output=output, allow_nonfinite=True)
    text = (tmp_path / "e.report.json").read_text()

    def refuse(name: str) -> None:
        pytest.fail(f"the report holds {name}")

    document = json.loads(text, parse_constant=refuse)
    assert {t["name"]: t["drift"] for t in document["averages"][0]["tensors"]} == {"w": None, "z": None, "e": None}


def test_each_output_has_its_own_report_and_a_further_one_has_all(tmp_path: Path) -> None:
    """Each output has the report of its average; ``reports`` get the whole run."""
    paths = write_series(tmp_path, random_states(3))
    more = tmp_path / "all.json"
    report = ema_cli.average(paths, decay=[0.1, 0.9], output=tmp_path / "e_{decay}.safetensors", report=[more])
    assert from_json(more.read_text()) == report
    assert [len(r.averages) for r in (report, from_json((tmp_path / "e_0.9.report.json").read_text()))] == [2, 1]
    assert from_json((tmp_path / "e_0.9.report.json").read_text()).averages == report.averages[1:]


def test_ages_are_in_the_unit_of_the_series(tmp_path: Path) -> None:
    """The clock is steps, epochs, or checkpoints if there are none, or if the order contradicts them."""
    epochs = [write_one(tmp_path / f"{name}.pt", epoch=n) for name, n in (("a", 3), ("b", 7))]
    plain = [write_one(tmp_path / f"{name}.pt") for name in ("x", "yy")]
    for paths, options, unit, age in (
        (epochs, {}, "epoch", 2.0),
        (plain, {}, "checkpoint", 0.5),
        (epochs[::-1], {"order": "given"}, "checkpoint", 0.5),
    ):
        arguments: dict[str, Any] = {"decay": 0.5, "output": tmp_path / "e.safetensors", "force": True, **options}
        found = ema_cli.average(paths, **arguments).averages[0].diagnostics
        assert (found.mean_age_unit, found.mean_age) == (unit, age)


def test_peak_memory_is_that_of_the_process() -> None:
    """The number is resident memory in bytes, as the kernel counts it, not the parent's."""
    found = peak_memory_bytes()
    assert found is not None
    assert found == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.5)
    code = "from ema_cli.report.build import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1e6 < int(child.stdout) < 1e8


def test_peak_memory_is_none_if_the_system_does_not_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside Linux there is no such file, and the report says null."""

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert peak_memory_bytes() is None


def test_a_plan_is_a_document(tmp_path: Path) -> None:
    """``plan --json`` has the names of the report and only plain values."""
    paths = write_series(tmp_path, random_states(2))
    made = ema_cli.plan([*paths, paths[0]], decay=[0.5, 0.9])
    document = json.loads(json.dumps(plan_document(made, made.warnings), allow_nan=False))
    assert document["schema_version"] == "1.6"
    assert [found["step"] for found in document["inputs"]] == [100, 200]
    assert [average["weights"] for average in document["averages"]] == [[0.5, 0.5], [0.9, pytest.approx(0.1)]]
    assert document["left_out"][0]["reason"] == "named twice"
    assert document["bytes_read"] == made.read_bytes
    assert {tensor["name"] for tensor in document["tensors"]} == set(random_states(1)[0])
    assert [warning["code"] for warning in document["warnings"]] == ["first-dominates"]


def test_a_checkpoint_is_a_document(tmp_path: Path) -> None:
    """``inspect --json`` lists format, steps, tensors, strides and ties, as plain values."""
    weight = torch.ones(3, 2)
    path = tmp_path / "c.pt"
    save_zip({"model": {"w": weight, "t": weight.t(), "v": weight}, "step": 9, "lr": 0.1}, path)  # type: ignore[dict-item]
    document = json.loads(json.dumps(checkpoint_document(ema_cli.inspect(path))))
    assert (document["format"], document["key"], document["bytes"]) == ("torch zip", "model", path.stat().st_size)
    assert document["steps"] == [{"value": 9, "unit": "step", "source": "inside: step"}]
    assert [(t["name"], t["contiguous"], t["tied_to"]) for t in document["tensors"]] == [
        ("w", True, None),
        ("t", False, None),
        ("v", True, "w"),
    ]


def test_every_field_of_the_report_is_plain(tmp_path: Path) -> None:
    """No numpy number or path slips into the report: its JSON needs no helper."""
    report = ema_cli.average(
        write_series(tmp_path, random_states(2)), half_life=3, output=tmp_path / "e.safetensors", metadata={"k": "v"}
    )
    assert json.loads(json.dumps(dataclasses.asdict(report)))["command"]["options"]["metadata"] == {"k": "v"}
