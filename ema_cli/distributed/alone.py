"""A run in one process: it shares nothing, and waits for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ema_cli.events import Listener
from ema_cli.options.average import Options
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.ranks import RankShare

if TYPE_CHECKING:  # numpy, not needed to plan
    from ema_cli.fold.schedule import Stretch
    from ema_cli.fold.state import FoldState
    from ema_cli.write.old_folder import OldFolder
    from ema_cli.write.resumption import Resumption
    from ema_cli.write.target import Target


class Alone:
    """The process that averages, and publishes: of one, or rank 0 of several (``Leader``)."""

    stretch: Stretch | None = None
    """The blocks that this process folds; ``None`` for all."""
    others_bytes = 0
    """The bytes that other processes have read."""
    shares: tuple[RankShare, ...] = ()
    """What each process does, if there are several."""

    def listening(self, listener: Listener) -> Listener:
        """Return a listener that also looks after other processes."""
        return listener

    def device(self, name: str) -> str:
        """Return the device that this process computes on."""
        return name

    def agree(self, plan: Plan, options: Options) -> None:
        """Compare the plan with those of the other processes."""

    def release(self) -> None:
        """Let the other processes end: there is nothing to do."""

    def make_target(self, output: PlannedOutput, old: OldFolder | None, listener: Listener) -> Target:
        """Return the target of an output, which replaces the folder ``old``; ``listener`` hears about copies."""
        from ema_cli.write.make_target import make_target  # noqa: PLC0415 - not needed to plan

        return make_target(output, old, listener)

    def resume(
        self, plan: Plan, options: Options, listener: Listener, unpublished: ExitStack
    ) -> tuple[Sequence[Target], Resumption]:
        """Open the outputs that an interrupted run left, and continue it; ``unpublished`` discards them, or not."""
        from ema_cli.write.make_target import make_resumable  # noqa: PLC0415 - not needed to plan
        from ema_cli.write.resumption import Resumption  # noqa: PLC0415

        files = [make_resumable(output) for output in plan.outputs]
        for file in files:
            unpublished.callback(file.discard)
            file.open()
        resumption = Resumption(plan, files, options.geometry)
        unpublished.push(resumption.leave)
        resumption.begin(listener)
        return files, resumption

    def begin(self) -> None:
        """Let the other processes fold: the targets are open."""

    def hash_inputs(self, plan: Plan, listener: Listener) -> list[str | None]:
        """Return the SHA-256 of every input."""
        from ema_cli.distributed.input_digests import hash_inputs  # noqa: PLC0415 - rarely needed

        return hash_inputs(plan, listener)

    def leave(self, _kind: object, _failure: BaseException | None, _trace: object) -> None:
        """Let the other processes end if this one has failed."""

    def merge(self, state: FoldState) -> None:
        """Add to the fold what the other processes have folded."""

    def published(self) -> None:
        """Let the other processes end: everything is published."""
