"""Read a pickle without importing or calling anything that it names.

Input -> output: the bytes of one pickle, protocols 0 to 5 -> plain Python values, with an inert stand-in for every
class, function and object. Nothing is unpickled: this machine has no ``getattr``, no import and no call. The name of
a class becomes a ``Global``; a call of it becomes the value of the caller's ``reduce``, by default an ``Inert``
record of the class and its arguments. Of the standard library's ``pickle`` only the names of the opcodes are used.

Time and memory are bounded. No allocation depends on a length that the file declares; the memory of every opcode is
counted, up to ``most_bytes``; only scalars and stand-ins are hashed, as hashing nested shared tuples takes
exponential time, and tuples of equal hashes are easy to make.
The opcodes are in the files beside this one, by kind.
Reference: the documentation of the opcodes in CPython's ``pickletools``.
"""

from __future__ import annotations

import pickle  # for the names of the opcodes only: nothing is ever unpickled
import struct

from ema_cli.formats.inert_pickle import call_opcodes, container_opcodes, memo, scalar_opcodes
from ema_cli.formats.inert_pickle.costs import COSTS, MOST_BYTES
from ema_cli.formats.inert_pickle.machine import Machine, Operation, unsigned4
from ema_cli.formats.inert_pickle.memo import FORGOTTEN
from ema_cli.formats.inert_pickle.values import (
    PersistentLoad,
    PickleError,
    PickleTruncated,
    Reduce,
    no_persistent_load,
    no_reduce,
)
from ema_cli.records.garbage import without_collections

_STOP = ord(pickle.STOP)
_LONG_BINPUT = ord(pickle.LONG_BINPUT)
_MEMOIZE = ord(pickle.MEMOIZE)
_BINGET = ord(pickle.BINGET)
_BININT1 = ord(pickle.BININT1)
_NEWEST_PROTOCOL = 5


def read_pickle(
    data: bytes,
    start: int = 0,
    *,
    reduce: Reduce = no_reduce,
    persistent_load: PersistentLoad = no_persistent_load,
    most_bytes: int = MOST_BYTES,
) -> tuple[object, int]:
    """Return the inert value of the pickle at ``start`` of ``data``, and the position after it.

    Args:
        data: the bytes.
        start: where the pickle begins.
        reduce: returns the values of its calls.
        persistent_load: returns the values of its persistent ids.
        most_bytes: memory that it may take, as counted here.

    Raises:
        PickleTruncated: ``data`` ends inside the pickle.
        PickleError: the pickle is invalid in another way.

    """
    machine = Machine(data, start, reduce, persistent_load, most_bytes)
    try:
        with without_collections():
            return run(machine), machine.position
    except PickleError:
        raise
    except struct.error as error:
        raise PickleTruncated("it is truncated") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PickleError(f"damaged at byte {machine.position:,}") from error


def run(machine: Machine) -> object:
    """Carry out the opcodes up to ``STOP``, and return the value on top of the stack.

    Four opcodes are more than half of a pickle that torch writes. They are carried out in this loop, without a call
    and with the position in a local variable, which saves a quarter of the time.
    """
    data, size, known, most_bytes = machine.data, len(machine.data), machine.memo, machine.most_bytes
    position = machine.position
    while position < size:
        code = data[position]
        position += 1
        machine.spent += COSTS[code]
        if machine.spent > most_bytes:
            machine.charge(0)  # which raises
        if code == _LONG_BINPUT and machine.stack and unsigned4(data, position)[0] == len(known):
            known.append(machine.stack[-1])
            position += 4
            continue
        if code == _MEMOIZE and machine.stack and not machine.sparse_memo:
            known.append(machine.stack[-1])
            continue
        if code == _BINGET and position < size and data[position] < len(known):
            value = known[data[position]]
            if value is not FORGOTTEN:
                machine.stack.append(value)
                position += 1
                continue
        if code == _BININT1 and position < size:
            machine.stack.append(data[position])
            position += 1
            continue
        machine.position = position
        if code == _STOP:
            return machine.stack.pop()
        OPERATIONS[code](machine)
        position = machine.position
    raise PickleTruncated("it is truncated")


def unknown_opcode(machine: Machine) -> None:
    """Refuse a byte that is no opcode.

    Raises:
        PickleError: always.

    """
    position = machine.position - 1
    raise PickleError(f"unknown opcode 0x{machine.data[position]:02x} at byte {position:,}")


def _protocol(machine: Machine) -> None:
    version = machine.unsigned(1)
    if version > _NEWEST_PROTOCOL:
        raise PickleError(f"pickle protocol {version} does not exist")


def _frame(machine: Machine) -> None:
    """Skip the length of a frame, which only a reader of a stream needs."""
    machine.take(8)


_BY_NAME: dict[bytes, Operation] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.READONLY_BUFFER: lambda _: None,  # out-of-band buffers are not read
    **scalar_opcodes.OPERATIONS,
    **container_opcodes.OPERATIONS,
    **memo.OPERATIONS,
    **call_opcodes.OPERATIONS,
}
OPERATIONS: list[Operation] = [_BY_NAME.get(bytes([code]), unknown_opcode) for code in range(256)]
"""By the byte of the opcode."""
