"""One run under a fault, and what was wrong after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True, slots=True)
class Case:
    """One run under a fault."""

    tried: str
    problems: list[str]
    seconds: float | None = None
    """How long the run took to end after it was told to."""


Part = Callable[[Path, Random], Iterator[Case]]


class CannotBeTried(Exception):  # noqa: N818 - nothing is wrong
    """What a part needs is not there; the message says what."""


def wrong(checks: Mapping[str, object]) -> list[str]:
    """Return the words of the checks that say that something is wrong."""
    return [words for words, is_wrong in checks.items() if is_wrong]
