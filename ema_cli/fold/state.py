"""The state that the threads of one fold share: the blocks left to do, and the results so far."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ema_cli.fold.constants import Constants
from ema_cli.fold.content_digests import ContentDigests, TensorChecksums
from ema_cli.fold.geometry.sample import GeometrySample
from ema_cli.fold.geometry.trajectory import describe_run
from ema_cli.fold.integrity import IntegrityCheck
from ema_cli.fold.schedule import Block, Schedule, Stretch, bytes_per_element, whole
from ema_cli.fold.statistics import Statistics, add_spreads
from ema_cli.records.fold_results import FoldOutcome, TensorOutcome, TensorPart
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
        stretch: Stretch | None = None,
        skipped: frozenset[int] = frozenset(),
    ) -> None:
        self.plan = plan
        self.sinks = sinks
        self.sample = sample
        self.allow_nonfinite = allow_nonfinite
        self.stopping = False
        """Whether the threads must stop, even in the middle of a block."""
        self.schedule = Schedule(plan, skipped.union(outcome.number for outcome in done), stretch)
        self.statistics = Statistics(plan)
        self.integrity = IntegrityCheck()
        self.constants = Constants(plan)
        self.weights = list(zip(*(output.weighting.weights for output in plan.outputs), strict=True))
        """Per checkpoint, its weight in each average."""
        self._contents = ContentDigests(plan)
        self._checksums = TensorChecksums(plan, stretch or whole(plan))
        self._on_tensor = on_tensor
        for outcome in done:
            self.restore(outcome)

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
        if crcs is not None:
            self._complete(block.number, crcs[: len(read)], crcs[len(read) :])

    def _complete(self, number: int, read: tuple[int, ...], written: tuple[int, ...]) -> None:
        """Complete a tensor, given its CRC-32s."""
        if read:
            self._contents.add(number, read)
        if self._on_tensor is not None:
            self._on_tensor(self._describe(number, read, written))

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
            add_spreads(by_average, self.sample.spreads, self.sample.measured)
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

    def restore(self, outcome: TensorOutcome) -> None:
        """Take over a tensor that another run or process has folded."""
        for row, found in zip(self.statistics.by_average, outcome.statistics, strict=True):
            row[outcome.number] = found
        if outcome.read_crc32:
            self._contents.add(outcome.number, outcome.read_crc32)
        if self.sample is not None:
            self.sample.restore(outcome.number, outcome.sample)

    def parts(self) -> Iterator[TensorPart]:
        """Yield what is known of the tensors that are folded in part, once all blocks of the stretch are done."""
        for number, (blocks, crcs, lengths) in self._checksums.parts().items():
            nonfinite, kept = self.statistics.marks(number)
            yield TensorPart(
                number=number,
                first=blocks[0],
                stop=blocks[1],
                crcs=crcs,
                lengths=lengths,
                sums=self.statistics.sums(number, blocks),
                nonfinite=nonfinite,
                kept=kept,
                sample=self.sample.save(number) if self.sample is not None else b"",
            )

    def add_part(self, part: TensorPart) -> None:
        """Take over blocks of a tensor that another process has folded."""
        blocks = part.first, part.stop
        for k, (nonfinite, kept) in enumerate(zip(part.nonfinite, part.kept, strict=True)):
            if nonfinite:
                self.statistics.mark_nonfinite(k, part.number)
            if kept:
                self.statistics.mark_kept(k, part.number)
        if self.sample is not None:
            self.sample.merge(part.number, part.sample)
        if part.sums:
            self.statistics.add_parts(part.number, blocks, [array("d", row) for row in part.sums])
        crcs = self._checksums.add_parts(part.number, blocks, part.crcs, part.lengths)
        if crcs is not None:
            count = len(self.plan.contributors(self.plan.tensors[part.number]))
            self._complete(part.number, crcs[:count], crcs[count:])


def bytes_of(plan: Plan, done: Sequence[TensorOutcome]) -> int:
    """Return about how many bytes an earlier run read for the tensors that are done."""
    return sum(plan.tensors[outcome.number].elements * bytes_per_element(plan, outcome.number) for outcome in done)
