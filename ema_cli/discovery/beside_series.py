"""Checkpoints beside a numbered series: the step inside gives them a place in it, or they are skipped.

``last.ckpt`` is a copy of a member, or the newest of all: only the step inside says which. The order of the members
never depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path

from ema_cli.discovery.candidates import Candidate
from ema_cli.formats.series_names import AVERAGE, NAME_TO_USE, has_place, why_skipped
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.step_names import steps_from_names
from ema_cli.storage.extents import Extent, TensorIndex
from ema_cli.storage.locations import absolute
from ema_cli.text import quoted

Clock = tuple[int, ...]
"""A position in training, in numbers that can be compared: a step, or an epoch and a step that begins again in it."""
NO_PLACE = f"no step inside gives it a place in the numbered series, of which it may be a copy {NAME_TO_USE}"
_EPOCH = "epoch"


@record
class OpenedCheckpoint:
    """An opened checkpoint of a folder."""

    candidate: Candidate
    checkpoint: Checkpoint

    @property
    def steps(self) -> Mapping[str, tuple[str, int]]:
        """The unit and value of each step, by the place where it was read: inside, or else in the name."""
        (named,) = steps_from_names([self.candidate.name])
        inside = {step.source: (step.unit, step.value) for step in self.checkpoint.steps}
        return inside | ({f"name: {named.unit}": (named.unit, named.value)} if named and self._counts else {})

    @property
    def _counts(self) -> bool:
        """Whether the step in its name counts."""
        return not self.candidate.beside or has_place(self.candidate.name)


def reason_to_skip(opened: OpenedCheckpoint, members: Sequence[OpenedCheckpoint]) -> str:
    """Return why a checkpoint beside the ``members`` of a series is skipped; empty if it is another member."""
    index = opened.checkpoint.index
    same = next((one for one in members if one.checkpoint.index.identity == index.identity), None)
    if same is not None:
        return f"a link to {quoted(same.candidate.name)}"
    if opened.candidate.reason and not _is_named_for_content(opened):
        return opened.candidate.reason
    if not any(one.checkpoint.index.layouts is index.layouts for one in members):
        return f"its tensors are not those of the numbered checkpoints {NAME_TO_USE}"
    clocks = _clocks([*members, opened])
    own = clocks[-1] if clocks else None
    same = next((member for member, clock in zip(members, clocks, strict=False) if clock == own), None)
    if same is not None:
        return f"a copy of {quoted(same.candidate.name)}: the same step inside"
    same = next((one for one in members if have_equal_checksums(one.checkpoint.index, index)), None)
    if same is not None:
        return f"a copy of {quoted(same.candidate.name)}: the same weights"
    return "" if clocks else NO_PLACE


def _is_named_for_content(opened: OpenedCheckpoint) -> bool:
    """Whether a file is called an average because it is a snapshot of a live EMA, as all members then are."""
    return opened.checkpoint.is_snapshot and why_skipped(opened.candidate.name) == AVERAGE


def prefers(opened: OpenedCheckpoint) -> tuple[bool, int]:
    """Sort key: of two names of one checkpoint, the one that is no link, and is not behind one, is kept."""
    path = opened.checkpoint.path
    if not isinstance(path, Path):
        return False, 0
    named, real = absolute(path).split("/"), os.path.realpath(path).split("/")
    own = sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], zip(named[::-1], real[::-1], strict=False)))
    return named != real, -own if named != real else 0


def have_equal_checksums(one: TensorIndex, other: TensorIndex) -> bool:
    """Whether two files hold the same weights by the checksums that they store; false where a file stores none."""
    if one.layouts is not other.layouts or one.size() == 0:
        return False
    checksums = [
        (_checksum(one, position), _checksum(other, position))
        for position, layout in enumerate(one.layouts)
        if layout.elements
    ]
    return bool(checksums) and all(a is not None and a == b for a, b in checksums)


def _checksum(index: TensorIndex, position: int) -> tuple[int, int, int] | None:
    """Return the checksum of the record that a tensor is in, its size, and the tensor's place in it."""
    extent = index.extent(position)
    if not isinstance(extent, Extent) or extent.record is None:
        return None
    return extent.record.crc32, extent.record.size, extent.offset - extent.record.offset


def _clocks(checkpoints: Sequence[OpenedCheckpoint]) -> list[Clock]:
    """Return the position of each checkpoint by the best step that all have; empty if there is none."""
    steps = [opened.steps for opened in checkpoints]
    common = [place for place in steps[-1] if all(place in found for found in steps)]
    for place in common:
        values = [found[place][1] for found in steps]
        if len(values) > 2 and len(set(values[:-1])) == 1:  # noqa: PLR2004 - equal in all members: no step
            continue
        epochs = [[found[other][1] for found in steps] for other in common if steps[-1][other][0] == _EPOCH]
        if epochs and steps[-1][place][0] != _EPOCH and _starts_again(epochs[0], values):
            return list(zip(epochs[0], values, strict=True))
        return [(value,) for value in values]
    return []


def _starts_again(epochs: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether the steps do not increase with the epochs."""
    return any(a > b for (_, a), (_, b) in pairwise(sorted(zip(epochs, steps, strict=True))))
