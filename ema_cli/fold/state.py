"""The state that the threads of one fold share: the blocks left to do, and the results so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ema_cli.fold.constants import Constants
from ema_cli.fold.content_digests import ContentDigests, TensorChecksums
from ema_cli.fold.geometry.sample import GeometrySample
from ema_cli.fold.geometry.trajectory import describe_run
from ema_cli.fold.integrity import IntegrityCheck
from ema_cli.fold.schedule import Block, Schedule, bytes_per_element
from ema_cli.fold.statistics import Statistics, add_spreads
from ema_cli.records.fold_results import FoldOutcome, TensorOutcome
from ema_cli.records.plan import Plan


class Stopped(Exception):  # noqa: N818 - this thread met no error
    """The fold is over because another thread failed."""


OnTensor = Callable[[TensorOutcome], None]
"""Called with the outcome of every tensor that is complete, from the threads of the fold."""


class Sink(Protocol):
    """Takes the data section of one output, in any order."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data``, of one or more tensors, at byte ``offset`` of the data section. Threads call it."""


class FoldState:
    """Safe to use from several threads. The arguments are those of ``fold``, and the sample of the geometry."""

    def __init__(
        self,
        plan: Plan,
        sinks: Sequence[Sink],
        sample: GeometrySample | None,
        *,
        allow_nonfinite: bool,
        done: Sequence[TensorOutcome],
        on_tensor: OnTensor | None,
    ) -> None:
        self.plan = plan
        self.sinks = sinks
        self.sample = sample
        self.allow_nonfinite = allow_nonfinite
        self.stopping = False
        """Whether the threads must stop, even in the middle of a block."""
        self.schedule = Schedule(plan, frozenset(outcome.number for outcome in done))
        self.statistics = Statistics(plan)
        self.integrity = IntegrityCheck()
        self.constants = Constants(plan, self.raise_if_stopping)
        self.weights = list(zip(*(output.weighting.weights for output in plan.outputs), strict=True))
        """Per checkpoint, its weight in each average."""
        self._contents = ContentDigests(plan)
        self._checksums = TensorChecksums(plan)
        self._on_tensor = on_tensor
        for outcome in done:
            self._restore(outcome)

    def raise_if_stopping(self) -> None:
        """Raise if the threads must stop.

        Raises:
            Stopped: they must.

        """
        if self.stopping:
            raise Stopped

    def close(self, block: Block, read: Sequence[int], lengths: Sequence[int], written: Sequence[int]) -> None:
        """Complete a block: it is in all sinks, and its sums are in the statistics.

        ``read`` and ``lengths`` (in bytes) are its CRC-32 and length in each contributor, empty for a copied tensor;
        ``written`` is its CRC-32 in each output.
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

    def close_tensors(self, first: int, read: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> None:
        """Complete neighboring small tensors from ``first`` on, as ``close`` does.

        ``read`` and ``written`` have the CRC-32s of these tensors in each checkpoint and in each output.
        """
        self._contents.add_tensors(first, read)
        if self._on_tensor is not None:
            for number, (of_read, of_written) in enumerate(
                zip(zip(*read, strict=True), zip(*written, strict=True), strict=True), first
            ):
                self._on_tensor(self._describe(number, of_read, of_written))

    def outcome(self) -> FoldOutcome:
        """Return the results, once all blocks are done."""
        geometry = describe_run(self.sample, self.plan.used) if self.sample is not None else None
        by_average = self.statistics.by_average
        if self.sample is not None and geometry is not None:
            by_average = add_spreads(by_average, self.sample.spreads, self.sample.measured)
        return FoldOutcome(
            statistics=tuple(map(tuple, by_average)), geometry=geometry, contents=self._contents.digests()
        )

    def _describe(self, number: int, read: tuple[int, ...], written: tuple[int, ...]) -> TensorOutcome:
        return TensorOutcome(
            number=number,
            written_crc32=written,
            read_crc32=read,
            statistics=tuple(row[number] for row in self.statistics.by_average),
            sample=self.sample.save(number) if self.sample is not None else b"",
        )

    def _restore(self, outcome: TensorOutcome) -> None:
        for row, found in zip(self.statistics.by_average, outcome.statistics, strict=True):
            row[outcome.number] = found
        if outcome.read_crc32:
            self._contents.add(outcome.number, outcome.read_crc32)
        if self.sample is not None:
            self.sample.restore(outcome.number, outcome.sample)


def bytes_of(plan: Plan, done: Sequence[TensorOutcome]) -> int:
    """Return about how many bytes an earlier run read for the tensors that are done."""
    return sum(plan.tensors[outcome.number].elements * bytes_per_element(plan, outcome.number) for outcome in done)
