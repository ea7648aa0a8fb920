"""The stand-ins that an inert pickle is made of, and what may be a key of a dictionary in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

_LARGEST_KEY = 64
"""Bits of a number that is hashed as a key."""


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


@dataclass(frozen=True, slots=True)
class TooLong:
    """A text or a byte string that is too long to be the name of anything."""

    size: int
    """Bytes."""


Reduce = Callable[[Global, tuple[object, ...]], object]
"""Gives the value of a call of a global, usually an ``Inert``."""
PersistentLoad = Callable[[object], object]
"""Gives the value of a persistent id."""


_TUPLE = Global("builtins", "tuple")


def no_reduce(kind: Global, args: tuple[object, ...]) -> object:
    """Record the call and do nothing."""
    return Inert(kind, args)


def no_persistent_load(_: object) -> NoReturn:
    """Refuse persistent ids, for pickles that have no business with them."""
    raise PickleError("it refers to objects outside the pickle")


def as_key(key: object) -> object:
    """Return what stands for a key of a dictionary.

    A tuple is replaced by a stand-in, which is equal to nothing else: its hash could cost more than the bytes that
    wrote it, and many tuples can be made to have the same one.

    Raises:
        PickleError: it cannot be a key.

    """
    if isinstance(key, tuple):
        return Inert(_TUPLE, key)
    if isinstance(key, int) and key.bit_length() > _LARGEST_KEY:
        raise PickleError("a dictionary key is a giant number")
    if not (key is None or isinstance(key, str | int | float | bytes | Inert | Global)):
        raise PickleError(f"a dictionary key is a {type(key).__name__} that cannot be one")
    return key
