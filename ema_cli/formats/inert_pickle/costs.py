"""What reading a pickle may cost: the bytes of memory that each opcode takes, and how many there may be."""

from __future__ import annotations

MOST_BYTES = 380_000_000
"""Memory that a pickle and its values may take, as it is counted here. 100,000 tensors with the state of Adam, which
are 400,000 tensors, take less."""
LONGEST = 1 << 20
"""Bytes of a text or a byte string that is kept; of longer ones, which name nothing, only the length is."""
LONGEST_NUMBER = 1 << 16
LONGEST_GLOBAL = 1024
UNDECODABLE_BYTES = 16
"""Counted for each byte of a text that is not UTF-8: escaping it takes as much time and space."""
SLOT_BYTES = 9
"""Of one more value on a stack or in a list, with the room that a growing list keeps."""
TUPLE_BYTES = 48
PUT_BYTES = {b"q": 2, b"r": 5, b"\x94": 1}
POINTER_BYTES = 8
"""Of one more value in a tuple."""
ROUNDING_BYTES = 12
GLOBAL_BYTES = 450
"""Of a name, with the text of it."""
CONTAINERS = (list, tuple, dict)
SPARSE_BYTES = 160
"""Of a memo that is not the next one."""
OBJECT_BYTES = 216
"""Of a stand-in, with its dictionary and its list."""
RECORD_BYTES = 100
"""Of a tensor."""
ITEM_BYTES = 110
"""Of an item of a dictionary, with its share in the tables that searching makes."""
FILLED_BYTES = 200
"""Of a dictionary with its first item: its table, and what the search for the weights notes of it."""
LONG_ARGUMENT = 64


def _cost(code: int) -> int:
    """Return the bytes that an opcode allocates at most, apart from what is counted as it is read.

    That is the value, its place on the stack less those that are taken off it, and a place in the memo. Marks cost
    nothing, as few of them stand at a time, and neither do the integers of one byte, which Python shares.
    """
    made = {b"]": 64, b"l": 64, b"}": 64, b"d": 64, b"t": TUPLE_BYTES, b"\x85": 48, b"\x86": 56, b"\x87": 64}
    made |= {b"\x8f": OBJECT_BYTES, b"\x91": OBJECT_BYTES, b"Q": 64, b"P": 64}
    made |= dict.fromkeys((b"I", b"J", b"L", b"M", b"\x8a", b"\x8b", b"F", b"G"), 32)
    made |= dict.fromkeys((b"B", b"C", b"\x8e", b"\x96"), 48)
    made |= dict.fromkeys((b"\x82", b"\x83", b"\x84"), 120)
    fewer = dict.fromkeys((b"0", b"R", b"\x81", b"b", b"a", b"\x86", b"\x93"), 2) | {b"s": 3, b"\x87": 3, b"\x92": 3}
    name = bytes([code])
    return made.get(name, 0) + SLOT_BYTES * (1 - fewer.get(name, 1 if name in (b"Q", b"\x85") else 0))


COSTS = [_cost(code) for code in range(256)]
