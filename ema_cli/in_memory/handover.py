"""The tensors of a fold on their way to the program that uses them: in output order, in bounded memory.

The consumer takes one tensor after the other, and with each call allocates the memory of the next ones that fit into a
budget; the threads of the fold fill it, and wait where there is none yet. The tensor that is asked for always has
memory, so it is never held up by a later one. Threads allocate nothing: what the C library keeps of the freed memory of
threads is lost when they end.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from ema_cli.fold.conversion import Bytes
from ema_cli.in_memory.arrays import Filled
from ema_cli.records.fold_results import TensorOutcome
from ema_cli.records.plan import PlannedTensor


class Abandoned(Exception):  # noqa: N818 - this thread met no error
    """Nobody takes the tensors any more."""


class Handover:
    """A sink of the fold, and where its tensors are taken. Safe to use from several threads.

    Args:
        tensors: of the output.
        make: allocates the memory of a tensor.
        budget_bytes: of the tensors that have memory and were not taken, besides the one that is asked for.

    """

    def __init__(
        self, tensors: Sequence[PlannedTensor], make: Callable[[PlannedTensor], Filled], budget_bytes: int
    ) -> None:
        self._tensors = tensors
        self._offsets = [tensor.offset for tensor in tensors]
        self._make = make
        self._budget_bytes = budget_bytes
        self._made: dict[int, Filled] = {}
        """The tensors that have memory and were not taken, by their number."""
        self._made_bytes = 0
        self._next = 0
        """The first tensor that has no memory yet."""
        self._complete: set[int] = set()
        self._closed = False
        self._changed = threading.Condition()

    def write(self, offset: int, data: memoryview) -> None:
        """Place ``data`` at byte ``offset`` of the data section; wait until its tensors have memory.

        Raises:
            Abandoned: ``close`` was called.

        """
        while data:
            number = bisect_right(self._offsets, offset) - 1
            begin = offset - self._offsets[number]
            raw = self._memory_of(number)
            part = data[: len(raw) - begin]
            raw[begin : begin + len(part)] = np.frombuffer(part, dtype=np.uint8)
            offset, data = offset + len(part), data[len(part) :]

    def _memory_of(self, number: int) -> Bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number in self._made)
            if self._closed:
                raise Abandoned
            return self._made[number].raw

    def complete(self, outcome: TensorOutcome) -> None:
        """Take note that all blocks of a tensor were written."""
        with self._changed:
            self._complete.add(outcome.number)
            self._changed.notify_all()

    def take(self, number: int) -> Filled | None:
        """Wait for a tensor that is complete and give it away, once and in order; ``None`` if it will never be."""
        with self._changed:
            self._make_until(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or number in self._complete)
            if number not in self._complete:
                return None
            self._made_bytes -= self._tensors[number].nbytes
            return self._made.pop(number)

    def close(self) -> None:
        """End all waiting: no further tensor is completed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make_until(self, number: int) -> None:
        """Allocate tensor ``number``, and the next ones that fit into the budget."""
        while self._next < len(self._tensors):
            tensor = self._tensors[self._next]
            if self._next > number and self._made_bytes + tensor.nbytes > self._budget_bytes:
                return
            self._made[self._next] = self._make(tensor)
            self._made_bytes += tensor.nbytes
            self._next += 1
