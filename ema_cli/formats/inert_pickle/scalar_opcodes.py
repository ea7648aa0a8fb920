"""The opcodes of a pickle that push a constant, a number, a string or a byte string."""

from __future__ import annotations

import codecs
import pickle  # for the names of the opcodes only: nothing is ever unpickled
import struct
import sys
import warnings

from ema_cli.formats.inert_pickle.costs import LONGEST, LONGEST_NUMBER, ROUNDING_BYTES, UNDECODABLE_BYTES
from ema_cli.formats.inert_pickle.machine import Machine, Operation
from ema_cli.formats.inert_pickle.values import PickleError, PickleTruncated, TooLong

_BOOLEANS = {b"00": False, b"01": True}
"""As protocols 0 and 1 write them."""


def _int_line(machine: Machine) -> None:
    text = machine.line()
    machine.stack.append(_BOOLEANS[text] if text in _BOOLEANS else int(text))
    machine.charge(len(text))


def _long_line(machine: Machine) -> None:
    text = machine.line()
    machine.charge(len(text))
    machine.stack.append(int(text.removesuffix(b"L")))


def _long1(machine: Machine) -> None:
    length = machine.byte()
    machine.spent += ROUNDING_BYTES + length
    machine.stack.append(int.from_bytes(machine.take(length), "little", signed=True))


def _long4(machine: Machine) -> None:
    length = machine.unsigned4()
    if length > LONGEST_NUMBER:
        raise PickleError(f"it holds a number of {length:,} bytes")
    machine.charge(2 * length)
    machine.stack.append(int.from_bytes(machine.take(length), "little", signed=True))


def _skip(machine: Machine, length: int) -> TooLong:
    """Skip an operand without copying it."""
    if machine.position + length > len(machine.data):
        raise PickleTruncated("it is truncated")
    machine.position += length
    return TooLong(length)


def _push_text(machine: Machine, length: int) -> None:
    machine.stack.append(_decode(machine, machine.take(length)) if length <= LONGEST else _skip(machine, length))


def _push_bytes(machine: Machine, length: int) -> None:
    machine.charge(min(length, LONGEST))
    machine.stack.append(machine.take(length) if length <= LONGEST else _skip(machine, length))


def _decode(machine: Machine, raw: bytes) -> str:
    """Return a string; bytes that are not UTF-8 are escaped."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        machine.charge(UNDECODABLE_BYTES * len(raw))
        return raw.decode("utf-8", "backslashreplace")
    machine.spent += sys.getsizeof(text) + ROUNDING_BYTES
    return text


def _string_line(machine: Machine) -> None:
    quoted = machine.line().strip()
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in (b"'", b'"'):  # noqa: PLR2004
        raise PickleError(f"damaged at byte {machine.position:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # an escape that Python 2 left alone
        raw = codecs.escape_decode(quoted[1:-1])[0]
    machine.stack.append(_decode(machine, raw) if len(raw) <= LONGEST else TooLong(len(raw)))


def _unicode_line(machine: Machine) -> None:
    raw = machine.line()
    if len(raw) > LONGEST:
        machine.stack.append(TooLong(len(raw)))
        return
    text = raw.decode("raw-unicode-escape")
    machine.charge(sys.getsizeof(text))
    machine.stack.append(text)


OPERATIONS: dict[bytes, Operation] = {
    pickle.NONE: lambda machine: machine.stack.append(None),
    pickle.NEWTRUE: lambda machine: machine.stack.append(True),
    pickle.NEWFALSE: lambda machine: machine.stack.append(False),
    pickle.NEXT_BUFFER: lambda machine: machine.stack.append(None),
    pickle.INT: _int_line,
    pickle.BININT: lambda machine: machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True)),
    pickle.BININT1: lambda machine: machine.stack.append(machine.byte()),
    pickle.BININT2: lambda machine: machine.stack.append(machine.unsigned(2)),
    pickle.LONG: _long_line,
    pickle.LONG1: _long1,
    pickle.LONG4: _long4,
    pickle.FLOAT: lambda machine: machine.stack.append(float(machine.line())),
    pickle.BINFLOAT: lambda machine: machine.stack.append(struct.unpack(">d", machine.take(8))[0]),
    pickle.STRING: _string_line,
    pickle.BINSTRING: lambda machine: _push_text(machine, machine.unsigned4()),
    pickle.SHORT_BINSTRING: lambda machine: _push_text(machine, machine.byte()),
    pickle.UNICODE: _unicode_line,
    pickle.BINUNICODE: lambda machine: _push_text(machine, machine.unsigned4()),
    pickle.SHORT_BINUNICODE: lambda machine: _push_text(machine, machine.byte()),
    pickle.BINUNICODE8: lambda machine: _push_text(machine, machine.unsigned(8)),
    pickle.BINBYTES: lambda machine: _push_bytes(machine, machine.unsigned4()),
    pickle.SHORT_BINBYTES: lambda machine: _push_bytes(machine, machine.byte()),
    pickle.BINBYTES8: lambda machine: _push_bytes(machine, machine.unsigned(8)),
    pickle.BYTEARRAY8: lambda machine: _push_bytes(machine, machine.unsigned(8)),
}
