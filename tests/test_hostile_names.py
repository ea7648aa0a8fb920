"""Names of tensors, files and folders that attack a terminal, a page or a log, through every command and service."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.program import Run
from tests.helpers.shown import FORBIDDEN, check_text, obeyed
from tests.hostile.file_cases import NAMES
from tests.hostile.safetensors_cases import file

PATHS = [
    "a\x1b[31mred",
    "[bold]x[-bold]",
    "::error file=x::gotcha",
    "b\n::error::line",
    "\u202eevil",
    "`tick`|pipe|",
    "<script>alert(1)",
    "##vso[task.x]y",
    "c\rsafe",
]
OUR_SECTION = re.compile("\x1b\\[0K(section_(start|end):[0-9]+:ema_avg_plan(\\[collapsed=true])?|ema-avg plan|)")
"""The two lines, as Python reads a carriage return, of a section of a GitLab log."""
COMMANDS: dict[str, list[str]] = {
    "average": ["{first}", "{second}", "--decay", "0.9", "-o", "\x1b[1m::.safetensors", "--report", "r.html", "-v"],
    "plan": ["plan", "{first}", "{second}", "--decay", "0.9", "-v"],
    "inspect": ["inspect", "{first}", "-v"],
    "diff": ["diff", "{first}", "{second}", "-v"],
    "batch": ["batch", "runs", "-o", "{run}/ema.safetensors", "--decay", "0.9", "-v"],
    "verify": ["verify", "\x1b[1m::.safetensors"],
    "refused": ["plan", "bad\x1b[2J\u202e.pt", "--decay", "0.9"],
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs in folders with such names, files with such names, and tensors with such names."""
    names = {name: 4 * number for number, name in enumerate(dict.fromkeys(NAMES.values()))}
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]} for name, at in names.items()}
    data = file(json.dumps(header).encode(), bytes(4 * len(names)))
    for name in PATHS:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        for number in (1, 2):
            (folder / f"{name}_{number}.safetensors").write_bytes(data)
    (tmp_path / "bad\x1b[2J\u202e.pt").write_bytes(b"\x1b[2J")
    return tmp_path / "runs"


def _check(log: str, service: str) -> None:
    """Only our own lines are commands to the service."""
    if service == "github":
        assert all(line.startswith(("::error title=ema-avg", "::warning title=ema-avg")) for line in obeyed(log)), log
        log = "\n".join(line for line in log.splitlines() if not line.startswith("::"))
    if service == "gitlab":
        log = "\n".join(line for line in log.split("\n") if not OUR_SECTION.fullmatch(line))
    assert "Traceback" not in log
    check_text(log)


@pytest.mark.slow
@pytest.mark.parametrize("service", ["none", "github", "gitlab"])
def test_names_do_nothing_in_any_command(runs: Path, ema_avg: Run, service: str, tmp_path: Path) -> None:
    """Every command, as text: what it prints, the summary of the step, and all files that it writes, are harmless."""
    summary = tmp_path / "summary.md"
    variables = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(tmp_path / "outputs"), "COLUMNS": "200"}
    folder = runs / PATHS[3]
    first, second = sorted(str(path) for path in folder.iterdir())
    for name, words in COMMANDS.items():
        arguments = [word.format(first=first, second=second, run="{run}") for word in words]
        done = (
            ema_avg(*arguments, "--ci", service, **variables)
            if name == "average"
            else ema_avg(*arguments, **variables, **_environment(service))
        )
        assert done.returncode == (3 if name == "refused" else 0), (name, done.stderr)
        _check(done.stdout, "none")
        _check(done.stderr, service)
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".md", ".html", ".json") and path.is_file()]
    assert len(written) > len(PATHS)
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert not any(c in text.replace("\n", "") for c in FORBIDDEN), path
        assert path.suffix != ".html" or ("<script>alert" not in text and 'onmouseover="alert' not in text)
    assert summary.exists() == (service == "github")


def _environment(service: str) -> dict[str, str]:
    """Return what the service sets, and nothing that another service would set."""
    return {
        "GITHUB_ACTIONS": "true" if service == "github" else "",
        "GITLAB_CI": "true" if service == "gitlab" else "",
    }


@pytest.mark.slow
def test_names_do_nothing_in_json(runs: Path, ema_avg: Run) -> None:
    """Every command with --json: one document on stdout, and nothing in it or in a file that a terminal acts on."""
    first, second = sorted(str(path) for path in (runs / PATHS[1]).iterdir())
    for name, words in COMMANDS.items():
        arguments = [word.format(first=first, second=second, run="{run}") for word in words if word != "-v"]
        done = ema_avg(*arguments, "--json", COLUMNS="200", **_environment("none"))
        assert done.returncode == (3 if name == "refused" else 0), (name, done.stderr)
        assert isinstance(json.loads(done.stdout), dict)
        assert not any(c in done.stdout.replace("\n", "") for c in FORBIDDEN)
        _check(done.stderr, "none")
