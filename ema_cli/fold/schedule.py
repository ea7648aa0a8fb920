"""The blocks that tensors are folded in, and the reads that are announced to the disk ahead of them.

Blocks come in the order of the output's data section, so the output fills from front to back and the inputs are
read in file order. All workers take blocks from one ``Schedule``. Neighboring small tensors are taken together, as a
``TensorRun``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ema_cli.fold.concatenation import piece_shapes, runs_in
from ema_cli.fold.conversion import components
from ema_cli.fold.tensor_runs import RunPlaces, TensorRun, find_runs
from ema_cli.record import record
from ema_cli.records.plan import ROW_ELEMENTS, Action, Plan, PlannedTensor
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import announce

_SMALLEST_WINDOW = 1 << 16
TOGETHER_BYTES = 16
"""Blocks are folded together that have at most so many bytes in all outputs, per element of one block."""
_TOGETHER_READ = 1 << 24
"""And at most so many in all checkpoints."""


@record
class Block:
    """A run of elements of one tensor: a block, or several that are folded together."""

    number: int
    """Position of the tensor in the plan."""
    part: int
    """Position of the block in the tensor; of several, of the first."""
    start: int
    """First element."""
    count: int
    """Number of elements; 0 for the only block of an empty tensor."""
    parts: int = 1
    """Number of blocks."""


class Stretch(NamedTuple):
    """Blocks of a plan that are one after the other: from one block up to, and without, another."""

    first: int
    """Position of the tensor of the first block."""
    first_part: int
    """Position of the first block in that tensor."""
    stop: int
    """Position of the tensor of the first block that is not included; the number of tensors if all are."""
    stop_part: int

    @property
    def numbers(self) -> range:
        """The positions of the tensors that have blocks in it."""
        is_empty = (self.first, self.first_part) >= (self.stop, self.stop_part)
        return range(self.first, self.first if is_empty else self.stop + (self.stop_part > 0))

    def parts(self, plan: Plan, number: int) -> tuple[int, int]:
        """Return the first block of a tensor that is in the stretch, and the one after the last."""
        first = self.first_part if number == self.first else 0
        stop = self.stop_part if number == self.stop else block_count(plan, plan.tensors[number])
        return first, stop

    def elements(self, plan: Plan, number: int) -> tuple[int, int]:
        """Return the first element of a tensor that is in the stretch, and the one after the last."""
        tensor = plan.tensors[number]
        first, stop = self.parts(plan, number)
        size = block_elements(plan, tensor)
        return first * size, min(stop * size, tensor.elements)


def whole(plan: Plan) -> Stretch:
    """Return the stretch of all blocks."""
    return Stretch(0, 0, len(plan.tensors), 0)


class Schedule:
    """Hands out the blocks and runs of a stretch, each once, to any threads; skips the tensors in ``done``."""

    def __init__(self, plan: Plan, done: frozenset[int] = frozenset(), stretch: Stretch | None = None) -> None:
        self._plan = plan
        self._stretch = stretch or whole(plan)
        numbers = self._stretch.numbers
        outside = frozenset((*range(numbers.start), *range(numbers.stop, len(plan.tensors))))
        self._done = done | outside
        self._runs = find_runs(plan, self._done)
        self.places = RunPlaces(plan)
        """Where the tensors of the runs are."""
        self._blocks = self._cut(lambda tensor: blocks_together(plan, tensor) * block_elements(plan, tensor))
        checkpoints = plan.checkpoints
        sources = [source for i in plan.used for source in checkpoints[i].index.sources]
        window = max(source.window_bytes for source in sources)
        self._ahead_bytes = min(max(source.prefetch_bytes for source in sources), 4 * window * max(4, len(plan.used)))
        window = max(_SMALLEST_WINDOW, min(window, self._ahead_bytes // (2 * len(plan.used))))
        self._windows = self._cut(lambda tensor: max(1, window // tensor.dtype.itemsize))
        self._taken_bytes = 0
        self._announced_bytes = 0
        self._lock = threading.Lock()
        self._announcing = threading.Lock()

    def _cut(self, size: Callable[[PlannedTensor], int]) -> Iterator[Block | TensorRun]:
        end = len(self._plan.tensors)
        runs = iter([*self._runs, TensorRun(first=end, stop=end)])
        run = next(runs)
        for number in self._stretch.numbers:
            tensor = self._plan.tensors[number]
            if number == run.stop:
                run = next(runs)
            if number == run.first:
                yield run
            if number >= run.first or number in self._done:
                continue
            step, (low, high) = size(tensor), self._stretch.elements(self._plan, number)
            of_block = block_elements(self._plan, tensor)
            for start in range(low, max(high, low + 1), step):
                count = min(step, high - start)
                parts = max(1, -(-count // of_block))
                yield Block(number=number, part=start // of_block, start=start, count=count, parts=parts)

    def take(self) -> Block | TensorRun | None:
        """Return the next block or run, ``None`` when there is none left.

        The announcements are made here, by one thread at a time. The others go on meanwhile, unless they would overtake
        the announcements: a read that was not announced costs several times the processor time.
        """
        with self._lock:
            block = next(self._blocks, None)
            if block is None:
                return None
            self._taken_bytes += self._bytes(block)
        if self._announcing.acquire(blocking=self._announced_bytes < self._taken_bytes):
            try:
                self._announce(self._ahead_bytes - self._plan.buffers.threads * self._bytes(block))
            finally:
                self._announcing.release()
        return block

    def extents(self, number: int) -> list[tuple[int, Located]]:
        """Return the extents that are read for a tensor: pairs of checkpoint and extent, in fold order."""
        tensor = self._plan.tensors[number]
        return [(i, self._plan.extent(tensor, i)) for i in self._plan.readers(tensor)]

    def _announce(self, ahead_bytes: int) -> None:
        """Announce what was taken, and so much after it: less, if the blocks in work are many bytes themselves."""
        while self._announced_bytes < self._taken_bytes + max(0, ahead_bytes):
            window = next(self._windows, None)
            if window is None:
                return
            if isinstance(window, TensorRun):
                self.places.announce(window)
            else:
                extents = [extent for _, extent in self.extents(window.number)]
                for row, start, count in read_ranges(self._plan, window):
                    announce(extents[row], start, count)
            self._announced_bytes += self._bytes(window)

    def _bytes(self, block: Block | TensorRun) -> int:
        if isinstance(block, TensorRun):
            elements = sum(tensor.elements for tensor in self._plan.tensors[block.first : block.stop])
            return elements * bytes_per_element(self._plan, block.first)
        return block.count * bytes_per_element(self._plan, block.number)


def read_ranges(plan: Plan, block: Block) -> Iterator[tuple[int, int, int]]:
    """Yield what is read for a block: number of the reader, first element there, number of elements."""
    tensor = plan.tensors[block.number]
    if tensor.pieces is None:
        yield from ((row, block.start, block.count) for row in range(len(plan.readers(tensor))))
        return
    for run in runs_in(piece_shapes(plan, tensor), tensor.pieces.axis, block.start, block.count):
        yield run.row, run.start, run.count


def bytes_per_element(plan: Plan, number: int) -> int:
    """Return about how many bytes are read per element of a tensor."""
    tensor = plan.tensors[number]
    return tensor.dtype.itemsize * (len(plan.used) if tensor.action is Action.AVERAGED else 1)


def block_elements(plan: Plan, tensor: PlannedTensor) -> int:
    """Return the size of the blocks of a tensor; a complex element takes two numbers of a buffer."""
    return max(1, plan.buffers.block_elements // components(tensor.dtype))


def blocks_together(plan: Plan, tensor: PlannedTensor) -> int:
    """Return how many blocks of a tensor are folded together where possible: each consists of whole rows then."""
    if tensor.action is not Action.AVERAGED or plan.buffers.block_elements % ROW_ELEMENTS:
        return 1
    in_outputs = TOGETHER_BYTES // (tensor.dtype.itemsize * len(plan.outputs))
    in_checkpoints = _TOGETHER_READ // (tensor.dtype.itemsize * len(plan.used) * block_elements(plan, tensor))
    return max(1, min(in_outputs, in_checkpoints))


def single_blocks(plan: Plan, block: Block) -> Iterator[Block]:
    """Yield blocks that are folded together one by one."""
    step = block_elements(plan, plan.tensors[block.number])
    for k in range(block.parts):
        start, count = block.start + k * step, min(step, block.count - k * step)
        yield Block(number=block.number, part=block.part + k, start=start, count=count)


def block_count(plan: Plan, tensor: PlannedTensor) -> int:
    """Return the number of blocks of a tensor, at least one."""
    return max(1, -(-tensor.elements // block_elements(plan, tensor)))
