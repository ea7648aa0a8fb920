"""Files as sources of bytes: which are opened, which are refused, and files that change during a read."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ema_cli.errors import InputChanged, InputRefused, NothingMatched
from ema_cli.formats.folder import Folder
from ema_cli.storage.source import FileSource, _readahead_bytes
from tests.helpers.makers import fifo
from tests.helpers.series import open_files

DATA = bytes(range(256)) * 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of known bytes."""
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


def test_any_range_is_read(file: Path) -> None:
    """Every range inside the file gives exactly its bytes, an empty one nothing."""
    with FileSource(file) as source:
        assert source.size() == len(DATA)
        for offset, length in ((0, 0), (0, 1), (7, 300), (len(DATA) - 1, 1), (0, len(DATA)), (len(DATA), 0)):
            assert source.read(offset, length) == DATA[offset : offset + length]


def test_any_buffer_is_filled(file: Path) -> None:
    """A buffer with larger items is filled as bytes."""
    with FileSource(file) as source:
        buffer = memoryview(bytearray(16)).cast("Q")
        source.read_into(3, buffer)
        assert bytes(buffer) == DATA[3:19]


def test_short_reads_are_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that returns fewer bytes than asked is repeated until all are there."""
    real = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:7]], offset)

    with FileSource(file) as source:
        monkeypatch.setattr(os, "preadv", short)
        assert source.read(100, 500) == DATA[100:600]


def test_an_unreadable_place_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error states the file, the byte and the system's message."""
    real = os.preadv

    def broken(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset >= 64:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, [buffers[0][:64]], offset)

    with FileSource(file) as source:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(InputChanged, match=r'data.bin" cannot be read at byte 64: Input/output error'):
            source.read(0, 100)


def test_a_file_that_shrank_is_an_error(file: Path) -> None:
    """A read beyond the new end of a file is an error, not zeros and not a crash."""
    with FileSource(file) as source:
        os.truncate(file, 100)
        assert source.read(0, 100) == DATA[:100]
        with pytest.raises(InputChanged, match="ends at byte 100 but had 1,280 bytes when opened"):
            source.read(50, 100)


@pytest.mark.parametrize("name", ["missing.pt", "data.bin/below", "\0"])
def test_a_missing_file_is_reported(file: Path, name: str) -> None:
    """A missing file is ``NothingMatched``, an impossible name is refused."""
    kind = NothingMatched if name == "missing.pt" else InputRefused
    with pytest.raises(kind):
        FileSource(file.parent / name)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Folders, devices and FIFOs are refused at once; a FIFO without a writer does not hang."""
    for path in (tmp_path, Path(os.devnull), fifo(tmp_path / "fifo")):
        with pytest.raises(InputRefused, match="is not a regular file"):
            FileSource(path)


def test_links_are_followed_and_loops_refused(file: Path) -> None:
    """A link to a file is that file; a link to itself is refused; a dangling one is missing."""
    for name, target in (("good", file), ("loop", file.parent / "loop"), ("dangling", file.parent / "gone")):
        (file.parent / name).symlink_to(target)
    with FileSource(file.parent / "good") as linked, FileSource(file) as plain:
        assert linked.identity == plain.identity
    with pytest.raises(InputRefused, match="symbolic links"):
        FileSource(file.parent / "loop")
    with pytest.raises(NothingMatched):
        FileSource(file.parent / "dangling")


def test_a_forbidden_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is refused with the system's reason."""

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(InputRefused, match="cannot be opened: Permission denied"):
        FileSource(file)


def test_a_file_that_cannot_be_looked_at_ends_the_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are reported when the file is opened, and at its last check; no descriptor stays."""

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    files = open_files()
    with FileSource(file) as source:
        monkeypatch.setattr(os, "fstat", failing)
        with pytest.raises(InputChanged, match="cannot be examined: Input/output error"):
            source.raise_if_changed()
        with pytest.raises(InputChanged, match="cannot be examined: Input/output error"):
            FileSource(file)
        monkeypatch.undo()
    assert open_files() == files


def test_changes_are_noticed(file: Path) -> None:
    """An untouched file is fine; a rewritten one raises; a replaced or removed one is still readable."""
    with FileSource(file) as source:
        assert source.raise_if_changed() is False
        (file.parent / "new").write_bytes(b"other")
        (file.parent / "new").rename(file)
        assert source.raise_if_changed() is True
        assert source.read(0, len(DATA)) == DATA
        file.unlink()
        assert source.raise_if_changed() is True
    file.write_bytes(DATA)
    with FileSource(file) as source:
        os.utime(file, ns=(1, 1))
        with pytest.raises(InputChanged, match="was changed while it was being read"):
            source.raise_if_changed()


def test_the_descriptor_limit_is_raised_when_it_is_reached(file: Path) -> None:
    """More files than the soft limit allows can be open at once, as long as the hard limit allows them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    sources: list[FileSource] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, hard))
    try:
        sources.extend(FileSource(file) for _ in range(8))
        assert all(source.read(0, 2) == DATA[:2] for source in sources)
    finally:
        for source in sources:
            source.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_is_not_blamed_for_too_few_descriptors(tmp_path: Path) -> None:
    """A folder that cannot be listed for lack of a descriptor is not skipped as unusable."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(InputChanged, match="cannot be listed: Too many open files"):
            Folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_files_than_descriptors(tmp_path: Path) -> None:
    """Under a hard limit files take turns: each returns its bytes at any time, also to several threads."""
    script = f"""
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ema_cli.storage.source import FileSource

paths = [Path({str(tmp_path)!r}) / str(number) for number in range(200)]
for number, path in enumerate(paths):
    path.write_bytes(bytes([number]) * 1000)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sources = [FileSource(path) for path in paths]

def check(turn):
    source = sources[turn % 200]
    return source.read(turn, 9) == bytes([turn % 200]) * 9 and not source.raise_if_changed()

with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(check, range(900)))
Path(paths[0]).unlink()
try:
    for source in sources[1:] + sources[:1]:
        source.read(0, 1)
except Exception as error:
    print(type(error).__name__, "was removed while it was being read" in str(error))
for source in sources:
    source.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "InputChanged True\n", done.stderr


def test_closing_twice_is_harmless(file: Path) -> None:
    """A closed source can be closed again, and any range can be prefetched before that."""
    source = FileSource(file)
    source.will_need(0, 1 << 40)
    source.close()
    source.close()
    with pytest.raises(InputChanged):
        source.read(0, 1)


def test_a_long_announcement_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads only the beginning of what is longer than the readahead window, so no announcement is."""
    path = tmp_path / "large.bin"
    path.touch()
    os.truncate(path, 10 << 20)
    page, window = resource.getpagesize(), 1 << 17
    pages: list[int] = []

    def advise(_: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        announced = range(offset // page, (offset + length - 1) // page + 1)
        assert 0 < len(announced) <= window // page
        pages.extend(announced)

    monkeypatch.setattr("ema_cli.storage.source._is_cached", lambda *_: False)
    monkeypatch.setattr("ema_cli.storage.source._readahead_bytes", lambda _: window)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    with FileSource(path) as source:
        source.will_need(100, 3 << 20)
        assert pages == list(range(((3 << 20) + 99) // page + 1))
        pages.clear()
        source.will_need((10 << 20) - 1, 1 << 40)
        assert pages == [(10 << 20) // page - 1]


def test_the_readahead_window_of_a_device() -> None:
    """It is that of the system, and the usual one where that is not known."""
    for folder in Path("/sys/class/bdi").glob("*:*"):
        device = os.makedev(*map(int, folder.name.split(":")))
        assert _readahead_bytes(device) == max(1 << 17, int((folder / "read_ahead_kb").read_text()) << 10)
    assert _readahead_bytes(os.makedev(4000, 99_999)) == 1 << 17


def test_names_are_made_safe_in_messages(tmp_path: Path) -> None:
    """An escape sequence in a file's name does not reach the terminal."""
    with pytest.raises(NothingMatched) as raised:
        FileSource(tmp_path / "\x1b[2J.pt")
    assert "\x1b" not in raised.value.message


def test_a_change_is_noticed_although_the_time_was_put_back(tmp_path: Path) -> None:
    """Writing and resetting the modification time still counts as a change."""
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(100))
    with FileSource(path) as source:
        before = path.stat()
        path.write_bytes(bytes(99) + b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(InputChanged, match="was changed while it was being read"):
            source.raise_if_changed()
