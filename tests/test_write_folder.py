"""Folders are published whole: whatever fails, and whenever a run is killed, a name refers to the old or the new."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import pytest
import torch

import ema_cli
import ema_cli.write.folder
from ema_cli.errors import EmaAvgError, InputChanged, OutputError, OutputLocked
from ema_cli.records.files import FileRole, PlannedFile, SideFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.source import FileSource
from ema_cli.verification.checks import verify
from ema_cli.weights.methods import Decay, Method, Weighting
from ema_cli.write.folder import OutputFolder
from ema_cli.write.lock import output_lock
from ema_cli.write.temp_names import name_aside, temporary_name
from ema_cli.write.writeback import WriteBack
from tests.helpers.folders import model_folders
from tests.helpers.outputs import bytes_header, fail_at, listing
from tests.helpers.program import Run
from tests.helpers.series import open_files, random_states, write_series, write_sparse

SIZE = 1_500
"""Bytes of a shard: the states of these tests need several."""


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def planned(path: Path, *, data: int = 100, beside: tuple[SideFile, ...] = ()) -> PlannedOutput:
    """Return the plan of a folder of two files of equal size."""
    method = Method(name="ema", decay=Decay(value=0.5, complement=0.5))
    return PlannedOutput(
        weighting=Weighting(method=method, weights=(1.0,), shares=(1.0,)),
        path=path,
        folder=True,
        files=tuple(
            PlannedFile(name=f"{n}.safetensors", header=bytes_header(data), begin=n * data, data_bytes=data)
            for n in range(2)
        ),
        beside=beside,
    )


def fill(folder: OutputFolder, total: int = 200) -> None:
    """Write the whole data section in small pieces, from back to front."""
    for offset in range(total - 10, -1, -10):
        folder.write(offset, memoryview(bytes([offset % 251]) * 10))


@pytest.fixture
def two(tmp_path: Path) -> tuple[dict[str, bytes], dict[str, bytes], Any]:
    """Return the contents of an old and a new output, with the old one in place, and how to write the new one."""
    folders = model_folders(tmp_path / "run", random_states(2))
    options: Any = {"max_shard_size": SIZE, "threads": 1}
    ema_cli.average(folders, decay=0.9, output=tmp_path / "new", **options)
    new = contents(tmp_path / "new")
    ema_cli.average(folders, decay=0.5, output=tmp_path / "out", **options)

    def write_new() -> None:
        ema_cli.average(folders, decay=0.9, output=tmp_path / "out", force=True, **options)

    return contents(tmp_path / "out"), new, write_new


@pytest.fixture(params=["exchange", "rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace folders by one call, or by two if the system has no such call."""
    way: str = request.param
    if way == "rename":
        monkeypatch.setattr("ema_cli.write.folder.exchange", lambda *_: False)
    return way


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "code"),
    [
        *((call, errno.ENOSPC) for call in ("pwrite", "fsync", "fdatasync", "posix_fallocate", "write", "mkdir")),
        *((call, errno.EIO) for call in ("pwrite", "fsync", "fdatasync", "open", "mkdir")),
    ],
)
def test_every_failure_leaves_the_old_folder_or_the_new(
    call: str, code: int, two: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th call fails, for growing n until a run succeeds: the folder is the old or the new one, and complete."""
    old, new, write_new = two
    out, files, threads = tmp_path / "out", open_files(), set(threading.enumerate())
    for number in range(1, 200):
        calls = fail_at(monkeypatch, call, number, code)
        with contextlib.suppress(EmaAvgError):
            write_new()
        monkeypatch.undo()
        assert contents(out) in (old, new)
        left = [name for name in listing(tmp_path) if name.startswith(".")]
        assert not left or (call == "open" and contents(out) == new)  # the old one could not be removed
        assert open_files() == files
        assert set(threading.enumerate()) <= threads
        if len(calls) < number:
            assert contents(out) == new
            return
    pytest.fail("the run never succeeded")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_an_exchange_that_is_refused_leaves_the_old_folder(
    code: int, two: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is an error, and nothing else is tried."""
    old, _, write_new = two
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Namespace(renameat2=lambda *_: -1))
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    with pytest.raises(OutputError, match=rf'out" cannot be written: {os.strerror(code)}'):
        write_new()
    assert contents(tmp_path / "out") == old
    assert listing(tmp_path) == {"run", "new", "new.report.json", "out", "out.report.json"}


@pytest.mark.parametrize("lacking", ["the function", errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_where_names_cannot_be_exchanged_the_old_folder_steps_aside(
    lacking: object, two: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A C library, a kernel or a file system may not have this call."""
    _, new, write_new = two
    library = Namespace() if lacking == "the function" else Namespace(renameat2=lambda *_: -1)
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: library)
    monkeypatch.setattr("ctypes.get_errno", lambda: lacking)
    write_new()
    assert contents(tmp_path / "out") == new
    assert listing(tmp_path) == {"run", "new", "new.report.json", "out", "out.report.json"}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("way", ["rename"], indirect=True)
@pytest.mark.usefixtures("way")
def test_a_failing_rename_puts_the_old_folder_back(
    number: int, two: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder cannot be moved away, or the new one cannot be given its name."""
    old, _, write_new = two
    report = (tmp_path / "out.report.json").read_bytes()
    fail_at(monkeypatch, "rename", number, errno.EACCES)
    with pytest.raises(OutputError, match=r'out" cannot be written: Permission denied'):
        write_new()
    monkeypatch.undo()
    assert contents(tmp_path / "out") == old
    assert (tmp_path / "out.report.json").read_bytes() == report
    assert listing(tmp_path) == {"run", "new", "new.report.json", "out", "out.report.json"}


@pytest.mark.usefixtures("way")
def test_a_folder_that_cannot_be_made_durable_is_taken_back(
    two: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of publishing fails: the old folder has its name again."""
    old, _, write_new = two
    original = os.fsync

    def failing(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        write_new()
    monkeypatch.undo()
    assert contents(tmp_path / "out") == old
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


def test_durability_comes_before_the_names(
    way: str, two: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is made durable, then their names, and only then do the folders change places."""
    _, new, write_new = two
    calls: list[str] = []
    places = {"fsync": os, "rename": os, "exchange": ema_cli.write.folder}
    for name in ("fsync", way):
        original = getattr(places[name], name)

        def noted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            if name == way:
                calls.append(f"{Path(arguments[0]).suffix} -> {Path(arguments[1]).suffix}")
            else:
                place = Path(f"/proc/self/fd/{arguments[0]}").readlink()
                calls.append(f"fsync {place.suffix or place.parent.suffix}")
            return original(*arguments)

        monkeypatch.setattr(places[name], name, noted)
    write_new()
    monkeypatch.undo()
    place = f"fsync {tmp_path.suffix}"
    stepwise = [" -> .old", ".partial -> ", place, ".old -> .partial"]
    renames = stepwise if way == "rename" else [".partial -> ", place]
    files = calls[: calls.index(renames[0])]
    assert len([call for call in files if call in ("fsync .safetensors", "fsync .json")]) == len(new)
    assert files[-1] == "fsync .partial"
    assert calls[len(files) :][: len(renames)] == renames


def crash(tmp_path: Path, call: int) -> None:
    """Write the new folder, without an exchange, and die in the ``call``-th rename of a folder, as if killed."""
    code = (
        "import os, sys, ema_cli\n"
        "original, calls = os.rename, []\n"
        "def dying(*paths):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {call}: os._exit(77)\n"
        "    original(*paths)\n"
        "os.rename = dying\n"
        "import ema_cli.write.folder\n"
        "ema_cli.write.folder.exchange = lambda *_: False\n"
        f"ema_cli.average('run', decay=0.9, output='out', max_shard_size={SIZE}, force=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 77


@pytest.mark.slow
def test_a_crash_between_the_renames_loses_nothing(two: tuple[Any, ...], tmp_path: Path, ema_avg: Run) -> None:
    """Then the name is free; the next run, whatever it makes, restores the old folder first."""
    old, new, write_new = two
    crash(tmp_path, 2)
    assert not (tmp_path / "out").exists()
    assert contents(next(tmp_path.glob(".out.*.old"))) == old
    same = ema_avg("run", "--decay", "0.5", "-o", "out/", "--max-shard-size", SIZE)
    assert same.stdout.startswith("up to date out/")
    assert contents(tmp_path / "out") == old
    assert not [name for name in listing(tmp_path) if name.startswith(".")]
    crash(tmp_path, 2)
    refused = ema_avg("run", "--decay", "0.9", "-o", "out/", "--max-shard-size", SIZE)
    assert refused.returncode == 5
    assert contents(tmp_path / "out") == old
    crash(tmp_path, 2)
    write_new()
    assert contents(tmp_path / "out") == new
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 3])
def test_a_crash_before_or_after_the_renames(call: int, two: tuple[Any, ...], tmp_path: Path) -> None:
    """Before them the old folder has the name, after them the new; the next run removes the leftovers."""
    old, new, write_new = two
    crash(tmp_path, call)
    assert contents(tmp_path / "out") == (old if call == 1 else new)
    assert [name for name in listing(tmp_path) if name.startswith(".")]
    write_new()
    assert contents(tmp_path / "out") == new
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_killed_at_the_exchange_leaves_the_old_folder_or_the_new(
    number: int, two: tuple[Any, ...], tmp_path: Path
) -> None:
    """Before it the old folder has the name, after it the new: the name always exists."""
    old, new, write_new = two
    calls = {1: "folder.exchange = lambda *_: os._exit(77)", 2: "folder.OldFolder.remove = lambda *_: os._exit(77)"}
    code = (
        f"import os, ema_cli.write.folder as folder; {calls[number]}\n"
        f"ema_cli.average('run', decay=0.9, output='out', max_shard_size={SIZE}, force=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", f"import ema_cli\n{code}"], cwd=tmp_path, check=False)
    assert done.returncode == 77
    assert contents(tmp_path / "out") == (old if number == 1 else new)
    write_new()
    assert contents(tmp_path / "out") == new
    assert listing(tmp_path) == {"run", "new", "new.report.json", "out", "out.report.json"}


@pytest.mark.slow
def test_runs_that_are_killed_at_any_time_leave_a_whole_folder(two: tuple[Any, ...], tmp_path: Path) -> None:
    """A process that writes two averages in turn is killed, again and again: one of the two always has the name."""
    old, new, _ = two
    code = (
        "import ema_cli, itertools, sys\n"
        "for n, decay in enumerate(itertools.cycle((0.9, 0.5))):\n"
        f"    ema_cli.average('run', decay=decay, output='out', max_shard_size={SIZE}, force=True)\n"
        "    print(n, flush=True)\n"
    )
    chance = random.Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate()
        with output_lock(tmp_path / "out"):
            assert contents(tmp_path / "out") in (old, new)
            assert listing(tmp_path) == {"run", "new", "new.report.json", "out", "out.report.json", ".out.lock"}


def test_many_runs_at_once_leave_one_whole_folder(two: tuple[Any, ...], tmp_path: Path) -> None:
    """Threads that replace one folder together: each writes, or is locked out."""
    _, new, write_new = two
    outcomes: list[str] = []

    def run() -> None:
        try:
            write_new()
            outcomes.append("written")
        except OutputLocked:
            outcomes.append("locked")

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 6
    assert "written" in outcomes
    assert contents(tmp_path / "out") == new
    assert listing(tmp_path) == {"run", "new", "new.report.json", "out", "out.report.json"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    """An interrupted run removes its incomplete folder, keeps the old one, and exits with 128 + n."""
    for step in range(6):
        write_sparse(tmp_path / "run" / f"s_{step}.safetensors", **{f"w{k}": 8_000_000 for k in range(5)})
    paths = write_series(tmp_path / "before", random_states(2))
    ema_cli.average(paths, decay=0.5, output=f"{tmp_path}/out/")
    old = contents(tmp_path / "out")
    slowly = ["--threads", "1", "--sha256", "--force", "--max-shard-size", "40MB"]  # long enough to be interrupted
    process = subprocess.Popen(
        [sys.executable, "-m", "ema_cli", "run", "--decay", "0.5", "-o", "out/", *slowly],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == 128 + number, talk
    assert contents(tmp_path / "out") == old
    assert not list(tmp_path.glob(".*"))


def test_leftovers_are_swept(tmp_path: Path) -> None:
    """Incomplete folders are removed; a moved one is removed if its name is taken, and restored if not."""

    def leave(path: Path) -> Path:
        path.mkdir()
        (path / "model.safetensors").write_bytes(path.name.encode())
        return path

    other = leave(temporary_name(tmp_path / "out.2"))
    halves = [leave(temporary_name(tmp_path / "out")) for _ in range(2)]
    aside = leave(name_aside(tmp_path / "out"))
    with output_lock(tmp_path / "out"):
        assert contents(tmp_path / "out") == {"model.safetensors": aside.name.encode()}
    assert not any(path.exists() for path in (*halves, aside))
    leave(name_aside(tmp_path / "out"))
    with output_lock(tmp_path / "out"):
        assert contents(tmp_path / "out") == {"model.safetensors": aside.name.encode()}
    assert listing(tmp_path) == {"out", other.name}


def test_links_among_the_leftovers_lead_nowhere(tmp_path: Path) -> None:
    """A link with the name of a leftover is removed, and its target is not."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    temporary_name(tmp_path / "out").symlink_to(tmp_path / "mine")
    with output_lock(tmp_path / "out"):
        pass
    assert listing(tmp_path) == {"mine"}
    assert listing(tmp_path / "mine") == {"file"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_takes_the_place_of_the_old_folder_is_kept(kind: str, tmp_path: Path) -> None:
    """A folder that another program put there during the run is not replaced."""
    place = tmp_path / "averaged"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"old")
    folder = OutputFolder(planned(place))
    folder.open()
    fill(folder)
    folder.finish()
    place.rename(tmp_path / "moved")
    foreign = place
    if kind == "folder":
        place.mkdir()
        foreign = place / "notes.txt"
    foreign.write_bytes(b"foreign")
    with pytest.raises(OutputError, match="was changed by another program during the run"):
        folder.publish()
    folder.discard()
    assert foreign.read_bytes() == b"foreign"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["averaged", "moved"]


def copied(path: Path) -> SideFile:
    """Plan to copy a file in its current state."""
    with FileSource(path) as source:
        size, state = source.size(), source.state
    return SideFile(name=path.name, role=FileRole.SIDE_FILE, nbytes=size, source=path, state=state)


def test_pieces_may_come_in_any_order(tmp_path: Path) -> None:
    """A file is complete with its last piece, whichever that is; the folder gets its name only at the end."""
    source = tmp_path / "tokenizer.json"
    source.write_bytes(b"t" * 3_000_000)
    sides = (
        SideFile(name="index.json", role=FileRole.INDEX, nbytes=2, content=b"{}"),
        copied(source),
    )
    folder = OutputFolder(planned(tmp_path / "out", beside=sides))
    folder.open()
    fill(folder)
    found = folder.finish()
    assert not (tmp_path / "out").exists()
    folder.publish()
    folder.discard()
    written = contents(tmp_path / "out")
    assert b"".join(written[f"{n}.safetensors"][-100:] for n in range(2)) == bytes(
        offset % 251 for offset in range(0, 200, 10) for _ in range(10)
    )
    assert written["tokenizer.json"] == source.read_bytes()
    assert [one.name for one in found.files] == sorted(written)


def test_a_piece_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    """A folder with a gap in one of its files is not published."""
    folder = OutputFolder(planned(tmp_path / "out"))
    folder.open()
    folder.write(0, memoryview(bytes(100)))
    folder.write(110, memoryview(bytes(90)))
    with pytest.raises(OutputError, match=r'1\.safetensors" cannot be written: only \d+ of \d+ bytes'):
        folder.finish()
    folder.discard()
    folder.discard()
    assert listing(tmp_path) == set()


def test_a_file_is_open_only_while_it_is_filled(tmp_path: Path) -> None:
    """Before its first piece and after its last one a file needs no descriptor."""
    before = open_files()
    folder = OutputFolder(planned(tmp_path / "out"))
    folder.open()
    assert open_files() == before
    folder.write(0, memoryview(bytes(50)))
    assert open_files() == before + 1
    folder.write(50, memoryview(bytes(50)))
    assert open_files() == before
    folder.discard()


def test_what_appears_in_the_place_meanwhile_is_kept(tmp_path: Path) -> None:
    """A folder that another program filled during the run is not replaced."""
    (tmp_path / "out").mkdir()
    folder = OutputFolder(planned(tmp_path / "out"))
    folder.open()
    fill(folder)
    folder.finish()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="was changed by another program during the run"):
        folder.publish()
    folder.discard()
    assert listing(tmp_path) == {"out"}
    assert listing(tmp_path / "out") == {"mine"}


@pytest.mark.parametrize("suffix", [".safetensors", ".json"], ids=["shard", "side"])
def test_a_file_that_reads_back_differently_is_not_published(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that returns other bytes than were written is detected, for every file of the folder."""
    original = WriteBack._read_back

    def flipped(write_back: WriteBack, begin: int, end: int) -> Iterator[memoryview]:
        damaged = Path(f"/proc/self/fd/{write_back._fd}").readlink().suffix == suffix
        for chunk in original(write_back, begin, end):
            chunk[-1] ^= damaged
            yield chunk

    monkeypatch.setattr(WriteBack, "_read_back", flipped)
    folders = model_folders(tmp_path / "run", random_states(2))
    with pytest.raises(OutputError, match="the disk returns other bytes than were written"):
        ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/")
    assert listing(tmp_path) == {"run"}


def test_a_side_file_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    """A file that the plan promised to copy is not silently skipped."""
    gone = SideFile(name="a.json", role=FileRole.SIDE_FILE, nbytes=2, source=tmp_path / "gone")
    folder = OutputFolder(planned(tmp_path / "out", beside=(gone,)))
    folder.open()
    fill(folder)
    with pytest.raises(EmaAvgError, match="gone"):
        folder.finish()
    folder.discard()
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("change", ["overwrite", "replace"])
def test_a_side_file_that_changed_ends_the_run(change: str, tmp_path: Path) -> None:
    """A configuration of the next save is not copied with the weights of this one, even if the files look the same."""
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    times = path.stat()
    folder = OutputFolder(planned(tmp_path / "out", beside=(copied(path),)))
    if change == "replace":
        path.rename(tmp_path / "old.json")
    path.write_text('{"a": 2}')
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    folder.open()
    fill(folder)
    with pytest.raises(InputChanged, match=r'config\.json" was changed or replaced during the run'):
        folder.finish()
    folder.discard()
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space for all files together is reserved before anything is folded."""
    original = os.statvfs

    def nearly_full(path: Path) -> os.statvfs_result:
        fields = list(original(path))
        fields[4] = 1
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    paths = write_series(tmp_path / "run", [{f"w{k}": torch.zeros(1000) for k in range(30)}] * 2)
    with pytest.raises(OutputError, match=r"No space left on device: \d+ kB are needed, 4.1 kB are free"):
        ema_cli.average(paths, decay=0.5, output=tmp_path / "out", max_shard_size=5_000)
    assert listing(tmp_path) == {"run"}


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """Folder and files have the permissions of any new ones."""
    folders = model_folders(tmp_path / "run", random_states(2))
    before = os.umask(0o027)
    try:
        ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}
    assert verify(tmp_path / "out").ok
