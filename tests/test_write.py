"""Output files: their contents, and that a name never refers to half a file, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import ema_cli
from ema_cli.dtypes import DTYPES
from ema_cli.errors import EmaAvgError, OutputError, OutputLocked
from ema_cli.events import Event, Progress
from ema_cli.options.average import make_options
from ema_cli.options.output_options import ReadBack
from ema_cli.pipeline import run_average
from ema_cli.write import writeback
from ema_cli.write.disk_reader import DiskReader
from ema_cli.write.file import OutputFile
from ema_cli.write.lock import output_lock
from ema_cli.write.publish import uninterrupted
from ema_cli.write.small_file import write_atomically
from ema_cli.write.temp_names import temporary_name
from ema_cli.write.writeback import WriteBack
from tests.helpers.outputs import bytes_header, fail_at, header_of, listing, sorted_metadata
from tests.helpers.series import State, load, open_files, random_states, same_bits, write_series

ALL_TYPES: State = {
    f"t.{dtype.torch_name}": torch.zeros(3, dtype=getattr(torch, dtype.torch_name))
    for dtype in DTYPES
    if dtype.name != "F8_E8M0"
}


@pytest.mark.parametrize("states", [random_states(2), [ALL_TYPES] * 2, [{'ключ 🔑"\\\n': torch.ones(2)}] * 2])
def test_the_header_is_that_of_the_library(states: list[State], tmp_path: Path) -> None:
    """For the same tensors and metadata, ``save_file`` writes the same bytes: order, entries, padding."""
    output = tmp_path / "ema.safetensors"
    ema_cli.average(write_series(tmp_path, states), decay=0.5, output=output, metadata={"run": "ü 7", "a": ""})
    with safe_open(output, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load(output), tmp_path / "theirs.safetensors", metadata)
    ours, theirs = header_of(output), header_of(tmp_path / "theirs.safetensors")
    assert ours == sorted_metadata(theirs)
    assert output.read_bytes()[len(ours) :] == (tmp_path / "theirs.safetensors").read_bytes()[len(theirs) :]


@given(
    tensors=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.float64, torch.uint8]),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_names_and_types_are_laid_out_as_the_library_does(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.dtype]
) -> None:
    """Sorting by type and then by name agrees with the library for any text."""
    folder = tmp_path_factory.mktemp("run")
    state = {name: torch.ones(2, dtype=dtype) for name, dtype in tensors.items()}
    output = folder / "ema.safetensors"
    ema_cli.average(write_series(folder, [state], form="safetensors"), decay=0.5, output=output, threads=1)
    with safe_open(output, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(state, folder / "theirs.safetensors", metadata)
    assert header_of(output) == sorted_metadata(header_of(folder / "theirs.safetensors"))


def test_the_metadata_says_what_the_average_is(tmp_path: Path) -> None:
    """Version, method, decay, checkpoints and steps; keys sorted; nothing that changes from run to run."""
    output = tmp_path / "ema.safetensors"
    ema_cli.average(write_series(tmp_path, random_states(3)), decay=0.25, output=output, metadata={"z": "1"})
    with safe_open(output, framework="numpy") as opened:
        metadata = opened.metadata()
    fingerprint = metadata.pop("ema_avg.options_fingerprint")
    assert len(fingerprint) == 32
    assert metadata == {
        "format": "pt",
        "z": "1",
        "ema_avg.version": ema_cli.__version__,
        "ema_avg.method": "ema",
        "ema_avg.decay": "0.25",
        "ema_avg.one_minus_decay": "0.75",
        "ema_avg.buffers": "average",
        "ema_avg.folded": '["ckpt_100", "ckpt_200", "ckpt_300"]',
        "ema_avg.steps": "100,200,300",
        "ema_avg.step_unit": "step",
        "ema_avg.init": "first",
        "ema_avg.per": "checkpoint",
        "ema_avg.checkpoints": "3",
        "ema_avg.first_step": "100",
        "ema_avg.last_step": "300",
    }
    keys = list(json.loads(header_of(output)[8:])["__metadata__"])
    assert keys == sorted(keys)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    """The file depends on inputs and options alone."""
    paths = write_series(tmp_path, random_states(3))
    for name in ("a", "b"):
        ema_cli.average(paths, decay=0.5, output=tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_report_holds_the_digest_and_the_size(tmp_path: Path) -> None:
    """The bytes that were read back from the disk are those of the file."""
    output = tmp_path / "ema.safetensors"
    found = ema_cli.average(write_series(tmp_path, random_states(2)), decay=0.5, output=output).averages[0].output
    assert found.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert found.bytes == output.stat().st_size


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    """The output and its report have the permissions of any new file, unlike the library's."""
    paths = write_series(tmp_path, random_states(2))
    before = os.umask(umask)
    try:
        ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for name in ("ema.safetensors", "ema.report.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


Failing = Callable[..., Any]
CALLS = ("pwrite", "fsync", "fdatasync", "replace", "posix_fallocate")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_write_leaves_the_old_output(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever system call fails first: the error names the output and the cause, the old file is whole."""
    paths = write_series(tmp_path, random_states(2))
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output)
    before, names, files = output.read_bytes(), listing(tmp_path), open_files()
    fail_at(monkeypatch, call, 1, code)
    with pytest.raises(OutputError, match=rf'ema\.safetensors" cannot be written: {os.strerror(code)}') as refused:
        ema_cli.average(paths, decay=0.9, output=output, force=True)
    monkeypatch.undo()
    assert output.read_bytes() == before
    assert listing(tmp_path) == names
    assert open_files() == files
    assert bool(refused.value.hint) == (code != errno.EIO)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("write-back", "fold"))]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "fdatasync", "replace", "open", "write"])
def test_every_failure_leaves_a_whole_file_or_none(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th call fails, for n = 1, 2, ... until a run succeeds: the output is absent or complete, no temp stays."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for number in range(1, 60):
        output.unlink(missing_ok=True)
        calls = fail_at(monkeypatch, call, number, errno.EIO)
        with contextlib.suppress(EmaAvgError):
            ema_cli.average(paths, decay=0.5, output=output, threads=1, force=True)
        monkeypatch.undo()
        assert not output.exists() or output.read_bytes() == whole
        assert not [name for name in listing(tmp_path) if name.endswith((".partial", ".lock"))]
        if len(calls) < number:
            return
    pytest.fail("the run never succeeded")


def test_what_reads_back_differently_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that returns other bytes than were written is detected before the rename."""
    original = WriteBack._read_back

    def flipped(write_back: WriteBack, begin: int, end: int) -> Iterator[memoryview]:
        for chunk in original(write_back, begin, end):
            chunk[len(chunk) // 2] ^= 1
            yield chunk

    monkeypatch.setattr(WriteBack, "_read_back", flipped)
    paths = write_series(tmp_path, random_states(2))
    with pytest.raises(OutputError, match="the disk returns other bytes than were written"):
        ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    assert not (tmp_path / "ema.safetensors").exists()


@pytest.mark.parametrize("read_back", ["sample", "all"])
def test_a_disk_that_loses_bytes_is_noticed(
    read_back: ReadBack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the disk returns, every 16th piece and the end are compared with what was written, or everything."""
    monkeypatch.setattr(writeback, "_PIECE_BYTES", 1 << 12)
    compared: list[int] = []
    read = DiskReader.read

    def count(reader: DiskReader, position: int, length: int) -> memoryview:
        compared.append(position)
        return read(reader, position, length)

    monkeypatch.setattr(DiskReader, "read", count)
    paths = write_series(tmp_path, [{"w": torch.randn(100_000)} for _ in range(2)])
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output, read_back=read_back)
    pieces = list(range(0, output.stat().st_size, 1 << 12))
    expected = pieces if read_back == "all" else sorted({*pieces[::16], pieces[-1]})
    assert sorted({position - position % (1 << 12) for position in compared}) == expected

    for lost in compared:

        def damaged(reader: DiskReader, position: int, length: int, lost: int = lost) -> memoryview:
            piece = bytearray(read(reader, position, length))
            piece[len(piece) // 3] ^= position == lost
            return memoryview(piece)

        monkeypatch.setattr(DiskReader, "read", damaged)
        with pytest.raises(OutputError, match="the disk returns other bytes than were written"):
            ema_cli.average(paths, decay=0.25, output=output, read_back=read_back, force=True)


@pytest.mark.parametrize("direct", [True, False])
@given(data=st.binary(max_size=20_000), position=st.integers(0, 20_000), length=st.integers(0, 9000))
def test_any_range_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, *, direct: bool, data: bytes, position: int, length: int
) -> None:
    """Direct reads return any range of a file, cut at its end, as reads through the page cache do."""
    path = tmp_path_factory.getbasetemp() / "read-back"
    path.write_bytes(data)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        reader = DiskReader(file.fileno(), path if direct else path / "none", 9000)
        assert bytes(reader.read(position, length)) == data[position : position + length]


def test_a_full_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is reserved before anything is folded, and the error states how much is missing."""
    original = os.fstatvfs

    def nearly_full(descriptor: int) -> os.statvfs_result:
        fields = list(original(descriptor))
        fields[4] = 1
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    paths = write_series(tmp_path, [{"w": torch.zeros(100_000)}] * 2)
    with pytest.raises(OutputError, match=r"No space left on device: \d+ kB are needed, 4.1 kB are free"):
        ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")


def test_a_file_system_without_reservation_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the space cannot be reserved the file is set to its size and written."""
    fail_at(monkeypatch, "posix_fallocate", 1, errno.EOPNOTSUPP)
    paths = write_series(tmp_path, random_states(2))
    ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    assert set(load(tmp_path / "ema.safetensors")) == set(random_states(1)[0])


@pytest.mark.parametrize("name", ["x" * 250 + ".safetensors", "folder.safetensors"])
def test_impossible_outputs_are_refused_with_a_message(name: str, tmp_path: Path) -> None:
    """A name that is too long, or the name of a folder, is an error of the output."""
    (tmp_path / "folder.safetensors").mkdir()
    paths = write_series(tmp_path, random_states(2))
    with pytest.raises(OutputError):
        ema_cli.average(paths, decay=0.5, output=tmp_path / name, force=True)
    assert listing(tmp_path) == {"ckpt_100.pt", "ckpt_200.pt", "folder.safetensors"}


def test_leftovers_of_killed_runs_are_swept(tmp_path: Path) -> None:
    """Temporary files of this output and its report go; those of other outputs, and other files, stay."""
    ours = [temporary_name(tmp_path / name) for name in ("ema.safetensors", "ema.report.json")]
    others = [
        temporary_name(tmp_path / "ema.safetensors.b.safetensors"),
        temporary_name(tmp_path / "other.safetensors"),
        tmp_path / ".ema.safetensors.notes.partial",
    ]
    for path in (*ours, *others):
        path.write_bytes(b"half")
    ema_cli.average(write_series(tmp_path / "run", random_states(2)), decay=0.5, output=tmp_path / "ema.safetensors")
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_names_with_pattern_characters_are_swept_literally(tmp_path: Path) -> None:
    """``ema[1]*.safetensors`` has leftovers of its own name only."""
    mine, other = (temporary_name(tmp_path / f"{name}.safetensors") for name in ("e[1]*", "e1x"))
    for path in (mine, other):
        path.write_bytes(b"half")
    with output_lock(tmp_path / "e[1]*.safetensors"):
        assert (mine.exists(), other.exists()) == (False, True)


def test_a_second_run_is_locked_out(tmp_path: Path) -> None:
    """While one run has the lock, another process stops at once and leaves no files."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    code = "import sys, ema_cli; ema_cli.average(sys.argv[2:], decay=0.5, output=sys.argv[1])"
    arguments = [sys.executable, "-c", code, str(output), *map(str, paths)]
    with output_lock(output):
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert "OutputLocked" in done.stderr
        with pytest.raises(OutputLocked, match="another run is writing"):
            ema_cli.average(paths, decay=0.5, output=output)
        assert listing(tmp_path) == {"run", ".ema.safetensors.lock"}
    assert subprocess.run(arguments, check=False).returncode == 0
    assert listing(tmp_path) == {"run", "ema.safetensors", "ema.report.json"}


def test_many_runs_at_once_leave_one_whole_output(tmp_path: Path) -> None:
    """Threads that write one output together: each writes, finds it up to date, or is locked out."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    outcomes: list[str] = []

    def run() -> None:
        try:
            ema_cli.average(paths, decay=0.5, output=output, threads=1)
            outcomes.append("written")
        except OutputLocked:
            outcomes.append("locked")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    assert "written" in outcomes
    assert listing(tmp_path) == {"run", "ema.safetensors", "ema.report.json"}
    assert same_bits(load(output)["empty"], torch.zeros(0, 3))


def test_a_path_that_cannot_be_looked_up_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a path was once treated as free, and the existing file as a foreign file."""
    output = tmp_path / "ema.safetensors"
    output.write_bytes(b"old")
    file = OutputFile(output, b"", 0)
    fail_at(monkeypatch, "lstat", 1, errno.EIO)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        file.open()
    file.discard()
    assert listing(tmp_path) == {"ema.safetensors"}


def test_the_lock_is_no_link_to_elsewhere(tmp_path: Path) -> None:
    """A link in the place of the lock is not followed."""
    (tmp_path / ".ema.safetensors.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError), output_lock(tmp_path / "ema.safetensors"):
        pass
    assert not (tmp_path / "victim").exists()


@given(
    pieces=st.lists(st.binary(max_size=50), max_size=12),
    shuffle=st.randoms(use_true_random=False),
    run_bytes=st.integers(1, 100),
)
@settings(max_examples=40, deadline=None)
def test_pieces_may_come_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], shuffle: Any, run_bytes: int
) -> None:
    """A file that is filled from several threads is whole, durable piece by piece, and its digest is right."""
    folder = tmp_path_factory.mktemp("out")
    data = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writeback, "_RUN_BYTES", run_bytes)
        layout_header = bytes_header(len(data))
        file = OutputFile(folder / "x.safetensors", layout_header, len(data))
        file.open()
        starts = [sum(map(len, pieces[:k])) for k in range(len(pieces))]
        order = list(zip(starts, pieces, strict=True))
        shuffle.shuffle(order)
        for start, piece in order:
            file.write(start, memoryview(piece))
        found = file.finish()
        assert not (folder / "x.safetensors").exists()
        file.publish()
        file.discard()
    written = (folder / "x.safetensors").read_bytes()
    assert written == layout_header + data
    assert found.sha256 == hashlib.sha256(written).hexdigest()
    assert listing(folder) == {"x.safetensors"}


def test_a_piece_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    """A file with a gap is not published."""
    file = OutputFile(tmp_path / "x.safetensors", bytes_header(100), 100)
    file.open()
    file.write(50, memoryview(bytes(50)))
    with pytest.raises(OutputError, match=r"only \d+ of \d+ bytes were written"):
        file.finish()
    file.discard()
    file.discard()
    assert listing(tmp_path) == set()


def test_a_file_that_the_library_refuses_is_not_published(tmp_path: Path) -> None:
    """The official parser checks the file last, before the rename."""
    file = OutputFile(tmp_path / "x.safetensors", (3).to_bytes(8, "little") + b"{x}", 0)
    file.open()
    with pytest.raises(OutputError, match="was written, but safetensors refuses it"):
        file.finish()
    file.discard()
    assert listing(tmp_path) == set()


def test_small_files_are_written_whole(tmp_path: Path) -> None:
    """A report replaces an existing one at once, and its name is made durable."""
    path = tmp_path / "r.json"
    for data in (b"one", b"", b"x" * 100_000):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert listing(tmp_path) == {"r.json"}


def test_durability_comes_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and report are made durable, then each is renamed and the folder made durable."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def noted(*arguments: Any, name: str = name, original: Failing = original) -> Any:
            if name == "fsync":
                kind = "folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "file"
                calls.append(f"fsync {kind}")
            else:
                calls.append("rename")
            return original(*arguments)

        monkeypatch.setattr(os, name, noted)
    paths = write_series(tmp_path, random_states(2))
    ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    named = ["rename", "fsync folder"]
    assert calls == ["fsync file", "fsync file", *named, *named]


@pytest.mark.parametrize("earlier", [False, True])
def test_what_another_program_puts_there_meanwhile_is_kept(earlier: bool, tmp_path: Path) -> None:
    """The user did not agree to lose a file that appeared, or was replaced, after the run had checked."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    if earlier:
        ema_cli.average(paths, decay=0.9, output=output)

    def put(event: Event) -> None:
        if isinstance(event, Progress):
            output.unlink(missing_ok=True)
            output.write_text("of another program")

    options = make_options(paths, decay=0.5, output=output, force=True)
    with pytest.raises(OutputError, match=f"was {'changed' if earlier else 'put there'} by another program during"):
        run_average(options, put)
    assert output.read_text() == "of another program"
    assert listing(tmp_path) == {"run", "ema.safetensors", *({"ema.report.json"} if earlier else ())}


@pytest.mark.parametrize("change", ["touch", "remove"])
def test_a_finished_file_that_was_changed_is_not_published(change: str, tmp_path: Path) -> None:
    """Between the last check and the rename nothing may change the bytes that were checked."""
    file = OutputFile(tmp_path / "ema.safetensors", bytes_header(2), 2)
    file.open()
    file.write(0, memoryview(bytes(2)))
    file.finish()
    (temp,) = tmp_path.iterdir()
    if change == "touch":
        with temp.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"x")
    else:
        temp.unlink()
    with pytest.raises(OutputError, match="was changed by another program" if change == "touch" else "cannot be"):
        file.publish()
    file.discard()
    assert listing(tmp_path) == set()


def test_signals_wait_while_files_get_their_names() -> None:
    """Between the first rename and the last report a signal does not interrupt; afterwards the handlers are back."""
    before = signal.getsignal(signal.SIGTERM)
    with uninterrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
