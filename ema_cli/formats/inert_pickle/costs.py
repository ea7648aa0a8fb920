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

_ALLOCATED = (
    (32, pickle.INT + pickle.BININT + pickle.BININT2 + pickle.LONG + pickle.LONG1 + pickle.LONG4),
    (32, pickle.FLOAT + pickle.BINFLOAT),
    (48, pickle.BINBYTES + pickle.SHORT_BINBYTES + pickle.BINBYTES8 + pickle.BYTEARRAY8),
    (TUPLE_BYTES, pickle.TUPLE + pickle.TUPLE1),
    (56, pickle.TUPLE2),
    (64, pickle.TUPLE3 + pickle.EMPTY_LIST + pickle.LIST + pickle.EMPTY_DICT + pickle.DICT),
    (64, pickle.PERSID + pickle.BINPERSID),
    (120, pickle.EXT1 + pickle.EXT2 + pickle.EXT4),
    (OBJECT_BYTES, pickle.EMPTY_SET + pickle.FROZENSET),
)
"""Bytes of the value that an opcode makes, as far as they are not counted while it is read. Marks are free, as few
exist at a time; so are integers of one byte, which Python shares."""
_POPPED = (
    (1, pickle.TUPLE1 + pickle.BINPERSID),
    (
        2,
        pickle.TUPLE2 + pickle.POP + pickle.REDUCE + pickle.NEWOBJ + pickle.BUILD + pickle.APPEND + pickle.STACK_GLOBAL,
    ),
    (3, pickle.TUPLE3 + pickle.SETITEM + pickle.NEWOBJ_EX),
)
"""Values that an opcode takes off the stack, those above a mark aside."""


def _costs() -> list[int]:
    """Return the bytes that each opcode allocates at most: its value, and one slot on the stack or in the memo."""
    allocated = {code: size for size, opcodes in _ALLOCATED for code in opcodes}
    popped = {code: count for count, opcodes in _POPPED for code in opcodes}
    return [allocated.get(code, 0) + SLOT_BYTES * (1 - popped.get(code, 0)) for code in range(256)]


COSTS = _costs()
"""By the byte of the opcode."""
