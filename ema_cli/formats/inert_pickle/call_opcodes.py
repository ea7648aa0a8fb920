"""The opcodes of a pickle that name, call and fill objects: each is recorded, nothing is imported or called."""

from __future__ import annotations

import pickle  # for the names of the opcodes only: nothing is ever unpickled

from ema_cli.formats.inert_pickle.costs import (
    CONTAINERS,
    GLOBAL_BYTES,
    ITEM_BYTES,
    LONG_ARGUMENT,
    LONGEST_GLOBAL,
    OBJECT_BYTES,
    POINTER_BYTES,
    RECORD_BYTES,
    SLOT_BYTES,
)
from ema_cli.formats.inert_pickle.machine import Machine, Operation
from ema_cli.formats.inert_pickle.memo import forget
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError


def _global_line(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    _push_global(machine, module.decode("utf-8", "backslashreplace"), name.decode("utf-8", "backslashreplace"))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError(f"a class name is not a string, at byte {machine.position:,}")
    _push_global(machine, module, name)


def _push_global(machine: Machine, module: str, name: str) -> None:
    known = machine.globals.get((module, name))
    if known is None:
        if len(module) + len(name) > LONGEST_GLOBAL:
            raise PickleError(f"a class name has {len(module) + len(name):,} characters, at byte {machine.position:,}")
        machine.charge(GLOBAL_BYTES)
        known = machine.globals[module, name] = Global(module, name)
    machine.stack.append(known)


def _push_extension(machine: Machine, number: int) -> None:
    machine.stack.append(Global("copyreg", f"extension {number}"))


def _call(machine: Machine) -> None:
    args, kind = machine.stack.pop(), machine.stack.pop()
    _push_call(machine, kind, args)


def _call_with_keywords(machine: Machine) -> None:
    keywords, args, kind = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    _push_call(machine, kind, args)
    made = machine.stack[-1]
    if isinstance(made, Inert):
        made.state = keywords


def _instance_line(machine: Machine) -> None:
    items = machine.pop_mark()
    _global_line(machine)
    machine.charge(POINTER_BYTES * len(items))
    _push_call(machine, machine.stack.pop(), tuple(items))


def _instance_mark(machine: Machine) -> None:
    kind, *items = machine.pop_mark()
    machine.charge(POINTER_BYTES * len(items))
    _push_call(machine, kind, tuple(items))


def _push_call(machine: Machine, kind: object, args: object) -> None:
    if not isinstance(args, tuple):
        raise PickleError(f"a call without an argument tuple, at byte {machine.position:,}")
    _charge_arguments(machine, args)
    value = machine.reduce(kind, args) if isinstance(kind, Global) else Inert(kind, args)
    machine.stack.append(value)
    if type(value) is Inert:
        machine.spent += OBJECT_BYTES
    else:
        machine.spent += RECORD_BYTES
        forget(machine, args)


def _charge_arguments(machine: Machine, args: tuple[object, ...]) -> None:
    """Count long arguments: many calls can share them, and each may read and copy all of them."""
    if len(args) > LONG_ARGUMENT:
        machine.charge(SLOT_BYTES * len(args))
    for argument in args:
        if isinstance(argument, CONTAINERS) and len(argument) > LONG_ARGUMENT:
            machine.charge(ITEM_BYTES * len(argument))


def _build(machine: Machine) -> None:
    fields = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target.state = fields


def _persistent(machine: Machine) -> None:
    pid = machine.stack.pop()
    machine.stack.append(machine.persistent_load(pid))
    forget(machine, pid)


OPERATIONS: dict[bytes, Operation] = {
    pickle.GLOBAL: _global_line,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.EXT1: lambda machine: _push_extension(machine, machine.unsigned(1)),
    pickle.EXT2: lambda machine: _push_extension(machine, machine.unsigned(2)),
    pickle.EXT4: lambda machine: _push_extension(machine, machine.unsigned(4)),
    pickle.REDUCE: _call,
    pickle.NEWOBJ: _call,
    pickle.NEWOBJ_EX: _call_with_keywords,
    pickle.INST: _instance_line,
    pickle.OBJ: _instance_mark,
    pickle.BUILD: _build,
    pickle.PERSID: lambda machine: machine.stack.append(machine.persistent_load(machine.line().decode("ascii"))),
    pickle.BINPERSID: _persistent,
}
