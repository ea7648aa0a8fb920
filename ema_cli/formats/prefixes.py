"""Prefixes that wrappers put in front of parameter names, and how they are taken off. Pure text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.text import quoted

_LEADING = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""DistributedDataParallel, torch.compile, FSDP and activation checkpointing; removed when all names carry it."""
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of inner modules, which no model calls its own parts."""


def strip_prefixes(names: Sequence[str], prefix: str | None) -> tuple[list[str], tuple[str, ...]]:
    """Return the names without wrappers' prefixes, and which were taken off.

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
        return list(names), ()
    return cleaned, tuple(stripped)


def _common(names: Sequence[str]) -> str | None:
    return next((p for p in _LEADING if names and all(n.startswith(p) and n != p for n in names)), None)


def _strip_given(names: Sequence[str], prefix: str) -> tuple[list[str], tuple[str, ...]]:
    bare = next((name for name in names if not name.startswith(prefix)), None)
    if bare is not None:
        raise UsageError(f"tensor {quoted(bare)} does not begin with --strip-prefix {quoted(prefix)}")
    if prefix and prefix in names:
        raise UsageError(f"tensor {quoted(prefix)} would have no name left after --strip-prefix {quoted(prefix)}")
    return [name.removeprefix(prefix) for name in names], (prefix,) if prefix else ()
