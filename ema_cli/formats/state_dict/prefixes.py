"""Prefixes that wrappers add to parameter names, and their removal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ema_cli.errors import UsageError
from ema_cli.record import record
from ema_cli.text import quoted, regex

T = TypeVar("T")
_PARALLEL = "module."
"""DataParallel and DistributedDataParallel; a model may have a part of this name, so all weights must have it."""
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""torch.compile, FSDP, activation checkpointing, and Lightning's strategies; no model uses these names itself."""

_WRAPPER_PARTS = regex(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, _WRAPPERS))})")


@record
class StrippedNames:
    """Names without the prefixes of wrappers."""

    names: list[str]
    """In the order of the original names."""
    prefixes: tuple[str, ...] = ()
    """The prefixes that were removed."""
    warnings: tuple[str, ...] = ()
    """Warnings about prefixes that were not removed."""


def strip_prefixes(
    names: Sequence[str], prefix: str | None, *, parts: Sequence[str] = (), bare: Iterable[str] = ()
) -> StrippedNames:
    """Remove the prefixes of wrappers where they are, in each part of a checkpoint by itself.

    Args:
        names: of all tensors of a checkpoint.
        prefix: the prefix to remove; ``None`` for the prefixes of known wrappers, empty for none.
        parts: what the names of each part begin with, as several ``--key`` do; empty if there is one part.
        bare: names that need not have a prefix, as counters are not wrapped.

    Raises:
        UsageError: a name would be empty without ``prefix``, or two would be equal.

    """
    if not parts:
        return _strip_part(names, prefix, frozenset(bare))
    found = list(names)
    prefixes: list[str] = []
    warnings: list[str] = []
    for part in parts:
        head = f"{part}."
        own = [number for number, name in enumerate(names) if name.startswith(head)]
        inner = frozenset(name.removeprefix(head) for name in bare if name.startswith(head))
        clean = _strip_part([names[number].removeprefix(head) for number in own], prefix, inner)
        for number, name in zip(own, clean.names, strict=True):
            found[number] = head + name
        prefixes.extend(clean.prefixes)
        warnings.extend(clean.warnings)
    return StrippedNames(names=found, prefixes=tuple(dict.fromkeys(prefixes)), warnings=tuple(dict.fromkeys(warnings)))


def without_wrappers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return values by name, under names without the prefixes of wrappers."""
    return dict(zip(_strip_part(list(tensors), None, frozenset()).names, tensors.values(), strict=True))


def without_module_wrappers(name: str) -> str:
    """Return the name of a tensor without the parts of module wrappers; ``module.`` may be the model's own."""
    return _WRAPPER_PARTS.sub("", name)


def _strip_part(names: Sequence[str], prefix: str | None, bare: frozenset[str]) -> StrippedNames:
    if prefix is not None:
        return _strip_given(names, prefix)
    cleaned = list(names)
    wrapped = [name not in bare for name in names]
    stripped: list[str] = []
    while (leading := _leading(cleaned, wrapped)) is not None:
        cleaned = [name.removeprefix(leading) for name in cleaned]
        stripped.append(leading)
    for part in _WRAPPERS:
        if any(f".{part}" in name for name in cleaned):
            cleaned = [re.sub(rf"(?<=\.)(?:{re.escape(part)})+", "", name) for name in cleaned]
            stripped.append(f"….{part}")
    if len(set(cleaned)) != len(set(names)):
        twice = Counter(cleaned).most_common(1)[0][0]
        warning = (
            f"the prefixes {', '.join(stripped)} are kept: without them two tensors would have the name {quoted(twice)}"
        )
        return StrippedNames(names=list(names), warnings=(warning,))
    return StrippedNames(names=cleaned, prefixes=tuple(dict.fromkeys(stripped)), warnings=_warnings_on_some(cleaned))


def _leading(names: Sequence[str], wrapped: Sequence[bool]) -> str | None:
    """Return a prefix to remove: of a wrapper if any name has it, ``module.`` if all wrapped names have it."""
    for prefix in (_PARALLEL, *_WRAPPERS):
        having = [name.startswith(prefix) for name in names]
        if not any(having) or prefix in names:
            continue
        if prefix != _PARALLEL or all(has or not must for has, must in zip(having, wrapped, strict=True)):
            return prefix
    return None


def _warnings_on_some(names: Sequence[str]) -> tuple[str, ...]:
    """Return a warning about the prefix that only some of the names have."""
    without = [name for name in names if not name.startswith(_PARALLEL)]
    carrying = len(names) - len(without)
    if not (without and carrying):
        return ()
    kept = f"the prefix {quoted(_PARALLEL)} of {carrying:,} of {len(names):,} names is kept"
    return (f"{kept}, as other names, such as {quoted(without[0])}, do not have it",)


def _strip_given(names: Sequence[str], prefix: str) -> StrippedNames:
    if prefix and prefix in names:
        raise UsageError(f"tensor {quoted(prefix)} would have an empty name after --strip-prefix {quoted(prefix)}")
    cleaned = [name.removeprefix(prefix) for name in names]
    twice = next((name for name, count in Counter(cleaned).items() if count > 1), None)
    if twice is not None and len(set(names)) == len(names):
        raise UsageError(f"two tensors would have the name {quoted(twice)} after --strip-prefix {quoted(prefix)}")
    return StrippedNames(names=cleaned, prefixes=(prefix,) if cleaned != list(names) else ())


def refuse_unused_prefix(prefix: str | None, found: Iterable[tuple[str, ...]]) -> None:
    """Raise if a prefix that the user gave was removed from no name.

    Args:
        prefix: as given.
        found: the prefixes that were removed, for each checkpoint.

    Raises:
        UsageError: no name in any of them begins with it.

    """
    if prefix and not any(found):
        raise UsageError(
            f"no tensor begins with --strip-prefix {quoted(prefix)}",
            hint="the names are listed by: ema-avg inspect CKPT",
        )
