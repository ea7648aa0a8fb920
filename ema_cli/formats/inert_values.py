"""The stand-ins that an inert pickle is made of, and what may be a key of a dictionary in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

_LARGEST_KEY = 64
"""Parts of a tuple, or bits of a number, that is hashed as a key."""


class PickleError(ValueError):
    """The bytes are not a pickle that this machine reads."""


class PickleTruncated(PickleError):  # noqa: N818 - says what happened
    """The bytes end before the pickle does."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or function that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Inert:
    """What the pickle wanted to build by calling ``kind(*args)``, and what it then stored in it."""

    kind: object
    args: tuple[object, ...] = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    """What was set by key."""
    entries: list[object] = field(default_factory=list)
    """What was appended or added."""


Reduce = Callable[[Global, tuple[object, ...]], object]
"""Gives the value of a call of a global, usually an ``Inert``."""
PersistentLoad = Callable[[object], object]
"""Gives the value of a persistent id."""


def no_reduce(kind: Global, args: tuple[object, ...]) -> object:
    """Record the call and do nothing."""
    return Inert(kind, args)


def no_persistent_load(_: object) -> NoReturn:
    """Refuse persistent ids, for pickles that have no business with them."""
    raise PickleError("it refers to objects outside the pickle")


def check_key(key: object) -> None:
    """Refuse keys whose hash could cost more than the bytes that wrote them."""
    if type(key) is str:
        return
    parts = [key]
    seen = 0
    while parts:
        part = parts.pop()
        seen += 1
        if isinstance(part, tuple) and seen + len(parts) + len(part) <= _LARGEST_KEY:
            parts.extend(part)
        elif isinstance(part, int) and part.bit_length() > _LARGEST_KEY:
            raise PickleError("a dictionary key is a giant number")
        elif not (part is None or isinstance(part, str | int | float | bytes | Inert | Global)):
            raise PickleError(f"a dictionary key is a {type(part).__name__} that cannot be one")
