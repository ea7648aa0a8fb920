"""Prefixes that wrappers put in front of parameter names, and how they are taken off. Pure text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ema_cli.errors import UsageError
from ema_cli.text import quoted

_LEADING = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""DistributedDataParallel, torch.compile, FSDP and activation checkpointing; removed when all names carry it."""
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of inner modules, which no model calls its own parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripped:
    """Names without wrappers' prefixes."""

    names: list[str]
    """In the order of the names with them."""
    prefixes: tuple[str, ...] = ()
    """What was taken off."""
    notes: tuple[str, ...] = ()
    """Why a prefix of a wrapper is still there."""


def strip_prefixes(names: Sequence[str], prefix: str | None) -> Stripped:
    """Take wrappers' prefixes off the names, by one rule for all of them.

    Args:
        names: of all tensors of a checkpoint.
        prefix: the one prefix to remove; ``None`` for those of known wrappers, empty for none.

    Raises:
        UsageError: two names would become one, or ``prefix`` is not in front of every name.

    """
    if prefix is not None:
        return _strip_given(names, prefix)
    cleaned = list(names)
    stripped: list[str] = []
    while (leading := _common(cleaned)) is not None:
        cleaned = [name.removeprefix(leading) for name in cleaned]
        stripped.append(leading)
    for part in _ANYWHERE:
        if any(f".{part}" in name for name in cleaned):
            cleaned = [re.sub(rf"(?<=\.)(?:{re.escape(part)})+", "", name) for name in cleaned]
            stripped.append(f"….{part}")
    if len(set(cleaned)) != len(set(names)):
        twice = Counter(cleaned).most_common(1)[0][0]
        note = f"the prefixes {', '.join(stripped)} stay, as two tensors would be called {quoted(twice)} without them"
        return Stripped(names=list(names), notes=(note,))
    return Stripped(names=cleaned, prefixes=tuple(stripped), notes=_notes_on_some(cleaned))


def _notes_on_some(names: Sequence[str]) -> tuple[str, ...]:
    """Tell of prefixes that some names carry and others do not, which is no uniform rule."""
    notes = []
    for prefix in _LEADING:
        without = [name for name in names if not name.startswith(prefix)]
        if 0 < len(without) < len(names):
            carrying = len(names) - len(without)
            notes.append(
                f"{carrying:,} of {len(names):,} names begin with {quoted(prefix)}, which stays, as others such as "
                f"{quoted(without[0])} do not"
            )
    return tuple(notes)


def _common(names: Sequence[str]) -> str | None:
    return next((p for p in _LEADING if names and all(n.startswith(p) and n != p for n in names)), None)


def _strip_given(names: Sequence[str], prefix: str) -> Stripped:
    bare = next((name for name in names if not name.startswith(prefix)), None)
    if bare is not None:
        raise UsageError(f"tensor {quoted(bare)} does not begin with --strip-prefix {quoted(prefix)}")
    if prefix and prefix in names:
        raise UsageError(f"tensor {quoted(prefix)} would have no name left after --strip-prefix {quoted(prefix)}")
    return Stripped(names=[name.removeprefix(prefix) for name in names], prefixes=(prefix,) if prefix else ())
