"""Outputs that cannot be locked: file systems without locks, and lock calls that fail."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

import ema_cli
from ema_cli.errors import OutputError
from ema_cli.write.lock import output_lock
from ema_cli.write.temp_names import temporary_name
from tests.helpers.outputs import fail_at, listing
from tests.helpers.program import Run
from tests.helpers.series import open_files, random_states, write_series

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let every lock fail."""

    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", failing)


@pytest.mark.parametrize("code", NO_LOCKS)
def test_a_file_system_without_locks_is_written_with_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are the same, and nothing is left; files of a run that may still be working are not removed."""
    paths = write_series(tmp_path / "run", random_states(2))
    ema_cli.average(paths, decay=0.5, output=tmp_path / "locked.safetensors")
    refuse_locks(monkeypatch, code)
    half = temporary_name(tmp_path / "ema.safetensors")
    half.write_bytes(b"of another run")
    report = ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    assert [warning.code for warning in report.warnings] == ["no-locks"]
    assert (tmp_path / "ema.safetensors").read_bytes() == (tmp_path / "locked.safetensors").read_bytes()
    assert half.read_bytes() == b"of another run"
    assert not (tmp_path / ".ema.safetensors.lock").exists()


def test_runs_without_locks_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run writes under a name of its own, and each output is whole."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output)
    expected = output.read_bytes()
    refuse_locks(monkeypatch, errno.ENOSYS)
    failures: list[OutputError] = []

    def run() -> None:
        try:
            ema_cli.average(paths, decay=0.5, output=output, threads=1, force=True)
        except OutputError as failure:  # an output that another run published is not overwritten
            failures.append(failure)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert output.read_bytes() == expected
    assert len(failures) < len(threads)
    assert listing(tmp_path) == {"run", "ema.safetensors", "ema.report.json"}


def test_nothing_is_resumed_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs would share the incomplete file."""
    paths = write_series(tmp_path / "run", random_states(2))
    refuse_locks(monkeypatch, errno.ENOSYS)
    with pytest.raises(OutputError, match="file system without locks: Function not implemented") as refused:
        ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors", resume=True)
    assert refused.value.hint == "run without resume=True"
    assert listing(tmp_path) == {"run"}


def test_a_lock_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may have the lock, so nothing is written."""
    refuse_locks(monkeypatch, errno.EIO)
    files = open_files()
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        ema_cli.average(
            write_series(tmp_path / "run", random_states(2)), decay=0.5, output=tmp_path / "ema.safetensors"
        )
    assert open_files() == files
    assert not (tmp_path / "ema.safetensors").exists()


def test_a_lock_that_cannot_be_looked_at_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the lock's file nor its descriptor stays."""
    fail_at(monkeypatch, "fstat", 1, errno.EIO)
    files = open_files()
    with pytest.raises(OutputError, match="Input/output error"), output_lock(tmp_path / "ema.safetensors"):
        pass
    assert open_files() == files
    assert listing(tmp_path) == set()


@pytest.mark.slow
def test_strict_runs_need_locks(tmp_path: Path, ema_avg: Run) -> None:
    """As a process, with the messages that a user sees."""
    write_series(tmp_path / "run", random_states(2))
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import errno, fcntl, os\n"
        "def failing(*_):\n"
        "    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
        "fcntl.flock = failing\n"
    )
    arguments = ("run", "--decay", "0.5", "-o", "ema.safetensors")
    done = ema_avg(*arguments, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert '"ema.safetensors" is on a file system without locks' in " ".join(done.stderr.split())
    strict = ema_avg(*arguments, "--force", "--strict", PYTHONPATH=str(site))
    assert strict.returncode == 8
    assert "no-locks" in strict.stderr
