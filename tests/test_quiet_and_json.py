"""``-q`` prints errors only, ``--json`` prints one document: for every command, with warnings and a configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from tests.helpers.program import Run, forked

MODEL = ("--model", "network:build", "--data", "network:batches")
COMMANDS = {
    "average": ["run", "-o", "ema.safetensors"],
    "up to date": ["run", "-o", "old.safetensors"],
    "plan": ["plan", "run"],
    "dry run": ["run", "-n"],
    "batch": ["batch", "run", "again", "--index", "index.html"],
    "batch, dry run": ["batch", "run", "again", "--dry-run"],
    "manifest": ["batch", "--manifest", "jobs.toml"],
    "configuration": ["plan", "run", "--show-config"],
    "inspect": ["inspect", "run"],
    "diff": ["diff", "run/c_1.pt", "run/c_1.pt"],
    "verify": ["verify", "old.safetensors"],
    "verify, in part": ["verify", "place.safetensors"],
    "update-bn": ["update-bn", "old.safetensors", "-o", "b.safetensors", *MODEL],
}
"""Every command that succeeds, by what it does."""
ASKED_FOR = ("configuration",)
"""Shown also with ``-q``: it is all that was asked for."""
CONFIGURED = ("average", "up to date", "plan", "dry run", "batch", "batch, dry run", "manifest")
"""Those that a configuration file applies to."""
NETWORK = """\
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

def batches():
    return [torch.ones(4, 3), torch.zeros(4, 3)]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with BatchNorm statistics, averages, a manifest, and a configuration file."""
    root = tmp_path_factory.mktemp("made")
    for run in ("run", "again", "new"):
        (root / run).mkdir()
        for number in (1, 2) if run != "new" else (3,):
            torch.manual_seed(number)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
            torch.save({"model": model.state_dict(), "step": number}, root / run / f"c_{number}.pt")
    (root / "ema-avg.toml").write_text('decay = 0.5\nper = "checkpoint"\n')
    (root / "jobs.toml").write_text('[[job]]\nrun = "run"\noutput = "a.safetensors"\n')
    (root / "network.py").write_text(NETWORK)
    assert forked(root)("run", "-o", "old.safetensors").returncode == 0
    ema_cli.average(root / "run", decay=0.5, output=root / "place.safetensors")
    place = root / "place.safetensors"
    ema_cli.average(root / "new", continue_from=place, output=place, force=True)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """Run the program in a copy of the folder."""
    shutil.copytree(made, tmp_path / "copy")
    return forked(tmp_path / "copy", "torch")


def documents(text: str) -> list[Any]:
    """Return all JSON documents in a text; anything else in it is an error."""
    found, decoder = [], json.JSONDecoder()
    while text.strip():
        document, end = decoder.raw_decode(text.lstrip())
        found.append(document)
        text = text.lstrip()[end:]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_prints_nothing(name: str, run: Run) -> None:
    """On success: no result, no warning, no progress, not which configuration was used."""
    done = run(*COMMANDS[name], "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (name in ASKED_FOR)


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document(name: str, run: Run) -> None:
    """On stdout; with ``-q`` stderr is empty. Where a configuration file applies, the document names it."""
    done = run(*COMMANDS[name], "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    (document,) = documents(done.stdout)
    if name in CONFIGURED:
        config = document.get("config") or document["command"]["config"]
        assert config["options"] == ["decay", "per"]
        assert Path(config["path"]).name == "ema-avg.toml"


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_configuration_is_named_first(name: str, run: Run) -> None:
    """With the options that it set; a flag replaces them."""
    done = run(*COMMANDS[name])
    assert done.stderr.splitlines()[0] == 'options from "ema-avg.toml": decay, per'
    assert "options from" not in done.stdout
    if name not in ("up to date", "manifest"):
        again = run(*COMMANDS[name], "--decay", "0.4", "--force")
        assert again.stderr.splitlines()[0] == 'options from "ema-avg.toml": per'
