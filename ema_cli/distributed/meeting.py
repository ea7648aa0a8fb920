"""The processes of one run: they meet at a store of torch.distributed, exchange bytes there, and wait for each other.

The store (``TCPStore``) is one server, which torchrun runs, or rank 0. Nobody connects to anybody else, nothing is
unpickled, and every wait looks for failures and lets signals act: collective operations of gloo can do none of that.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ema_cli.distributed.failure import Failure, PeerFailed, lost
from ema_cli.distributed.heartbeat import Heartbeat
from ema_cli.distributed.launch import Launch, alone
from ema_cli.distributed.rank_store import connect, put_value, read_value, take_value, within
from ema_cli.errors import UsageError
from ema_cli.text import shortlist

RENDEZVOUS_SECONDS = 120
"""How long processes wait for the others at the start."""
_PATIENCE_SECONDS = 5
"""After that, a message says what is waited for."""
_SHORTEST, _LONGEST = 0.005, 0.2
"""Seconds between two looks at the store."""
_FAREWELL_SECONDS = 5
"""How long a process waits for rank 0 to report a failure, because the launcher ends rank 0 when a process ends."""
_FAILED, _FIRST = "failed", 0


class Meeting:
    """The processes of one run, as one of them sees the others. Every process calls the same methods in one order.

    Args:
        launch: the place of this process.
        on_wait: called with a message if the others take long to come.

    Raises:
        UsageError: the others did not come, or the store cannot be reached.

    """

    def __init__(self, launch: Launch, on_wait: Callable[[str], object]) -> None:
        self.rank, self.size = launch.rank, launch.size
        self.hosts: tuple[str, ...] = ()
        """The name of the host of each rank."""
        self._cores: tuple[str, ...] = ()
        """The host of each rank, and the cores that it may use there."""
        self._launch = launch
        self._count = 0
        self._deadline = time.monotonic() + RENDEZVOUS_SECONDS
        self._store = self._connect(opens=self.is_first and not launch.hosted)
        self._run = f"ema-avg/{launch.attempt}/run-{self._number_of_run()}"
        self._store = within(self._store, self._run)
        self._beat = Heartbeat(self.rank, self.size, self._store, lambda: within(self._connect(), self._run))
        self._meet(on_wait)
        self._beat.start()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which plans, publishes and prints."""
        return self.rank == _FIRST

    @property
    def local_rank(self) -> int:
        """The number of this process among those on its host."""
        given = self._launch.local_rank
        return self.hosts[: self.rank].count(self.hosts[self.rank]) if given is None else given

    @property
    def on_cores(self) -> int:
        """The number of processes that share the cores of this one."""
        return self._cores.count(self._cores[self.rank])

    def name(self, rank: int) -> str:
        """Return the name of a process for messages."""
        return f"rank {rank} of {self.size} ({self.hosts[rank]})"

    def gather(self, data: bytes) -> list[bytes]:
        """Give bytes to rank 0, which gets those of all ranks, in their order; the others get none.

        Raises:
            PeerFailed: another process failed.

        """
        others = list(self.others(data))
        return [data, *others] if self.is_first else []

    def others(self, data: bytes, on_wait: Callable[[], object] = lambda: None) -> Iterator[bytes]:
        """Give bytes to rank 0, which gets those of each other rank in turn: all together may be many.

        Raises:
            PeerFailed: another process failed.

        """
        name = self._next_name()
        if not self.is_first:
            self._put(f"{name}/{self.rank}", data)
            return
        for rank in range(1, self.size):
            self._wait([f"{name}/{rank}"], on_wait)
            yield self._take(f"{name}/{rank}")

    def announce(self, data: bytes) -> bytes:
        """Give bytes of rank 0 to all ranks, and return them; those of other ranks do not matter.

        Raises:
            PeerFailed: another process failed.

        """
        name = self._next_name()
        if self.is_first:
            self._put(name, data)
            return data
        self._wait([name], lambda: None)
        return self._read(name)

    def wait_for_all(self) -> None:
        """Return when all processes have called this.

        Raises:
            PeerFailed: another process failed.

        """
        self.gather(b"")
        self.announce(b"")

    def report_progress(self, nbytes: int) -> None:
        """State how many bytes this process has read."""
        self._beat.done_bytes = nbytes

    @property
    def others_bytes(self) -> int:
        """The bytes that the other processes have read, as rank 0 knows."""
        return self._beat.others_bytes

    def raise_if_failed(self) -> None:
        """Raise if another process failed.

        Raises:
            PeerFailed: it did.

        """
        if self._beat.failure is not None:
            raise PeerFailed(self._beat.failure)

    def fail(self, failure: Failure) -> Failure:
        """Let the others end; return the first failure of any process."""
        with suppress(RuntimeError):  # the store is lost, and so the others end
            found = self._store.compare_set(_FAILED, "", failure.encoded().decode())
            self._beat.failure = self._beat.failure or Failure.decoded(found)
        self._beat.failure = self._beat.failure or failure
        return self._beat.failure

    @property
    def lost_first(self) -> bool:
        """Whether rank 0, or its store, is lost."""
        return self._beat.lost_first

    def leave(self) -> None:
        """End: after a failure, the others wait until rank 0 has reported it, and rank 0 keeps its store for them."""
        self._beat.stop()
        if self._beat.lost_first:
            return
        failed = self._beat.failure is not None
        everybody = [f"left/{rank}" for rank in range(self.size)]
        with suppress(RuntimeError):
            if not self.is_first and failed:
                self._await_until([everybody[0]], time.monotonic() + _FAREWELL_SECONDS)
            self._store.set(everybody[self.rank], "")
            if self.is_first and not self._launch.hosted:
                self._await_until(everybody, time.monotonic() + (1 if failed else _FAREWELL_SECONDS))

    def _connect(self, *, opens: bool = False) -> Any:  # noqa: ANN401 - torch has no types for it
        return connect(self._launch, self._deadline, opens=opens)

    def _number_of_run(self) -> int:
        """Return the number of this run: the processes of one torchrun may run the program more than once."""
        return int(self._store.add(f"ema-avg/{self._launch.attempt}/{self.rank}", 1))

    def _meet(self, on_wait: Callable[[str], object]) -> None:
        """Learn where the other processes are, and wait for them."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._put(f"here/{self.rank}", json.dumps([socket.gethostname(), cores]).encode())
        try:
            if self.is_first:
                self._put("all", json.dumps(self._take_all_places(_Patience(on_wait))).encode())
            else:
                self._wait(["all"], self._look_for_first)
        except UsageError as error:
            self.fail(Failure(rank=self.rank, kind="UsageError", message=error.message, hint=error.hint))
            raise
        except BaseException as error:
            message = f"rank {self.rank} was interrupted before all were there ({type(error).__name__})"
            self.fail(Failure(rank=self.rank, kind="UsageError", message=message))
            raise
        places = json.loads(self._read("all"))
        self.hosts = tuple(host for host, _ in places)
        self._cores = tuple(map(str, places))

    def _take_all_places(self, patience: _Patience) -> list[Any]:
        keys = [f"here/{rank}" for rank in range(self.size)]

        def look() -> None:
            self._look_for_failure()
            missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
            patience.say(f"waiting for ranks {shortlist(missing)} of {self.size}. {alone(self._launch.launcher)}")
            self._refuse_late(f"ranks {shortlist(missing)} did not come", RENDEZVOUS_SECONDS)

        self._wait(keys, look)
        return [json.loads(self._take(key)) for key in keys]

    def _look_for_failure(self) -> None:
        with self._blaming_first():
            if self._store.check([_FAILED]):
                raise PeerFailed(Failure.decoded(self._store.get(_FAILED)))

    def _look_for_first(self) -> None:
        self._look_for_failure()
        self._refuse_late("rank 0 did not come", RENDEZVOUS_SECONDS + _FAREWELL_SECONDS)

    def _refuse_late(self, who: str, seconds: float) -> None:
        if time.monotonic() > self._deadline + seconds - RENDEZVOUS_SECONDS:
            message = f"{who} within {RENDEZVOUS_SECONDS} seconds: {self.size} ranks should average together"
            raise UsageError(message, hint=alone(self._launch.launcher))

    def _next_name(self) -> str:
        self._count += 1
        return str(self._count)

    def _put(self, name: str, data: bytes) -> None:
        with self._blaming_first():
            put_value(self._store, name, data)

    def _read(self, name: str) -> bytes:
        with self._blaming_first():
            return read_value(self._store, name)

    def _take(self, name: str) -> bytes:
        """Return bytes, and remove them from the store."""
        with self._blaming_first():
            return take_value(self._store, name)

    def _wait(self, names: list[str], on_wait: Callable[[], object]) -> None:
        pause = _SHORTEST
        while True:
            with self._blaming_first():
                if self._store.check(names):
                    return
            self.raise_if_failed()
            on_wait()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    def _await_until(self, names: list[str], deadline: float) -> None:
        while not self._store.check(names) and time.monotonic() < deadline:
            time.sleep(_LONGEST / 4)

    @contextmanager
    def _blaming_first(self) -> Iterator[None]:
        """Take a lost store for a lost rank 0, or launcher."""
        try:
            yield
        except RuntimeError as error:
            self.raise_if_failed()
            self._beat.lost_first = True
            raise PeerFailed(lost(_FIRST, f"its store cannot be reached ({type(error).__name__})")) from error


class _Patience:
    """Says once that something takes long."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._until = time.monotonic() + _PATIENCE_SECONDS

    def say(self, message: str) -> None:
        if time.monotonic() > self._until:
            self._until = float("inf")
            self._say(message)
