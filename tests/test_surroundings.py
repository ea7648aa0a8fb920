"""The surroundings of a run: full disks, limits, permissions, streams that are closed, full or broken."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save_file
from zlib_ng import zlib_ng

import ema_cli
from ema_cli.errors import OutputError, SystemExhausted
from ema_cli.events import Event, Progress
from ema_cli.fold.address_space import check_address_space
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from ema_cli.records.plan import Buffers
from ema_cli.storage.source import FileSource
from ema_cli.write.journal import Journal
from ema_cli.write.resumption import ResumableFile
from ema_cli.write.small_file import SmallFile
from ema_cli.write.writable import check_writable
from ema_cli.write.writeback import WriteBack
from tests.faults.limits import limited
from tests.faults.permissions import give_up_privileges
from tests.faults.slices import campaign
from tests.helpers.failures import close_and_fail

pytestmark = pytest.mark.slow
PROGRAM = (sys.executable, "-m", "ema_cli")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (1, 2):
        save_file({"w": torch.arange(10.0) + step}, folder / f"c_{step}.safetensors")
    return folder


def call(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    standard = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([*PROGRAM, *map(str, arguments)], text=True, check=False, **{**standard, **how})


def average(run: Path, *more: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Average into ``ema.safetensors`` next to the run."""
    return call(run, "--decay", "0.5", "-o", run.parent / "ema.safetensors", *more, **how)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files of a folder, including hidden ones."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextlib.contextmanager
def broken_pipe() -> Iterator[int]:
    """Return the write end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextlib.contextmanager
def full_device() -> Iterator[int]:
    """Return a device that accepts no bytes."""
    device = os.open("/dev/full", os.O_WRONLY)
    yield device
    os.close(device)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("part", "cases"),
    [
        ("full-disk", 3),
        ("file-limits", 2),
        ("memory-limits", 2),
        ("permissions", 2),
        ("terminals", 4),
        ("resume", 1),
        ("kept-files", 3),
    ],
)
def test_a_slice_of_the_campaign(part: str, cases: int) -> None:
    """The output is right, or the run reports the reason and leaves everything unchanged."""
    campaign(part, cases)


@pytest.mark.campaign
def test_five_hundred_shards_and_a_thousand_checkpoints_take_few_descriptors() -> None:
    """The hard limit is 64 first, which must be enough."""
    campaign("descriptors", 1)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("place", [broken_pipe, full_device])
def test_what_becomes_of_files_does_not_depend_on_the_streams(stream: str, place: Any, run: Path) -> None:
    """Nobody reads the messages, or there is no room for them: the average is still made."""
    with place() as descriptor:
        done = average(run, **{stream: descriptor})
    assert done.returncode == 0
    assert call("verify", run.parent / "ema.safetensors").returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["--show-config"]])
def test_what_cannot_be_shown_for_lack_of_room_is_an_error(arguments: list[str]) -> None:
    """Requested text that cannot be written is an error; a reader that closed the pipe is not."""
    with full_device() as descriptor:
        done = call(*arguments, stdout=descriptor)
    assert done.returncode == 5, done.stderr
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"
    with broken_pipe() as descriptor:
        assert call(*arguments, stdout=descriptor).returncode == call(*arguments).returncode


def test_an_error_that_cannot_be_shown_keeps_its_status() -> None:
    """There is no room for the document with the error either: it is shown on standard error."""
    with full_device() as descriptor:
        done = call("--decay", "7", "--json", "x", stdout=descriptor)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: --decay 7 is not in [0, 1)")


def test_a_file_never_takes_the_place_of_a_closed_stream(run: Path) -> None:
    """A library's message to a closed stream would be written to the file with the same descriptor."""
    script = f"""
import os
from ema_cli.cli.process import reserve_descriptors
reserve_descriptors()
raise SystemExit(os.open({str(run / "c_1.safetensors")!r}, os.O_RDONLY))
"""
    closed = f"exec {sys.executable} -c '$0' >&- 2>&- <&-".replace("'$0'", '"$0"')
    assert subprocess.run(["sh", "-c", closed, script], check=False).returncode == 3


def test_no_output_gets_its_name_before_there_is_room_for_its_report(run: Path) -> None:
    """A report beyond the limit for file sizes leaves the old output and report unchanged."""
    assert average(run).returncode == 0
    before = contents(run.parent)
    limit = len(before["ema.safetensors"]) + 500
    assert limit < len(before["ema.report.json"])
    done = average(run, "--force", "--dtype", "float64", preexec_fn=limited(resource.RLIMIT_FSIZE, limit))
    assert done.returncode == 5, done.stderr
    assert f'{run.parent / "ema.report.json"}" cannot be written: File too large' in done.stderr
    assert contents(run.parent) == before


def test_a_small_file_is_not_there_before_it_is_published(tmp_path: Path) -> None:
    """It is durable under another name, and that name is removed."""
    file = SmallFile(tmp_path / "x")
    file.write(b"abc")
    (temporary,) = tmp_path.iterdir()
    assert (temporary.name.startswith(".x."), temporary.read_bytes()) == (True, b"abc")
    file.discard()
    assert not list(tmp_path.iterdir())
    file.write(b"abc")
    file.publish()
    file.discard()
    assert contents(tmp_path) == {"x": b"abc"}


@pytest.mark.parametrize("mebibytes", [60, 100, 250])
def test_too_little_address_space_is_reported_before_anything_is_written(mebibytes: int, run: Path) -> None:
    """The BLAS would end the process, in the middle of the work."""
    done = average(run, "--threads", "4", preexec_fn=limited(resource.RLIMIT_AS, mebibytes << 20))
    assert done.returncode == 71
    assert done.stderr.splitlines()[-2].startswith("error: there is not enough memory: the address space is limited to")
    assert list(run.parent.iterdir()) == [run]


@pytest.mark.parametrize("mebibytes", range(340, 400, 12))
def test_the_threads_that_write_are_counted(mebibytes: int, run: Path) -> None:
    """When their heaps took the last of the address space, the BLAS ended the process with 1."""
    options = ("--decay", "0.5", "--decay", "0.9", "--threads", "2", "-o", run.parent / "ema_{decay}.safetensors")
    done = call(run, *options, preexec_fn=limited(resource.RLIMIT_AS, mebibytes << 20))
    assert done.returncode in (0, 71), done.stderr
    assert done.returncode == 0 or list(run.parent.iterdir()) == [run]


def test_address_space_without_a_limit_is_enough() -> None:
    """No limit, nothing to check."""
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    check_address_space(Buffers(threads=10**6, block_elements=1, bytes_per_element=1), 10**6)
    assert SystemExhausted.__mro__[1] is ema_cli.EmaAvgError


@pytest.mark.parametrize("failure", ["MemoryError()", "OSError(24, 'Too many open files')", "ImportError('no such')"])
def test_a_program_that_cannot_be_loaded_says_so_in_one_line(failure: str) -> None:
    """Also if there is not even memory for the code that reports errors."""
    script = f"""
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            raise {failure}
sys.meta_path.insert(0, Finder())
from ema_cli.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 71
    assert done.stderr.startswith("error: ema-avg cannot be loaded: ")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_may_not_be_listed_is_refused_before_the_work(run: Path, tmp_path: Path) -> None:
    """The name of the output could not be made durable in it."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o333)
    done = call(run, "--decay", "0.5", "-o", out / "e.safetensors", preexec_fn=give_up_privileges)
    out.chmod(0o755)
    assert done.returncode == 5
    assert f'error: "{out / "e.safetensors"}" cannot be written: Permission denied' in done.stderr
    assert not list(out.iterdir())


def test_what_belongs_to_others_in_a_sticky_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``/tmp``: the rename at the end would fail."""
    (tmp_path / "x").write_bytes(b"theirs")
    tmp_path.chmod(0o777 | stat.S_ISVTX)
    check_writable(tmp_path / "x")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    check_writable(tmp_path / "y")
    with pytest.raises(OutputError, match="Operation not permitted"):
        check_writable(tmp_path / "x")
    tmp_path.chmod(0o777)
    check_writable(tmp_path / "x")


def fail(*_: object) -> NoReturn:
    """Fail as a disk does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_partial_output_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error of the output, not an internal error."""
    file = ResumableFile(tmp_path / "x", b"{}      ", 8)
    file.open()
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OutputError, match='x" cannot be written: Input/output error'):
        file.holds(0, 8, 0)
    file.discard()
    assert not list(tmp_path.iterdir())


def test_a_close_of_the_journal_that_fails_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is checked before it is used, so a failed close does no harm."""
    journal = Journal(tmp_path / "x", "run")
    journal.begin([])
    monkeypatch.setattr(os, "close", close_and_fail)
    journal.remove()
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_failure_of_the_write_back_thread_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread without memory raises ``MemoryError``, not an error about missing bytes."""

    def exhausted(_: int) -> NoReturn:
        raise MemoryError

    with (tmp_path / "x").open("w+b") as file:
        file.write(b"abc")
        write_back = WriteBack(file.fileno(), tmp_path / "x", 3)
        write_back.add(0, 3, 0)
        monkeypatch.setattr(os, "fdatasync", exhausted)
        with pytest.raises(MemoryError):
            write_back.finish()


def test_a_complete_file_is_verified_before_anyone_waits(tmp_path: Path) -> None:
    """The ends of several outputs are written back side by side, not one after the other when each is finished."""
    with (tmp_path / "x").open("w+b", buffering=0) as file:
        file.write(b"abc")
        write_back = WriteBack(file.fileno(), tmp_path / "x", 3)
        write_back.add(0, 3, zlib_ng.crc32(b"abc"))
        threads = [thread for thread in threading.enumerate() if thread.name == "write-back"]
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert write_back.finish() == hashlib.sha256(b"abc").hexdigest()


class Interrupted(BaseException):
    """Used in place of a signal."""


def test_a_block_of_many_checkpoints_is_left_when_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stops inside a block, too: one block of a thousand checkpoints on a slow disk takes long."""
    count = 400
    for step in range(count):
        save_file({"w": torch.zeros(5)}, tmp_path / f"c_{step}.safetensors")
    reads: list[int] = []
    gate = threading.Event()
    original = FileSource.read_into

    def slow(self: FileSource, offset: int, buffer: bytearray) -> None:
        if threading.current_thread().name.startswith("fold"):
            reads.append(offset)
            gate.wait(0.02)
        original(self, offset, buffer)

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "folding":
            raise Interrupted

    monkeypatch.setattr(FileSource, "read_into", slow)
    options = make_options(tmp_path, decay=0.5, output=tmp_path / "e.safetensors", geometry="none")
    with pytest.raises(Interrupted):
        run_average(options, listen)
    assert 0 < len(reads) < count


@pytest.mark.parametrize(("relative", "status"), [(False, 0), (True, 5)])
def test_a_working_directory_that_is_gone_matters_to_relative_names(relative: bool, status: int, run: Path) -> None:
    """Absolute paths are averaged; a relative output is an error of one line."""
    gone = run.parent / "gone"
    gone.mkdir()
    output = "ema.safetensors" if relative else run.parent / "ema.safetensors"
    command = [*PROGRAM, str(run), "--decay", "0.5", "-o", str(output)]
    done = subprocess.run(
        ["sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "_", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert (run.parent / "ema.safetensors").exists() is not relative
    assert "this is a bug" not in done.stderr


def test_a_folder_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is a mount point is asked after everything else, and may fail on its own."""

    def fail(_: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "ema").mkdir()
    monkeypatch.setattr(Path, "is_mount", fail)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        check_writable(tmp_path / "ema", folder=True)
