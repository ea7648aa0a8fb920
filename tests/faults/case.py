"""One run under a fault, and the problems found after it."""

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
    """How long the run took to end after a signal, or all ranks after the failure of one."""


Part = Callable[[Path, Random], Iterator[Case]]


class CannotBeTried(Exception):  # noqa: N818 - not an error
    """The machine lacks something that a part needs; the message says what."""


def wrong(checks: Mapping[str, object]) -> list[str]:
    """Return the texts of the checks that found a problem."""
    return [words for words, is_wrong in checks.items() if is_wrong]
