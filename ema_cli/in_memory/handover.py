"""The tensors of a fold on their way to the program that uses them: in output order, in bounded memory.

The threads of the fold fill tensors; the consumer takes one after the other. A tensor has memory from its first block
on, so the threads may begin it only if the consumer waits for it, or if it fits into a budget with those begun before.
Blocks are handed out in output order, so a tensor that the consumer waits for is never held up by a later one.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

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
        budget_bytes: of tensors that were begun, and that the consumer has not asked for.

    """

    def __init__(
        self, tensors: Sequence[PlannedTensor], make: Callable[[PlannedTensor], Filled], budget_bytes: int
    ) -> None:
        self._tensors = tensors
        self._offsets = [tensor.offset for tensor in tensors]
        self._make = make
        self._budget_bytes = budget_bytes
        self._filled: dict[int, Filled] = {}
        """The tensors that were begun and not taken, by their number."""
        self._complete: set[int] = set()
        self._begun_bytes = 0
        self._wanted = -1
        """The number of the tensor that the consumer asked for last."""
        self._closed = False
        self._changed = threading.Condition()

    def write(self, offset: int, data: memoryview) -> None:
        """Place ``data`` at byte ``offset`` of the data section; wait until its tensor may be begun.

        Raises:
            Abandoned: ``close`` was called.

        """
        if not data.nbytes:
            return
        number = bisect_right(self._offsets, offset) - 1
        begin = offset - self._offsets[number]
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._may_begin(number))
            if self._closed:
                raise Abandoned
            raw = self._begin(number).raw
        raw[begin : begin + data.nbytes] = np.frombuffer(data, dtype=np.uint8)

    def complete(self, outcome: TensorOutcome) -> None:
        """Take note that all blocks of a tensor were written."""
        with self._changed:
            self._complete.add(outcome.number)
            self._changed.notify_all()

    def take(self, number: int) -> Filled | None:
        """Wait for a tensor that is complete and give it away; ``None`` if it will never be."""
        with self._changed:
            self._wanted = number
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or number in self._complete)
            if number not in self._complete:
                return None
            filled = self._begin(number)  # an empty tensor was not begun
            del self._filled[number]
            self._begun_bytes -= self._tensors[number].nbytes
            self._changed.notify_all()
            return filled

    def close(self) -> None:
        """End all waiting: no further tensor is begun or completed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may_begin(self, number: int) -> bool:
        fits = self._begun_bytes + self._tensors[number].nbytes <= self._budget_bytes
        return fits or number in self._filled or number == self._wanted

    def _begin(self, number: int) -> Filled:
        """Return the memory of a tensor, allocated on the first call."""
        if number not in self._filled:
            self._filled[number] = self._make(self._tensors[number])
            self._begun_bytes += self._tensors[number].nbytes
        return self._filled[number]
