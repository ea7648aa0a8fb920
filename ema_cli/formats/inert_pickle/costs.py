"""The memory that reading a pickle takes: what each opcode allocates, and the limits.

Of ``pickle``, the standard library's module, only the names of the opcodes are used.
"""

from __future__ import annotations

import pickle  # for the names of the opcodes only: nothing is ever unpickled

MOST_BYTES = 380_000_000
"""Memory that a pickle and its values may take, as counted here. 100,000 tensors with the state of Adam, 400,000
tensors in all, take less."""
LONGEST = 1 << 20
"""Bytes of a string or byte string. A longer one cannot be a name, and only its length is kept."""
LONGEST_NUMBER = 1 << 16
"""Bytes of an integer."""
LONGEST_GLOBAL = 1024
"""Characters of a module's and a class's name together."""
LONG_ARGUMENT = 64
"""Calls with more arguments, or with containers of more items, are counted by their items."""

SLOT_BYTES = 9
"""One more value on a stack or in a list, with the spare room of a growing list."""
POINTER_BYTES = 8
"""One more value in a tuple."""
TUPLE_BYTES = 48
ITEM_BYTES = 110
"""One item of a dictionary, with its share of the tables that the search for weights makes."""
FILLED_BYTES = 200
"""A dictionary with its first item: its table, and its entry in the search for weights."""
OBJECT_BYTES = 216
"""An ``Inert`` record, with its dictionary and its list."""
RECORD_BYTES = 100
"""A tensor."""
GLOBAL_BYTES = 450
"""A class or function, with its name."""
SPARSE_BYTES = 160
"""A memo entry out of sequence."""
ROUNDING_BYTES = 12
UNDECODABLE_BYTES = 16
"""For each byte of a string that is not UTF-8: escaping it takes that much memory and time."""
CONTAINERS = (list, tuple, dict)

PUT_LENGTHS = {pickle.BINPUT: 2, pickle.LONG_BINPUT: 5, pickle.MEMOIZE: 1}
"""Bytes of the opcodes that copy the top of the stack into the memo."""

_ALLOCATED = {
    pickle.EMPTY_LIST: 64,
    pickle.LIST: 64,
    pickle.EMPTY_DICT: 64,
    pickle.DICT: 64,
    pickle.EMPTY_SET: OBJECT_BYTES,
    pickle.FROZENSET: OBJECT_BYTES,
    pickle.TUPLE: TUPLE_BYTES,
    pickle.TUPLE1: 48,
    pickle.TUPLE2: 56,
    pickle.TUPLE3: 64,
    pickle.PERSID: 64,
    pickle.BINPERSID: 64,
    pickle.INT: 32,
    pickle.BININT: 32,
    pickle.BININT2: 32,
    pickle.LONG: 32,
    pickle.LONG1: 32,
    pickle.LONG4: 32,
    pickle.FLOAT: 32,
    pickle.BINFLOAT: 32,
    pickle.BINBYTES: 48,
    pickle.SHORT_BINBYTES: 48,
    pickle.BINBYTES8: 48,
    pickle.BYTEARRAY8: 48,
    pickle.EXT1: 120,
    pickle.EXT2: 120,
    pickle.EXT4: 120,
}
"""Bytes of the value that an opcode makes, as far as they are not counted while it is read. Marks are free, as few
exist at a time; so are integers of one byte, which Python shares."""
_POPPED = {
    pickle.POP: 2,
    pickle.REDUCE: 2,
    pickle.NEWOBJ: 2,
    pickle.BUILD: 2,
    pickle.APPEND: 2,
    pickle.STACK_GLOBAL: 2,
    pickle.TUPLE1: 1,
    pickle.TUPLE2: 2,
    pickle.TUPLE3: 3,
    pickle.BINPERSID: 1,
    pickle.SETITEM: 3,
    pickle.NEWOBJ_EX: 3,
}
"""Values that an opcode takes off the stack, those above a mark aside."""


def _cost(opcode: bytes) -> int:
    """Return the bytes that an opcode allocates at most: its value, and one slot on the stack or in the memo."""
    return _ALLOCATED.get(opcode, 0) + SLOT_BYTES * (1 - _POPPED.get(opcode, 0))


COSTS = [_cost(bytes([code])) for code in range(256)]
"""By the byte of the opcode."""
