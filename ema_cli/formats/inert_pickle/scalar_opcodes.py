"""The opcodes of a pickle that push a constant or a number."""

from __future__ import annotations

import struct

from ema_cli.formats.inert_pickle.costs import LONGEST_NUMBER, ROUNDING_BYTES
from ema_cli.formats.inert_pickle.machine import Operation, State
from ema_cli.formats.inert_pickle.values import PickleError

_BOOLEANS = {b"00": False, b"01": True}
"""As protocols 0 and 1 write them."""


def _none(state: State) -> None:
    state.stack.append(None)


def _true(state: State) -> None:
    state.stack.append(True)


def _false(state: State) -> None:
    state.stack.append(False)


def _int_line(state: State) -> None:
    text = state.line()
    state.stack.append(_BOOLEANS[text] if text in _BOOLEANS else int(text))
    state.charge(len(text))


def _long_line(state: State) -> None:
    text = state.line()
    state.charge(len(text))
    state.stack.append(int(text.removesuffix(b"L")))


def _int1(state: State) -> None:
    state.stack.append(state.byte())


def _int2(state: State) -> None:
    state.stack.append(state.unsigned(2))


def _int4(state: State) -> None:
    state.stack.append(int.from_bytes(state.take(4), "little", signed=True))


def _long1(state: State) -> None:
    length = state.byte()
    state.spent += ROUNDING_BYTES + length
    state.stack.append(int.from_bytes(state.take(length), "little", signed=True))


def _long4(state: State) -> None:
    length = state.unsigned4()
    if length > LONGEST_NUMBER:
        raise PickleError(f"it holds a number of {length:,} bytes")
    state.charge(2 * length)
    state.stack.append(int.from_bytes(state.take(length), "little", signed=True))


def _float_line(state: State) -> None:
    state.stack.append(float(state.line()))


def _float8(state: State) -> None:
    state.stack.append(struct.unpack(">d", state.take(8))[0])


OPERATIONS: dict[bytes, Operation] = {
    b"F": _float_line,
    b"I": _int_line,
    b"J": _int4,
    b"K": _int1,
    b"L": _long_line,
    b"M": _int2,
    b"N": _none,
    b"G": _float8,
    b"\x88": _true,
    b"\x89": _false,
    b"\x8a": _long1,
    b"\x8b": _long4,
    b"\x97": _none,
}
