"""The values of a pickle: plain Python values, and inert stand-ins for classes, functions and objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

_MOST_KEY_BITS = 64


class PickleError(ValueError):
    """The bytes are not a pickle that this machine reads."""


class PickleTruncated(PickleError):  # noqa: N818 - the name says what happened
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
    """An object that the pickle describes as ``kind(*args)``, with everything that is stored in it afterwards."""

    kind: object
    args: tuple[object, ...] = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    """Set by key."""
    entries: list[object] = field(default_factory=list)
    """Appended or added."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """A string or byte string that is too long to be a name, and was not kept."""

    size: int
    """Bytes."""


Reduce = Callable[[Global, tuple[object, ...]], object]
"""Returns the value for a call of a global, usually an ``Inert``."""
PersistentLoad = Callable[[object], object]
"""Returns the value for a persistent id."""


_TUPLE = Global("builtins", "tuple")


def no_reduce(kind: Global, args: tuple[object, ...]) -> object:
    """Record the call and do nothing."""
    return Inert(kind, args)


def no_persistent_load(_: object) -> NoReturn:
    """Refuse persistent ids, in pickles that should have none."""
    raise PickleError("it refers to objects outside the pickle")


def as_key(key: object) -> object:
    """Return a dictionary key that is safe to hash.

    A tuple is replaced by an ``Inert``, which equals nothing else: hashing nested tuples can take exponential time,
    and many tuples of the same hash are easy to make.

    Raises:
        PickleError: it cannot be a key.

    """
    if isinstance(key, tuple):
        return Inert(_TUPLE, key)
    if isinstance(key, int) and key.bit_length() > _MOST_KEY_BITS:
        raise PickleError(f"a dictionary key is a number of more than {_MOST_KEY_BITS} bits")
    if not (key is None or isinstance(key, str | int | float | bytes | Inert | Global)):
        raise PickleError(f"a dictionary key is a {type(key).__name__}, which cannot be a key")
    return key
