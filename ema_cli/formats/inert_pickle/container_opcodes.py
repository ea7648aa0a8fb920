"""The opcodes of a pickle that move values on the stack and build tuples, lists, dictionaries and sets."""

from __future__ import annotations

import pickle  # for the names of the opcodes only: nothing is ever unpickled

from ema_cli.formats.inert_pickle.costs import FILLED_BYTES, ITEM_BYTES, OBJECT_BYTES, POINTER_BYTES, SLOT_BYTES
from ema_cli.formats.inert_pickle.machine import Machine, Operation
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError, as_key

_DEEPEST = 10_000
_SET = Global("builtins", "set")
_FROZEN_SET = Global("builtins", "frozenset")


def _mark(machine: Machine) -> None:
    if len(machine.marks) >= _DEEPEST:
        raise PickleError(f"it nests more than {_DEEPEST:,} values")
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _tuple_mark(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.charge(POINTER_BYTES * len(items))
    machine.tuple_end = machine.position
    machine.stack.append(tuple(items))


def _tuple1(machine: Machine) -> None:
    machine.stack[-1] = (machine.stack[-1],)


def _tuple2(machine: Machine) -> None:
    machine.stack[-2:] = [(machine.stack[-2], machine.stack[-1])]


def _tuple3(machine: Machine) -> None:
    machine.stack[-3:] = [(machine.stack[-3], machine.stack[-2], machine.stack[-1])]


def _list_mark(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.charge(SLOT_BYTES * len(items))
    machine.stack.append(items)


def _dict_mark(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append({})
    _set_pairs(machine, items)


def _frozenset_mark(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.charge(SLOT_BYTES * len(items))
    machine.stack.append(Inert(_FROZEN_SET, entries=items))


def _extend(machine: Machine, items: list[object]) -> None:
    target = machine.stack[-1]
    machine.charge(SLOT_BYTES * len(items))
    if isinstance(target, Inert):
        target.entries.extend(items)
    elif isinstance(target, list):
        target.extend(items)
    else:
        raise PickleError(f"it appends to something that is not a list, at byte {machine.position:,}")


def _set_one(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_pairs(machine, [key, value])


def _set_pairs(machine: Machine, items: list[object]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target = target.items
    elif not isinstance(target, dict):
        raise PickleError(f"it sets keys of something that is not a dictionary, at byte {machine.position:,}")
    machine.charge(ITEM_BYTES * len(items) // 2 + (0 if target else FILLED_BYTES))
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is str:
            target[key] = value
        else:
            machine.spent += OBJECT_BYTES if type(key) is tuple else 0
            target[as_key(key)] = value


OPERATIONS: dict[bytes, Operation] = {
    pickle.MARK: _mark,
    pickle.POP: _pop,
    pickle.POP_MARK: _pop_mark,
    pickle.DUP: lambda machine: machine.stack.append(machine.stack[-1]),
    pickle.EMPTY_TUPLE: lambda machine: machine.stack.append(()),
    pickle.TUPLE: _tuple_mark,
    pickle.TUPLE1: _tuple1,
    pickle.TUPLE2: _tuple2,
    pickle.TUPLE3: _tuple3,
    pickle.EMPTY_LIST: lambda machine: machine.stack.append([]),
    pickle.LIST: _list_mark,
    pickle.APPEND: lambda machine: _extend(machine, [machine.stack.pop()]),
    pickle.APPENDS: lambda machine: _extend(machine, machine.pop_mark()),
    pickle.EMPTY_DICT: lambda machine: machine.stack.append({}),
    pickle.DICT: _dict_mark,
    pickle.SETITEM: _set_one,
    pickle.SETITEMS: lambda machine: _set_pairs(machine, machine.pop_mark()),
    pickle.EMPTY_SET: lambda machine: machine.stack.append(Inert(_SET)),
    pickle.ADDITEMS: lambda machine: _extend(machine, machine.pop_mark()),
    pickle.FROZENSET: _frozenset_mark,
}
