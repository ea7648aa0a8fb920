"""Runs of small tensors: neighbors in the output that are read, summed and written together, as one block.

A model can have 100,000 tensors of 32 elements. One read, one sum and one write each would take most of the time. The
tensors of a run are of one type and are stored in one piece; in a checkpoint they may be in any order, with gaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType, Kind
from ema_cli.fold.conversion import Bytes
from ema_cli.fold.integrity import IntegrityCheck
from ema_cli.record import record
from ema_cli.records.plan import LARGEST_RUN, Action, Plan, PlannedTensor
from ema_cli.storage.extents import TensorIndex
from ema_cli.storage.source import ByteSource

Numbers = NDArray[np.int64]
_LARGEST_TENSOR = 1 << 12
"""Elements of a tensor that is part of a run."""
_MOST_TENSORS = 1 << 10
"""Of a run, which bounds the gaps that are read with them."""
_GAP = 1 << 10
"""Bytes: tensors with smaller gaps between them are read together."""


@record
class TensorRun:
    """Some tensors of the plan, one after the other."""

    first: int
    """Position of the first tensor in the plan."""
    stop: int
    """Position after the last."""


def find_runs(plan: Plan, done: frozenset[int]) -> list[TensorRun]:
    """Return the runs of at least two tensors, in order, without the tensors in ``done``."""
    indexes = {plan.layout_numbers[i]: plan.series.members[i].checkpoint.index for i in plan.used}
    if any(index.has_parts for index in indexes.values()):
        return []
    most = min(LARGEST_RUN, plan.buffers.block_elements)
    runs: list[TensorRun] = []
    first, elements, before = 0, 0, None
    for number, tensor in enumerate(plan.tensors):
        types = None if number in done or not _may_join(tensor) else _types(tensor, indexes)
        if types is None or types != before or elements + tensor.elements > most or number - first >= _MOST_TENSORS:
            runs.append(TensorRun(first=first, stop=number))
            first, elements = number if types else number + 1, 0
        elements += tensor.elements
        before = types
    runs.append(TensorRun(first=first, stop=len(plan.tensors)))
    return [run for run in runs if run.stop - run.first > 1]


def _may_join(tensor: PlannedTensor) -> bool:
    return (
        0 < tensor.elements <= _LARGEST_TENSOR
        and tensor.action is Action.AVERAGED
        and tensor.dtype.kind is not Kind.COMPLEX
    )


def _types(tensor: PlannedTensor, indexes: dict[int, TensorIndex]) -> tuple[DType, ...] | None:
    """Return the types of a tensor in the output and in each layout; ``None`` if it is not stored in C order."""
    layouts = [index.layouts[tensor.positions[number]] for number, index in indexes.items()]
    if any(layout.strides is not None for layout in layouts):
        return None
    return (tensor.dtype, *(layout.dtype for layout in layouts))


@record
class _Cluster:
    """Tensors of a run that are close together in one file."""

    source: ByteSource
    file: int
    members: Numbers
    """Numbers of the tensors in the run, in the order of the file."""
    begins: Numbers
    """Where they begin in the file."""
    ends: Numbers

    @property
    def begin(self) -> int:
        return int(self.begins[0])

    @property
    def nbytes(self) -> int:
        return int(self.ends.max()) - self.begin


class RunPlaces:
    """Where the tensors of the runs are in each checkpoint. Thread-safe, once it is made."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def _positions(self) -> list[Numbers]:
        """Of every tensor of the plan, in each layout."""
        tensors = self._plan.tensors
        positions = np.fromiter(chain.from_iterable(tensor.positions for tensor in tensors), dtype=np.int64)
        return list(positions.reshape(len(tensors), -1).T)

    @cached_property
    def _bounds(self) -> Numbers:
        """The first element of every tensor in the output, and the number of all."""
        return np.cumsum([0, *(tensor.elements for tensor in self._plan.tensors)])

    def bounds(self, run: TensorRun) -> Numbers:
        """Return the first element of each tensor in the run, and the number of all."""
        bounds = self._bounds[run.first : run.stop + 1]
        return np.asarray(bounds - bounds[0])

    def dtype(self, run: TensorRun, i: int) -> DType:
        """Return the type of the tensors of a run in checkpoint ``i``."""
        return self._plan.layout(self._plan.tensors[run.first], i).dtype

    def announce(self, run: TensorRun) -> None:
        """Announce the reads of a run in all checkpoints."""
        for i in self._plan.used:
            for cluster in self._clusters(run, i):
                cluster.source.will_need(cluster.begin, cluster.nbytes)

    def read(self, run: TensorRun, i: int, out: Bytes, integrity: IntegrityCheck) -> None:
        """Fill ``out`` with the tensors of a run in checkpoint ``i``, one after the other.

        Raises:
            InputChanged: the file ends early, or cannot be read.
            InputRefused: a record is damaged.

        """
        starts = self.bounds(run)[:-1] * self.dtype(run, i).itemsize
        index = self._plan.series.members[i].checkpoint.index
        for cluster in self._clusters(run, i):
            sizes = cluster.ends - cluster.begins
            in_order = len(cluster.members) == run.stop - run.first and bool((np.diff(cluster.members) == 1).all())
            if in_order and cluster.nbytes == len(out):
                raw = out
                cluster.source.read_into(cluster.begin, out.data)
            else:
                raw = np.empty(cluster.nbytes, dtype=np.uint8)
                cluster.source.read_into(cluster.begin, raw.data)
                _copy(raw, cluster.begins - cluster.begin, out, starts[cluster.members], sizes)
            table = index.checksums(cluster.file)
            if table is not None:
                integrity.add_ranges(cluster.source, table, cluster.begins, cluster.ends, raw)

    def _clusters(self, run: TensorRun, i: int) -> Iterator[_Cluster]:
        index = self._plan.series.members[i].checkpoint.index
        positions = self._positions[self._plan.layout_numbers[i]][run.first : run.stop]
        offsets, files = index.places
        begins = np.frombuffer(offsets, dtype=np.int64)[positions]
        ends = begins + np.diff(self.bounds(run)) * self.dtype(run, i).itemsize
        of_files = np.frombuffer(files, dtype=np.int64)[positions] if files else np.zeros(len(begins), dtype=np.int64)
        order = np.lexsort((begins, of_files))
        begins, ends, of_files = begins[order], ends[order], of_files[order]
        is_far = (begins[1:] - ends[:-1] > _GAP) | (of_files[1:] != of_files[:-1])
        for low, high in pairwise([0, *(np.flatnonzero(is_far) + 1).tolist(), len(order)]):
            file = int(of_files[low])
            yield _Cluster(
                source=index.sources[file],
                file=file,
                members=order[low:high],
                begins=begins[low:high],
                ends=ends[low:high],
            )


def _copy(raw: Bytes, begins: Numbers, out: Bytes, starts: Numbers, sizes: Numbers) -> None:
    """Copy pieces of ``raw``, each with its begin and size, to their starts in ``out``; all numbers are bytes."""
    source, target = raw.data, out.data
    for begin, start, size in zip(begins.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        target[start : start + size] = source[begin : begin + size]
