"""``--tied drop``: which name of tied tensors is written, and which names may be dropped.

The choice is that of ``save_model`` in ``safetensors.torch``: the first name in alphabetical order is written, and the
metadata map each dropped name to it. The ties of the last checkpoint decide. If another checkpoint does not have a tie,
the averages of the two names differ, so both are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options.output_options import OUR_METADATA
from ema_cli.planning.matching import Chosen
from ema_cli.record import record
from ema_cli.records.series import Checkpoint


@record
class DroppedTies:
    """The ties of the last checkpoint: dropped names, and names that are written in spite of their tie."""

    replaced_by: Mapping[str, str]
    """The name that is written, by each name that is not."""
    apart: tuple[str, ...] = ()
    """Names that are tied in the last checkpoint, and written nevertheless."""


def drop_ties(checkpoints: Sequence[Checkpoint], tensors: Sequence[Chosen]) -> DroppedTies:
    """Return which names need not be written, from the checkpoints that are read and the selected tensors of each."""
    ties = [checkpoint.ties for checkpoint in checkpoints]
    replaced_by = _recorded(checkpoints[-1], tensors[-1])
    apart: list[str] = []
    for group in _groups(ties[-1], tensors[-1]):
        kept = min(group, key=lambda name: (any(name not in known for known in tensors), name))
        for name in group:
            if name != kept and _may_be_dropped(name, kept, ties, tensors):
                replaced_by[name] = kept
            elif name != kept:
                apart.append(name)
    return DroppedTies(replaced_by=replaced_by, apart=tuple(apart))


def _groups(ties: Mapping[str, str], tensors: Chosen) -> list[list[str]]:
    """Return the names of each tensor that has several names."""
    groups: dict[str, list[str]] = {}
    for name, first in ties.items():
        groups.setdefault(first, [first]).append(name)
    chosen = [[name for name in group if name in tensors] for group in groups.values()]
    return [group for group in chosen if len(group) > 1]


def _may_be_dropped(name: str, kept: str, ties: Sequence[Mapping[str, str]], tensors: Sequence[Chosen]) -> bool:
    """Whether the two names are one tensor in every checkpoint that has both, and are averaged alike."""
    if is_batch_norm_statistic(name) != is_batch_norm_statistic(kept):
        return False
    both = [known_ties for known_ties, known in zip(ties, tensors, strict=True) if name in known and kept in known]
    return all(known_ties.get(name, name) == known_ties.get(kept, kept) for known_ties in both)


def _recorded(last: Checkpoint, tensors: Chosen) -> dict[str, str]:
    """Return the names that were dropped when the last checkpoint was saved, from its metadata."""
    return {
        name: kept
        for name, kept in last.metadata.items()
        if kept in tensors and name not in tensors and not name.startswith(OUR_METADATA) and name != "format"
    }
