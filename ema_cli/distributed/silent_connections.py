"""Connections whose other end is silent: its node lost its network or its power, or its process was stopped."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SILENCE_SECONDS = 6
"""A request fails when there is no answer for so long; by default it waits for ever, or a quarter of an hour."""
_DESCRIPTORS = Path("/proc/self/fd")


def fail_in_silence(port: int) -> None:
    """Let requests of this process to ``port`` fail in silence. Only Linux lists the connections."""
    if sys.platform != "linux" or not _DESCRIPTORS.is_dir():
        return
    limit = struct.pack("ll", SILENCE_SECONDS, 0)
    for connection in _connections():
        with suppress(OSError), connection:
            if _port(connection) == port:
                for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    connection.setsockopt(socket.SOL_SOCKET, option, limit)


def _connections() -> Iterator[socket.socket]:
    """Yield the sockets of this process, each with a descriptor of its own."""
    for path in list(_DESCRIPTORS.iterdir()):
        with suppress(OSError):  # it was closed in the meantime
            if path.is_socket():
                yield socket.socket(fileno=os.dup(int(path.name)))


def _port(connection: socket.socket) -> int | None:
    """Return the port of the other end."""
    address = connection.getpeername()
    return address[1] if isinstance(address, tuple) else None
