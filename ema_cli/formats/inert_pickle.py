"""Read a pickle without importing or calling anything that it names.

Input -> output: the bytes of one pickle, protocols 0 to 5 -> plain Python values, with an inert stand-in for every
class and function. The machine has no ``getattr``, no import and no call: a name becomes a ``Global``, calling one
becomes what the caller's ``reduce`` returns for that name, by default an ``Inert`` record of the attempt.

Work and memory are bounded: nothing is allocated by a declared length, what each opcode allocates is counted and
may not exceed ``most_bytes``, and only scalars and stand-ins are ever hashed (hashing nested shared tuples takes
exponential time, and whoever writes the file can make tuples of equal hashes).
Reference: the opcode documentation in CPython's ``pickletools``.
"""

from __future__ import annotations

import codecs
import gc
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ema_cli.formats.inert_costs import (
    CONTAINERS,
    COSTS,
    FILLED_BYTES,
    GLOBAL_BYTES,
    ITEM_BYTES,
    LONG_ARGUMENT,
    LONGEST,
    LONGEST_GLOBAL,
    LONGEST_NUMBER,
    MOST_BYTES,
    OBJECT_BYTES,
    POINTER_BYTES,
    PUT_BYTES,
    RECORD_BYTES,
    ROUNDING_BYTES,
    SLOT_BYTES,
    SPARSE_BYTES,
    TUPLE_BYTES,
    UNDECODABLE_BYTES,
)
from ema_cli.formats.inert_values import (
    Global,
    Inert,
    PersistentLoad,
    PickleError,
    PickleTruncated,
    Reduce,
    TooLong,
    as_key,
    no_persistent_load,
    no_reduce,
)

_FORGOTTEN = object()


def loads(
    data: bytes,
    start: int = 0,
    *,
    reduce: Reduce = no_reduce,
    persistent_load: PersistentLoad = no_persistent_load,
    most_bytes: int = MOST_BYTES,
) -> tuple[object, int]:
    """Return the value of the pickle at ``start`` of ``data``, and the position behind it.

    Args:
        data: the bytes.
        start: where the pickle begins.
        reduce: answers the calls in it.
        persistent_load: answers its persistent ids.
        most_bytes: memory that it may take, as it is counted here.

    Raises:
        PickleTruncated: ``data`` ends inside the pickle.
        PickleError: anything else is wrong with it.

    """
    machine = _Machine(data, start, reduce, persistent_load, most_bytes)
    try:
        with _without_collections():
            return machine.run(), machine.position
    except PickleError:
        raise
    except struct.error as error:
        raise PickleTruncated("it ends in the middle") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PickleError(f"damaged at byte {machine.position:,}") from error


@contextmanager
def _without_collections() -> Iterator[None]:
    """Millions of new values, none of them garbage, would make Python look for garbage again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Machine:
    """The stack machine: one method per opcode, dispatched by ``_OPCODES``."""

    __slots__ = (
        "data",
        "globals",
        "marks",
        "memo",
        "most_bytes",
        "persistent_load",
        "position",
        "reduce",
        "sparse_memo",
        "spent",
        "stack",
        "tuple_end",
    )

    def __init__(
        self, data: bytes, start: int, reduce: Reduce, persistent_load: PersistentLoad, most_bytes: int
    ) -> None:
        self.data = data
        self.most_bytes = most_bytes
        self.position = start
        self.reduce = reduce
        self.persistent_load = persistent_load
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: list[object] = []
        self.sparse_memo: dict[int, object] = {}
        self.spent = len(data)
        self.tuple_end = -1
        """The position behind the last opcode that made a tuple of what follows a mark."""
        self.globals: dict[tuple[str, str], Global] = {}

    def run(self) -> object:
        data, size, table, costs = self.data, len(self.data), _OPCODES, COSTS
        while self.position < size:
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            operation = table[code]
            if operation is None:
                raise PickleError(f"unknown opcode 0x{code:02x} at byte {self.position - 1:,}")
            self.spent += costs[code]
            if self.spent > self.most_bytes:
                raise PickleError(_TOO_MUCH.format(self.most_bytes))
            operation(self)
        raise PickleTruncated("it ends in the middle")

    def charge(self, size: int) -> None:
        """Count memory, before it is allocated where that may be much."""
        self.spent += size
        if self.spent > self.most_bytes:
            raise PickleError(_TOO_MUCH.format(self.most_bytes))

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

    def skip(self, length: int) -> TooLong:
        """Pass over an operand without a copy of it."""
        if self.position + length > len(self.data):
            raise PickleTruncated("it ends in the middle")
        self.position += length
        return TooLong(length)

    def push_text(self, length: int) -> None:
        self.stack.append(self.decode(self.take(length)) if length <= LONGEST else self.skip(length))

    def push_bytes(self, length: int) -> None:
        self.charge(min(length, LONGEST))
        self.stack.append(self.take(length) if length <= LONGEST else self.skip(length))

    def decode(self, raw: bytes) -> str:
        """Return text; what is not UTF-8 in it is escaped."""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.charge(UNDECODABLE_BYTES * len(raw))
            return raw.decode("utf-8", "backslashreplace")
        self.spent += sys.getsizeof(text) + ROUNDING_BYTES
        return text

    def pop_mark(self) -> list[object]:
        """Take what was pushed since the last mark; its places on the stack are free again."""
        items = self.stack
        self.stack = self.marks.pop()
        self.spent -= SLOT_BYTES * len(items)
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
        self.charge(len(text))

    def long_line(self) -> None:
        text = self.line()
        self.charge(len(text))
        self.stack.append(int(text.removesuffix(b"L")))

    def int1(self) -> None:
        self.stack.append(self.byte())

    def int2(self) -> None:
        self.stack.append(self.unsigned(2))

    def int4(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def long1(self) -> None:
        length = self.byte()
        self.spent += ROUNDING_BYTES + length
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def long4(self) -> None:
        length = self.unsigned4()
        if length > LONGEST_NUMBER:
            raise PickleError(f"it holds a number of {length:,} bytes")
        self.charge(2 * length)
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

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
        self.stack.append(self.decode(raw) if len(raw) <= LONGEST else TooLong(len(raw)))

    def string1(self) -> None:
        self.stack.append(self.decode(self.take(self.byte())))

    def string4(self) -> None:
        self.push_text(self.unsigned4())

    def unicode_line(self) -> None:
        raw = self.line()
        if len(raw) > LONGEST:
            self.stack.append(TooLong(len(raw)))
            return
        text = raw.decode("raw-unicode-escape")
        self.charge(sys.getsizeof(text))
        self.stack.append(text)

    def unicode8(self) -> None:
        self.push_text(self.unsigned(8))

    def bytes1(self) -> None:
        self.push_bytes(self.unsigned(1))

    def bytes4(self) -> None:
        self.push_bytes(self.unsigned4())

    def bytes8(self) -> None:
        self.push_bytes(self.unsigned(8))

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
        self.stack.append(Inert(_SET))

    def tuple_mark(self) -> None:
        items = self.pop_mark()
        self.charge(POINTER_BYTES * len(items))
        self.tuple_end = self.position
        self.stack.append(tuple(items))

    def tuple1(self) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def list_mark(self) -> None:
        items = self.pop_mark()
        self.charge(SLOT_BYTES * len(items))
        self.stack.append(items)

    def dict_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_pairs(items)

    def frozenset_mark(self) -> None:
        items = self.pop_mark()
        self.charge(SLOT_BYTES * len(items))
        self.stack.append(Inert(_FROZEN_SET, entries=items))

    def append_one(self) -> None:
        item = self.stack.pop()
        self.extend([item])

    def append_mark(self) -> None:
        items = self.pop_mark()
        self.extend(items)

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        self.charge(SLOT_BYTES * len(items))
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
        self.charge(ITEM_BYTES * len(items) // 2 + (0 if target else FILLED_BYTES))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str:
                target[key] = value
            else:
                self.spent += OBJECT_BYTES if type(key) is tuple else 0
                target[as_key(key)] = value

    # The memo: a list, as picklers number what they remember from 0 on; what is numbered otherwise is kept apart.

    def put(self, index: int) -> None:
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        elif 0 <= index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            self.charge(SPARSE_BYTES)
            self.sparse_memo[index] = self.stack[-1]

    def put_line(self) -> None:
        index = int(self.line())
        as_key(index)
        self.put(index)

    def put1(self) -> None:
        self.put(self.byte())

    def put4(self) -> None:
        index = self.unsigned4()
        if index == len(self.memo):  # the most frequent opcode of all
            self.memo.append(self.stack[-1])
        else:
            self.put(index)

    def memoize(self) -> None:
        self.put(len(self.memo) + len(self.sparse_memo))

    def get(self, index: int) -> None:
        value = self.memo[index] if 0 <= index < len(self.memo) else self.sparse_memo[index]
        if value is _FORGOTTEN:
            raise PickleError(f"it refers to the arguments of a call, at byte {self.position:,}")
        self.stack.append(value)

    def get_line(self) -> None:
        self.get(int(self.line()))

    def get1(self) -> None:
        self.get(self.byte())

    def get4(self) -> None:
        self.get(self.unsigned4())

    def forget(self, value: object) -> None:
        """Drop arguments that only the making of a tensor needed: the memo would keep those of every tensor.

        Their memory counts as free if nothing else can refer to them: they were made, put, and used at once.
        """
        if self.memo and self.memo[-1] is value and isinstance(value, tuple):
            self.memo[-1] = _FORGOTTEN
            between = self.position - 1 - self.tuple_end
            if between == PUT_BYTES.get(self.data[self.tuple_end : self.tuple_end + 1]):
                self.spent -= TUPLE_BYTES + POINTER_BYTES * len(value)

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
            if len(module) + len(name) > LONGEST_GLOBAL:
                raise PickleError(f"a name of {len(module) + len(name):,} characters, at byte {self.position:,}")
            self.charge(GLOBAL_BYTES)
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
        self.charge(POINTER_BYTES * len(items))
        self.push_call(self.stack.pop(), tuple(items))

    def instance_mark(self) -> None:
        kind, *items = self.pop_mark()
        self.charge(POINTER_BYTES * len(items))
        self.push_call(kind, tuple(items))

    def push_call(self, kind: object, args: object) -> None:
        if not isinstance(args, tuple):
            raise PickleError(f"a call without arguments, at byte {self.position:,}")
        self._charge_arguments(args)
        value = self.reduce(kind, args) if isinstance(kind, Global) else Inert(kind, args)
        self.stack.append(value)
        if type(value) is Inert:
            self.spent += OBJECT_BYTES
        else:
            self.spent += RECORD_BYTES
            self.forget(args)

    def _charge_arguments(self, args: tuple[object, ...]) -> None:
        """Arguments may be shared by many calls, and each call may look at all of them, and copy what is in them."""
        if len(args) > LONG_ARGUMENT:
            self.charge(SLOT_BYTES * len(args))
        for argument in args:
            if isinstance(argument, CONTAINERS) and len(argument) > LONG_ARGUMENT:
                self.charge(ITEM_BYTES * len(argument))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state

    def persistent_line(self) -> None:
        self.stack.append(self.persistent_load(self.line().decode("ascii")))

    def persistent(self) -> None:
        pid = self.stack.pop()
        self.stack.append(self.persistent_load(pid))
        self.forget(pid)

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
_SET = Global("builtins", "set")
_FROZEN_SET = Global("builtins", "frozenset")
_TOO_MUCH = "its values would take more than {:,} bytes of memory"
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
