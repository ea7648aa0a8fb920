"""Connections to the store of several ranks fail when its host is gone without a word."""

from __future__ import annotations

import socket

import pytest

from ema_cli.distributed.silent_connections import SILENCE_SECONDS, fail_in_silence


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has this limit")
def test_only_connections_to_the_store_get_the_limit() -> None:
    """They ask the other end while nothing is sent, and end within seconds; sockets of others keep their settings."""
    with (
        socket.create_server(("127.0.0.1", 0)) as store,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(store.getsockname()) as ours,
        socket.create_connection(other.getsockname()) as foreign,
    ):
        fail_in_silence(store.getsockname()[1])
        for connection, limit in ((ours, 1000 * SILENCE_SECONDS), (foreign, 0)):
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == limit
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == bool(limit)
        ours.sendall(b"still open")
