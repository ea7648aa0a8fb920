"""Prefixes that wrappers add to parameter names, and their removal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ema_cli.errors import UsageError
from ema_cli.text import quoted

_LEADING = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""DistributedDataParallel, torch.compile, FSDP and activation checkpointing; removed if all names have it."""
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of inner modules; no model uses these names for its own parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrippedNames:
    """Names without the prefixes of wrappers."""

    names: list[str]
    """In the order of the original names."""
    prefixes: tuple[str, ...] = ()
    """The prefixes that were removed."""
    notes: tuple[str, ...] = ()
    """Warnings about prefixes that were not removed."""


def strip_prefixes(names: Sequence[str], prefix: str | None) -> StrippedNames:
    """Remove the prefixes of wrappers, by one rule for all names.

    Args:
        names: of all tensors of a checkpoint.
        prefix: the prefix to remove; ``None`` for the prefixes of known wrappers, empty for none.

    Raises:
        UsageError: a name does not begin with ``prefix``, or would be empty without it.

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
        note = (
            f"the prefixes {', '.join(stripped)} are kept: without them two tensors would have the name {quoted(twice)}"
        )
        return StrippedNames(names=list(names), notes=(note,))
    return StrippedNames(names=cleaned, prefixes=tuple(stripped), notes=_notes_on_some(cleaned))


def _notes_on_some(names: Sequence[str]) -> tuple[str, ...]:
    """Return warnings about prefixes that only some of the names have."""
    notes = []
    for prefix in _LEADING:
        without = [name for name in names if not name.startswith(prefix)]
        if 0 < len(without) < len(names):
            carrying = len(names) - len(without)
            notes.append(
                f"the prefix {quoted(prefix)} of {carrying:,} of {len(names):,} names is kept, as other names, such as "
                f"{quoted(without[0])}, do not have it"
            )
    return tuple(notes)


def _common(names: Sequence[str]) -> str | None:
    return next((p for p in _LEADING if names and all(n.startswith(p) and n != p for n in names)), None)


def _strip_given(names: Sequence[str], prefix: str) -> StrippedNames:
    bare = next((name for name in names if not name.startswith(prefix)), None)
    if bare is not None:
        raise UsageError(f"tensor {quoted(bare)} does not begin with --strip-prefix {quoted(prefix)}")
    if prefix and prefix in names:
        raise UsageError(f"tensor {quoted(prefix)} would have an empty name after --strip-prefix {quoted(prefix)}")
    return StrippedNames(names=[name.removeprefix(prefix) for name in names], prefixes=(prefix,) if prefix else ())
