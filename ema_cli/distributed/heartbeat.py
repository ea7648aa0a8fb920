"""Signs of life: each process writes them into the store while it works, and looks for failures of the others.

Rank 0 watches all others, and the others watch rank 0: a process whose sign does not change is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ema_cli.distributed.failure import Failure, lost

BEAT_SECONDS = 0.5
LOST_SECONDS = 6
"""A process without a sign of life for so long is lost."""
_LONG_SECONDS = 3
"""If this process did not look for so long, it was stopped itself, and the others may have been, too."""
_LAST_SECONDS = 0.5
"""How long the thread may still wait for a store that is lost."""
_FAILED = "failed"


class Heartbeat:
    """The thread of one process that gives and watches signs of life.

    Args:
        rank: of this process.
        size: number of processes.
        store: of the run.
        connect: returns another connection to the store: one is blocked while it waits.

    """

    def __init__(self, rank: int, size: int, store: Any, connect: Callable[[], Any]) -> None:  # noqa: ANN401
        self.done_bytes = 0
        """That this process has read."""
        self.others_bytes = 0
        """That the others have read, as rank 0 knows."""
        self.failure: Failure | None = None
        """The first failure of any process."""
        self.lost_first = False
        """Whether rank 0 is lost, or its store."""
        self._rank = rank
        self._watched = list(range(1, size)) if rank == 0 else [0]
        self._connect = connect
        self._beats = 0
        self._looked = 0.0
        self._seen: dict[int, tuple[str, float]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._give(store)

    def start(self) -> None:
        """Begin, once all processes are there."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(_LAST_SECONDS if self.lost_first else None)

    def _run(self) -> None:
        try:
            store = self._connect()
            while not self._stopped.wait(BEAT_SECONDS) and self.failure is None:
                self._give(store)
                self._look(store)
        except Exception as error:  # noqa: BLE001 - whatever the store raises
            self.lost_first = True
            self.failure = self.failure or lost(0, f"its store cannot be reached ({type(error).__name__})")

    def _give(self, store: Any) -> None:  # noqa: ANN401
        self._beats += 1
        store.set(f"beat/{self._rank}", f"{self._beats} {self.done_bytes}")

    def _look(self, store: Any) -> None:  # noqa: ANN401
        if store.check([_FAILED]):
            self.failure = self.failure or Failure.decoded(store.get(_FAILED))
            return
        found = store.multi_get([f"beat/{rank}" for rank in self._watched])
        now, done = time.monotonic(), 0
        if now - self._looked > _LONG_SECONDS:
            self._seen.clear()
        self._looked = now
        for rank, sign in zip(self._watched, (one.decode() for one in found), strict=True):
            done += int(sign.split()[1])
            if self._seen.get(rank, ("", 0.0))[0] != sign:
                self._seen[rank] = sign, now
            elif now - self._seen[rank][1] > LOST_SECONDS:
                self._lose(store, rank)
        self.others_bytes = done

    def _lose(self, store: Any, rank: int) -> None:  # noqa: ANN401
        failure = lost(rank, f"no sign of life for {LOST_SECONDS} seconds")
        self.lost_first = rank == 0
        self.failure = Failure.decoded(store.compare_set(_FAILED, "", failure.encoded().decode()))
