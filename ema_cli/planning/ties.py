"""Tied tensors of which one name is written: which name is kept, and which ties may be dropped.

The choice is that of ``save_model`` in ``safetensors.torch``: the first name in alphabetical order, and the metadata
tell for each dropped name the one that stands for it. The ties of the last checkpoint decide. A tie that another
checkpoint does not have joins averages that differ, so both names are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options.output import OUR_METADATA
from ema_cli.planning.matching import Chosen
from ema_cli.records.series import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedTies:
    """What becomes of the ties of the last checkpoint."""

    kept_for: Mapping[str, str]
    """The name that is written, for each that is not."""
    apart: tuple[str, ...] = ()
    """Names that are written although they are tied in the last checkpoint."""


def drop_ties(checkpoints: Sequence[Checkpoint], tensors: Sequence[Chosen]) -> DroppedTies:
    """Return which names need not be written.

    Args:
        checkpoints: those that take part, the last one at the end.
        tensors: that are wanted of each of them.

    """
    ties = [checkpoint.ties for checkpoint in checkpoints]
    kept_for = _recorded(checkpoints[-1], tensors[-1])
    apart: list[str] = []
    for group in _groups(ties[-1], tensors[-1]):
        kept = min(group, key=lambda name: (any(name not in known for known in tensors), name))
        for name in group:
            if name == kept:
                continue
            if _may_be_dropped(name, kept, ties, tensors):
                kept_for[name] = kept
            else:
                apart.append(name)
    return DroppedTies(kept_for=kept_for, apart=tuple(apart))


def _groups(ties: Mapping[str, str], tensors: Chosen) -> list[list[str]]:
    """Return the names of each tensor that has several."""
    groups: dict[str, list[str]] = {}
    for name, first in ties.items():
        groups.setdefault(first, [first]).append(name)
    chosen = [[name for name in group if name in tensors] for group in groups.values()]
    return [group for group in chosen if len(group) > 1]


def _may_be_dropped(name: str, kept: str, ties: Sequence[Mapping[str, str]], tensors: Sequence[Chosen]) -> bool:
    """Whether the two are one tensor in every checkpoint that has both, and are treated alike."""
    if is_batch_norm_statistic(name) != is_batch_norm_statistic(kept):
        return False
    both = [of_one for of_one, known in zip(ties, tensors, strict=True) if name in known and kept in known]
    return all(of_one.get(name, name) == of_one.get(kept, kept) for of_one in both)


def _recorded(last: Checkpoint, tensors: Chosen) -> dict[str, str]:
    """Return the names that were dropped when the last checkpoint was saved, as its metadata tell."""
    return {
        name: kept
        for name, kept in last.metadata.items()
        if kept in tensors and name not in tensors and not name.startswith(OUR_METADATA) and name != "format"
    }
