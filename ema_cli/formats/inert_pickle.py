"""Read a pickle without importing or calling anything that it names.

Input -> output: the bytes of one pickle, protocols 0 to 5 -> plain Python values, with an inert stand-in for every
class and function. The machine has no ``getattr``, no import and no call: a name becomes a ``Global``, calling one
becomes what the caller's ``reduce`` returns for that name, by default an ``Inert`` record of the attempt.

Work and memory are bounded by the length of the pickle: nothing is allocated by a declared length, the memo is a
dictionary, and only small scalars, stand-ins and small tuples are ever hashed (hashing nested shared tuples takes
exponential time). Reference: the opcode documentation in CPython's ``pickletools``.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable

from ema_cli.formats.inert_values import (
    Global,
    Inert,
    PersistentLoad,
    PickleError,
    PickleTruncated,
    Reduce,
    check_key,
    no_persistent_load,
    no_reduce,
)


def loads(
    data: bytes,
    start: int = 0,
    *,
    reduce: Reduce = no_reduce,
    persistent_load: PersistentLoad = no_persistent_load,
) -> tuple[object, int]:
    """Return the value of the pickle at ``start`` of ``data``, and the position behind it.

    Raises:
        PickleTruncated: ``data`` ends inside the pickle.
        PickleError: anything else is wrong with it.

    """
    machine = _Machine(data, start, reduce, persistent_load)
    try:
        return machine.run(), machine.position
    except PickleError:
        raise
    except struct.error as error:
        raise PickleTruncated("it ends in the middle") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PickleError(f"damaged at byte {machine.position:,}") from error


class _Machine:
    """The stack machine: one method per opcode, dispatched by ``_OPCODES``."""

    __slots__ = ("data", "globals", "marks", "memo", "persistent_load", "position", "reduce", "stack")

    def __init__(self, data: bytes, start: int, reduce: Reduce, persistent_load: PersistentLoad) -> None:
        self.data = data
        self.position = start
        self.reduce = reduce
        self.persistent_load = persistent_load
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}

    def run(self) -> object:
        data, size, table = self.data, len(self.data), _OPCODES
        while self.position < size:
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            operation = table[code]
            if operation is None:
                raise PickleError(f"unknown opcode 0x{code:02x} at byte {self.position - 1:,}")
            operation(self)
        raise PickleTruncated("it ends in the middle")

    # Reading operands.

    def take(self, length: int) -> bytes:
        begin = self.position
        end = begin + length
        if end > len(self.data):
            raise PickleTruncated("it ends in the middle")
        self.position = end
        return self.data[begin:end]

    def byte(self) -> int:
        if self.position >= len(self.data):
            raise PickleTruncated("it ends in the middle")
        self.position += 1
        return self.data[self.position - 1]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleTruncated("it ends in the middle")
        begin, self.position = self.position, end + 1
        return self.data[begin:end]

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def unsigned4(self) -> int:
        (value,) = _UINT32.unpack_from(self.data, self.position)
        self.position += 4
        return value  # type: ignore[no-any-return]

    def text(self, length: int) -> str:
        return self.take(length).decode("utf-8", "backslashreplace")

    def pop_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # Constants and scalars.

    def none(self) -> None:
        self.stack.append(None)

    def true(self) -> None:
        self.stack.append(True)

    def false(self) -> None:
        self.stack.append(False)

    def int_line(self) -> None:
        text = self.line()
        self.stack.append({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text))

    def long_line(self) -> None:
        self.stack.append(int(self.line().removesuffix(b"L")))

    def int1(self) -> None:
        self.stack.append(self.byte())

    def int2(self) -> None:
        self.stack.append(self.unsigned(2))

    def int4(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def long1(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.unsigned(1)), "little", signed=True))

    def long4(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.unsigned4()), "little", signed=True))

    def float_line(self) -> None:
        self.stack.append(float(self.line()))

    def float8(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    # Text and bytes.

    def string_line(self) -> None:
        quoted = self.line().strip()
        if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in (b"'", b'"'):  # noqa: PLR2004
            raise PickleError(f"damaged at byte {self.position:,}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # an escape that Python 2 left as it was
            raw = codecs.escape_decode(quoted[1:-1])[0]
        self.stack.append(raw.decode("utf-8", "backslashreplace"))

    def string1(self) -> None:
        self.stack.append(self.text(self.unsigned(1)))

    def string4(self) -> None:
        self.stack.append(self.text(self.unsigned4()))

    def unicode_line(self) -> None:
        self.stack.append(self.line().decode("raw-unicode-escape"))

    def unicode8(self) -> None:
        self.stack.append(self.text(self.unsigned(8)))

    def bytes1(self) -> None:
        self.stack.append(self.take(self.unsigned(1)))

    def bytes4(self) -> None:
        self.stack.append(self.take(self.unsigned4()))

    def bytes8(self) -> None:
        self.stack.append(self.take(self.unsigned(8)))

    # Containers.

    def mark(self) -> None:
        if len(self.marks) >= _DEEPEST:
            raise PickleError(f"it nests more than {_DEEPEST:,} values")
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def duplicate(self) -> None:
        self.stack.append(self.stack[-1])

    def empty_tuple(self) -> None:
        self.stack.append(())

    def empty_list(self) -> None:
        self.stack.append([])

    def empty_dict(self) -> None:
        self.stack.append({})

    def empty_set(self) -> None:
        self.stack.append(Inert(Global("builtins", "set")))

    def tuple_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def tuple1(self) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def list_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def dict_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_pairs(items)

    def frozenset_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append(Inert(Global("builtins", "frozenset"), entries=items))

    def append_one(self) -> None:
        item = self.stack.pop()
        self.extend([item])

    def append_mark(self) -> None:
        items = self.pop_mark()
        self.extend(items)

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.entries.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise PickleError(f"it appends to something that is not a list, at byte {self.position:,}")

    def set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_pairs([key, value])

    def set_mark(self) -> None:
        items = self.pop_mark()
        self.set_pairs(items)

    def set_pairs(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target = target.items
        elif not isinstance(target, dict):
            raise PickleError(f"it sets keys of something that is not a dictionary, at byte {self.position:,}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            target[key] = value

    # The memo.

    def put_line(self) -> None:
        index = int(self.line())
        check_key(index)
        self.memo[index] = self.stack[-1]

    def put1(self) -> None:
        self.memo[self.byte()] = self.stack[-1]

    def put4(self) -> None:
        self.memo[self.unsigned4()] = self.stack[-1]

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get_line(self) -> None:
        self.stack.append(self.memo[int(self.line())])

    def get1(self) -> None:
        self.stack.append(self.memo[self.byte()])

    def get4(self) -> None:
        self.stack.append(self.memo[self.unsigned4()])

    # Names and objects: recorded, never imported, never called.

    def global_line(self) -> None:
        module, name = self.line(), self.line()
        self.push_global(module.decode("utf-8", "backslashreplace"), name.decode("utf-8", "backslashreplace"))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError(f"a name that is not text, at byte {self.position:,}")
        self.push_global(module, name)

    def push_global(self, module: str, name: str) -> None:
        known = self.globals.get((module, name))
        if known is None:
            known = self.globals[module, name] = Global(module, name)
        self.stack.append(known)

    def extension1(self) -> None:
        self.stack.append(Global("copyreg", f"extension {self.unsigned(1)}"))

    def extension2(self) -> None:
        self.stack.append(Global("copyreg", f"extension {self.unsigned(2)}"))

    def extension4(self) -> None:
        self.stack.append(Global("copyreg", f"extension {self.unsigned4()}"))

    def call(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.push_call(kind, args)

    def call_with_keywords(self) -> None:
        keywords, args, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.push_call(kind, args)
        made = self.stack[-1]
        if isinstance(made, Inert):
            made.state = keywords

    def instance_line(self) -> None:
        items = self.pop_mark()
        self.global_line()
        self.push_call(self.stack.pop(), tuple(items))

    def instance_mark(self) -> None:
        kind, *items = self.pop_mark()
        self.push_call(kind, tuple(items))

    def push_call(self, kind: object, args: object) -> None:
        if not isinstance(args, tuple):
            raise PickleError(f"a call without arguments, at byte {self.position:,}")
        self.stack.append(self.reduce(kind, args) if isinstance(kind, Global) else Inert(kind, args))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state

    def persistent_line(self) -> None:
        self.stack.append(self.persistent_load(self.line().decode("ascii")))

    def persistent(self) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))

    # Framing, which a reader of a whole buffer can ignore.

    def protocol(self) -> None:
        version = self.unsigned(1)
        if version > 5:  # noqa: PLR2004 - the newest protocol there is
            raise PickleError(f"it has pickle protocol {version}, which does not exist")

    def frame(self) -> None:
        self.take(8)

    def nothing(self) -> None:
        """Out-of-band buffers are read-only or not; here they are not followed at all."""


_DEEPEST = 10_000
_UINT32 = struct.Struct("<L")
_STOP = ord(".")
_TABLE: dict[bytes, Callable[[_Machine], None]] = {
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": lambda machine: _ignore(machine.pop_mark()),
    b"2": _Machine.duplicate,
    b"F": _Machine.float_line,
    b"I": _Machine.int_line,
    b"J": _Machine.int4,
    b"K": _Machine.int1,
    b"L": _Machine.long_line,
    b"M": _Machine.int2,
    b"N": _Machine.none,
    b"P": _Machine.persistent_line,
    b"Q": _Machine.persistent,
    b"R": _Machine.call,
    b"S": _Machine.string_line,
    b"T": _Machine.string4,
    b"U": _Machine.string1,
    b"V": _Machine.unicode_line,
    b"X": _Machine.string4,
    b"a": _Machine.append_one,
    b"b": _Machine.build,
    b"c": _Machine.global_line,
    b"d": _Machine.dict_mark,
    b"}": _Machine.empty_dict,
    b"e": _Machine.append_mark,
    b"g": _Machine.get_line,
    b"h": _Machine.get1,
    b"i": _Machine.instance_line,
    b"j": _Machine.get4,
    b"l": _Machine.list_mark,
    b"]": _Machine.empty_list,
    b"o": _Machine.instance_mark,
    b"p": _Machine.put_line,
    b"q": _Machine.put1,
    b"r": _Machine.put4,
    b"s": _Machine.set_one,
    b"t": _Machine.tuple_mark,
    b")": _Machine.empty_tuple,
    b"u": _Machine.set_mark,
    b"G": _Machine.float8,
    b"\x80": _Machine.protocol,
    b"\x81": _Machine.call,
    b"\x82": _Machine.extension1,
    b"\x83": _Machine.extension2,
    b"\x84": _Machine.extension4,
    b"\x85": _Machine.tuple1,
    b"\x86": _Machine.tuple2,
    b"\x87": _Machine.tuple3,
    b"\x88": _Machine.true,
    b"\x89": _Machine.false,
    b"\x8a": _Machine.long1,
    b"\x8b": _Machine.long4,
    b"B": _Machine.bytes4,
    b"C": _Machine.bytes1,
    b"\x8c": _Machine.string1,
    b"\x8d": _Machine.unicode8,
    b"\x8e": _Machine.bytes8,
    b"\x8f": _Machine.empty_set,
    b"\x90": _Machine.append_mark,
    b"\x91": _Machine.frozenset_mark,
    b"\x92": _Machine.call_with_keywords,
    b"\x93": _Machine.stack_global,
    b"\x94": _Machine.memoize,
    b"\x95": _Machine.frame,
    b"\x96": _Machine.bytes8,
    b"\x97": _Machine.none,
    b"\x98": _Machine.nothing,
}


def _ignore(_: object) -> None:
    """Drop a value."""


_OPCODES: list[Callable[[_Machine], None] | None] = [_TABLE.get(bytes([code])) for code in range(256)]
