"""An assembler for pickles: each function gives the opcodes that leave one value on the stack."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from pathlib import Path


def stop(value: bytes) -> bytes:
    """Return the pickle of the value that ``value`` pushes."""
    return pickle.PROTO + b"\x02" + value + pickle.STOP


def glob(module: str, name: str) -> bytes:
    """Name a class or a function."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def num(value: int) -> bytes:
    """Push an integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def text(value: str) -> bytes:
    """Push text."""
    raw = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def tup(*items: bytes) -> bytes:
    """Push a tuple."""
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def numbers(values: Iterable[int]) -> bytes:
    """Push a tuple of integers."""
    return tup(*map(num, values))


def mapping(**items: bytes) -> bytes:
    """Push a dictionary."""
    pairs = b"".join(text(name) + value for name, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def call(function: bytes, *arguments: bytes) -> bytes:
    """Call a function."""
    return function + tup(*arguments) + pickle.REDUCE


def storage(
    key: str = "0", *, kind: str = "FloatStorage", elements: int = 4, location: str = "cpu", extra: bytes = b""
) -> bytes:
    """Push a torch storage by its persistent id."""
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    parts = (text("storage"), glob(module, kind), text(key), text(location), num(elements))
    return tup(*parts, extra) + pickle.BINPERSID


def tensor(
    storage_opcodes: bytes | None = None,
    *,
    offset: int = 0,
    shape: Iterable[int] = (4,),
    strides: Iterable[int] = (1,),
    extra: bytes = b"",
) -> bytes:
    """Push a tensor, however wrong it is; ``extra`` pushes its metadata."""
    function = glob("torch._utils", "_rebuild_tensor_v2")
    view = (num(offset), numbers(shape), numbers(strides), pickle.NEWFALSE, mapping(), extra)
    return call(function, storage_opcodes if storage_opcodes is not None else storage(), *view)


def typed(
    dtype: str, elements: int, *, offset: int = 0, strides: Iterable[int] = (1,), storage_opcodes: bytes | None = None
) -> bytes:
    """Push a tensor of one dimension whose type is its own: by default over an untyped storage of 16 bytes."""
    inside = storage(kind="UntypedStorage", elements=16) if storage_opcodes is None else storage_opcodes
    view = (num(offset), numbers((elements,)), numbers(strides), pickle.NEWFALSE, mapping())
    return call(glob("torch._utils", "_rebuild_tensor_v3"), inside, *view, glob("torch", dtype), mapping())


SHELL = glob("os", "system")


def touch(canary: Path) -> bytes:
    """Push a call that would create a file, if calls were made."""
    return call(SHELL, text(f"touch {canary}"))
