"""Files of the format before torch 1.6 that lie: other magic, missing storages, false lengths."""

from __future__ import annotations

import struct

from tests.hostile.cases import OK, Bytes, Case, of_bytes
from tests.hostile.opcodes import SHELL, mapping, num, stop, storage, tensor, text
from tests.hostile.zips import FOUR

_MAGIC = 0x1950A86A20F9469CFC6C


def legacy(
    *,
    magic: bytes = stop(num(_MAGIC)),
    version: bytes = stop(num(1001)),
    system: bytes | None = None,
    root: bytes | None = None,
    keys: bytes | None = None,
    data: bytes = struct.pack("<q", 4) + FOUR,
) -> bytes:
    """Return a file, with any of its parts changed."""
    system = stop(mapping(little_endian=b"\x88")) if system is None else system
    root = stop(mapping(w=tensor())) if root is None else root
    return magic + version + system + root + (stop(b"](" + text("0") + b"e") if keys is None else keys) + data


_WHOLE = legacy()
_BAD: dict[str, tuple[Bytes, str]] = {
    "bare pickle": (stop(mapping(w=b"N")), "bare pickle"),
    "pickle of a call": (stop(SHELL + b")R"), "bare pickle"),
    "other magic": (legacy(magic=stop(num(_MAGIC + 1))), "bare pickle"),
    "text as magic": (legacy(magic=stop(text("magic"))), "bare pickle"),
    "tuple as magic": (legacy(magic=stop(b")" + b"2\x86" * 60)), "bare pickle"),
    "other version": (legacy(version=stop(num(1002))), "unknown version"),
    "version of nothing": (legacy(version=stop(b"N")), "unknown version"),
    "big endian": (legacy(system=stop(mapping(little_endian=b"\x89"))), "big-endian"),
    "no byte order": (legacy(system=stop(b"}")), "big-endian"),
    "system is a list": (legacy(system=stop(b"]")), "big-endian"),
    "byte order is a number": (legacy(system=stop(mapping(little_endian=num(1)))), "big-endian"),
    "root is a number": (legacy(root=stop(num(1))), "damaged list of storages"),
    "root is cut": (legacy(root=b"\x80\x02}"), "damaged pickle"),
    "keys are a number": (legacy(keys=stop(num(1))), "damaged list of storages"),
    "keys are a tuple": (legacy(keys=stop(b"(" + text("0") + b"t")), "damaged list of storages"),
    "keys of numbers": (legacy(keys=stop(b"](" + num(0) + b"e")), "damaged list of storages"),
    "keys of lists": (legacy(keys=stop(b"](]e")), "damaged list of storages"),
    "key twice": (legacy(keys=stop(b"](" + text("0") * 2 + b"e")), "damaged list of storages"),
    "key of nothing": (legacy(keys=stop(b"](" + text("1") + b"e")), "damaged list of storages"),
    "no keys": (legacy(keys=stop(b"]"), data=b""), "does not hold"),
    "no keys but data": (legacy(keys=stop(b"]")), "after its last storage"),
    "unknown kind": (legacy(root=stop(mapping(w=tensor(storage(kind="EvilStorage"))))), "damaged list of storages"),
    "count of minus one": (legacy(data=struct.pack("<q", -1) + FOUR), "truncated"),
    "count of 2**63": (legacy(data=struct.pack("<q", (1 << 63) - 1) + FOUR), "truncated"),
    "count of five": (legacy(data=struct.pack("<q", 5) + FOUR), "truncated"),
    "count of three": (legacy(data=struct.pack("<q", 3) + FOUR), "after its last storage"),
    "byte behind": (_WHOLE + b"x", "after its last storage"),
    "no data": (legacy(data=b""), "truncated"),
    "half a count": (legacy(data=b"\x04\0\0\0"), "truncated"),
    "larger than its storage": (legacy(root=stop(mapping(w=tensor(shape=(5,))))), "beyond its storage"),
    "view of old": (
        legacy(root=stop(mapping(w=tensor(storage(extra=b"(" + text("v") + num(0) + num(4) + b"t"))))),
        "before 0.4",
    ),
    "20 MB of lists": (lambda: legacy(root=b"\x80\x02" + b"]" * 20_000_000 + b"."), "more than"),
    "lists without an end": (legacy(root=b"\x80\x02" + b"]" * 2_000_000), ""),
}
_GOOD: dict[str, tuple[bytes, str]] = {
    "plain": (_WHOLE, ""),
    "attack beside": (legacy(root=stop(mapping(model=mapping(w=tensor()), evil=SHELL + b")R"))), ""),
    "view of nothing": (legacy(root=stop(mapping(w=tensor(storage(extra=b"N"))))), ""),
    "protocol 5": (legacy(magic=b"\x80\x05" + num(_MAGIC) + b"."), ""),
}


def legacy_cases() -> list[Case]:
    """Return the files, and a good one cut at every twentieth of its length."""
    cut = {f"cut at {share} of 20": (_WHOLE[: len(_WHOLE) * share // 20], "") for share in range(1, 20)}
    return [
        *of_bytes("legacy", ".pt", _BAD),
        *of_bytes("legacy", ".pt", cut),
        *of_bytes("good_legacy", ".pt", _GOOD, code=OK),
    ]
