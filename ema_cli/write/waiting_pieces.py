"""Pieces of a stream that came before their turn: the first in memory, further ones in a temporary file.

Several threads make the pieces. While one of them waits for an input, the others go on, as far as to the end.
"""

from __future__ import annotations

import os
import tempfile
from io import BufferedRandom

from ema_cli.write.file import write_at

MEMORY_BYTES = 1 << 26


class WaitingPieces:
    """Pieces by their offset. Not thread-safe."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._memory_bytes = 0
        self._spilled: dict[int, int] = {}
        """Offsets and lengths; a piece is at its offset in the file."""
        self._file: BufferedRandom | None = None

    def add(self, offset: int, data: memoryview) -> None:
        """Keep a piece; empty ones are dropped.

        Raises:
            OSError: it cannot be stored on the disk.

        """
        if not len(data):
            return
        if self._memory_bytes + len(data) <= MEMORY_BYTES:
            self._pieces[offset] = data.tobytes()
            self._memory_bytes += len(data)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ema-avg-")  # noqa: SIM115 - closed by close
        write_at(self._file.fileno(), offset, data)
        self._spilled[offset] = len(data)

    def take(self, offset: int) -> bytes:
        """Return and forget the piece at an offset; empty if there is none."""
        piece = self._pieces.pop(offset, b"")
        self._memory_bytes -= len(piece)
        nbytes = self._spilled.pop(offset, 0)
        if nbytes and self._file is not None:
            piece = os.pread(self._file.fileno(), nbytes, offset)
            if not self._spilled:
                os.ftruncate(self._file.fileno(), 0)
        return piece

    def close(self) -> None:
        """Delete the file."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
