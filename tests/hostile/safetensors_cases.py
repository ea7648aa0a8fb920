"""Headers of safetensors files that lie: duplicate keys, holes and overlaps, invalid numbers, depth, size."""

from __future__ import annotations

import json

from tests.hostile.cases import OK, Bytes, Case, of_bytes

_ENTRY = b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
FOUR = bytes(16)


def file(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a file around any header."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def one(entry: bytes = _ENTRY, *, name: bytes = b"w", more: bytes = b"", data: bytes = FOUR) -> bytes:
    """Return a file of one tensor."""
    return file(b'{"' + name + b'":' + entry + more + b"}", data)


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16), **more: object) -> bytes:
    """Return an entry of a header."""
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}).encode()


_WHOLE = one()
_BAD: dict[str, tuple[Bytes, str]] = {
    "key twice": (one(more=b',"w":' + _ENTRY), "twice"),
    "key twice by an escape": (one(name=b"a", more=b',"\\u0061":' + _ENTRY), "twice"),
    "key twice in an entry": (
        one(b'{"dtype":"F32","dtype":"F64","shape":[4],"data_offsets":[0,16]}'),
        "twice",
    ),
    "metadata twice": (one(more=b',"__metadata__":{},"__metadata__":{}'), "twice"),
    "hole": (one(entry(offsets=(4, 20)), data=bytes(20)), "a gap"),
    "hole between": (one(more=b',"v":' + entry(offsets=(20, 36)), data=bytes(36)), "a gap"),
    "overlap": (one(more=b',"v":' + entry(offsets=(8, 24)), data=bytes(24)), "an overlap"),
    "same bytes": (one(more=b',"v":' + _ENTRY), "an overlap"),
    "bytes after": (one(data=bytes(17)), "after its last tensor"),
    "byte missing": (one(data=bytes(15)), "truncated"),
    "no data": (one(data=b""), "truncated"),
    "size of the shape": (one(entry(shape=(5,))), "do not match its shape"),
    "overflow": (one(entry(shape=(1 << 32, 1 << 32), offsets=(0, 0)), data=b""), "do not match its shape"),
    "negative shape": (one(entry(shape=(-4,))), "damaged shape"),
    "fraction": (one(entry(shape=(4.0,))), "damaged shape"),
    "exponent": (one(b'{"dtype":"F32","shape":[4e0],"data_offsets":[0,16]}'), "damaged shape"),
    "text as a size": (one(entry(shape=("4",))), "damaged shape"),
    "boolean as a size": (one(entry(shape=(True, 4))), "damaged shape"),
    "null as a size": (one(entry(shape=(None,))), "damaged shape"),
    "no list of sizes": (one(entry(shape=4)), "damaged entry"),
    "sizes of lists": (one(entry(shape=([4],))), "damaged shape"),
    "size of 2**64": (one(entry(shape=(1 << 64,))), "damaged shape"),
    "size of many digits": (one(b'{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}'), "not JSON"),
    "rank": (one(entry(shape=[1] * 64 + [4])), "damaged shape"),
    "negative offset": (one(entry(offsets=(-16, 0))), "damaged data offsets"),
    "offsets of text": (one(entry(offsets=("0", "16"))), "damaged entry"),
    "offsets of booleans": (one(entry(offsets=(False, 16))), "damaged data offsets"),
    "one offset": (one(entry(offsets=(0,))), "damaged entry"),
    "three offsets": (one(entry(offsets=(0, 16, 32))), "damaged entry"),
    "offsets turned round": (one(entry(offsets=(16, 0))), "do not match its shape"),
    "offsets of 2**64": (one(entry(offsets=(1 << 64, (1 << 64) + 16))), "damaged data offsets"),
    "fractions as offsets": (one(entry(offsets=(0.0, 16.0))), "damaged entry"),
    "no type": (one(b'{"shape":[4],"data_offsets":[0,16]}'), "damaged entry"),
    "no shape": (one(b'{"dtype":"F32","data_offsets":[0,16]}'), "damaged entry"),
    "no offsets": (one(b'{"dtype":"F32","shape":[4]}'), "damaged entry"),
    "number as a type": (one(entry(dtype=32)), "damaged entry"),
    "type of nobody": (one(entry(dtype="F\x1b[31m")), "cannot be averaged"),
    "type in small letters": (one(entry(dtype="f32")), "cannot be averaged"),
    "entry is null": (one(b"null"), "damaged entry"),
    "entry is a list": (one(b"[]"), "damaged entry"),
    "entry is text": (one(b'"F32"'), "damaged entry"),
    "header is a list": (file(b'["w"]'), "not a checkpoint"),
    "header is null": (file(b"null    "), "not a checkpoint"),
    "header is text": (file(b'"w"     '), "not a checkpoint"),
    "leading space": (file(b" " + _WHOLE[8:-16], FOUR), "not a checkpoint"),
    "byte order mark": (file(b"\xef\xbb\xbf" + _WHOLE[8:-16], FOUR), "not a checkpoint"),
    "two objects": (file(_WHOLE[8:-16] + b"{}", FOUR), "not JSON"),
    "rest behind the object": (file(_WHOLE[8:-16] + b"x", FOUR), "not JSON"),
    "NUL behind the object": (file(_WHOLE[8:-16] + b"\0", FOUR), "not JSON"),
    "comma at the end": (file(_WHOLE[8:-17] + b",}", FOUR), "not JSON"),
    "single quotes": (file(_WHOLE[8:-16].replace(b'"', b"'"), FOUR), "not JSON"),
    "comment": (file(b"{/**/" + _WHOLE[9:-16], FOUR), "not JSON"),
    "NaN": (one(b'{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}'), "contains NaN"),
    "Infinity": (one(b'{"dtype":"F32","shape":[Infinity],"data_offsets":[0,16]}'), "contains Infinity"),
    "not UTF-8": (one(name=b"\xff"), "not JSON"),
    "UTF-16": (file("{}".encode("utf-16-le") + b"  "), "not JSON"),
    "control character in a name": (one(name=b"a\nb"), "not JSON"),
    "half a character in a name": (one(name=b"\\ud800"), "cannot be written"),
    "name of 64 kB": (one(name=b"n" * 65_537), "cannot be written"),
    "metadata of numbers": (one(more=b',"__metadata__":{"step":1}'), "must be strings"),
    "metadata of objects": (one(more=b',"__metadata__":{"step":{}}'), "must be strings"),
    "metadata is a list": (one(more=b',"__metadata__":[]'), "must be strings"),
    "metadata is null": (one(more=b',"__metadata__":null'), "must be strings"),
    "half a character in the metadata": (one(more=b',"__metadata__":{"a":"\\udfff"}'), "must be strings"),
    "depth": (one(b"[" * 100_000 + b"]" * 100_000), "JSON"),
    "depth of objects": (one(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "JSON"),
    "40 MB of lists": (lambda: file(b'{"a":[' + b"[]," * 13_000_000 + b"[]]}"), "of memory"),
    "40 MB of numbers": (lambda: file(b'{"a":[' + b"1000," * 8_000_000 + b"1]}"), "of memory"),
    "40 MB of wide text": (lambda: file(b'{"a":"' + b"a" * 40_000_000 + "\U0001f600".encode() + b'"}'), "of memory"),
    "too many tensors": (
        lambda: file(b"{" + b",".join(b'"%d":0' % number for number in range(300_001)) + b"}"),
        "tensors, more than",
    ),
    "empty header": (file(b"{}"), ""),
    "length of 2**64": (file(_WHOLE[8:-16], FOUR, length=(1 << 64) - 1), "not a checkpoint"),
    "length of 100 MB and one": (file(_WHOLE[8:-16], FOUR, length=100_000_001), "not a checkpoint"),
    "length of 100 MB": (file(_WHOLE[8:-16], FOUR, length=100_000_000), "truncated"),
    "length too small": (file(_WHOLE[8:-16], FOUR, length=len(_WHOLE) - 30), "not JSON"),
    "length too large": (file(_WHOLE[8:-16], FOUR, length=len(_WHOLE) - 8), "not JSON"),
    "length of nothing": (file(_WHOLE[8:-16], FOUR, length=0), "header"),
    "a piece of a rank": (
        one(more=b',"__metadata__":{"DCP_SHARDING_INFO":"{\\"w\\":{\\"saved_offsets\\":[4]}}"}'),
        "pieces of tensors",
    ),
    "damaged pieces": (one(more=b',"__metadata__":{"DCP_SHARDING_INFO":"{"}'), "damaged DCP_SHARDING_INFO"),
}
_GOOD: dict[str, tuple[bytes, str]] = {
    "plain": (_WHOLE, ""),
    "padded": (file(_WHOLE[8:-16] + b" " * 4000, FOUR), ""),
    "unpadded": (one(name=b"odd"), ""),
    "pretty": (file(json.dumps(json.loads(_WHOLE[8:-16]), indent=2).encode(), FOUR), ""),
    "more fields": (one(entry(note="more")), ""),
    "other order": (one(entry(offsets=(16, 32)), more=b',"v":' + _ENTRY, data=bytes(32)), ""),
    "scalar": (one(entry(shape=(), offsets=(0, 4)), data=bytes(4)), ""),
    "rank of 64": (one(entry(shape=[1] * 63 + [4])), ""),
    "empty tensor beside": (one(more=b',"e":' + entry(shape=(0, 1 << 40), offsets=(0, 0))), ""),
    "metadata": (one(more=b',"__metadata__":{"step":"7","note":"\\u001b[31m"}'), ""),
    "name of escapes": (one(name=b"\\u001b[31m"), ""),
    "no name": (one(name=b""), ""),
}


def safetensors_cases() -> list[Case]:
    """Return the files, and a good one cut at every twentieth of its length."""
    cut = {f"cut at {share} of 20": (_WHOLE[: len(_WHOLE) * share // 20], "") for share in range(1, 20)}
    return [
        *of_bytes("safetensors", ".safetensors", _BAD),
        *of_bytes("safetensors", ".safetensors", cut),
        *of_bytes("good_safetensors", ".safetensors", _GOOD, code=OK),
    ]
