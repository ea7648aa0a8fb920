"""An assembler for pickles: each function gives the opcodes that leave one value on the stack."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path


def stop(value: bytes) -> bytes:
    """Return the pickle whose value is ``value``."""
    return b"\x80\x02" + value + b"."


def glob(module: str, name: str) -> bytes:
    """Name a class or a function."""
    return b"c" + f"{module}\n{name}\n".encode()


def num(value: int) -> bytes:
    """Push an integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def text(value: str) -> bytes:
    """Push text."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def tup(*items: bytes) -> bytes:
    """Push a tuple."""
    return b"(" + b"".join(items) + b"t"


def numbers(values: Iterable[int]) -> bytes:
    """Push a tuple of integers."""
    return tup(*map(num, values))


def mapping(**items: bytes) -> bytes:
    """Push a dictionary."""
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    """Call a function."""
    return function + tup(*arguments) + b"R"


def storage(key: str = "0", *, kind: str = "FloatStorage", elements: int = 4, extra: bytes = b"") -> bytes:
    """Push a torch storage by its persistent id."""
    parts = (text("storage"), glob("torch", kind), text(key), text("cpu"), num(elements))
    return b"(" + b"".join(parts) + extra + b"tQ"


def tensor(
    held: bytes | None = None,
    *,
    offset: int = 0,
    shape: Iterable[int] = (4,),
    strides: Iterable[int] = (1,),
    extra: bytes = b"",
) -> bytes:
    """Push a tensor, however wrong it is; ``extra`` pushes its metadata."""
    function = glob("torch._utils", "_rebuild_tensor_v2")
    view = (num(offset), numbers(shape), numbers(strides), b"\x89", mapping(), extra)
    return call(function, held if held is not None else storage(), *view)


SHELL = glob("os", "system")


def touch(canary: Path) -> bytes:
    """Push a call that would create a file, if calls were made."""
    return call(SHELL, text(f"touch {canary}"))
