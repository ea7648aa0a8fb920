"""Read a pickle without importing or calling anything that it names.

Input -> output: the bytes of one pickle, protocols 0 to 5 -> plain Python values, with an inert stand-in for every
class and function. The machine has no ``getattr``, no import and no call: a name becomes a ``Global``, calling one
becomes what the caller's ``reduce`` returns for that name, by default an ``Inert`` record of the attempt.

Work and memory are bounded: nothing is allocated by a declared length, what each opcode allocates is counted and
may not exceed ``most_bytes``, and only scalars and stand-ins are ever hashed (hashing nested shared tuples takes
exponential time, and whoever writes the file can make tuples of equal hashes).
What the opcodes do stands beside this file, a file for each kind of them.
Reference: the opcode documentation in CPython's ``pickletools``.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ema_cli.formats.inert_pickle import (
    call_opcodes as inert_calls,
)
from ema_cli.formats.inert_pickle import (
    container_opcodes as inert_containers,
)
from ema_cli.formats.inert_pickle import (
    memo as inert_memo,
)
from ema_cli.formats.inert_pickle import (
    scalar_opcodes as inert_scalars,
)
from ema_cli.formats.inert_pickle import (
    text_opcodes as inert_texts,
)
from ema_cli.formats.inert_pickle.costs import COSTS, MOST_BYTES
from ema_cli.formats.inert_pickle.machine import Operation, State, unsigned4
from ema_cli.formats.inert_pickle.memo import FORGOTTEN
from ema_cli.formats.inert_pickle.values import (
    PersistentLoad,
    PickleError,
    PickleTruncated,
    Reduce,
    no_persistent_load,
    no_reduce,
)

_STOP, _PUT4, _MEMOIZE, _GET1, _INT1 = map(ord, ".r\x94hK")
_NEWEST_PROTOCOL = 5


def loads(
    data: bytes,
    start: int = 0,
    *,
    reduce: Reduce = no_reduce,
    persistent_load: PersistentLoad = no_persistent_load,
    most_bytes: int = MOST_BYTES,
) -> tuple[object, int]:
    """Return the value of the pickle at ``start`` of ``data``, and the position behind it.

    Args:
        data: the bytes.
        start: where the pickle begins.
        reduce: answers the calls in it.
        persistent_load: answers its persistent ids.
        most_bytes: memory that it may take, as it is counted here.

    Raises:
        PickleTruncated: ``data`` ends inside the pickle.
        PickleError: anything else is wrong with it.

    """
    machine = _Machine(data, start, reduce, persistent_load, most_bytes)
    try:
        with _without_collections():
            return machine.run(), machine.position
    except PickleError:
        raise
    except struct.error as error:
        raise PickleTruncated("it ends in the middle") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PickleError(f"damaged at byte {machine.position:,}") from error


@contextmanager
def _without_collections() -> Iterator[None]:
    """Millions of new values, none of them garbage, would make Python look for garbage again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Machine(State):
    """The stack machine."""

    __slots__ = ()

    def run(self) -> object:
        """Carry out the opcodes up to the one that stops, and return what is on top of the stack then.

        Four opcodes are more than half of what torch writes. They are carried out here, without a call and with the
        position in a local variable: all takes three quarters of the time then.
        """
        data, size, memo, most_bytes = self.data, len(self.data), self.memo, self.most_bytes
        position = self.position
        while position < size:
            code = data[position]
            position += 1
            self.spent += COSTS[code]
            if self.spent > most_bytes:
                self.charge(0)  # which raises
            if code == _PUT4 and self.stack and unsigned4(data, position)[0] == len(memo):
                memo.append(self.stack[-1])
                position += 4
                continue
            if code == _MEMOIZE and self.stack and not self.sparse_memo:
                memo.append(self.stack[-1])
                continue
            if code == _GET1 and position < size and data[position] < len(memo):
                value = memo[data[position]]
                if value is not FORGOTTEN:
                    self.stack.append(value)
                    position += 1
                    continue
            if code == _INT1 and position < size:
                self.stack.append(data[position])
                position += 1
                continue
            self.position = position
            if code == _STOP:
                return self.stack.pop()
            _OPCODES[code](self)
            position = self.position
        raise PickleTruncated("it ends in the middle")


def _unknown(state: State) -> None:
    place = state.position - 1
    raise PickleError(f"unknown opcode 0x{state.data[place]:02x} at byte {place:,}")


def _protocol(state: State) -> None:
    version = state.unsigned(1)
    if version > _NEWEST_PROTOCOL:
        raise PickleError(f"it has pickle protocol {version}, which does not exist")


def _frame(state: State) -> None:
    """Frames are for readers of a stream; this one has all bytes."""
    state.take(8)


def _read_only(_: State) -> None:
    """Out-of-band buffers are read-only or not; here they are not followed at all."""


_TABLE: dict[bytes, Operation] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"\x98": _read_only,
    **inert_scalars.OPERATIONS,
    **inert_texts.OPERATIONS,
    **inert_containers.OPERATIONS,
    **inert_memo.OPERATIONS,
    **inert_calls.OPERATIONS,
}
_OPCODES: list[Operation] = [_TABLE.get(bytes([code]), _unknown) for code in range(256)]
