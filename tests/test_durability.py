"""The order of a run's system calls: no file gets its name before its bytes are on the disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import ema_cli
from tests.faults.shim import Shim, compiler
from tests.helpers.folders import model_folders
from tests.helpers.series import random_states, write_series

Calls = list[tuple[str, Path]]
_RANDOM = re.compile(r"\.[0-9a-f]{12}\.partial$")


def traced(tmp_path: Path, *arguments: object) -> Calls:
    """Run, and return the calls that changed something in the folder of the outputs."""
    if compiler() is None:
        pytest.skip("no C compiler")
    shim, out, trace = Shim(tmp_path), tmp_path / "out", tmp_path / "trace"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "ema_cli", *map(str, arguments), "-q", "--decay", "0.5"]
    subprocess.run(command, env={**os.environ, **shim.tracing(out, trace)}, check=True)
    lines = [line.split("\t") for line in trace.read_text().splitlines()]
    return [(call, Path(path)) for call, path in lines if not path.endswith(".lock")]


def final(path: Path) -> str:
    """Return the name that a half-built file or folder will have."""
    return _RANDOM.sub("", path.name).removeprefix(".")


def check_file(calls: Calls, temp: Path) -> None:
    """Check one file: after its last write it is made durable, then it gets its name, then the folder is durable."""
    of_file = [call for call, path in calls if path == temp]
    renamed = calls.index(("rename", temp))
    assert {"write", "pwrite"} & set(of_file)
    assert of_file[-2:] == ["fsync", "rename"]
    assert calls[renamed + 1] == ("fsync", temp.parent)


def temporaries(calls: Calls, names: Sequence[str]) -> list[Path]:
    """Return the temporary names of outputs and reports, in the order in which they were renamed."""
    found = [path for call, path in calls if call == "rename"]
    assert [final(path) for path in found] == names
    return found


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--resume"]], ids=["plain", "resume"])
def test_files_and_their_reports(more: list[str], tmp_path: Path) -> None:
    """All are on the disk before the first has its name; an output and its report follow each other."""
    paths = write_series(tmp_path / "run", random_states(3))
    output, report = tmp_path / "out" / "ema_{decay}.safetensors", tmp_path / "out" / "all.html"
    calls = traced(tmp_path, *paths, "--decay", "0.9", "-o", output, "--report", report, *more)
    names = ["ema_0.9.safetensors", "ema_0.9.report.json", "ema_0.5.safetensors", "ema_0.5.report.json", "all.html"]
    if more:
        names[:3:2] = [f"{name}.resume.partial" for name in names[:3:2]]
    found = temporaries(calls, names)
    for temp in found:
        check_file(calls, temp)
    first = calls.index(("rename", found[0]))
    assert all(("fsync", temp) in calls[:first] for temp in found)
    if more:
        journal = [position for position, (call, path) in enumerate(calls) if path.name.endswith(".journal")]
        assert calls[journal[-1]][0] == "unlink"
        assert journal[-1] > max(calls.index(("rename", temp)) for temp in found)


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_folder_and_its_report(earlier: bool, tmp_path: Path) -> None:
    """Every file of a folder, and the folder, are on the disk before it replaces an existing one."""
    folders = model_folders(tmp_path / "run", random_states(3))
    if earlier:
        (tmp_path / "out").mkdir()
        ema_cli.average(folders, decay=0.9, output=f"{tmp_path}/out/ema/", max_shard_size=2000)
    calls = traced(tmp_path, *folders, "-o", f"{tmp_path}/out/ema/", "--max-shard-size", "2KB", "--force")
    built = next(path for call, path in calls if call == "mkdir")
    renamed = calls.index(("exchange" if earlier else "rename", built))
    files = {path for call, path in calls if call in ("write", "pwrite") and path.parent == built}
    assert len(files) > 2
    for file in files:
        of_file = [call for call, path in calls[:renamed] if path == file]
        assert of_file[-1] == "fsync"
    in_folder = [position for position, (_, path) in enumerate(calls[:renamed]) if built in path.parents]
    assert ("fsync", built) in calls[max(in_folder) : renamed]
    assert calls[renamed + 1] == ("fsync", built.parent)
    (report,) = (path for call, path in calls[renamed + 1 :] if call == "rename" and "report" in path.name)
    assert final(report) == "ema.report.json"
    check_file(calls, report)
    shards = [position for position, (call, path) in enumerate(calls) if call == "unlink" and path.name[:5] == "model"]
    assert bool(shards) == earlier
    assert all(position > renamed + 1 for position in shards)
