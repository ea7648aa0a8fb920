"""Files in which tensors have given places: how they are copied, verified and published; what failures leave."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import EmaAvgError, InputChanged, OutputError
from ema_cli.events import Event, Listener, Progress, ignore
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from ema_cli.records.files import Checksum, FileRole, Place, PlacedFile, PlacedTensor, Placement, SideFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.source import FileSource
from ema_cli.weights.methods import Method, Weighting
from ema_cli.write import file_copy
from ema_cli.write.make_target import make_target
from ema_cli.write.old_folder import examine_old_folder
from ema_cli.write.publish import NotDurable
from tests.helpers.outputs import fail_at, listing
from tests.helpers.series import open_files

SIZE = 3_000_000
BEGIN = 1_000_001
"""Byte of the file where the tensor is."""
TENSOR = bytes(range(256)) * 4000


@pytest.fixture
def original(tmp_path: Path) -> Iterator[FileSource]:
    """A file to copy, larger than a piece."""
    path = tmp_path / "original"
    path.write_bytes(os.urandom(SIZE))
    with FileSource(path) as source:
        yield source


def planned(path: Path, placement: Placement) -> PlannedOutput:
    """Plan an output."""
    weighting = Weighting(method=Method(name="uniform"), weights=(1.0,), shares=(1.0,))
    return PlannedOutput(
        weighting=weighting,
        path=path,
        files=(),
        folder=placement.folder,
        beside=placement.beside,
        format="same",
        placement=placement,
    )


def tensor_at(*offsets: int, file: int = 0) -> PlacedTensor:
    """Return the tensor, at these bytes of a file."""
    places = tuple(
        Place(file=file, offset=offset, origin=(0,), shape=(len(TENSOR),), strides=None) for offset in offsets
    )
    return PlacedTensor(begin=0, shape=(len(TENSOR),), itemsize=1, places=places)


def copy_of(original: FileSource, **options: Any) -> Placement:
    """Plan a copy of a file with a tensor in it."""
    file = PlacedFile(name="copy", nbytes=SIZE, source=original, **options)
    return Placement(files=(file,), tensors=(tensor_at(BEGIN),))


def write(path: Path, placement: Placement, listener: Listener = ignore) -> bytes:
    """Write the tensor in two pieces, the last first; return the file."""
    target = make_target(planned(path, placement), None, listener)
    try:
        target.open()
        target.write(999, memoryview(TENSOR[999:]))
        target.write(0, memoryview(TENSOR[:999]))
        target.finish()
        target.publish()
    finally:
        target.discard()
    return path.read_bytes() if path.is_file() else b""


def expected(original: FileSource) -> bytes:
    """Return the bytes that a copy must have."""
    raw = original.path.read_bytes()
    return raw[:BEGIN] + TENSOR + raw[BEGIN + len(TENSOR) :]


def test_the_rest_is_copied_by_the_kernel(
    tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ranges are copied without passing through this process."""
    counts = fail_at(monkeypatch, "copy_file_range", 0, 0)
    assert write(tmp_path / "copy", copy_of(original)) == expected(original)
    assert len(counts) >= 2


@pytest.mark.parametrize("number", [1, 2])
def test_the_kernel_may_refuse(
    tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where the kernel cannot copy, at once or in the middle, the bytes are read and written."""
    copy = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, size, *places: copy(a, b, min(size, 300_000), *places))
    fail_at(monkeypatch, "copy_file_range", number, errno.EXDEV)
    assert write(tmp_path / "copy", copy_of(original)) == expected(original)


def share_blocks(descriptor: int, request: int, source: int) -> int:
    """Do what the file system does for a file that shares the blocks of another."""
    assert request == 0x40049409
    raw = os.pread(source, SIZE, 0)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, raw, 0)
    return 0


def test_blocks_are_shared_where_the_file_system_can(
    tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone is changed only where the tensors are; the copied bytes are compared with the source all the same."""
    monkeypatch.setattr(fcntl, "ioctl", share_blocks)
    counts = fail_at(monkeypatch, "copy_file_range", 0, 0)
    assert write(tmp_path / "copy", copy_of(original)) == expected(original)
    assert not counts

    def damaged(descriptor: int, request: int, source: int) -> int:
        share_blocks(descriptor, request, source)
        return os.pwrite(descriptor, b"damaged", 17) * 0

    monkeypatch.setattr(fcntl, "ioctl", damaged)
    with pytest.raises(OutputError, match="other bytes than were written"):
        write(tmp_path / "other", copy_of(original))
    assert listing(tmp_path) == {"original", "copy"}


def test_a_clone_of_another_size_is_not_used(
    tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was changed meanwhile is not cloned."""
    monkeypatch.setattr(fcntl, "ioctl", lambda descriptor, *_: os.pwrite(descriptor, b"x", 0))
    assert write(tmp_path / "copy", copy_of(original)) == expected(original)
    assert file_copy.clone.__doc__


@pytest.mark.parametrize("call", ["pwrite", "preadv", "fsync", "fdatasync", "posix_fallocate", "fchmod", "open"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_whatever_fails_nothing_is_left(
    tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A failing system call is an error, or does not matter; no temporary file stays, and none open."""
    before = open_files()
    placement, good = copy_of(original), expected(original)
    with monkeypatch.context() as patch:
        fail_at(patch, call, number, errno.ENOSPC)
        try:
            write(tmp_path / "copy", placement)
        except NotDurable:
            pass  # it has its name
        except EmaAvgError:
            assert listing(tmp_path) == {"original"}
            return
    assert (tmp_path / "copy").read_bytes() == good
    assert open_files() <= before + 1  # the original may have been opened again


def test_a_full_disk_is_noticed_first(tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space of the whole copy is needed, also where blocks could be shared."""
    status = os.statvfs(tmp_path)
    little = os.statvfs_result((status[0], 1, status[2], SIZE // 2, SIZE // 2, *status[5:]))
    monkeypatch.setattr(os, "fstatvfs", lambda _: little)
    with pytest.raises(OutputError, match=r"3.0 MB are needed, 1.5 MB are free"):
        write(tmp_path / "copy", copy_of(original))
    assert listing(tmp_path) == {"original"}


def test_copied_bytes_are_verified(tmp_path: Path, original: FileSource) -> None:
    """What is on the disk is compared with what was read, also where only bytes were copied."""

    def spoil(event: Event) -> None:
        if isinstance(event, Progress) and event.done_bytes == event.total_bytes:
            (temp,) = tmp_path.glob(".copy.*")
            with temp.open("r+b") as file:
                file.seek(SIZE - 5)
                file.write(b"spoil")

    with pytest.raises(OutputError, match="other bytes than were written"):
        write(tmp_path / "copy", copy_of(original), spoil)


def test_a_source_that_changes_after_it_was_copied(tmp_path: Path, original: FileSource) -> None:
    """The copy may be of two states of the file, so it is not published."""

    def change(event: Event) -> None:
        if isinstance(event, Progress) and event.done_bytes == event.total_bytes:
            with original.path.open("r+b") as file:
                file.write(b"changed")

    with pytest.raises(InputChanged, match="was changed"):
        write(tmp_path / "copy", copy_of(original), change)
    assert listing(tmp_path) == {"original"}


def test_checksums_follow_their_ranges(tmp_path: Path, original: FileSource) -> None:
    """A CRC-32 is that of its whole range: of tensors and of copied bytes, in all places where the file has it."""
    checksum = Checksum(begin=BEGIN - 100, nbytes=len(TENSOR) + 300, fields=(7, SIZE - 4))
    found = write(tmp_path / "copy", copy_of(original, checksums=(checksum,)))
    crc = zlib.crc32(found[BEGIN - 100 : BEGIN + len(TENSOR) + 200]).to_bytes(4, "little")
    good = bytearray(expected(original))
    good[7:11] = good[-4:] = crc
    assert found == bytes(good)


def test_bytes_may_be_given(tmp_path: Path) -> None:
    """A file without an original consists of given bytes, tensors and checksums; a gap is noticed."""
    head, tail = b"head" * 10, bytes(4) + b"tail"
    size = len(head) + len(TENSOR) + len(tail)
    checksum = Checksum(begin=20, nbytes=20 + len(TENSOR), fields=(size - len(tail),))
    given = ((0, head), (len(head) + len(TENSOR), tail))
    for parts, is_whole in ((given, True), (given[1:], False)):
        file = PlacedFile(name="x", nbytes=size, given=parts, checksums=(checksum,))
        placement = Placement(files=(file,), tensors=(tensor_at(len(head)),))
        if not is_whole:
            with pytest.raises(OutputError, match=r"only 0 of 1,024,048 bytes were written"):
                write(tmp_path / "gap", placement)
            continue
        crc = zlib.crc32(head[20:] + TENSOR).to_bytes(4, "little")
        assert write(tmp_path / "whole", placement) == head + TENSOR + crc + b"tail"
    assert listing(tmp_path) == {"whole"}


def folder_of(original: FileSource, names: Sequence[str], empty: Sequence[str] = ()) -> Placement:
    """Plan a folder: a copy with the tensor, and other files that are copied whole."""
    file = PlacedFile(name="inner/weights", nbytes=SIZE, source=original)
    sides = tuple(
        SideFile(name=name, role=FileRole.SIDE_FILE, nbytes=SIZE, source=original.path, state=original.state)
        for name in names
    )
    return Placement(files=(file,), tensors=(tensor_at(BEGIN),), folder=True, beside=sides, empty_folders=tuple(empty))


def contents(folder: Path) -> set[str]:
    """Return everything below a folder, with a slash after folders."""
    return {f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}" for path in folder.rglob("*")}


def test_folders_in_folders_are_replaced(tmp_path: Path, original: FileSource) -> None:
    """An old output with folders inside is replaced whole; foreign files in it are kept, wherever they are."""
    path = tmp_path / "out"
    write(path, folder_of(original, ["a/b/c", "d"], ["e"]))
    assert contents(path) == {"a/", "a/b/", "a/b/c", "d", "e/", "inner/", "inner/weights"}
    (path / "a" / "notes").write_text("mine")
    (path / "f" / "g").mkdir(parents=True)
    (path / "f" / "g" / "h").write_text("mine, too")
    placement = folder_of(original, ["d"])
    old = examine_old_folder(path, {"a/b/c", "d", "inner/weights"}, {"inner/weights", "d"})
    assert old is not None
    target = make_target(planned(path, placement), old)
    target.open()
    target.write(0, memoryview(TENSOR))
    target.finish()
    target.publish()
    target.discard()
    assert contents(path) == {"a/", "a/notes", "d", "f/", "f/g/", "f/g/h", "inner/", "inner/weights"}
    assert listing(tmp_path) == {"original", "out"}


def test_a_foreign_file_that_comes_meanwhile_stays(tmp_path: Path, original: FileSource) -> None:
    """If something is put into an inner folder of the old output during the run, nothing is replaced."""
    path = tmp_path / "out"
    write(path, folder_of(original, ["a/b"]))
    old = examine_old_folder(path, {"a/b", "inner/weights"}, {"inner/weights"})
    target = make_target(planned(path, folder_of(original, [])), old)
    target.open()
    target.write(0, memoryview(TENSOR))
    target.finish()
    (path / "a" / "new").write_text("mine")
    with pytest.raises(OutputError, match=r'"a/new" .* was changed, added or removed by another program'):
        target.publish()
    target.discard()
    assert contents(path) == {"a/", "a/b", "a/new", "inner/", "inner/weights"}
    assert listing(tmp_path) == {"original", "out"}


@pytest.mark.parametrize("call", ["mkdir", "pwrite", "fsync", "link", "rename", "copy_file_range"])
@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_folder_that_fails_leaves_nothing(
    tmp_path: Path, original: FileSource, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A failure while a folder is built or published is an error, and nothing is left beside the original."""
    placement = folder_of(original, ["a/b", "c"])
    with monkeypatch.context() as patch:
        fail_at(patch, call, number, errno.EIO)
        try:
            write(tmp_path / "out", placement)
        except EmaAvgError:
            assert listing(tmp_path) == {"original"}
        else:
            assert (tmp_path / "out" / "inner" / "weights").read_bytes() == expected(original)
            assert (tmp_path / "out" / "a" / "b").read_bytes() == original.path.read_bytes()


def test_signals_leave_nothing(tmp_path: Path) -> None:
    """A run that is stopped while it copies removes its partial file, and the output that was there stays."""
    for step in (1, 2):
        torch.save({"w": torch.full((9,), float(step))}, tmp_path / f"step_{step}.pt")

    class Stopped(BaseException):
        """Used in place of a signal."""

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "copying":
            raise Stopped

    paths = sorted(tmp_path.glob("step_*"))
    with pytest.raises(Stopped):
        run_average(make_options(paths, decay=0.5, output=tmp_path / "ema.pt", probe=False), stop)
    assert listing(tmp_path) == {"step_1.pt", "step_2.pt"}
