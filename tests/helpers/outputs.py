"""Parts of the output of a run, and system calls that fail during the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def bytes_header(size: int) -> bytes:
    """Return the header of a safetensors file with one tensor of bytes."""
    entry = {"b": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    body = json.dumps(entry).encode()
    return len(body).to_bytes(8, "little") + body


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: int) -> list[int]:
    """Let the ``number``-th call of a system function fail; return a list that counts the calls."""
    original = getattr(os, call)
    calls: list[int] = []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise OSError(code, os.strerror(code))
        return original(*arguments, **options)

    monkeypatch.setattr(os, call, failing)
    return calls


def listing(folder: Path) -> set[str]:
    """Return all names in a folder, hidden ones too."""
    return {path.name for path in folder.iterdir()}


def header_of(path: Path) -> bytes:
    """Return the length and the header of a safetensors file."""
    raw = path.read_bytes()
    return raw[: 8 + int.from_bytes(raw[:8], "little")]


def sorted_metadata(header: bytes) -> bytes:
    """Return a header of the library with its metadata in sorted order; the library shuffles them."""
    text = header[8:].decode()
    metadata = json.loads(text)["__metadata__"]
    end = text.index("}") + 1
    entry = json.dumps(dict(sorted(metadata.items())), separators=(",", ":"), ensure_ascii=False)
    return header[:8] + (f'{{"__metadata__":{entry}' + text[end:]).encode()


class Memory:
    """A sink that keeps the data section in memory."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.filled = 0

    def write(self, offset: int, data: memoryview) -> None:
        """Place the bytes."""
        self.data[offset : offset + len(data)] = data.tobytes()
        self.filled += len(data)
