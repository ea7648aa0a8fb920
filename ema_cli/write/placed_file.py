"""A file in which tensors have given places: the rest is copied from another file, or given."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path

from zlib_ng import zlib_ng

from ema_cli.records.files import Checksum, FileRole, PlacedFile, Written
from ema_cli.storage.checksums import Assembly, Record
from ema_cli.write.file import OutputFile, write_at
from ema_cli.write.file_areas import FileAreas
from ema_cli.write.file_copy import clone, copy_ranges
from ema_cli.write.permissions import Permissions
from ema_cli.write.publish import Writing
from ema_cli.write.scatter import PlacedElements, put_between, read_at

_PIECE_BYTES = 1 << 20
_CRC_BYTES = 4


def no_progress(_: int) -> None:
    """Count nothing."""


class FileOfPlaces(OutputFile):
    """A file that is filled by ``put``, and by itself with everything else; see ``Target``.

    Args:
        path: of the complete file.
        planned: what is in it.
        areas: of the file.
        temp: as of ``OutputFile``, like ``most`` and ``read_back_whole``.
        name: in the description of the written file; that of ``path`` by default.
        follows: as of ``WriteBack``.
        on_copied: called with the bytes of every piece that was copied.

    """

    def __init__(
        self,
        path: Path,
        planned: PlacedFile,
        areas: FileAreas,
        *,
        temp: Path | None = None,
        most: Permissions | None = None,
        read_back_whole: bool = False,
        name: str = "",
        follows: bool = True,
        on_copied: Callable[[int], None] = no_progress,
    ) -> None:
        role = FileRole.WEIGHTS if planned.holds_tensors else FileRole.SIDE_FILE
        super().__init__(path, b"", planned.nbytes, temp=temp, role=role, most=most, read_back_whole=read_back_whole)
        self._name = name or path.name
        self._follows = follows
        self._planned = planned
        self._areas = areas
        self._on_copied = on_copied
        self._cloned = False
        self._sums = _Sums(planned.checksums)
        self._lock = threading.Lock()
        """Held while an element is put between others."""

    def open(self) -> None:
        """Create the file unless it was reserved, and fill everything but the tensors.

        Raises:
            InputChanged: the file to copy cannot be read to its end.

        """
        super().open()
        with Writing(self.path):
            for offset, data in self._planned.given:
                self._give(offset, data)
            if self._planned.source is not None:
                self._copy()

    def _take_space(self) -> None:
        source = self._planned.source
        self._cloned = source is not None and clone(source, self._fd)
        if not self._cloned:
            super()._take_space()

    def _give(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for begin, stop in self._areas.copied_in(offset, end):
            self._write_all(begin, data[begin - offset : stop - offset])

    def _copy(self) -> None:
        source = self._planned.source
        assert source is not None  # noqa: S101 - asked before
        descriptor = None if self._cloned else self._fd
        for offset, length, crc in copy_ranges(source, self._areas.copied, descriptor):
            self._count(offset, length, crc)
            self._on_copied(length)
        for _ in copy_ranges(source, self._areas.mixed, descriptor) if not self._cloned else ():
            pass  # these are counted when their elements are complete

    def put(self, piece: PlacedElements) -> None:
        """Write elements of a tensor at their place. Called from several threads."""
        with Writing(self.path):
            if piece.strides is None and not self._areas.is_mixed(piece.offset):
                self._write_all(piece.offset, piece.data)
                return
            with self._lock:
                if piece.strides is None:
                    write_at(self._fd, piece.offset, piece.data)
                else:
                    put_between(self._fd, piece.offset, piece.strides, piece.items)

    def _count(self, offset: int, length: int, crc: int) -> None:
        super()._count(offset, length, crc)
        complete = self._sums.add(offset, length, crc)
        if complete is not None:
            checksum, of_range = complete
            for field in checksum.fields:
                data = of_range.to_bytes(_CRC_BYTES, "little")
                write_at(self._fd, field, data)
                super()._count(field, len(data), zlib_ng.crc32(data))

    def finish(self) -> Written:
        """Set the last checksums, make the file durable, verify the bytes on the disk, and close it."""
        with Writing(self.path):
            for begin, end in self._areas.mixed:
                for offset in range(begin, end, _PIECE_BYTES):
                    piece = memoryview(bytearray(min(_PIECE_BYTES, end - offset)))
                    read_at(self._fd, offset, piece)
                    self._count(offset, len(piece), zlib_ng.crc32(piece))
        written = super().finish()
        if self._planned.source is not None:
            self._planned.source.raise_if_changed()
        return written

    def _is_safetensors(self) -> bool:
        return super()._is_safetensors() and self.path.suffix == ".safetensors"


class _Sums:
    """The CRC-32s of the ranges of a file that has checksums. Thread-safe."""

    def __init__(self, checksums: Iterable[Checksum]) -> None:
        self._checksums = sorted(checksums, key=lambda one: one.begin)
        self._begins = [one.begin for one in self._checksums]
        self._assembly = Assembly()

    def add(self, offset: int, length: int, crc: int) -> tuple[Checksum, int] | None:
        """Add bytes; return the checksum whose range they complete, and the CRC-32 of that."""
        number = bisect_right(self._begins, offset) - 1
        if number < 0 or offset >= self._begins[number] + self._checksums[number].nbytes:
            return None
        checksum = self._checksums[number]
        found = self._assembly.add(0, Record(checksum.begin, checksum.nbytes, 0), offset, length, crc)
        return None if found is None else (checksum, found)
