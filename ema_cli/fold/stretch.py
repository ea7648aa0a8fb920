"""Which blocks of a plan one process folds: a stretch of them, in their order, so that it reads and writes in sequence.

Input -> output: a ``Plan`` and the number of processes -> one ``Stretch`` each, with about equal bytes to read. A
stretch begins and ends between two blocks, so that every element is summed as it would be in one process.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from ema_cli.fold.schedule import Stretch, block_count, block_elements, bytes_per_element
from ema_cli.records.plan import Plan

Cut = tuple[int, int]
"""Position of a tensor in the plan, and of a block in it: everything before them is before the cut."""


def cut_plan(
    plan: Plan, count: int, at: Sequence[int] | None = None, done: frozenset[int] = frozenset()
) -> list[Stretch]:
    """Return ``count`` stretches of about equal bytes to read, in order; some are empty if there are few blocks.

    Args:
        plan: whose blocks are shared out.
        count: of processes.
        at: offsets in the data section; the stretches end at some of them only. By default they end at any block.
        done: tensors that are not read.

    """
    sizes = (
        0 if number in done else tensor.elements * bytes_per_element(plan, number)
        for number, tensor in enumerate(plan.tensors)
    )
    before = list(accumulate(sizes, initial=0))
    goals = [before[-1] * rank // count for rank in range(1, count)]
    begins = None if at is None else _numbers_at(plan, at)
    inner = [_block_at(plan, before, goal) if begins is None else (_nearest(begins, before, goal), 0) for goal in goals]
    cuts = [(0, 0), *inner, (len(plan.tensors), 0)]
    return [Stretch(*first, *stop) for first, stop in pairwise(cuts)]


def read_bytes_of(plan: Plan, stretch: Stretch, done: frozenset[int] = frozenset()) -> int:
    """Return about how many bytes are read for a stretch, without the tensors ``done``."""
    total = 0
    for number in stretch.numbers:
        if number in done:
            continue
        low, high = stretch.elements(plan, number)
        total += (high - low) * bytes_per_element(plan, number)
    return total


def place_of(plan: Plan, stretch: Stretch) -> tuple[int, int]:
    """Return where the bytes of a stretch begin and end in the data section of an output."""
    return _offset(plan, (stretch.first, stretch.first_part)), _offset(plan, (stretch.stop, stretch.stop_part))


def _offset(plan: Plan, cut: Cut) -> int:
    number, part = cut
    if number == len(plan.tensors):
        return plan.data_bytes
    tensor = plan.tensors[number]
    return tensor.offset + part * block_elements(plan, tensor) * tensor.dtype.itemsize


def _block_at(plan: Plan, before: Sequence[int], goal: int) -> Cut:
    """Return the cut between two blocks that is nearest to ``goal`` bytes."""
    number = min(bisect_right(before, goal) - 1, len(plan.tensors) - 1)
    if number < 0:
        return 0, 0
    tensor = plan.tensors[number]
    of_block = block_elements(plan, tensor) * bytes_per_element(plan, number)
    part = round((goal - before[number]) / of_block)
    return (number + 1, 0) if part >= block_count(plan, tensor) else (number, part)


def _numbers_at(plan: Plan, offsets: Sequence[int]) -> list[int]:
    """Return the position of the first tensor at each offset of the data section, and the number of tensors."""
    first: dict[int, int] = {}
    for number, tensor in enumerate(plan.tensors):
        first.setdefault(tensor.offset, number)
    return sorted({*(first.get(offset, len(plan.tensors)) for offset in offsets), len(plan.tensors)})


def _nearest(numbers: Sequence[int], before: Sequence[int], goal: int) -> int:
    return min(numbers, key=lambda number: (abs(before[number] - goal), number))
