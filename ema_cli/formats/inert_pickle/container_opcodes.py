"""The opcodes of a pickle that move values on its stack, and put them into tuples, lists, dictionaries and sets."""

from __future__ import annotations

from ema_cli.formats.inert_pickle.costs import FILLED_BYTES, ITEM_BYTES, OBJECT_BYTES, POINTER_BYTES, SLOT_BYTES
from ema_cli.formats.inert_pickle.machine import Operation, State
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError, as_key

_DEEPEST = 10_000
_SET = Global("builtins", "set")
_FROZEN_SET = Global("builtins", "frozenset")


def _mark(state: State) -> None:
    if len(state.marks) >= _DEEPEST:
        raise PickleError(f"it nests more than {_DEEPEST:,} values")
    state.marks.append(state.stack)
    state.stack = []


def _pop(state: State) -> None:
    if state.stack:
        state.stack.pop()
    else:
        state.pop_mark()


def _pop_all(state: State) -> None:
    state.pop_mark()


def _duplicate(state: State) -> None:
    state.stack.append(state.stack[-1])


def _empty_tuple(state: State) -> None:
    state.stack.append(())


def _empty_list(state: State) -> None:
    state.stack.append([])


def _empty_dict(state: State) -> None:
    state.stack.append({})


def _empty_set(state: State) -> None:
    state.stack.append(Inert(_SET))


def _tuple_mark(state: State) -> None:
    items = state.pop_mark()
    state.charge(POINTER_BYTES * len(items))
    state.tuple_end = state.position
    state.stack.append(tuple(items))


def _tuple1(state: State) -> None:
    state.stack[-1] = (state.stack[-1],)


def _tuple2(state: State) -> None:
    state.stack[-2:] = [(state.stack[-2], state.stack[-1])]


def _tuple3(state: State) -> None:
    state.stack[-3:] = [(state.stack[-3], state.stack[-2], state.stack[-1])]


def _list_mark(state: State) -> None:
    items = state.pop_mark()
    state.charge(SLOT_BYTES * len(items))
    state.stack.append(items)


def _dict_mark(state: State) -> None:
    items = state.pop_mark()
    state.stack.append({})
    _set_pairs(state, items)


def _frozenset_mark(state: State) -> None:
    items = state.pop_mark()
    state.charge(SLOT_BYTES * len(items))
    state.stack.append(Inert(_FROZEN_SET, entries=items))


def _append_one(state: State) -> None:
    item = state.stack.pop()
    _extend(state, [item])


def _append_mark(state: State) -> None:
    items = state.pop_mark()
    _extend(state, items)


def _extend(state: State, items: list[object]) -> None:
    target = state.stack[-1]
    state.charge(SLOT_BYTES * len(items))
    if isinstance(target, Inert):
        target.entries.extend(items)
    elif isinstance(target, list):
        target.extend(items)
    else:
        raise PickleError(f"it appends to something that is not a list, at byte {state.position:,}")


def _set_one(state: State) -> None:
    value, key = state.stack.pop(), state.stack.pop()
    _set_pairs(state, [key, value])


def _set_mark(state: State) -> None:
    items = state.pop_mark()
    _set_pairs(state, items)


def _set_pairs(state: State, items: list[object]) -> None:
    target = state.stack[-1]
    if isinstance(target, Inert):
        target = target.items
    elif not isinstance(target, dict):
        raise PickleError(f"it sets keys of something that is not a dictionary, at byte {state.position:,}")
    state.charge(ITEM_BYTES * len(items) // 2 + (0 if target else FILLED_BYTES))
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is str:
            target[key] = value
        else:
            state.spent += OBJECT_BYTES if type(key) is tuple else 0
            target[as_key(key)] = value


OPERATIONS: dict[bytes, Operation] = {
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_all,
    b"2": _duplicate,
    b"a": _append_one,
    b"d": _dict_mark,
    b"}": _empty_dict,
    b"e": _append_mark,
    b"l": _list_mark,
    b"]": _empty_list,
    b"s": _set_one,
    b"t": _tuple_mark,
    b")": _empty_tuple,
    b"u": _set_mark,
    b"\x85": _tuple1,
    b"\x86": _tuple2,
    b"\x87": _tuple3,
    b"\x8f": _empty_set,
    b"\x90": _append_mark,
    b"\x91": _frozenset_mark,
}
