"""Connections whose other end is gone without a word, as when a node loses its network, or its power."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

SILENCE_SECONDS = 5
"""A connection fails when its other end has not answered for so long; by default that takes a quarter of an hour."""
_DESCRIPTORS = Path("/proc/self/fd")


def fail_in_silence(port: int) -> None:
    """Let the connections of this process to ``port`` fail in silence. Only Linux lists them."""
    if sys.platform != "linux" or not _DESCRIPTORS.is_dir():
        return
    for path in list(_DESCRIPTORS.iterdir()):
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as connection:
            if connection.type == socket.SOCK_STREAM and _port(connection) == port:
                _limit(connection)


def _port(connection: socket.socket) -> int | None:
    address = connection.getpeername()
    return address[1] if isinstance(address, tuple) else None


def _limit(connection: socket.socket) -> None:
    """Ask the other end every second, also while nothing is sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_SECONDS)
