"""The memo of a pickle: what it remembers, to refer to it again.

It is a list, as picklers number what they remember from 0 on; what is numbered otherwise is kept apart.
"""

from __future__ import annotations

from ema_cli.formats.inert_pickle.costs import POINTER_BYTES, PUT_BYTES, SPARSE_BYTES, TUPLE_BYTES
from ema_cli.formats.inert_pickle.machine import Operation, State
from ema_cli.formats.inert_pickle.values import PickleError, as_key

FORGOTTEN = object()
"""Stands for what was dropped."""


def _put(state: State, index: int) -> None:
    if index == len(state.memo):
        state.memo.append(state.stack[-1])
    elif 0 <= index < len(state.memo):
        state.memo[index] = state.stack[-1]
    else:
        state.charge(SPARSE_BYTES)
        state.sparse_memo[index] = state.stack[-1]


def _put_line(state: State) -> None:
    index = int(state.line())
    as_key(index)
    _put(state, index)


def _put1(state: State) -> None:
    _put(state, state.byte())


def _put4(state: State) -> None:
    _put(state, state.unsigned4())


def _memoize(state: State) -> None:
    _put(state, len(state.memo) + len(state.sparse_memo))


def _get(state: State, index: int) -> None:
    value = state.memo[index] if 0 <= index < len(state.memo) else state.sparse_memo[index]
    if value is FORGOTTEN:
        raise PickleError(f"it refers to the arguments of a call, at byte {state.position:,}")
    state.stack.append(value)


def _get_line(state: State) -> None:
    _get(state, int(state.line()))


def _get1(state: State) -> None:
    _get(state, state.byte())


def _get4(state: State) -> None:
    _get(state, state.unsigned4())


def forget(state: State, value: object) -> None:
    """Drop arguments that only the making of a tensor needed: the memo would keep those of every tensor.

    Their memory counts as free if nothing else can refer to them: they were made, put, and used at once.
    """
    if state.memo and state.memo[-1] is value and isinstance(value, tuple):
        state.memo[-1] = FORGOTTEN
        between = state.position - 1 - state.tuple_end
        if between == PUT_BYTES.get(state.data[state.tuple_end : state.tuple_end + 1]):
            state.spent -= TUPLE_BYTES + POINTER_BYTES * len(value)


OPERATIONS: dict[bytes, Operation] = {
    b"g": _get_line,
    b"h": _get1,
    b"j": _get4,
    b"p": _put_line,
    b"q": _put1,
    b"r": _put4,
    b"\x94": _memoize,
}
