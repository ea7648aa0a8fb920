"""A fold in the background: its tensors are taken while it works, and it ends with the block that it is used in."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from ema_cli.fold.devices import lane_maker, resolve_device
from ema_cli.fold.engine import fold
from ema_cli.in_memory.arrays import Filled
from ema_cli.in_memory.handover import Abandoned, Handover
from ema_cli.options.average import Options
from ema_cli.records.fold_results import FoldOutcome
from ema_cli.records.plan import Plan, PlannedTensor


class BackgroundFold:
    """The fold of a plan with one output, as a context: at its end, all threads have ended.

    Args:
        plan: what to fold.
        options: on which device, and whether NaN and infinity are refused.
        make: allocates the memory of a tensor.

    Raises:
        UsageError: this machine does not have the device.

    """

    def __init__(self, plan: Plan, options: Options, make: Callable[[PlannedTensor], Filled]) -> None:
        self._plan = plan
        self._allow_nonfinite = options.allow_nonfinite
        self._make_lane = lane_maker(resolve_device(options.device), plan)
        self._handover = Handover(plan.tensors, make, budget_bytes=plan.buffers.total_bytes)
        self._outcome: Future[FoldOutcome] = Future()
        self._thread = threading.Thread(target=self._work, name="fold", daemon=True)
        self._stopped = False

    def __enter__(self) -> Self:
        atexit.register(self._stop)  # a generator that is left half-way would wait for threads that are gone
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def take(self, number: int) -> Filled:
        """Return tensor ``number`` of the plan as soon as it is complete, once and in order.

        Raises:
            EmaAvgError: the fold failed; see ``fold``.

        """
        filled = self._handover.take(number)
        if filled is None:
            self.result()
        assert filled is not None, "a fold without failure completes every tensor"  # noqa: S101
        return filled

    def result(self) -> FoldOutcome:
        """Wait for the end of the fold, after the last tensor was taken; raise as ``fold`` does."""
        return self._outcome.result()

    def _work(self) -> None:
        try:
            self._outcome.set_result(
                fold(
                    self._plan,
                    [self._handover],
                    self._make_lane,
                    allow_nonfinite=self._allow_nonfinite,
                    on_tensor=self._handover.complete,
                    on_stop=self._handover.close,
                    on_bytes=self._raise_if_stopped,
                )
            )
        except BaseException as failure:  # noqa: BLE001 - raised where the result is requested
            self._handover.close()
            self._outcome.set_exception(failure)

    def _raise_if_stopped(self, _: int) -> None:
        if self._stopped:
            raise Abandoned

    def _end(self) -> None:
        atexit.unregister(self._stop)
        self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._handover.close()
        if self._thread.ident is not None:
            self._thread.join()
