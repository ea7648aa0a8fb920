"""What a part of a campaign yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True, slots=True)
class Case:
    """One run under a fault."""

    tried: str
    problems: list[str]


Part = Callable[[Path, Random], Iterator[Case]]
