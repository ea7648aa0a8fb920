"""Copy a file, or parts of it: by sharing its blocks where the file system can, in the kernel, or by reading it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator

from zlib_ng import zlib_ng

from ema_cli.storage.digest import with_lookahead
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


def copy_ranges(
    source: ByteSource, ranges: Iterable[tuple[int, int]], descriptor: int | None
) -> Iterator[tuple[int, int, int]]:
    """Copy ranges of bytes to the same places in a file; yield offset, length and CRC-32 of every piece.

    Args:
        source: is read, with announcements.
        ranges: first byte, and the byte after the last.
        descriptor: of the file; ``None`` if it has the bytes already, and only their checksums are wanted.

    Raises:
        InputChanged: the source cannot be read to its end.
        OSError: the file cannot be written.

    """
    buffer = memoryview(bytearray(_PIECE_BYTES))
    pieces = ((at, min(_PIECE_BYTES, end - at)) for begin, end in ranges for at in range(begin, end, _PIECE_BYTES))
    announced = with_lookahead(pieces, lambda one: source.will_need(*one), lambda one: one[1], source.prefetch_bytes)
    for offset, length in announced:
        piece = buffer[:length]
        source.read_into(offset, piece)
        if descriptor is not None and not _copied_in_kernel(source, descriptor, offset, length):
            write_at(descriptor, offset, piece)
        yield offset, length, zlib_ng.crc32(piece)


def _copied_in_kernel(source: ByteSource, descriptor: int, offset: int, length: int) -> bool:
    """Let the kernel copy a piece; return ``False`` if it did not copy all of it."""
    if not isinstance(source, FileSource) or length < _IN_KERNEL_BYTES:
        return False
    done = 0
    with open_together([source]) as (original,), contextlib.suppress(OSError, AttributeError):
        while done < length:
            count = os.copy_file_range(original, descriptor, length - done, offset + done, offset + done)
            if count == 0:
                return False
            done += count
    return done == length
