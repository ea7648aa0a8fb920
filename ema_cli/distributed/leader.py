"""Rank 0: it checks, plans and publishes as a process that is alone does; the others fold their shares for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ema_cli.distributed.alone import Alone
from ema_cli.distributed.compared_plans import describe_plan, refuse_other_plans
from ema_cli.distributed.devices_of_ranks import device_of_rank
from ema_cli.distributed.failure import PeerFailed
from ema_cli.distributed.fold_parts import decode_part, merge_part
from ema_cli.distributed.input_digests import hash_inputs, joined_digests
from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.orders import Order
from ema_cli.distributed.shared_outputs import make_shared, name_of, refuse_unshared
from ema_cli.distributed.shared_resumable import SharedResumable
from ema_cli.distributed.shares import share_out
from ema_cli.events import Event, Listener, Progress, ignore
from ema_cli.fold.state import FoldState
from ema_cli.fold.stretch import place_of, read_bytes_of
from ema_cli.options.average import Options
from ema_cli.records.fold_results import TensorOutcome
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.ranks import RankShare
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.resumption import Resumption
from ema_cli.write.target import Target


class Leader(Alone):
    """See ``Alone``; every method but ``release`` raises ``PeerFailed`` if another process has failed.

    Args:
        meeting: of the processes.
        report: lets the others end, because of a failure of this process.

    """

    def __init__(self, meeting: Meeting, report: Callable[[BaseException], object]) -> None:
        self._meeting = meeting
        self._report = report
        self._listener: Listener = ignore
        self._progress: Progress | None = None
        self._temps: list[str] = []
        self._resumption: Resumption | None = None

    @property
    def others_bytes(self) -> int:  # type: ignore[override]
        """The bytes that other processes have read."""
        return self._meeting.others_bytes

    def listening(self, listener: Listener) -> Listener:
        """Return a listener that ends the run if another process has failed."""

        def listen(event: Event) -> None:
            self._meeting.raise_if_failed()
            if isinstance(event, Progress):
                self._progress = event
            listener(event)

        self._listener = listen
        return listen

    def device(self, name: str) -> str:
        """Return the device of this process, among those of its host."""
        return device_of_rank(name, self._meeting.local_rank)

    def agree(self, plan: Plan, options: Options) -> None:
        """Refuse what several processes cannot do, and compare the plans.

        Raises:
            UsageError: an option or an output is not for several processes, or their options differ.
            InputRefused: a process sees other files.

        """
        refuse_unshared(plan, options, self._meeting.hosts)
        documents = self._meeting.gather(describe_plan(plan, options))
        refuse_other_plans(documents, self._meeting.name)
        self._share_out(plan, ())

    def _share_out(self, plan: Plan, done: Sequence[TensorOutcome]) -> None:
        numbers = frozenset(outcome.number for outcome in done)
        self._plan, self._done = plan, done
        self._stretches = share_out(plan, self._meeting.hosts, numbers)
        self._places = [place_of(plan, stretch) for stretch in self._stretches]
        self.stretch = self._stretches[0]
        self.shares = tuple(
            RankShare(host=host, read_bytes=read_bytes_of(plan, stretch, numbers), written_bytes=end - begin)
            for host, stretch, (begin, end) in zip(self._meeting.hosts, self._stretches, self._places, strict=True)
        )

    def release(self) -> None:
        """Let the other processes end: there is nothing to do."""
        self._meeting.announce(Order.nothing())

    def make_target(self, output: PlannedOutput, old: OldFolder | None, listener: Listener) -> Target:
        """Return the target of an output, which replaces the folder ``old``; ``listener`` hears about copies."""
        target = make_shared(output, self._places, self._meeting, old=old, listener=listener)
        self._temps.append(name_of(target))
        return target

    def resume(
        self, plan: Plan, options: Options, listener: Listener, unpublished: ExitStack
    ) -> tuple[Sequence[Target], Resumption]:
        """Open the outputs that an interrupted run left, and share out what is not complete in them."""
        files = [SharedResumable(output, self._meeting) for output in plan.outputs]
        for file in files:
            unpublished.callback(file.discard)
            file.make()
            self._temps.append(file.temp.name)
        self._resumption = Resumption(plan, files, options.geometry)
        unpublished.push(self._resumption.leave)
        self._resumption.begin(listener)
        self._share_out(plan, self._resumption.done)
        for k, file in enumerate(files):
            file.assign(self._places)
            file.begin(plan, ((outcome.number, outcome.written_crc32[k]) for outcome in self._done))
        return files, self._resumption

    def begin(self) -> None:
        """Let the other processes fold: the targets are made."""
        order = Order(
            block_elements=self._plan.buffers.block_elements,
            stretches=tuple(self._stretches),
            temps=tuple(self._temps),
            run=self._resumption.run if self._resumption else "",
            done=tuple((outcome.number, outcome.written_crc32) for outcome in self._done),
        )
        self._meeting.announce(order.encoded())

    def hash_inputs(self, plan: Plan, listener: Listener) -> list[str | None]:
        """Return the SHA-256 of every input, some of which other ranks have hashed."""
        own = hash_inputs(plan, listener, 0, self._meeting.size)
        _, *others = self._meeting.gather(b"")
        return joined_digests([own, *map(json.loads, others)])

    def leave(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        """Let the other processes end if this one has failed, before its outputs are removed: they write into them."""
        if isinstance(failure, Exception):
            self._report(failure)
        if isinstance(failure, PeerFailed) and failure.failure.is_final and self._resumption is not None:
            self._resumption.give_up()

    def merge(self, state: FoldState) -> None:
        """Add to the fold what the other processes have folded, when they have.

        Raises:
            InputRefused: a record that several processes have read is damaged.

        """
        for data in self._meeting.others(b"", self._report_progress):
            merge_part(state, decode_part(data))

    def published(self) -> None:
        """Let the other processes end: everything is published."""
        self._meeting.announce(b"")

    def _report_progress(self) -> None:
        if self._progress is not None:
            total = self._progress.total_bytes
            own = self.shares[0].read_bytes
            done = min(own + self.others_bytes, total)
            self._listener(Progress(activity=self._progress.activity, done_bytes=done, total_bytes=total))
