"""A fold in the background: its tensors are taken while it works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold
from ema_cli.in_memory.arrays import Filled
from ema_cli.in_memory.handover import Abandoned, Handover
from ema_cli.options.average import Options
from ema_cli.records.fold_results import FoldOutcome
from ema_cli.records.plan import Plan, PlannedTensor


class BackgroundFold:
    """The fold of a plan with one output; the tensors that nobody has taken need at most the memory of its buffers.

    Args:
        plan: what to fold.
        options: whether NaN and infinity are refused.
        make: allocates the memory of a tensor.

    Raises:
        UsageError: this machine does not have the device.

    """

    def __init__(self, plan: Plan, options: Options, make: Callable[[PlannedTensor], Filled]) -> None:
        self._plan = plan
        self._allow_nonfinite = options.allow_nonfinite
        self._make_lane = lane_maker(plan.device, plan)
        self._handover = Handover(plan.tensors, make, budget_bytes=plan.buffers.total_bytes)
        self._outcome: Future[FoldOutcome] = Future()
        self._thread = threading.Thread(target=self._work, name="fold", daemon=True)
        self._closing = False

    def start(self) -> None:
        """Begin. Arrange for ``close`` first: a signal may come at any time."""
        self._thread.start()

    def take(self, number: int) -> Filled:
        """Return tensor ``number`` of the plan as soon as it is complete, once and in order.

        Raises:
            EmaAvgError: the fold failed; see ``fold``.

        """
        filled = self._handover.take(number)
        if filled is None:
            self.result()
        assert filled is not None, "a fold that succeeds completes every tensor"  # noqa: S101
        return filled

    def result(self) -> FoldOutcome:
        """Wait for the end of the fold, after the last tensor was taken; raise as ``fold`` does."""
        return self._outcome.result()

    def close(self) -> None:
        """End the threads, wherever they are."""
        self._closing = True
        self._handover.close()
        if self._thread.ident is not None:
            self._thread.join()

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
                    on_bytes=self._raise_if_closing,
                )
            )
        except BaseException as failure:  # noqa: BLE001 - raised where the result is requested
            self._handover.close()
            self._outcome.set_exception(failure)

    def _raise_if_closing(self, _: int) -> None:
        if self._closing:
            raise Abandoned
