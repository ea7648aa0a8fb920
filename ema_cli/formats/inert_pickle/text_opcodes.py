"""The opcodes of a pickle that push a text or a byte string; of long ones, which name nothing, only the length."""

from __future__ import annotations

import codecs
import sys
import warnings

from ema_cli.formats.inert_pickle.costs import LONGEST, ROUNDING_BYTES, UNDECODABLE_BYTES
from ema_cli.formats.inert_pickle.machine import Operation, State
from ema_cli.formats.inert_pickle.values import PickleError, PickleTruncated, TooLong


def _skip(state: State, length: int) -> TooLong:
    """Pass over an operand without a copy of it."""
    if state.position + length > len(state.data):
        raise PickleTruncated("it ends in the middle")
    state.position += length
    return TooLong(length)


def _push_text(state: State, length: int) -> None:
    state.stack.append(_decode(state, state.take(length)) if length <= LONGEST else _skip(state, length))


def _push_bytes(state: State, length: int) -> None:
    state.charge(min(length, LONGEST))
    state.stack.append(state.take(length) if length <= LONGEST else _skip(state, length))


def _decode(state: State, raw: bytes) -> str:
    """Return text; what is not UTF-8 in it is escaped."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        state.charge(UNDECODABLE_BYTES * len(raw))
        return raw.decode("utf-8", "backslashreplace")
    state.spent += sys.getsizeof(text) + ROUNDING_BYTES
    return text


def _string_line(state: State) -> None:
    quoted = state.line().strip()
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in (b"'", b'"'):  # noqa: PLR2004
        raise PickleError(f"damaged at byte {state.position:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # an escape that Python 2 left as it was
        raw = codecs.escape_decode(quoted[1:-1])[0]
    state.stack.append(_decode(state, raw) if len(raw) <= LONGEST else TooLong(len(raw)))


def _string1(state: State) -> None:
    state.stack.append(_decode(state, state.take(state.byte())))


def _string4(state: State) -> None:
    _push_text(state, state.unsigned4())


def _unicode_line(state: State) -> None:
    raw = state.line()
    if len(raw) > LONGEST:
        state.stack.append(TooLong(len(raw)))
        return
    text = raw.decode("raw-unicode-escape")
    state.charge(sys.getsizeof(text))
    state.stack.append(text)


def _unicode8(state: State) -> None:
    _push_text(state, state.unsigned(8))


def _bytes1(state: State) -> None:
    _push_bytes(state, state.unsigned(1))


def _bytes4(state: State) -> None:
    _push_bytes(state, state.unsigned4())


def _bytes8(state: State) -> None:
    _push_bytes(state, state.unsigned(8))


OPERATIONS: dict[bytes, Operation] = {
    b"S": _string_line,
    b"T": _string4,
    b"U": _string1,
    b"V": _unicode_line,
    b"X": _string4,
    b"B": _bytes4,
    b"C": _bytes1,
    b"\x8c": _string1,
    b"\x8d": _unicode8,
    b"\x8e": _bytes8,
    b"\x96": _bytes8,
}
