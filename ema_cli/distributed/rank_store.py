"""The store of torch.distributed that the processes of a run meet at: connections, and values of any size.

All functions raise ``RuntimeError``, as torch does, if the store cannot be reached.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from ema_cli.distributed.launch import Launch, alone
from ema_cli.distributed.silent_connections import fail_in_silence
from ema_cli.errors import UsageError

_CONNECT_SECONDS = 2
_OPEN_SECONDS = 10
"""Of the process with the store, which is not tried again; a busy machine can stand still for some seconds."""
_HOSTED_SECONDS = 20
"""How long processes try to reach the store of a launcher."""
_REQUEST_SECONDS = 6
_PAUSE_SECONDS = 0.2
_PIECE_BYTES = 1 << 22
"""Of a value in the store, which refuses values of 8 MiB."""

Store = Any
"""``torch.distributed.Store``, which has no types."""


def connect(launch: Launch, deadline: float, *, opens: bool = False) -> Store:
    """Return a connection to the store, which rank 0 ``opens`` unless the launcher has; try until the ``deadline``.

    Raises:
        UsageError: it cannot be reached or opened.

    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what it says of lost connections, we say
    from torch.distributed import TCPStore  # noqa: PLC0415 - only if there are several processes

    if launch.hosted:  # it was opened before the ranks were started: if nobody listens, the launcher is gone
        deadline = min(deadline, time.monotonic() + _HOSTED_SECONDS)
    while True:
        try:
            store = TCPStore(
                *(launch.host, launch.port),
                is_master=opens,
                timeout=timedelta(seconds=_OPEN_SECONDS if opens else _CONNECT_SECONDS),
                wait_for_workers=False,
            )
        except (RuntimeError, OSError) as error:
            if opens or time.monotonic() > deadline:
                raise _unreachable(launch, str(error), opens=opens) from error
            time.sleep(_PAUSE_SECONDS)
            continue
        store.set_timeout(timedelta(seconds=_REQUEST_SECONDS))
        fail_in_silence(launch.port)
        return store


def within(store: Store, prefix: str) -> Store:
    """Return a part of the store, whose names begin with ``prefix``."""
    from torch.distributed import PrefixStore  # noqa: PLC0415 - only if there are several processes

    return PrefixStore(prefix, store)


def put_value(store: Store, name: str, data: bytes) -> None:
    """Put bytes into the store, in pieces; their number comes last."""
    pieces = [data[begin : begin + _PIECE_BYTES] for begin in range(0, len(data), _PIECE_BYTES)]
    for number, piece in enumerate(pieces):
        store.set(f"{name}/piece/{number}", piece)
    store.set(name, str(len(pieces)))


def read_value(store: Store, name: str) -> bytes:
    """Return bytes that are in the store."""
    return b"".join(store.get(f"{name}/piece/{number}") for number in range(int(store.get(name))))


def take_value(store: Store, name: str) -> bytes:
    """Return bytes, and remove them from the store."""
    found = read_value(store, name)
    for number in range(int(store.get(name))):
        store.delete_key(f"{name}/piece/{number}")
    return found


def _unreachable(launch: Launch, why: str, *, opens: bool) -> UsageError:
    first, *_ = why.splitlines() or [""]
    deed = "opened" if opens else "reached"
    message = f"the store of the {launch.size} ranks cannot be {deed} at {launch.host}:{launch.port}"
    return UsageError(f"{message}: {first}", hint=f"set MASTER_ADDR and MASTER_PORT. {alone(launch.launcher)}")
