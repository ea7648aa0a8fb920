"""What the Python functions return: records with a short form, reports that can be read, saved and loaded."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.main import get_command

import ema_cli
from ema_cli.cli.app import app
from ema_cli.errors import InputRefused, NothingMatched, OutputError, UsageError, VerificationFailed
from ema_cli.records.series import Checkpoint
from ema_cli.report.html import to_html
from ema_cli.report.markdown import to_markdown
from ema_cli.report.model import Report
from ema_cli.report.readable_report import ReadableReport
from ema_cli.report.serialize import from_json
from tests.helpers.folders import model_folders
from tests.helpers.outputs import listing
from tests.helpers.series import random_states, write_one, write_series

LONGEST = 400
"""Characters of a short form."""


@pytest.fixture
def report(run_folder: Path, tmp_path: Path) -> ReadableReport:
    """The report of an average of five checkpoints."""
    return ema_cli.average(run_folder, decay=0.8, output=tmp_path / "ema.safetensors")


def test_a_report_is_one_line(report: ReadableReport, run_folder: Path, tmp_path: Path) -> None:
    """Method, number of checkpoints, outputs and warnings; of several averages, their number."""
    path = tmp_path / "ema.safetensors"
    assert repr(report) == (
        f'<Report: EMA, decay 0.8 per checkpoint, starting from the first; 5 checkpoints -> "{path}"; 1 warning>'
    )
    several = ema_cli.average(
        run_folder, decay=[0.1, 0.2, 0.3], output=tmp_path / "e_{decay}.safetensors", allow="batchnorm-averaged"
    )
    assert repr(several).startswith("<Report: 3 averages; 5 checkpoints -> ")
    assert repr(several).endswith('e_0.2.safetensors" and 1 more; 1 warning>')


def test_other_results_are_one_line(run_folder: Path, tmp_path: Path) -> None:
    """A plan, a checkpoint, a comparison and a verification, with what is asked for first."""
    output, first = tmp_path / "ema.safetensors", run_folder / "ckpt_100.pt"
    plan = ema_cli.plan(run_folder, decay=0.8, output=output)
    assert repr(plan) == f'<Plan: ema 0.8 of 5 checkpoints, 9 tensors -> "{output}"; 1 warning>'
    ema_cli.average(run_folder, decay=0.8, output=output)
    assert repr(ema_cli.inspect(first)) == f'<Checkpoint "{first}": torch zip, weights under "model", 9 tensors>'
    assert repr(ema_cli.diff(first, first)) == f'<Comparison: "{first}" and "{first}" are equal in 9 common tensors>'
    torch.save({"0.weight": torch.zeros(5, 6), "more": torch.zeros(1)}, tmp_path / "other.pt")
    assert repr(ema_cli.diff(output, tmp_path / "other.pt", exclude=["^1", "bias"])).endswith(
        "differ in 1 of 1 common tensor, 1 only in a, 1 only in b>"
    )
    assert repr(ema_cli.verify(output)) == f'<Verification: "{output}" passed 11 checks>'
    first.write_bytes(b"")
    assert repr(ema_cli.verify(output)).endswith("failed 1 of 11 checks: input 1>")


def test_short_forms_of_hostile_names_are_safe(tmp_path: Path) -> None:
    """They stay one line of bounded length without control characters."""
    run = tmp_path / ("x" * 200) / "\x1b[2Jrun\n"
    paths = write_series(run, random_states(3))
    output = run / "\x1b[31mema.safetensors"
    shown = (
        ema_cli.plan(paths, decay=0.5, output=output),
        ema_cli.average(paths, decay=0.5, output=output),
        ema_cli.inspect(paths[0]),
        ema_cli.diff(paths[0], paths[1]),
        ema_cli.verify(output),
    )
    for one in shown:
        assert repr(one).isprintable()
        assert len(repr(one)) < LONGEST


WORDS = (
    "tool.version inputs.0.format inputs.0.fingerprint averages.0.method.name averages.0.method.shape "
    "averages.0.diagnostics.mean_age_unit averages.0.output.sha256 warnings.0.code environment.device"
)


@pytest.mark.parametrize("field", WORDS.split())
def test_words_of_a_hostile_report_are_safe(field: str, report: ReadableReport, tmp_path: Path) -> None:
    """A report in a file is not trusted, where it should have a word of this program either."""
    document = json.loads(report.to_json())
    path: list[Any] = [int(part) if part.isdecimal() else part for part in field.split(".")]
    reduce(getitem, path[:-1], document)[path[-1]] = "\x1b[31m\u202e`<script>alert(1)</script>`"
    saved = tmp_path / "hostile.json"
    saved.write_text(json.dumps(document))
    hostile = ema_cli.load_report(saved)
    assert repr(hostile).isprintable()
    for text in (hostile.to_html(), hostile.to_markdown(), hostile._repr_html_()):
        assert {"\x1b", "\u202e"}.isdisjoint(text)
        assert not re.search(r"\[31m[^`\n]*`[^`]*<script>", text)


def test_a_report_is_still_a_record(report: ReadableReport, tmp_path: Path) -> None:
    """It equals the record in its file, both ways, can be changed with ``replace``, and goes to other processes."""
    stored = from_json((tmp_path / "ema.report.json").read_text())
    assert type(stored) is Report
    assert report == stored
    assert stored == report
    assert dataclasses.asdict(report) == dataclasses.asdict(stored)
    changed = dataclasses.replace(report, warnings=())
    assert repr(changed).endswith("; no warnings>")
    assert changed != report
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_report_can_be_read(report: ReadableReport) -> None:
    """As a page, as Markdown and as JSON."""
    assert report.to_html() == to_html(report)
    assert report.to_markdown() == to_markdown(report)
    assert from_json(report.to_json()) == report


def test_a_notebook_shows_verdict_and_chart(report: ReadableReport) -> None:
    """The HTML is a piece of a page: the verdict, the chart, and a style that applies inside it alone; no scripts."""
    shown = report._repr_html_()
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", shown, flags=re.DOTALL)
    assert "5 checkpoints" in text
    assert "share of the average" in text
    (style,) = re.findall(r"<style>(.*?)</style>", shown, re.DOTALL)
    assert style.startswith(".ema-avg { & { color-scheme")
    assert ":root" not in style
    assert "&amp;" not in style
    assert "<script" not in shown
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", shown)


def test_a_report_is_saved_by_suffix(report: ReadableReport, tmp_path: Path) -> None:
    """The suffix chooses the format; a report is replaced, and nothing else is left in the folder."""
    before = listing(tmp_path)
    for suffix, content in ((".html", report.to_html()), (".md", report.to_markdown()), (".json", report.to_json())):
        for _ in range(2):
            report.save(tmp_path / f"r{suffix}")
        assert (tmp_path / f"r{suffix}").read_text() == content
    assert listing(tmp_path) - before == {"r.html", "r.md", "r.json"}
    assert ema_cli.load_report(tmp_path / "r.json") == report


def test_save_replaces_no_other_file(report: ReadableReport, tmp_path: Path) -> None:
    """Unless it is asked to; a format that there is not is refused. The errors name keywords."""
    foreign = tmp_path / "notes.md"
    foreign.write_text("mine\n")
    with pytest.raises(OutputError, match="is not a report of ema-avg") as refused:
        report.save(str(foreign))
    assert refused.value.hint == "choose another name, or overwrite it with force=True"
    assert foreign.read_text() == "mine\n"
    report.save(foreign, force=True)
    assert foreign.read_text() == report.to_markdown()
    with pytest.raises(UsageError, match=r'there is no report format ".pdf"'):
        report.save(tmp_path / "r.pdf")


def test_the_report_of_an_output_is_not_replaced_by_that_of_several(run_folder: Path, tmp_path: Path) -> None:
    """``verify`` needs it; the report of one average may be written again."""
    several = ema_cli.average(run_folder, decay=[0.5, 0.9], output=tmp_path / "e_{decay}.safetensors")
    with pytest.raises(OutputError, match="is the report of one output"):
        several.save(tmp_path / "e_0.9.report.json")
    assert ema_cli.verify(tmp_path / "e_0.9.safetensors")


def test_a_name_that_is_too_long_is_an_error_of_the_output(report: ReadableReport, tmp_path: Path) -> None:
    """As the system reports it."""
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        report.save(tmp_path / f"{'a' * 300}.html")


def test_a_report_is_loaded(report: ReadableReport, run_folder: Path, tmp_path: Path) -> None:
    """That of one output, and that of a run with several; other files are refused."""
    assert repr(ema_cli.load_report(tmp_path / "ema.report.json")) == repr(report)
    several = ema_cli.average(
        run_folder, decay=[0.1, 0.2], output=tmp_path / "e_{decay}.safetensors", report=tmp_path / "all.json"
    )
    assert ema_cli.load_report(str(tmp_path / "all.json")) == several
    with pytest.raises(InputRefused, match="is not a report of ema-avg"):
        ema_cli.load_report(tmp_path / "ema.safetensors")
    with pytest.raises(NothingMatched):
        ema_cli.load_report(tmp_path / "none.json")
    document = json.loads(several.to_json())
    for field in ("averages", "inputs"):
        (tmp_path / "bad.json").write_text(json.dumps({**document, field: []}))
        with pytest.raises(InputRefused, match="is not a valid report"):
            ema_cli.load_report(tmp_path / "bad.json")


def test_inspect_gives_one_checkpoint_or_a_list(run_folder: Path, tmp_path: Path) -> None:
    """One for the path of one, be it a file or a folder; a list for everything else, also of one."""
    names = [path.name for path in sorted(run_folder.iterdir())]
    (folder,) = model_folders(tmp_path / "models", random_states(1))
    odd = write_one(tmp_path / "odd[1].pt")
    for path in (run_folder / names[0], str(folder), f"{folder}/", odd):
        found = ema_cli.inspect(path)
        assert isinstance(found, Checkpoint)
        assert found.path == Path(path)
    for paths in (run_folder, f"{run_folder}/*.pt", sorted(run_folder.iterdir()), iter(sorted(run_folder.iterdir()))):
        several = ema_cli.inspect(paths)
        assert isinstance(several, list)
        assert [one.path.name for one in several] == names
    single = write_one(tmp_path / "lone" / "model.pt").parent
    for paths in (single, [single / "model.pt"], f"{single}/*.pt"):
        (one,) = ema_cli.inspect(paths)  # type: ignore[misc]
        assert one.path.name == "model.pt"
    with pytest.raises(NothingMatched):
        ema_cli.inspect(tmp_path / "none.pt")


def test_diff_compares(tmp_path: Path) -> None:
    """Files and folders of any format; the options choose tensors and keys, and errors name keywords."""
    states = random_states(2)
    folders = model_folders(tmp_path / "models", states)
    nested = tmp_path / "nested.pt"
    torch.save({"a": {"b": states[0]}}, nested)
    (flat,) = folders[0].glob("*.safetensors")
    assert ema_cli.diff(flat, nested, key="a.b").equal
    found = ema_cli.diff(*folders, include=["bias$", "empty"])
    assert [(tensor.name, tensor.equal) for tensor in found.tensors] == [("empty", True), ("layer.bias", False)]
    assert [tensor.name for tensor in found.different] == ["layer.bias"]
    with pytest.raises(UsageError, match="exclude=") as refused:
        ema_cli.diff(*folders, exclude="(")
    assert "--" not in refused.value.message


def test_verify_checks(report: ReadableReport, run_folder: Path, tmp_path: Path) -> None:
    """The result is true exactly if all checks passed; errors and hints name keywords."""
    output = Path(report.averages[0].output.path)
    found = ema_cli.verify(str(output), samples=3, seed=7)
    assert found
    assert ema_cli.verify(output, samples=np.int64(3), seed=np.int64(7)) == found
    for options in ({"samples": "3"}, {"seed": 1.5}):
        with pytest.raises(UsageError, match="is not a whole number"):
            ema_cli.verify(output, **options)
    assert (found.ok, found.samples, found.seed) == (True, 3, 7)
    moved = run_folder.rename(tmp_path / "moved")
    assert ema_cli.verify(output, inputs=moved)
    assert ema_cli.verify(output, output_only=True)
    gone = ema_cli.verify(output)
    assert not gone
    with pytest.raises(VerificationFailed) as failed:
        gone.raise_if_failed()
    texts = [
        failed.value.message,
        failed.value.hint,
        *(text for one in gone.checks for text in (one.message, one.hint)),
    ]
    assert "output_only=True checks only the file" in failed.value.hint
    with pytest.raises(UsageError, match=r"output_only=True and inputs contradict each other") as refused:
        ema_cli.verify(output, output_only=True, inputs=moved)
    with pytest.raises(UsageError, match=r"samples=-1 must be from 0") as wrong:
        ema_cli.verify(output, samples=-1)
    texts += [refused.value.hint, wrong.value.hint]
    assert not [text for text in texts if "--" in re.sub(r"ema-avg [^;]*", "", text)]


def test_home_folders_are_expanded(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every path that a function takes."""
    monkeypatch.setenv("HOME", str(run_folder.parent))
    report = ema_cli.average("~/run", decay=0.8, output="~/ema.safetensors", report="~/r.html")
    report.save("~/r.json")
    assert {"ema.safetensors", "ema.report.json", "r.html", "r.json"} <= listing(run_folder.parent)
    assert ema_cli.verify("~/ema.safetensors", inputs="~/run/*.pt")
    assert not ema_cli.diff("~/run/ckpt_100.pt", "~/ema.safetensors").equal
    assert isinstance(ema_cli.inspect("~/run/ckpt_100.pt"), Checkpoint)
    assert ema_cli.load_report("~/r.json") == report


@pytest.mark.parametrize("name", ["diff", "verify", "inspect"])
def test_functions_take_what_their_commands_take(name: str) -> None:
    """Every option of the command that does not only change what is shown is a keyword, and the others are none."""
    shown = {"json", "quiet", "verbose", "color", "no_color", "config", "context", "help"}
    command: Any = get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {one.name for one in command.params} - shown
    parameters = inspect.signature(getattr(ema_cli, name)).parameters
    arguments = {"checkpoints": "paths"}
    assert {arguments.get(one, one) for one in options} == set(parameters) - {"progress"}
    for one in command.params:
        default = parameters[one.name].default if one.name in parameters else None
        if isinstance(default, int):
            assert one.default == default
