"""A slice of the campaign of faults: system calls that fail, and reads that return less than was requested."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import ema_cli
from ema_cli.errors import InputChanged, OutputError
from ema_cli.storage.source import FileSource
from ema_cli.write.file import OutputFile
from ema_cli.write.lock import output_lock
from tests.faults.slices import campaign
from tests.helpers.failures import close_and_fail
from tests.helpers.folders import model_folders
from tests.helpers.outputs import listing
from tests.helpers.series import random_states, write_series


@pytest.mark.campaign
def test_failing_calls_on_the_output_are_reported_and_leave_it_whole() -> None:
    """Exit 5 with the path and the error, the old output or the new one, nothing left, and the next run succeeds."""
    campaign("errors", 12)


@pytest.mark.campaign
def test_failing_calls_on_an_input_are_never_silent() -> None:
    """Short reads change no byte of the average; an error ends the run and names the file."""
    campaign("reads", 8)


def test_a_close_of_an_input_that_fails_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes that the run needs have been read."""
    (tmp_path / "x").write_bytes(b"abc")
    source = FileSource(tmp_path / "x")
    monkeypatch.setattr(os, "close", close_and_fail)
    source.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT])
def test_a_configuration_that_the_system_does_not_open_is_not_skipped(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server may hold it for another client: then nobody knows whether the weights are quantized."""
    folders, original = model_folders(tmp_path, random_states(2)), os.open

    def failing(path: str | Path, *given: int, **more: int) -> int:
        if Path(path).name == "config.json":
            raise OSError(code, os.strerror(code))
        return original(path, *given, **more)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(InputChanged, match=rf"config\.json.*{os.strerror(code)}"):
        ema_cli.average(folders, decay=0.5, output=tmp_path / "ema.safetensors")


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_file_beside_an_output_folder_that_cannot_be_looked_at(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether ``ema.report.json`` belongs to ``ema.safetensors``, so it is not overwritten."""
    folders, original = model_folders(tmp_path / "run", random_states(2)), os.stat

    def failing(path: str | Path | int, **more: Any) -> os.stat_result:
        if not isinstance(path, int) and Path(path).name == "ema.safetensors":
            raise OSError(code, os.strerror(code))
        return original(path, **more)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(OutputError, match=os.strerror(code)):
        ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/ema/")
    assert listing(tmp_path) == {"run"}


def test_hints_that_fail_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all systems take advice on what to read ahead and what to forget; the bytes are the same."""
    paths = write_series(tmp_path / "run", random_states(2))
    ema_cli.average(paths, decay=0.5, output=tmp_path / "with.safetensors")

    def failing(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "posix_fadvise", failing)
    monkeypatch.setattr(os, "RWF_NOWAIT", 1 << 20)  # unknown to every system: whether a byte is cached is unknown, too
    ema_cli.average(paths, decay=0.5, output=tmp_path / "without.safetensors")
    assert (tmp_path / "without.safetensors").read_bytes() == (tmp_path / "with.safetensors").read_bytes()


def test_a_close_that_fails_when_all_is_durable_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output has its name and is durable by then: an error of its descriptor or of the lock's does not matter."""
    output = tmp_path / "ema.safetensors"
    header = b"{}      "
    with output_lock(output):
        file = OutputFile(output, len(header).to_bytes(8, "little") + header, 0)
        file.open()
        file.finish()
        file.publish()
        file = OutputFile(output, len(header).to_bytes(8, "little") + header, 0)
        file.open()
        monkeypatch.setattr(os, "close", close_and_fail)
        file.discard()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["ema.safetensors"]
