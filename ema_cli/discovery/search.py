"""The search for checkpoints: those found so far, and those that are skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ema_cli.discovery.beside_series import OpenedCheckpoint, have_equal_checksums, prefers, reason_to_skip
from ema_cli.discovery.candidates import Candidate, InnerFolder
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, RunWarning
from ema_cli.formats.series_names import NAME_TO_USE
from ema_cli.formats.structure import NoWeights
from ema_cli.naming import report_name
from ema_cli.records.series import Checkpoint, Mark, Skipped
from ema_cli.storage.locations import Location, absolute
from ema_cli.text import listing, plural, quoted, regex, shortlist

AVERAGES_AVERAGED = "averages-averaged"
"""Code of the warning that all inputs are outputs of this program."""
_OWN_OUTPUT = "an output of ema-avg"
_SNAPSHOT = "a snapshot of a live EMA, and no checkpoint of the series (snapshots are averaged by themselves)"
_NO_SNAPSHOT = f"no snapshot of a live EMA like the others {NAME_TO_USE}"
_MOST_FAULTS = 10
_MOST_NAMES = 3
_FAULT = regex(r'(".*?")([ :].+)', re.DOTALL)
"""A name in quotes, and what is wrong with it."""


@dataclass(slots=True, eq=False, repr=False)
class Search:
    """Everything found so far."""

    members: list[OpenedCheckpoint] = field(default_factory=list)
    """The checkpoints that were named, or are in the series of a folder."""
    beside: list[OpenedCheckpoint] = field(default_factory=list)
    """Checkpoints beside the numbered series of a folder."""
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[RunWarning] = field(default_factory=list)
    faults: list[EmaAvgError] = field(default_factory=list)
    shards: list[EmaAvgError] = field(default_factory=list)
    """Faults of files that were named and are a shard of a checkpoint."""
    refused: list[tuple[Candidate, InputRefused | NothingMatched]] = field(default_factory=list)
    """Files of a folder that were skipped, and why."""
    weightless: list[tuple[Candidate, InputRefused | NothingMatched]] = field(default_factory=list)
    """Files of a folder that hold no weights."""
    several: dict[Location, tuple[str, ...]] = field(default_factory=dict)
    """Folders that hold several models: the files to choose from."""
    named: dict[str, list[Location]] = field(default_factory=dict)
    """The files and folders that each name on the command line means."""
    inner: dict[Location, list[InnerFolder]] = field(default_factory=dict)
    """Folders that were named and have no checkpoints: the folders with checkpoints below them, none or several."""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that take part, in order."""
        return [opened.checkpoint for opened in self.members]

    @property
    def used(self) -> set[Location | None]:
        """The named files and folders that have a checkpoint, even if it is skipped."""
        return {opened.candidate.named for opened in (*self.members, *self.beside)}

    def add(self, opened: OpenedCheckpoint) -> None:
        """Add a checkpoint that could be opened."""
        (self.beside if opened.candidate.beside else self.members).append(opened)

    def refuse(self, candidate: Candidate, refused: InputRefused | NothingMatched) -> None:
        """Skip a file or folder in a folder that cannot be used, with a warning."""
        if isinstance(refused, NoWeights):
            self.weightless.append((candidate, refused))
            return
        self.refused.append((candidate, refused))
        name = quoted(str(candidate.path))
        subject = f"{name}, which" if refused.message.startswith(f"{name} ") else name
        message = refused.message.replace(name, subject, 1)
        self.warnings.append(RunWarning(code="unusable-left-out", message=f"skipped {message}", hint=refused.hint))

    def sort_out_weightless(self) -> None:
        """Skip files without weights beside checkpoints: they are state of the trainer. A folder of them is refused."""
        runs = {opened.candidate.run for opened in self.members}
        for candidate, refused in self.weightless:
            if candidate.run in runs:
                self.skipped.append(Skipped(path=candidate.path, reason="holds no weights"))
            else:
                self.refused.append((candidate, refused))

    def place_beside(self) -> None:
        """Give the checkpoints beside a series their place in it by the step inside, or skip them."""
        for opened in self.beside:
            members = [member for member in self.members if member.candidate.run == opened.candidate.run]
            if opened.checkpoint.made_by_us:
                self._skip(opened, _OWN_OUTPUT, made_by_us=True)
            elif any(member.checkpoint.is_snapshot is not opened.checkpoint.is_snapshot for member in members):
                self._skip(opened, _SNAPSHOT if opened.checkpoint.is_snapshot else _NO_SNAPSHOT)
            elif reason := reason_to_skip(opened, members):
                self._skip(opened, reason)
            else:
                self.members.append(opened)

    def skip_own_outputs(self) -> None:
        """Skip outputs of this program, which a pattern or folder may include, unless all inputs are outputs."""
        ours = [opened for opened in self.members if opened.checkpoint.made_by_us]
        if not ours:
            return
        if len(ours) == len(self.members):
            message = "all inputs are outputs of ema-avg: this is an average of averages"
            self.warnings.append(RunWarning(code=AVERAGES_AVERAGED, message=message))
            return
        self.members = [opened for opened in self.members if not opened.checkpoint.made_by_us]
        for opened in ours:
            self._skip(opened, _OWN_OUTPUT, made_by_us=True)

    def warn_of_changed_outputs(self) -> None:
        """Warn of members that a report lists as outputs, and that have other bytes."""
        for opened in self.members:
            if opened.checkpoint.mark is Mark.CHANGED:
                path = opened.candidate.path
                message = f"{quoted(str(path))} is used as a checkpoint: it is not the output that the report lists"
                hint = f"if it is no checkpoint, move it; if it is, remove {quoted(report_name(path.name))}"
                self.warnings.append(RunWarning(code="output-changed", message=message, hint=hint))

    def skip_snapshots(self) -> None:
        """Skip snapshots of a live EMA beside checkpoints, unless all inputs are snapshots."""
        live = [opened for opened in self.members if opened.checkpoint.is_snapshot]
        if len(live) < len(self.members):
            self.members = [opened for opened in self.members if not opened.checkpoint.is_snapshot]
            for opened in live:
                self._skip(opened, _SNAPSHOT)

    def skip_repeats(self) -> None:
        """Keep a checkpoint that is named twice once, even if the second name is that of a file in its folder."""
        owners: dict[object, Checkpoint] = {}
        repeated: set[int] = set()
        for opened in sorted(self.members, key=prefers):
            files = opened.checkpoint.index.identity
            sharing = [owners[file] for file in files if file in owners]
            same = next(
                (known for known in sharing if files <= known.index.identity or files >= known.index.identity), None
            )
            if same is not None:
                kind = "file" if files == same.index.identity else "checkpoint"
                own = absolute(same.path) == absolute(opened.checkpoint.path)
                self._skip(opened, "named twice" if own else f"the same {kind} as {quoted(str(same.path))}")
                repeated.add(id(opened))
                continue
            for file in files:
                owners.setdefault(file, opened.checkpoint)
        self.members = [opened for opened in self.members if id(opened) not in repeated]

    def skip_second_saves(self) -> None:
        """Skip a numbered checkpoint of a folder with the steps and the weights of another one there."""
        kept: list[OpenedCheckpoint] = []
        saves: dict[object, list[OpenedCheckpoint]] = {}
        for opened in self.members:
            run, steps = opened.candidate.run, opened.checkpoint.steps
            known = saves.setdefault((run, steps), []) if run is not None and steps else []
            same = next(
                (one for one in known if have_equal_checksums(one.checkpoint.index, opened.checkpoint.index)), None
            )
            if same is None:
                known.append(opened)
                kept.append(opened)
            else:
                self._skip(opened, f"a copy of {quoted(same.candidate.name)}: the same step and weights inside")
        self.members = kept

    def _skip(self, opened: OpenedCheckpoint, reason: str, *, made_by_us: bool = False) -> None:
        path = opened.candidate.path
        self.skipped.append(Skipped(path=path, reason=reason, made_by_us=made_by_us))
        opened.checkpoint.index.close()


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
    title = f"{plural(len(faults), 'input')} cannot be used:"
    message = listing(title, list(_by_reason(faults)), most=_MOST_FAULTS)
    hint = next((fault.hint for fault in faults[:_MOST_FAULTS] if fault.hint), "")
    raise kind(message, hint=hint, proposals=[proposal for fault in faults for proposal in fault.proposals])


def _by_reason(faults: Sequence[EmaAvgError]) -> Iterator[str]:
    """Yield the messages, those that differ only in the name at their beginning together."""
    found: dict[str, list[tuple[str, str]]] = {}
    for fault in faults:
        parts = _FAULT.fullmatch(fault.message)
        name, reason = parts.groups() if parts else ("", "")
        found.setdefault(reason or fault.message, []).append((name, fault.message))
    for (_, message), *others in found.values():
        names = [name for name, _ in others if name]
        yield message + (f"; the same: {shortlist(names, most=_MOST_NAMES)}" if names else "")
