"""The catalogue of bad inputs: each meets its verdict in one clear message, in little time and memory."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import ema_cli
from ema_cli.cli.exit import exit_code
from ema_cli.errors import EmaAvgError
from tests.helpers.program import Run
from tests.helpers.shown import FORBIDDEN, check_text
from tests.hostile.cases import OK, Case
from tests.hostile.catalogue import catalogue
from tests.hostile.file_cases import NAMES
from tests.hostile.pickle_cases import CANARY
from tests.hostile.safetensors_cases import file

CASES = {case.name: case for case in catalogue()}
ROOT = Path(__file__).parent.parent
MOST_MEGABYTES = 480
"""More than before a plan; a process of the program has 30 MB before it."""
MOST_SECONDS = 10
LONG = ("MB", "calls_of_a_long_tuple", "copies_of_a_long_list", "lists_without_an_end", "too_many_tensors")
"""In names of cases that take seconds."""
AS_PROCESSES = [
    "file_fifo.pt",
    "file_link_to_nothing.pt",
    "file_folder.pt",
    "zip_duplicate_storage.pt",
    "zip_many_end_records.pt",
    "pickle_laughing_tuples.pt",
    "pickle_nested_tuples.pt",
    "pickle_20_MB_of_lists.pt",
    "legacy_20_MB_of_lists.pt",
    "attack_reduce.pt",
    "attack_alone_inst.pt",
    "safetensors_40_MB_of_lists.safetensors",
    "safetensors_key_twice_by_an_escape.safetensors",
    "hf_parent",
    "dcp_laughing_version",
    "dcp_canary",
    "good_name_workflow_command_on_a_line.pt",
    "good_name_link.safetensors",
    "good_name_long.pt",
]


def status(field: str) -> int:
    """Return a figure of ``/proc/self/status`` in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field))


def verdict(path: Path) -> tuple[int, str]:
    """Plan an average of one checkpoint; return the exit code that the command line gives, and the message."""
    try:
        ema_cli.plan([str(path)], decay=0.9)
    except EmaAvgError as error:
        return int(exit_code(error)), f"{error.message}\n{error.hint}"
    return OK, ""


def marked(names: Iterable[str]) -> list[Any]:
    """Return parameters, and mark those that take seconds as slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if any(part in name for part in LONG) else []) for name in names
    ]


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """Let the garbage collections between the cases skip all objects that existed before the first."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("name", marked(sorted(CASES)))
def test_each_case_meets_its_verdict(tmp_path: Path, name: str) -> None:
    """The exit code, a word of the message, nothing run, less than 512 MB and 10 seconds."""
    case = CASES[name]
    case.make(tmp_path / name)
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is reset
    before, began = status("VmRSS"), time.process_time()
    code, message = verdict(tmp_path / name)
    assert time.process_time() - began < MOST_SECONDS
    assert status("VmHWM") - before < MOST_MEGABYTES
    assert code == case.code, message
    assert case.word in message
    assert len(message) < 4000
    check_text(message)
    assert not (tmp_path / CANARY).exists()


def test_the_catalogue_is_large() -> None:
    """There are at least three hundred bad inputs, and many unusual ones that are good."""
    bad = [case for case in CASES.values() if case.code != OK]
    assert len(bad) > 450
    assert len(CASES) - len(bad) > 100
    assert all(len({case.word for case in group}) > 5 for group in _groups(bad).values() if len(group) > 40)


def _groups(cases: list[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.name.partition("_")[0], []).append(case)
    return {name: group for name, group in groups.items() if name != "attack"}


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_PROCESSES)
def test_as_a_process(tmp_path: Path, ema_avg: Run, name: str) -> None:
    """The command ends with the code, without a traceback, and what it prints is harmless, as text and as JSON."""
    case = CASES[name]
    case.make(tmp_path / name)
    takes_seconds = "MB" in name
    for more in [["--json"]] if takes_seconds else [[], ["--json"]]:
        done = ema_avg("plan", tmp_path / name, "--decay", "0.9", *more, GITHUB_ACTIONS="", COLUMNS="100")
        assert done.returncode == case.code, done.stderr
        assert "Traceback" not in done.stderr
        check_text(done.stdout)
        check_text(done.stderr)
    assert isinstance(json.loads(done.stdout or done.stderr), dict)
    assert not (tmp_path / CANARY).exists()
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.slow
def test_names_do_nothing_in_any_output(tmp_path: Path, ema_avg: Run) -> None:
    """All names at once, averaged with every report: no output has text that a terminal, page or log would act on."""
    names = {name: 4 * number for number, name in enumerate(dict.fromkeys(NAMES.values()))}
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]} for name, at in names.items()}
    for number in (1, 2):
        (tmp_path / f"c{number}.safetensors").write_bytes(file(json.dumps(header).encode(), bytes(4 * len(names))))
    arguments = ["c1.safetensors", "c2.safetensors", "--decay", "0.9", "-o", "ema.safetensors", "-v"]
    done = ema_avg(*arguments, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for arguments in (
        ["inspect", "c1.safetensors", "-v"],
        ["verify", "ema.safetensors"],
        ["diff", "c1.safetensors", "ema.safetensors"],
    ):
        shown = ema_avg(*arguments, COLUMNS="200")
        assert "Traceback" not in shown.stderr
        check_text(shown.stdout)
        check_text(shown.stderr)
    check_text(done.stdout)
    check_text(done.stderr)
    for path in tmp_path.iterdir():
        if path.suffix in (".json", ".md", ".html"):
            written = path.read_text(encoding="utf-8")
            assert not any(c in written.replace("\n", "") for c in FORBIDDEN)
            if path.suffix == ".html":
                assert "<script>alert" not in written
                assert 'onmouseover="alert' not in written
            if path.suffix == ".json":
                assert isinstance(json.loads(written), dict)


@pytest.mark.slow
def test_the_script_makes_all_of_them(tmp_path: Path) -> None:
    """The files and the folders are there, with a list of their verdicts."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.bad_inputs", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = json.loads((tmp_path / "catalogue.json").read_text(encoding="utf-8"))
    assert {entry["name"] for entry in listed} == set(CASES)
    assert all((tmp_path / entry["name"]).is_symlink() or (tmp_path / entry["name"]).exists() for entry in listed)
    assert done.stdout.startswith(f"{len(CASES)} inputs")
