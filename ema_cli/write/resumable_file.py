"""An output file that stays when its run is interrupted, under a name that the next run finds."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from zlib_ng import zlib_ng

from ema_cli.write.file import OutputFile, check_space, reserve
from ema_cli.write.publish import NEW_FILE, raise_output_error
from ema_cli.write.temp_names import resumable_name

_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 512
"""Unit of ``st_blocks``."""


class ResumableFile(OutputFile):
    """As ``OutputFile``, but what is in it can be kept, and taken over by a later run."""

    def __init__(self, path: Path, header: bytes, data_bytes: int) -> None:
        super().__init__(path, header, data_bytes, temp=resumable_name(path))
        self.keep = False
        """Whether ``discard`` leaves the file there."""

    def create(self) -> None:
        """Make the file, or open the one that an interrupted run left, and reserve its space.

        Raises:
            OutputError: there is no space, no permission, or an I/O error.

        """
        try:
            self._fd = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE)
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EEXIST, f"{self._temp.name} is not a regular file")
            if status.st_size != self.size:
                os.ftruncate(self._fd, 0)
            taken = os.fstat(self._fd).st_blocks * _BLOCK_BYTES
            check_space(os.fstatvfs(self._fd), max(0, self.size - taken))
            reserve(self._fd, self.size)
        except OSError as error:
            raise_output_error(self.path, error)

    def holds(self, offset: int, length: int, crc: int) -> bool:
        """Whether the bytes at ``offset`` of the data section are there and have this CRC-32.

        Raises:
            OutputError: they cannot be read.

        """
        begin, found = len(self._header) + offset, 0
        try:
            for position in range(begin, begin + length, _PIECE_BYTES):
                piece = os.pread(self._fd, min(_PIECE_BYTES, begin + length - position), position)
                found = zlib_ng.crc32(piece, found)
        except OSError as error:
            raise_output_error(self.path, error)
        return found == crc

    def accept(self, offset: int, length: int, crc: int) -> None:
        """Take those bytes as written.

        Raises:
            OutputError: the file cannot be made durable.

        """
        try:
            if length and self._settler is not None:
                self._settler.written(len(self._header) + offset, length, crc)
        except OSError as error:
            raise_output_error(self.path, error)

    def discard(self) -> None:
        """Close the file; remove it unless it is to be kept. Nothing happens after ``publish``."""
        if not self.keep or self._published:
            super().discard()
            return
        if self._settler is not None:
            self._settler.abandon()
        self.close()
