"""Patterns of ``--include`` and ``--exclude`` that find no tensor, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from ema_cli.errors import RunWarning
from ema_cli.naming import did_you_mean
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint
from ema_cli.text import quoted, regex, shortlist

_MOST_WORDS = 10
_WORDS = regex(r"(?:[\w-]|\\\.|\.(?![*+?{]))+")


def warn_of_unused_patterns(checkpoints: Sequence[Checkpoint], options: Options) -> Iterator[RunWarning]:
    """Yield a warning for each pattern of ``--include`` and ``--exclude`` that finds no tensor of any checkpoint."""
    if not (options.include or options.exclude):
        return
    layouts = {id(checkpoint.index.layouts): checkpoint.index.layouts for checkpoint in checkpoints}
    names = {layout.name for found in layouts.values() for layout in found}
    names |= {name for checkpoint in checkpoints for name, _ in checkpoint.unreadable}
    for flag, patterns in (("--include", options.include), ("--exclude", options.exclude)):
        for pattern in patterns:
            if any(map(re.compile(pattern).search, names)):
                continue
            yield RunWarning(
                code="pattern-unused",
                message=f"no tensor has a name that {flag} {quoted(pattern)} finds",
                hint=_instead_of(pattern, names, checkpoints),
            )


def _instead_of(pattern: str, names: Collection[str], checkpoints: Sequence[Checkpoint]) -> str:
    """Return what to do instead of a pattern that finds no tensor, but perhaps checkpoints."""
    files = [quoted(one.path.name) for one in checkpoints if re.search(pattern, str(one.path))]
    if files and len(files) < len(checkpoints):
        return f"it selects tensors, not checkpoints: name those to average, without {shortlist(files)}"
    return nearest_tensors([pattern], names)


def nearest_tensors(patterns: Iterable[str], names: Collection[str]) -> str:
    """Return a hint with the parts of tensor names that are spelled like the words of a pattern that finds none.

    The words of ``encodr.*bias$`` are ``encodr`` and ``bias``; one of three parts is compared with all that have three:
    ``layer.0.atn``.
    """
    words = (word for pattern in patterns for word in _words(pattern))
    for word in islice(words, _MOST_WORDS):
        if not any(word in name for name in names):
            length = word.count(".") + 1
            close = did_you_mean(word, {part for name in names for part in _parts(name, length)}, shown=quoted)
            if close:
                return close
    return "the names are listed by: ema-avg inspect CKPT"


def _words(pattern: str) -> list[str]:
    """Return the pieces of a regular expression that stand for themselves, with their dots."""
    found = _WORDS.findall(re.sub(r"\\[A-Za-z]", "*", pattern))
    return [word for word in (piece.replace("\\", "").strip(".") for piece in found) if word]


def _parts(name: str, length: int) -> Iterator[str]:
    """Yield the sequences of so many parts of a dotted name."""
    parts = name.split(".")
    return (".".join(parts[begin : begin + length]) for begin in range(len(parts) - length + 1))
