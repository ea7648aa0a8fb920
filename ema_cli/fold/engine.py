"""Run the fold: worker threads take blocks until none are left.

Input -> output: a ``Plan`` and one sink per average -> the sinks filled, and statistics per tensor. Memory is that of
the workers' buffers, whatever the size of the model and the number of checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from ema_cli.fold.geometry.sample import GeometrySample
from ema_cli.fold.lanes import Lane
from ema_cli.fold.schedule import Stretch
from ema_cli.fold.state import FoldState, OnTensor, Sink, bytes_of
from ema_cli.fold.worker import Worker
from ema_cli.records.fold_results import FoldOutcome, TensorOutcome
from ema_cli.records.plan import Plan

_REPORT_SECONDS = 0.1


def fold(
    plan: Plan,
    sinks: Sequence[Sink],
    make_lane: Callable[[], Lane],
    *,
    allow_nonfinite: bool = False,
    measure_geometry: bool = False,
    done: Sequence[TensorOutcome] = (),
    on_tensor: OnTensor | None = None,
    on_stop: Callable[[], object] = lambda: None,
    on_bytes: Callable[[int], None] = lambda _: None,
    stretch: Stretch | None = None,
    merge: Callable[[FoldState], None] = lambda _: None,
) -> FoldOutcome:
    """Fold every tensor of ``plan`` into ``sinks``; return the statistics per average and tensor, and the geometry.

    Args:
        plan: what to read, with which weights.
        sinks: one per output of the plan.
        make_lane: makes the lane of one worker.
        allow_nonfinite: fold NaN and infinity instead of refusing them.
        measure_geometry: measure the distances between the checkpoints on a sample; one checkpoint has none.
        done: outcomes of the tensors that an earlier run put into the sinks.
        on_tensor: called with the outcome of each tensor when it is complete, from the worker threads.
        on_stop: called before the threads are waited for: what they wait for should end.
        on_bytes: called from time to time, from the calling thread, with the number of input bytes done.
        stretch: the blocks to fold, where other processes fold the others; by default all.
        merge: called after these blocks; it adds what the other processes have folded to the state.

    Raises:
        InputRefused: an input is not finite or damaged, or an average is too large for its type.
        InputChanged: an input could not be read to its end.
        OutputError: a sink could not write.

    """
    sample = _make_sample(plan) if measure_geometry else None
    state = FoldState(
        plan, sinks, sample, allow_nonfinite=allow_nonfinite, done=done, on_tensor=on_tensor, stretch=stretch
    )
    _run_threads(state, make_lane, bytes_of(plan, done), on_stop, on_bytes)
    merge(state)
    state.integrity.finish()
    return state.outcome()


def fold_stretch(
    plan: Plan,
    sinks: Sequence[Sink],
    make_lane: Callable[[], Lane],
    *,
    stretch: Stretch,
    skipped: frozenset[int],
    allow_nonfinite: bool,
    measure_geometry: bool,
    on_tensor: OnTensor,
    on_bytes: Callable[[int], None],
) -> FoldState:
    """Fold a stretch of the blocks into ``sinks``, for another process, without the tensors ``skipped``.

    The other arguments are those of ``fold``.

    Raises:
        EmaAvgError: as in ``fold``.

    """
    sample = _make_sample(plan) if measure_geometry else None
    state = FoldState(
        *(plan, sinks, sample),
        allow_nonfinite=allow_nonfinite,
        done=(),
        on_tensor=on_tensor,
        stretch=stretch,
        skipped=skipped,
    )
    _run_threads(state, make_lane, 0, lambda: None, on_bytes)
    return state


def _make_sample(plan: Plan) -> GeometrySample | None:
    """Return the sample that the geometry is measured on; ``None`` if there is nothing to measure."""
    if len(plan.used) == 1:
        return None
    sample = GeometrySample(plan)
    if not any(sample.measured) and any(tensor.pieces for tensor in plan.tensors):
        return None  # every factor is concatenated, and no distance was measured
    return sample


def _run_threads(
    state: FoldState,
    make_lane: Callable[[], Lane],
    done_bytes: int,
    on_stop: Callable[[], object],
    on_bytes: Callable[[int], None],
) -> None:
    """Fold the blocks of the schedule in threads; ``done_bytes`` were read before."""
    crew = _Crew(state, done_bytes)
    threads = [
        threading.Thread(target=crew.work, args=(make_lane,), name=f"fold-{i}", daemon=True)
        for i in range(state.plan.buffers.threads)
    ]
    try:
        for thread in threads:
            thread.start()
        while not crew.finished.wait(_REPORT_SECONDS):
            on_bytes(crew.done_bytes)
    finally:
        state.stopping = True
        on_stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if crew.failure is not None:
        raise crew.failure
    on_bytes(crew.done_bytes)


class _Crew:
    """The threads of one fold: their progress, and the failure that stopped them."""

    def __init__(self, state: FoldState, done_bytes: int) -> None:
        self.done_bytes = done_bytes
        self.failure: BaseException | None = None
        self.finished = threading.Event()
        """All blocks are done, or a thread failed."""
        self._state = state
        self._working = state.plan.buffers.threads
        self._lock = threading.Lock()

    def work(self, make_lane: Callable[[], Lane]) -> None:
        """Process blocks until none are left, or another worker failed."""
        try:
            with np.errstate(all="ignore"):
                worker = Worker(self._state, make_lane())
                while not self._state.stopping and (block := self._state.schedule.take()) is not None:
                    done = worker.process(block)
                    with self._lock:
                        self.done_bytes += done
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            with self._lock:
                self.failure = self.failure or failure
            self._state.stopping = True
        with self._lock:
            self._working -= 1
            if self._working == 0 or self.failure is not None:
                self.finished.set()
