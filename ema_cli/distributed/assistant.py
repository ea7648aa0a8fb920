"""The other ranks: each folds its share of the output for rank 0, and prints nothing."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace

from ema_cli.discovery.changes import blaming_changed_inputs, check_unchanged
from ema_cli.distributed.compared_plans import describe_plan
from ema_cli.distributed.devices_of_ranks import device_of_rank
from ema_cli.distributed.fold_parts import encode_part, part_of_fold
from ema_cli.distributed.input_digests import hash_inputs
from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.orders import Order
from ema_cli.distributed.shared_outputs import SharedTarget, make_shared
from ema_cli.distributed.shared_resumable import SharedResumable
from ema_cli.events import Event, ignore
from ema_cli.fold.address_space import check_address_space
from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold_stretch
from ema_cli.fold.stretch import place_of
from ema_cli.options.average import Options
from ema_cli.records.fold_results import TensorOutcome
from ema_cli.records.plan import Plan
from ema_cli.write.journal import Journal


class Assistant:
    """A rank that is not 0. Its methods raise ``PeerFailed`` if another process has failed."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting

    def listen(self, _: Event) -> None:
        """Show nothing, and end if another process has failed."""
        self._meeting.raise_if_failed()

    def assist(self, plan: Plan, options: Options) -> None:
        """Fold and write a share of the plan, as rank 0 orders, unless there is nothing to do.

        Raises:
            EmaAvgError: the share cannot be folded or written.

        """
        self._meeting.gather(describe_plan(plan, options))
        order = Order.decoded(self._meeting.announce(b""))
        if order is not None:
            buffers = replace(plan.buffers, block_elements=order.block_elements)
            self._carry_out(replace(plan, buffers=buffers), options, order)
            self._meeting.announce(b"")  # everything is published

    def _carry_out(self, plan: Plan, options: Options, order: Order) -> None:
        check_address_space(plan.buffers, len(plan.outputs))
        places = [place_of(plan, stretch) for stretch in order.stretches]
        with ExitStack() as opened:
            targets = [self._open(plan, k, places, order, opened) for k in range(len(plan.outputs))]
            if options.sha256:
                digests = hash_inputs(plan, self.listen, self._meeting.rank, self._meeting.size)
                self._meeting.gather(json.dumps(digests).encode())
            self._meeting.gather(self._fold(plan, options, targets, order))
            for target in targets:
                target.finish()

    def _open(self, plan: Plan, k: int, places: list[tuple[int, int]], order: Order, opened: ExitStack) -> SharedTarget:
        """Open the output of average ``k``, to write a share of it; ``opened`` closes it."""
        output = plan.outputs[k]
        if not order.run:
            target = make_shared(output, places, self._meeting, temp=order.temps[k])
            opened.callback(target.discard)
            target.open()
            return target
        file = SharedResumable(output, self._meeting)
        opened.callback(file.discard)
        file.assign(places)
        file.begin(plan, ((number, crcs[k]) for number, crcs in order.done))
        return file

    def _fold(self, plan: Plan, options: Options, targets: list[SharedTarget], order: Order) -> bytes:
        outcomes: list[TensorOutcome] = []
        journal = Journal(plan.outputs[0].local, order.run, self._meeting.rank) if order.run else None

        def complete(outcome: TensorOutcome) -> None:
            outcomes.append(outcome)
            if journal is not None:
                journal.add(outcome)

        with ExitStack() as closed, blaming_changed_inputs(plan.checkpoints):
            if journal is not None:
                closed.callback(journal.close)
                journal.begin(())
            state = fold_stretch(
                plan,
                targets,
                lane_maker(device_of_rank(plan.device, self._meeting.local_rank), plan),
                stretch=order.stretches[self._meeting.rank],
                skipped=frozenset(number for number, _ in order.done),
                allow_nonfinite=options.allow_nonfinite,
                measure_geometry=options.geometry == "sample",
                on_tensor=complete,
                on_bytes=self._report,
            )
        check_unchanged(plan.checkpoints, ignore)
        return encode_part(part_of_fold(state, outcomes))

    def _report(self, done_bytes: int) -> None:
        self._meeting.report_progress(done_bytes)
        self._meeting.raise_if_failed()
