"""The descriptors of the input files: as many stay open as the system allows, the others are reopened when needed.

A series may have more files than a process may have open: 50 checkpoints of 100 shards each. The least recently read
file is closed, and must be the same file when it is opened the next time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from ema_cli.errors import InputChanged

_RESERVE = 64
"""Descriptors that are left to the rest of the process, if there are enough."""
_SHARES = 64
"""The part of the open files that one thread borrows at a time is at most 1 / 64."""


class _Open:
    """An open file, lent inside a ``with`` block."""

    __slots__ = ("_lock", "descriptor", "readers")

    def __init__(self, descriptor: int, lock: threading.Lock) -> None:
        self.descriptor = descriptor
        self.readers = 0
        """Number of threads that are using it now."""
        self._lock = lock

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.readers -= 1


class DescriptorPool:
    """Open files by owner, the most recently used last. Thread-safe."""

    def __init__(self) -> None:
        self._open: OrderedDict[Hashable, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def borrow(self, owner: Hashable, reopen: Callable[[], int]) -> AbstractContextManager[int]:
        """Lend the descriptor of ``owner``, which stays open inside the context.

        Args:
            owner: of the file.
            reopen: opens the file if it is not open; ``OSError`` with ``EMFILE`` if too many files are open.

        Raises:
            InputChanged: the system has no descriptor left.

        """
        return self._lend(owner, reopen)

    @contextmanager
    def borrow_several(self, files: Sequence[tuple[Hashable, Callable[[], int]]]) -> Iterator[list[int]]:
        """Lend the descriptors of the first files: at least one, and few enough that every thread gets some.

        Raises:
            InputChanged: as ``borrow`` does.

        """
        with ExitStack() as lent:
            yield [lent.enter_context(self._lend(*file)) for file in files[: max(1, _most_open() // _SHARES)]]

    def _lend(self, owner: Hashable, reopen: Callable[[], int]) -> _Open:
        with self._lock:
            found = self._open.get(owner)
            if found is None:
                found = self._add(owner, reopen)
            self._open.move_to_end(owner)
            found.readers += 1
        return found

    def close(self, owner: Hashable) -> None:
        """Close the file of ``owner``, if it is open."""
        with self._lock:
            found = self._open.pop(owner, None)
        if found is not None:
            _close(found.descriptor)

    def _add(self, owner: Hashable, reopen: Callable[[], int]) -> _Open:
        """Open a file, with some descriptors left to the rest of the process."""
        while len(self._open) >= _most_open() and (raise_limit() or self._close_one()):
            pass
        while True:
            try:
                added = self._open[owner] = _Open(reopen(), self._lock)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                if not (raise_limit() or self._close_one()):
                    raise InputChanged(f"an input cannot be opened: {error.strerror}", hint="ulimit -n 4096") from error
            else:
                return added

    def _close_one(self) -> bool:
        """Close the least recently used idle file; return whether there was one."""
        idle = next((owner for owner, found in self._open.items() if found.readers == 0), None)
        if idle is None:
            return False
        _close(self._open.pop(idle).descriptor)
        return True


def _most_open() -> int:
    """Return how many files should be open at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - min(_RESERVE, soft // 2))


def _close(descriptor: int) -> None:
    """Close a file that was only read. Even if that fails, the descriptor is freed and no data are lost."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def raise_limit() -> bool:
    """Raise the limit of this process to that of the system; return whether it was lower before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True
