"""The opcodes of a pickle that name, call and fill things: recorded, never imported, never called."""

from __future__ import annotations

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
from ema_cli.formats.inert_pickle.machine import Operation, State
from ema_cli.formats.inert_pickle.memo import forget
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError


def _global_line(state: State) -> None:
    module, name = state.line(), state.line()
    _push_global(state, module.decode("utf-8", "backslashreplace"), name.decode("utf-8", "backslashreplace"))


def _stack_global(state: State) -> None:
    name, module = state.stack.pop(), state.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError(f"a name that is not text, at byte {state.position:,}")
    _push_global(state, module, name)


def _push_global(state: State, module: str, name: str) -> None:
    known = state.globals.get((module, name))
    if known is None:
        if len(module) + len(name) > LONGEST_GLOBAL:
            raise PickleError(f"a name of {len(module) + len(name):,} characters, at byte {state.position:,}")
        state.charge(GLOBAL_BYTES)
        known = state.globals[module, name] = Global(module, name)
    state.stack.append(known)


def _extension1(state: State) -> None:
    state.stack.append(Global("copyreg", f"extension {state.unsigned(1)}"))


def _extension2(state: State) -> None:
    state.stack.append(Global("copyreg", f"extension {state.unsigned(2)}"))


def _extension4(state: State) -> None:
    state.stack.append(Global("copyreg", f"extension {state.unsigned4()}"))


def _call(state: State) -> None:
    args, kind = state.stack.pop(), state.stack.pop()
    _push_call(state, kind, args)


def _call_with_keywords(state: State) -> None:
    keywords, args, kind = state.stack.pop(), state.stack.pop(), state.stack.pop()
    _push_call(state, kind, args)
    made = state.stack[-1]
    if isinstance(made, Inert):
        made.state = keywords


def _instance_line(state: State) -> None:
    items = state.pop_mark()
    _global_line(state)
    state.charge(POINTER_BYTES * len(items))
    _push_call(state, state.stack.pop(), tuple(items))


def _instance_mark(state: State) -> None:
    kind, *items = state.pop_mark()
    state.charge(POINTER_BYTES * len(items))
    _push_call(state, kind, tuple(items))


def _push_call(state: State, kind: object, args: object) -> None:
    if not isinstance(args, tuple):
        raise PickleError(f"a call without arguments, at byte {state.position:,}")
    _charge_arguments(state, args)
    value = state.reduce(kind, args) if isinstance(kind, Global) else Inert(kind, args)
    state.stack.append(value)
    if type(value) is Inert:
        state.spent += OBJECT_BYTES
    else:
        state.spent += RECORD_BYTES
        forget(state, args)


def _charge_arguments(state: State, args: tuple[object, ...]) -> None:
    """Arguments may be shared by many calls, and each call may look at all of them, and copy what is in them."""
    if len(args) > LONG_ARGUMENT:
        state.charge(SLOT_BYTES * len(args))
    for argument in args:
        if isinstance(argument, CONTAINERS) and len(argument) > LONG_ARGUMENT:
            state.charge(ITEM_BYTES * len(argument))


def _build(state: State) -> None:
    fields = state.stack.pop()
    target = state.stack[-1]
    if isinstance(target, Inert):
        target.state = fields


def _persistent_line(state: State) -> None:
    state.stack.append(state.persistent_load(state.line().decode("ascii")))


def _persistent(state: State) -> None:
    pid = state.stack.pop()
    state.stack.append(state.persistent_load(pid))
    forget(state, pid)


OPERATIONS: dict[bytes, Operation] = {
    b"P": _persistent_line,
    b"Q": _persistent,
    b"R": _call,
    b"b": _build,
    b"c": _global_line,
    b"i": _instance_line,
    b"o": _instance_mark,
    b"\x81": _call,
    b"\x82": _extension1,
    b"\x83": _extension2,
    b"\x84": _extension4,
    b"\x92": _call_with_keywords,
    b"\x93": _stack_global,
}
