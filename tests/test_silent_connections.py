"""Requests to the store of several ranks fail when its process, or its host, is gone without a word."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from torch.distributed import TCPStore

from ema_cli.distributed import silent_connections
from ema_cli.distributed.silent_connections import fail_in_silence

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the connections of a process")

_STORE = """
import time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True)
print(store.port, flush=True)
time.sleep(60)
"""


def test_only_connections_to_the_store_get_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not come ends the request; sockets of others keep their settings."""
    monkeypatch.setattr(silent_connections, "SILENCE_SECONDS", 1)
    with (
        socket.create_server(("127.0.0.1", 0)) as store,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(store.getsockname()) as ours,
        socket.create_connection(other.getsockname()) as foreign,
    ):
        fail_in_silence(store.getsockname()[1])
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        assert not any(foreign.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))


def test_a_store_whose_process_is_stopped_fails_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself would wait until the process continues."""
    monkeypatch.setattr(silent_connections, "SILENCE_SECONDS", 1)
    with subprocess.Popen([sys.executable, "-c", _STORE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            store = TCPStore("127.0.0.1", port, is_master=False)
            fail_in_silence(port)
            store.set("key", "value")
            assert store.check(["key"])
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            with pytest.raises(RuntimeError):
                store.check(["key"])
        finally:
            process.kill()
