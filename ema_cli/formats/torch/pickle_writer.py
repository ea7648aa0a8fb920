"""A pickle, written opcode by opcode: objects of torch are named without importing it.

Each method writes what Python's pickler writes for such a value in protocol 2, its number in the memo included, so a
pickle of ``torch.save`` is the same to the byte. Source: ``Lib/pickle.py``.
"""

from __future__ import annotations

import pickle  # for the names of the opcodes only: nothing is ever pickled or unpickled
from collections.abc import Hashable, Sequence

_ONE_BYTE, _TWO_BYTES, _FOUR_BYTES = 1 << 8, 1 << 16, 1 << 31
_TUPLES = (pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


class PickleWriter:
    """The pickle so far."""

    def __init__(self) -> None:
        self._written = bytearray(pickle.PROTO + bytes([2]))
        self._recalls: dict[Hashable, bytes] = {}
        """The opcode that pushes each object again."""
        self._kept = 0

    def add(self, *opcodes: bytes) -> None:
        """Write opcodes without an argument."""
        for opcode in opcodes:
            self._written += opcode

    def keep(self, value: Hashable = None) -> None:
        """Give the object on the stack the next number; ``recall`` finds it by ``value``."""
        number, is_short = self._kept, self._kept < _ONE_BYTE
        argument = number.to_bytes(1 if is_short else 4, "little")
        self._written += (pickle.BINPUT if is_short else pickle.LONG_BINPUT) + argument
        if value is not None:
            self._recalls[value] = (pickle.BINGET if is_short else pickle.LONG_BINGET) + argument
        self._kept += 1

    def recall(self, value: Hashable) -> bool:
        """Push the object that was kept under ``value``; return whether there is one."""
        opcode = self._recalls.get(value)
        if opcode is None:
            return False
        self._written += opcode
        return True

    def name(self, module: str, name: str) -> None:
        """Push the class or function of a module."""
        if not self.recall((module, name)):
            self._written += pickle.GLOBAL + f"{module}\n{name}\n".encode()
            self.keep((module, name))

    def text(self, text: str) -> None:
        """Push a string."""
        if not self.recall(text):
            encoded = text.encode("utf-8", "surrogatepass")
            self._written += pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded
            self.keep(text)

    def number(self, number: int) -> None:
        """Push a number that is not negative."""
        if number < _ONE_BYTE:
            self._written += pickle.BININT1 + number.to_bytes(1, "little")
        elif number < _TWO_BYTES:
            self._written += pickle.BININT2 + number.to_bytes(2, "little")
        elif number < _FOUR_BYTES:
            self._written += pickle.BININT + number.to_bytes(4, "little")
        else:
            encoded = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
            self._written += pickle.LONG1 + bytes([len(encoded)]) + encoded

    def numbers(self, numbers: Sequence[int]) -> None:
        """Push a tuple of numbers."""
        short = len(numbers) < len(_TUPLES)
        if not short:
            self.add(pickle.MARK)
        for number in numbers:
            self.number(number)
        self.add(_TUPLES[len(numbers)] if short else pickle.TUPLE)
        if numbers:
            self.keep()

    def finish(self) -> bytes:
        """Return the whole pickle."""
        self._written += pickle.STOP
        return bytes(self._written)
