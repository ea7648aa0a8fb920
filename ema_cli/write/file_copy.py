"""Copy a file, or parts of it: by sharing its blocks where the file system can, in the kernel, or by reading it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from zlib_ng import zlib_ng

from ema_cli.storage.source import ByteSource, FileSource, open_together
from ema_cli.write.file import write_at

_FICLONE = 0x40049409
"""An ``ioctl`` that makes a file share all blocks of another, see ioctl_ficlone(2) of Linux."""
_PIECE_BYTES = 1 << 20
_IN_KERNEL_BYTES = 1 << 16
"""Ranges of at least this size are copied by the kernel, so that a file server need not send them."""


def clone(source: ByteSource, descriptor: int) -> bool:
    """Make an empty file share all blocks of another; ``False`` if the file system cannot."""
    if not isinstance(source, FileSource):
        return False
    with open_together([source]) as (original,), contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, _FICLONE, original)
        return os.fstat(descriptor).st_size == source.size()
    return False


def copy_range(source: ByteSource, descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Copy a range of bytes to the same place in a file; yield offset, length and CRC-32 of every piece.

    Raises:
        InputChanged: the source cannot be read to its end.
        OSError: the file cannot be written.

    """
    done = _copy_in_kernel(source, descriptor, begin, end)
    buffer = memoryview(bytearray(min(_PIECE_BYTES, end - begin)))
    for offset in range(begin, end, _PIECE_BYTES):
        piece = buffer[: min(_PIECE_BYTES, end - offset)]
        source.read_into(offset, piece)
        if offset + len(piece) > done:
            write_at(descriptor, offset, piece)
        yield offset, len(piece), zlib_ng.crc32(piece)


def checksums_of(source: ByteSource, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield offset, length and CRC-32 of the pieces of a range.

    Raises:
        InputChanged: the source cannot be read to its end.

    """
    buffer = memoryview(bytearray(min(_PIECE_BYTES, end - begin)))
    for offset in range(begin, end, _PIECE_BYTES):
        piece = buffer[: min(_PIECE_BYTES, end - offset)]
        source.read_into(offset, piece)
        yield offset, len(piece), zlib_ng.crc32(piece)


def _copy_in_kernel(source: ByteSource, descriptor: int, begin: int, end: int) -> int:
    """Copy as much as the kernel does; return the byte after it."""
    if not isinstance(source, FileSource) or end - begin < _IN_KERNEL_BYTES:
        return begin
    position = begin
    with open_together([source]) as (original,), contextlib.suppress(OSError, AttributeError):
        while position < end:
            count = os.copy_file_range(original, descriptor, end - position, position, position)
            if count == 0:
                break
            position += count
    return position
