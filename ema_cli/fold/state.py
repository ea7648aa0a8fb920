"""What the threads of one fold share: what is left to do, and what was found so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from ema_cli.fold.block_checksums import BlockChecksums
from ema_cli.fold.content_digests import ContentDigests
from ema_cli.fold.decode import Bytes
from ema_cli.fold.geometry.observer import GeometryObserver
from ema_cli.fold.geometry.trajectory import describe_run
from ema_cli.fold.integrity import Integrity
from ema_cli.fold.schedule import Block, Schedule, bytes_per_element
from ema_cli.fold.statistics import Statistics, add_spreads
from ema_cli.records.fold_results import FoldOutcome, TensorOutcome
from ema_cli.records.plan import Action, Plan

_MOST_SUM = 1 + 1e-9
"""Of the weights of an average: one, and roundings."""

OnTensor = Callable[[TensorOutcome], None]
"""Is told of every tensor that is complete, from the threads of the fold."""


class Sink(Protocol):
    """Takes the data section of one output, in any order."""

    def write(self, offset: int, data: Bytes) -> None:
        """Place ``data`` at byte ``offset`` of the data section. Called from several threads."""


class FoldState:
    """Safe to use from several threads.

    Args:
        plan: what to read, with which weights.
        sinks: one per output of the plan.
        geometry: what looks at the blocks, if anything does.
        allow_nonfinite: fold NaN and infinity instead of refusing them.
        done: what an earlier run left behind; these tensors are in the sinks already.
        on_tensor: told of each tensor when it is complete.

    """

    def __init__(
        self,
        plan: Plan,
        sinks: Sequence[Sink],
        geometry: GeometryObserver | None,
        *,
        allow_nonfinite: bool,
        done: Sequence[TensorOutcome],
        on_tensor: OnTensor | None,
    ) -> None:
        self.plan = plan
        self.sinks = sinks
        self.geometry = geometry
        self.allow_nonfinite = allow_nonfinite
        self.stopping = False
        """Whether the threads are to leave their blocks as they are."""
        self.schedule = Schedule(plan, frozenset(one.number for one in done))
        self.statistics = Statistics(plan)
        self.integrity = Integrity()
        self.weights = list(zip(*(output.weighting.weights for output in plan.outputs), strict=True))
        self.expands = [math.fsum(output.weighting.weights) > _MOST_SUM for output in plan.outputs]
        self._contents = ContentDigests(plan)
        self._checksums = BlockChecksums(plan)
        self._on_tensor = on_tensor
        for one in done:
            self._restore(one)

    def close(self, block: Block, read: Sequence[int], lengths: Sequence[int], written: Sequence[int]) -> None:
        """Say that a block is in all sinks, after its sums were added to the statistics.

        Args:
            block: which it is.
            read: its CRC-32 in each checkpoint in use; nothing for a copied tensor.
            lengths: its bytes there.
            written: its CRC-32 in each output.

        """
        output_bytes = block.count * self.plan.tensors[block.number].dtype.itemsize
        crcs = self._checksums.add(block, [*read, *written], [*lengths, *[output_bytes] * len(written)])
        if crcs is None:
            return
        read_crcs, written_crcs = crcs[: len(read)], crcs[len(read) :]
        if read:
            self._contents.add(block.number, read_crcs)
        if self._on_tensor is not None:
            self._on_tensor(self._describe(block.number, read_crcs, written_crcs))

    def outcome(self) -> FoldOutcome:
        """Return what was found, once all blocks are done."""
        found = describe_run(self.geometry, self.plan.used) if self.geometry is not None else None
        by_average = self.statistics.by_average
        if self.geometry is not None and found is not None:
            by_average = add_spreads(by_average, self.geometry.spreads, self.geometry.looked_at)
        return FoldOutcome(statistics=tuple(map(tuple, by_average)), geometry=found, contents=self._contents.digests())

    def _describe(self, number: int, read: tuple[int, ...], written: tuple[int, ...]) -> TensorOutcome:
        return TensorOutcome(
            number=number,
            written_crc32=written,
            read_crc32=read,
            statistics=tuple(row[number] for row in self.statistics.by_average),
            sample=self.geometry.taken_from(number) if self.geometry is not None else b"",
        )

    def _restore(self, one: TensorOutcome) -> None:
        for row, found in zip(self.statistics.by_average, one.statistics, strict=True):
            row[one.number] = found
        if self.plan.tensors[one.number].action is Action.AVERAGED:
            self._contents.add(one.number, one.read_crc32)
        if self.geometry is not None:
            self.geometry.put_back(one.number, one.sample)


def bytes_of(plan: Plan, done: Sequence[TensorOutcome]) -> int:
    """Return about how many bytes were read for tensors that are done."""
    return sum(plan.tensors[one.number].elements * bytes_per_element(plan, one.number) for one in done)
