"""A file that several processes write: each its part of the data section, which it makes durable and verifies.

Rank 0 makes the file, takes its space and publishes it. The process that writes the first part is its owner: it writes
the header, and computes the digest of the file when all parts are durable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ema_cli.distributed.meeting import Meeting
from ema_cli.errors import OutputError
from ema_cli.record import record
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.text import quoted
from ema_cli.write.file import OutputFile
from ema_cli.write.publish import Writing, refuse_changed, state_of
from ema_cli.write.writeback import WriteBack


@record
class FilePart:
    """What one process writes of a file, in bytes of its data section."""

    begin: int
    end: int
    is_owner: bool
    is_whole: bool
    """Whether no other process writes."""

    @property
    def takes_part(self) -> bool:
        """Whether the process writes anything, the header included."""
        return self.is_owner or self.begin < self.end


def part_of(file: PlannedFile, places: Sequence[tuple[int, int]], rank: int) -> FilePart:
    """Return what a process writes of a file; ``places``: where the bytes of each rank are in the data section."""
    stop = file.begin + file.data_bytes
    inside = [(max(begin, file.begin), min(end, stop)) for begin, end in places]
    writers = [number for number, (begin, end) in enumerate(inside) if begin < end]
    begin, end = inside[rank] if rank in writers else (file.begin, file.begin)
    return FilePart(
        begin=begin - file.begin,
        end=end - file.begin,
        is_owner=rank == (writers[0] if writers else 0),
        is_whole=len(writers) <= 1,
    )


class FileOfRanks(OutputFile):
    """A file that rank 0 makes and publishes, and that several processes write into."""

    _makes: bool
    """Whether this process makes and publishes the file."""

    def make(self) -> None:
        """Make the file and take its space, before any process opens it."""
        with Writing(self.path):
            self._before = state_of(self.path)
        self.reserve()

    def adopt(self, found: Sequence[WrittenFile]) -> Written:
        """Take over the description that the owner has made, in rank 0; check and return it. Others have none."""
        for written in found:
            self._written = written
            check_finished(self, written)
        return Written(files=tuple(found))

    def discard(self) -> None:
        """Remove the file in the process that has made it; close it in others."""
        if self._makes:
            super().discard()
        else:
            self._stop()


class SharedFile(FileOfRanks):
    """The file as one of its writers sees it; see ``OutputFile``.

    Args:
        path: of the complete file.
        planned: its header and data section.
        part: what this process writes.
        makes: whether this process makes and publishes the file.
        options: the keywords of ``OutputFile``.

    """

    def __init__(self, path: Path, planned: PlannedFile, part: FilePart, *, makes: bool, **options: Any) -> None:  # noqa: ANN401
        super().__init__(path, planned.header, planned.data_bytes, **options)
        self.part = part
        self._makes = makes
        self._reserved = True
        self._sha256 = ""

    def _reopen(self) -> None:
        with Writing(self.path):
            self._fd = os.open(self._temp, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def open(self) -> None:
        """Open the file that rank 0 has made; its owner writes the header.

        Raises:
            OutputError: it is not there: the processes do not share the folder.

        """
        self.open_part()

    def open_part(self) -> None:
        """Open the file that rank 0 has made; its owner writes the header.

        Raises:
            OutputError: it is not there: the processes do not share the folder.

        """
        before = self._before
        if not self._makes:
            refuse_missing(self._temp)
        super().open()
        self._before = before

    def _begin_write_back(self) -> None:
        begin = 0 if self.part.is_owner else len(self._header) + self.part.begin
        end = len(self._header) + self.part.end
        self._write_back = WriteBack(self._fd, self._temp, end, whole=self._read_back_whole, begin=begin)
        if self.part.is_owner:
            self._write_all(0, self._header)

    def finish(self) -> Written:
        """Make the part durable and verify it; describe the file if no other process writes it."""
        assert self._write_back is not None, "open comes first"  # noqa: S101
        with Writing(self.path):
            self._sha256 = self._write_back.finish()
        return Written(files=(self._conclude(self._sha256),)) if self.part.is_whole else Written(files=())

    def complete(self) -> WrittenFile:
        """Describe the file, which several processes have finished."""
        assert self._write_back is not None, "open comes first"  # noqa: S101
        with Writing(self.path):
            sha256 = self._write_back.digest_to(self.size)
        return self._conclude(sha256)


class SharedSingle(SharedFile):
    """An output that is one file; see ``Target``. All processes call ``finish`` together."""

    def __init__(self, path: Path, planned: PlannedFile, part: FilePart, meeting: Meeting, **options: Any) -> None:  # noqa: ANN401
        super().__init__(path, planned, part, makes=meeting.is_first, **options)
        self._meeting = meeting

    def open(self) -> None:
        """Make the file in rank 0; open it in every process that writes into it."""
        if self._makes:
            self.make()
        if self.part.takes_part:
            self.open_part()

    def finish(self) -> Written:
        """Finish all parts; return the description of the file in rank 0, and nothing in others."""
        done = super().finish().files if self.part.takes_part else ()
        self._meeting.wait_for_all()
        if self.part.is_owner and not self.part.is_whole:
            done = (self.complete(),)
        elif not self.part.is_whole:
            self.close()
        return self.adopt(gather_written(self._meeting, done))


def refuse_missing(temp: Path) -> None:
    """Raise unless this process sees a file that rank 0 has made.

    Raises:
        OutputError: it does not.

    """
    if not os.path.lexists(temp):
        raise OutputError(
            f"the output that rank 0 has begun is not in {quoted(str(temp.parent.absolute()))} of this host",
            hint="write to a folder that all hosts share",
        )


def check_finished(file: OutputFile, written: WrittenFile) -> None:
    """Give a file its permissions, in rank 0, and raise if it is not as its owner has left it.

    It is opened, which makes NFS ask its server.

    Raises:
        OutputError: it was changed, or is not there.

    """
    with Writing(file.path):
        descriptor = os.open(file.temp, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            file.set_permissions(descriptor)
        finally:
            os.close(descriptor)
        refuse_changed(file.temp, written)


def gather_written(meeting: Meeting, files: Iterable[WrittenFile]) -> list[WrittenFile]:
    """Give the descriptions of files to rank 0, which gets those of all processes; the others get none."""
    own = json.dumps([asdict(file) for file in files]).encode()
    found = [one for data in meeting.gather(own) for one in json.loads(data)]
    return [WrittenFile(**{**one, "role": FileRole(one["role"])}) for one in found]
