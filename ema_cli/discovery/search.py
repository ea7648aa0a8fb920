"""The search for checkpoints: those found so far, and those that are skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from ema_cli.discovery.folder_listing import ALIAS_REASON
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, RunWarning
from ema_cli.records.series import Checkpoint, Skipped
from ema_cli.text import listing, plural, quoted

AVERAGES_AVERAGED = "averages-averaged"
"""Code of the warning that all inputs are outputs of this program."""
_MOST_FAULTS = 10


@dataclass(slots=True)
class Search:
    """Everything found so far."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    copies: list[Checkpoint] = field(default_factory=list)
    """Checkpoints with names that say that they are copies of the last checkpoint."""
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[RunWarning] = field(default_factory=list)
    faults: list[EmaAvgError] = field(default_factory=list)
    refused: list[EmaAvgError] = field(default_factory=list)
    """Why files of a folder were skipped."""

    def skip_copies(self) -> None:
        """Skip ``last.ckpt`` and the like, unless the step inside is newer than those of all numbered checkpoints."""
        steps = {checkpoint.steps[0] for checkpoint in self.checkpoints if checkpoint.steps}
        units = {step.unit for step in steps}
        for copy in self.copies:
            newest = copy.steps[0] if copy.steps else None
            if newest and units == {newest.unit} and newest.value > max(step.value for step in steps):
                self.checkpoints.append(copy)
            else:
                self._skip(copy, ALIAS_REASON)

    def skip_own_outputs(self) -> None:
        """Skip outputs of this program, which a pattern or folder may include, unless all inputs are outputs."""
        ours = [checkpoint for checkpoint in self.checkpoints if checkpoint.made_by_us]
        if not ours:
            return
        if len(ours) == len(self.checkpoints):
            message = "all inputs are outputs of ema-avg: this is an average of averages"
            self.warnings.append(RunWarning(code=AVERAGES_AVERAGED, message=message))
            return
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if not checkpoint.made_by_us]
        for checkpoint in ours:
            self._skip(checkpoint, "an output of ema-avg", made_by_us=True)

    def skip_repeats(self) -> None:
        """Keep a checkpoint that is named twice once, even if the second name is that of a file in its folder."""
        owners: dict[object, Checkpoint] = {}
        kept: list[Checkpoint] = []
        for checkpoint in self.checkpoints:
            files = checkpoint.index.identity
            sharing = [owners[file] for file in files if file in owners]
            same = next(
                (known for known in sharing if files <= known.index.identity or files >= known.index.identity), None
            )
            if same is not None:
                kind = "file" if files == same.index.identity else "checkpoint"
                self._skip(checkpoint, f"the same {kind} as {quoted(str(same.path))}")
                continue
            kept.append(checkpoint)
            for file in files:
                owners.setdefault(file, checkpoint)
        self.checkpoints = kept

    def _skip(self, checkpoint: Checkpoint, reason: str, *, made_by_us: bool = False) -> None:
        self.skipped.append(Skipped(path=checkpoint.path, reason=reason, made_by_us=made_by_us))
        checkpoint.index.close()


def raise_faults(faults: list[EmaAvgError]) -> None:
    """Raise all faults, if any, as one error.

    Raises:
        NothingMatched: something is missing.
        InputRefused: nothing is missing, but something cannot be used.

    """
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    kind = NothingMatched if any(isinstance(fault, NothingMatched) for fault in faults) else InputRefused
    message = listing(
        f"{plural(len(faults), 'input')} cannot be used:", [fault.message for fault in faults], most=_MOST_FAULTS
    )
    hint = next((fault.hint for fault in faults if fault.hint), "")
    proposals = next((fault.proposals for fault in faults if fault.proposals), ())
    raise kind(message, hint=hint, proposals=proposals)
