"""The small files beside the weights in a folder: written whole, made durable, read back."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import InputChanged
from ema_cli.records.files import SideFile, WrittenFile
from ema_cli.storage.locations import open_source
from ema_cli.text import quoted
from ema_cli.write.publish import NEW_FILE, raise_output_error

_PIECE_BYTES = 1 << 20


def write_side(side: SideFile, path: Path, temp: Path) -> WrittenFile:
    """Write a file under the name ``temp``.

    Args:
        side: what stands in it, or what it is a copy of.
        path: what it will be called, for messages.
        temp: what it is called now.

    Raises:
        OutputError: it cannot be written, or reads back differently.
        InputChanged: what is copied is not there any more as it was.

    """
    digest = hashlib.sha256()
    try:
        descriptor = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE)
        try:
            for piece in pieces_of(side):
                digest.update(piece)
                _write_all(descriptor, piece)
            os.fsync(descriptor)
            _check(descriptor, digest.hexdigest())
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise_output_error(path, error)
    return WrittenFile(
        name=side.name,
        role=side.role,
        nbytes=status.st_size,
        sha256=digest.hexdigest(),
        modified_ns=status.st_mtime_ns,
    )


def pieces_of(side: SideFile) -> Iterator[bytes]:
    """Yield what stands in a file.

    Raises:
        InputChanged: what is copied is not there any more as it was.

    """
    if side.source is None:
        yield side.content or b""
        return
    with open_source(side.source) as source:
        if source.state != side.state:
            raise InputChanged(
                f"{quoted(source.name)} was changed or replaced during the run",
                hint="run again when nothing writes to the checkpoints",
            )
        for offset in range(0, source.size(), _PIECE_BYTES):
            yield source.read(offset, min(_PIECE_BYTES, source.size() - offset))
        source.raise_if_changed()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _check(descriptor: int, expected: str) -> None:
    """Read the file from the disk, not from the memory that it was written through."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    digest = hashlib.sha256()
    while piece := os.read(descriptor, _PIECE_BYTES):
        digest.update(piece)
    if digest.hexdigest() != expected:
        raise OSError(errno.EIO, "what was written reads back differently")
