"""Threads for work that mostly waits for a store. They do not outlive an interrupted run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Made = TypeVar("Made")


class DaemonPool:
    """A pool of daemon threads, started with the first work.

    The program would wait at its end for the threads of a standard executor, and so for their requests. Work must
    not wait for other work of the same pool.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self._name = name
        self._threads = threads
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._started = False
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], Made]) -> Future[Made]:
        """Run ``work`` as soon as a thread is free."""
        future: Future[Made] = Future()
        self._queue.put((future, work))
        with self._lock:
            if not self._started:
                self._started = True
                for number in range(self._threads):
                    threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, work = self._queue.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is requested
                future.set_exception(error)
            del future, work  # so that the result is not held until the next work
