"""Standard output has what was asked for, whole where it is a pipe or a file; all else is on standard error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.program import PROGRAM, Run
from tests.helpers.shown import on_terminal

LONG = ".".join(["a_long_name_of_a_module"] * 6)
ASKED = {
    "plan": ["plan", "run", "--decay", "0.5"],
    "dry run": ["run", "--decay", "0.5", "-n"],
    "inspect": ["inspect", "run/s_1.safetensors", "-v"],
    "diff": ["diff", "run/s_1.safetensors", "run/s_2.safetensors"],
    "verify": ["verify", "made.safetensors"],
    "batch": ["batch", "run", "again", "--decay", "0.5", "--dry-run"],
    "help": ["help", "methods"],
    "topics": ["help"],
    "configuration": ["--show-config", "--decay", "0.5"],
    "version": ["--version"],
}
"""A command for everything that is text on stdout."""


@pytest.fixture
def files(tmp_path: Path, ema_avg: Run) -> Path:
    """Two runs of two checkpoints with long names, and an average."""
    for run in ("run", "again"):
        (tmp_path / run).mkdir()
        for step in (1, 2):
            tensors = {f"{LONG}.{number}": torch.full((40,), step + number / 8) for number in range(30)}
            save_file(tensors, tmp_path / run / f"s_{step}.safetensors")
    assert ema_avg("run", "--decay", "0.5", "-o", "made.safetensors").returncode == 0
    return tmp_path


@pytest.mark.parametrize("words", ASKED.values(), ids=ASKED)
def test_what_was_asked_for_is_on_stdout(words: list[str], files: Path, ema_avg: Run) -> None:
    """Nothing else is printed; no line ends with a blank, no name is broken, and nothing is colored."""
    done = ema_avg(*words)
    assert done.returncode == (words[0] == "diff")
    assert done.stdout
    assert done.stderr == "" or (words[0] == "batch" and done.stderr.startswith("1/2 would write"))
    assert "\x1b" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip() and words[0] != "help"]
    if words[0] in ("inspect", "diff"):
        shown = [line for line in done.stdout.splitlines() if f"{LONG}.1 " in line]
        assert len(shown) == 1
        assert "float32" in shown[0]
        assert "(40,)" in shown[0]
    assert files.exists()


@pytest.mark.parametrize("name", ["plan", "diff", "help"])
def test_a_lost_reader_is_no_error(name: str, files: Path) -> None:
    """``head`` may close the pipe at any time."""
    words = ASKED[name]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PROGRAM, *words], cwd=files, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (words[0] == "diff", b"")


@pytest.mark.parametrize("name", ["plan", "inspect", "diff", "verify", "batch", "topics", "configuration"])
def test_a_full_disk_behind_stdout_is_an_error(name: str, files: Path) -> None:
    """A result that is only text is lost with it: exit 5, and stderr has the reason."""
    words = ASKED[name]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*PROGRAM, *words], cwd=files, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 5
    assert "error: standard output cannot be written: No space left on device" in done.stderr


def test_an_average_does_not_need_stdout(files: Path) -> None:
    """The result of these commands is a file: a full standard output loses a line, which ends no run."""
    for words in (["run", "--decay", "0.9", "-o", "new.safetensors"], ["batch", "run", "again", "--decay", "0.5"]):
        with open("/dev/full", "w") as full:  # noqa: PTH123
            done = subprocess.run([*PROGRAM, *words], cwd=files, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr
    assert (files / "new.safetensors").exists()
    assert (files / "again" / "ema.safetensors").exists()


@pytest.mark.parametrize("words", [["run", "--decay", "0.5"], ["plan", "run", "--decay", "0.5"]])
def test_color_is_for_terminals_and_those_who_ask(words: list[str], files: Path, ema_avg: Run) -> None:
    """``FORCE_COLOR`` colors both streams, ``--no-color`` and ``NO_COLOR`` none, and no line ends with blanks."""
    words = [*words, "-o", "color.safetensors"]
    forced = ema_avg(*words, FORCE_COLOR="1")
    assert "\x1b[" in forced.stdout + forced.stderr
    assert " \n" not in forced.stdout + forced.stderr
    (files / "color.safetensors").unlink(missing_ok=True)
    for plain in (ema_avg(*words, "--no-color", FORCE_COLOR="1"), ema_avg(*words, NO_COLOR="1", FORCE_COLOR="1")):
        assert "\x1b[3" not in plain.stdout + plain.stderr


@pytest.mark.parametrize("columns", ["60", "90", "wide", "-3", "0", "", "9" * 30])
def test_columns_are_respected(columns: str, files: Path, ema_avg: Run) -> None:
    """``COLUMNS`` limits the width of tables in a pipe, if it is a number of columns."""
    done = ema_avg("inspect", "run/s_1.safetensors", "-v", COLUMNS=columns)
    assert done.returncode == 0
    table = [line for line in done.stdout.splitlines() if line.startswith(" ")]
    assert len(table) > 30
    assert (max(map(len, table)) <= int(columns)) if columns in ("60", "90") else f"{LONG}.29  float32" in done.stdout
    assert files.exists()


def test_each_stream_is_judged_by_itself(files: Path) -> None:
    """The one that is a terminal has its width and colors, the other one neither."""
    command = [*PROGRAM, "plan", "run", "--decay", "0.99"]
    plan, warnings = on_terminal(command, "stdout", width=70, folder=files)
    assert "\x1b[" in plan
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in plan.splitlines()) <= 70
    assert max(map(len, warnings.splitlines())) > 70
    assert "\x1b" not in warnings
    warned, planned = on_terminal(command, "stderr", width=70, folder=files)
    assert "\x1b[" in warned
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in warned.splitlines()) <= 70
    assert "\x1b" not in planned
    assert " ".join(re.sub(r"\x1b\[[0-9;]*m", "", warned).split()) == " ".join(warnings.split())


def test_the_streams_are_in_order(files: Path) -> None:
    """Both streams in one file: the plan comes before its warnings, and the result after the plan."""
    command = f"{sys.executable} -m ema_cli run --decay 0.99 -o two.safetensors > log 2>&1"
    subprocess.run(["sh", "-c", command], cwd=files, check=True)
    shown = (files / "log").read_text()
    places = [shown.index(text) for text in ("2 checkpoints in run", "warning: ", "folded ", "wrote two.safetensors")]
    assert places == sorted(places)
