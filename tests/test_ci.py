"""Output for GitHub and GitLab: annotations, a summary, outputs and sections, and no commands from hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.cli.ci import annotation, detect
from tests.helpers.program import Run
from tests.helpers.shown import obeyed


@pytest.mark.parametrize(
    ("mode", "environment", "service"),
    [
        ("auto", {}, "none"),
        ("auto", {"CI": "true"}, "none"),
        ("auto", {"GITHUB_ACTIONS": "true"}, "github"),
        ("auto", {"GITHUB_ACTIONS": "false"}, "none"),
        ("auto", {"GITLAB_CI": "true"}, "gitlab"),
        ("none", {"GITHUB_ACTIONS": "true"}, "none"),
        ("github", {}, "github"),
    ],
)
def test_services_are_known_by_their_variables(mode: str, environment: dict[str, str], service: str) -> None:
    """``--ci`` decides; ``auto`` uses the variables that the services document."""
    assert detect(mode, environment) == service  # type: ignore[arg-type]


def test_annotations_are_escaped() -> None:
    """Percent signs, line ends, and in properties colons and commas."""
    assert annotation("error", "a:b,c", "50 %\nx\r") == "::error title=a%3Ab%2Cc::50 %25%0Ax%0D"


def test_github_gets_annotations_summary_and_outputs(run_folder: Path, tmp_path: Path, ema_avg: Run) -> None:
    """One annotation per warning; Markdown in the summary; path, sha256, report and count as outputs."""
    summary, outputs = tmp_path / "summary.md", tmp_path / "outputs.txt"
    summary.write_text("before")
    outputs.write_text("a=b")
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}
    done = ema_avg(run_folder, "--decay", "0.999", "-o", "ema.safetensors", **variables)
    assert done.returncode == 0
    commands = obeyed(done.stderr)
    assert [re.findall(r"title=ema-avg%3A ([a-z-]+)::", command) for command in commands] == [
        ["first-dominates"],
        ["batchnorm-averaged"],
    ]
    assert all(command.startswith("::warning ") for command in commands)
    assert summary.read_text().startswith("before\n<!-- ema-avg report -->")
    assert outputs.read_text().startswith("a=b\npath<<")
    assert "It has 1.01 effective checkpoints" in summary.read_text()
    values = dict(re.findall(r"^(\w+)<<(?:\w+)\n(.*?)\nema_avg_", outputs.read_text(), re.MULTILINE | re.DOTALL))
    assert values["path"] == "ema.safetensors"
    assert values["report"] == "ema.report.json"
    assert values["count"] == "1"
    assert values["sha256"] in (tmp_path / "ema.report.json").read_text()


def test_github_gets_annotations_of_errors(ema_avg: Run) -> None:
    """Usage errors, too; and under --json the document stays alone on stdout."""
    for arguments in (["missing.pt", "--decay", "0.5", "-o", "e.safetensors"], ["a.pt", "--no-such-option"]):
        (command,) = obeyed(ema_avg(*arguments, GITHUB_ACTIONS="true").stderr)
        assert command.startswith("::error title=ema-avg::")
    done = ema_avg("missing.pt", "--decay", "0.5", "-o", "e.safetensors", "--json", GITHUB_ACTIONS="true")
    assert done.stdout.startswith("{")
    assert len(obeyed(done.stderr)) == 1


def test_names_are_not_obeyed(tmp_path: Path, ema_avg: Run) -> None:
    """A file with the name of a command stays a name, at whatever column it is wrapped."""
    name = "::error::forged " * 8
    for step in (1, 2):
        save_file({f"::warning::{name}": torch.full((2,), float(step))}, tmp_path / f"{name}{step}.safetensors")
    for width in ("40", "80", "200"):
        done = ema_avg(
            ".", "--decay", "0.5", "-o", "e.safetensors", "--force", "-v", GITHUB_ACTIONS="true", COLUMNS=width
        )
        assert obeyed(done.stderr + done.stdout) == []


def test_gitlab_gets_a_section(run_folder: Path, ema_avg: Run) -> None:
    """The plan is in a collapsed section; the result stays visible."""
    done = ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors", GITLAB_CI="true")
    starts = re.findall(r"section_start:(\d+):ema_avg_plan\[collapsed=true\]\s\x1b\[0Kema-avg plan", done.stderr)
    assert len(starts) == 1
    inside, after = done.stderr.split("section_end:")
    assert "ckpt_300.pt" in inside
    assert "ckpt_300.pt" not in after
    assert done.stdout.startswith("wrote")


@pytest.mark.parametrize("mode", ["none", "gitlab"])
def test_another_service_can_be_named(mode: str, run_folder: Path, ema_avg: Run) -> None:
    """``--ci`` overrules the variables."""
    done = ema_avg(run_folder, "--decay", "0.999", "-o", "e.safetensors", "--ci", mode, GITHUB_ACTIONS="true")
    assert "::" not in done.stderr
    assert ("section_start" in done.stderr) == (mode == "gitlab")


def test_a_summary_that_cannot_be_written_is_an_error(run_folder: Path, tmp_path: Path, ema_avg: Run) -> None:
    """The average is written; the exit status reports the missing summary."""
    done = ema_avg(
        run_folder, "--decay", "0.5", "-o", "e.safetensors",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "summary"),
    )  # fmt: skip
    assert (done.returncode, "GITHUB_STEP_SUMMARY" in done.stderr) == (5, True)
    assert (tmp_path / "e.safetensors").exists()
    done = ema_avg(
        run_folder, "--decay", "0.5", "-o", "e.safetensors", "--json",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "summary"),
    )  # fmt: skip
    assert json.loads(done.stdout)["error"]["exit_code"] == 5


def test_failed_runs_of_a_batch_are_annotated(run_folder: Path, tmp_path: Path, ema_avg: Run) -> None:
    """One annotation for each run that failed."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "ckpt_1.pt").write_bytes(b"broken")
    done = ema_avg("batch", run_folder, "bad", "--decay", "0.5", GITHUB_ACTIONS="true")
    assert done.returncode == 9
    (command,) = obeyed(done.stderr)
    assert command.startswith("::error title=ema-avg::")
    assert "bad" in command
