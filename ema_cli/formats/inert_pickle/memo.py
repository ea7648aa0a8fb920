"""The memo of a pickle: numbered values that later opcodes refer to.

Picklers number them from 0 without gaps, so the memo is a list; any other number goes into a dictionary.
"""

from __future__ import annotations

import pickle  # for the names of the opcodes only: nothing is ever unpickled

from ema_cli.formats.inert_pickle.costs import POINTER_BYTES, PUT_LENGTHS, SPARSE_BYTES, TUPLE_BYTES
from ema_cli.formats.inert_pickle.machine import Machine, Operation
from ema_cli.formats.inert_pickle.values import PickleError, as_key

FORGOTTEN = object()
"""Replaces a value that was dropped."""


def _put(machine: Machine, index: int) -> None:
    if index == len(machine.memo):
        machine.memo.append(machine.stack[-1])
    elif 0 <= index < len(machine.memo):
        machine.memo[index] = machine.stack[-1]
    else:
        machine.charge(SPARSE_BYTES)
        machine.sparse_memo[index] = machine.stack[-1]


def _put_line(machine: Machine) -> None:
    index = int(machine.line())
    as_key(index)
    _put(machine, index)


def _get(machine: Machine, index: int) -> None:
    value = machine.memo[index] if 0 <= index < len(machine.memo) else machine.sparse_memo[index]
    if value is FORGOTTEN:
        raise PickleError(f"it refers to the arguments of a call, at byte {machine.position:,}")
    machine.stack.append(value)


def forget(machine: Machine, value: object) -> None:
    """Drop the arguments of a call from the memo: it would keep those of every tensor.

    Their memory counts as free if nothing else can refer to them: they were made, memoized and used at once.
    """
    if machine.memo and machine.memo[-1] is value and isinstance(value, tuple):
        machine.memo[-1] = FORGOTTEN
        between = machine.position - 1 - machine.tuple_end
        if between == PUT_LENGTHS.get(machine.data[machine.tuple_end : machine.tuple_end + 1]):
            machine.spent -= TUPLE_BYTES + POINTER_BYTES * len(value)


OPERATIONS: dict[bytes, Operation] = {
    pickle.PUT: _put_line,
    pickle.BINPUT: lambda machine: _put(machine, machine.byte()),
    pickle.LONG_BINPUT: lambda machine: _put(machine, machine.unsigned4()),
    pickle.MEMOIZE: lambda machine: _put(machine, len(machine.memo) + len(machine.sparse_memo)),
    pickle.GET: lambda machine: _get(machine, int(machine.line())),
    pickle.BINGET: lambda machine: _get(machine, machine.byte()),
    pickle.LONG_BINGET: lambda machine: _get(machine, machine.unsigned4()),
}
