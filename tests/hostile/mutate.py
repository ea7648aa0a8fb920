"""Mutations of bytes: blind ones, and mutations that know the words of a format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from tests.hostile.opcodes import SHELL, glob, storage, tensor, text

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
PICKLE_WORDS = (
    *(bytes([code]) for code in b"(012NRabdelostu}]).Q"),
    *(bytes([code]) for code in range(0x80, 0x99)),
    *(b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"r\xff\xff\xff\xff"),
    *(b"\x8a\x08" + b"\xff" * 8, b"I01\n", b"L9L\n", b"F1\n", b"S'a'\n", b"Va\n", b"p0\n", b"g0\n", b"G" + bytes(8)),
    *(text("a"), text("step"), text("model"), text(""), SHELL, tensor(), storage(), b"cx\ny\n)R", b"cx\ny\n)\x81}b"),
    glob("torch._utils", "_rebuild_tensor_v2"),
    glob("torch._utils", "_rebuild_tensor_v3"),
    glob("torch._utils", "_rebuild_parameter"),
    glob("torch._tensor", "_rebuild_from_type_v2"),
    glob("torch", "Size"),
    glob("collections", "OrderedDict"),
)
JSON_WORDS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"NaN", b"-Infinity", b"-0", b"1e999", b"0.1"),
    *(b'"\\u0000"', b'"\\ud800"', b'"__metadata__":{}', b'"a":1,', b"[[", b'{"a":', b"9" * 30, b"18446744073709551616"),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"F32"', b'"I64"', b'"weight_map"', b'"../x"', b"\x00", b"\xff"),
    *(
        b'"\\u001b[2J"',
        b'"\\u202e"',
        b'"::error::"',
        b'""',
        b"[]",
        b"{}",
        b"0",
        b"1",
        b"-1",
        b"16",
        b"4611686018427387904",
    ),
)
ZIP_WORDS = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08", b"\x01\0\x10\0")
FOREIGN_WORDS = (
    *(b"GGUF", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"TFL3", b"ET12", b"\x08\x07\x12\x07", b"\n\x29\n\x0b", b"\x81\xa6"),
    *(
        b"<!doctype html",
        b"<?xml",
        b"<Code>",
        b'{"error":',
        b"version https://git-lfs.github.com/spec/",
        b"ustar\x0000",
    ),
)
TOML_WORDS = (b"[", b"]", b"[[", b"=", b'"', b"'", b'"""', b"\n", b".", b"inf", b"nan", b"true", b"9" * 30, b"{a=1}")


def mutated(seed: bytes, others: Sequence[bytes], words: Sequence[bytes], random: Random) -> bytes:
    """Return a seed with one to six mutations, many of them of the words of its format."""
    raw = bytearray(seed)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
        random.choice(_MUTATIONS)(raw, random, others, words)
    return bytes(raw)


def changed(word: bytes, words: Sequence[bytes], random: Random) -> bytes:
    """Return a word with one mutation that leaves most of it as it is."""
    raw = bytearray(word)
    random.choice((_flip, _replace, _extreme, _delete, _repeat))(raw, random, (), words)
    return bytes(raw)


def _flip(raw: bytearray, random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    if raw:
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)


def _replace(raw: bytearray, random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    if raw:
        raw[random.randrange(len(raw))] = random.randrange(256)


def _truncate(raw: bytearray, random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    del raw[random.randrange(len(raw) + 1) :]


def _delete(raw: bytearray, random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    start = random.randrange(len(raw) + 1)
    del raw[start : start + random.choice((1, 1, 2, 4, 8, 32, 128))]


def _repeat(raw: bytearray, random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    start = random.randrange(len(raw) + 1)
    piece = raw[start : start + random.choice((1, 2, 4, 8, 32, 128))]
    raw[start:start] = piece * random.choice((1, 1, 2, 8, 100))


def _extreme(raw: bytearray, random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    width = random.choice((1, 2, 4, 8))
    if len(raw) >= width:
        start = random.randrange(len(raw) - width + 1)
        value = (random.choice(_EXTREMES) + random.choice((0, 0, -1, 1))) & ((1 << 8 * width) - 1)
        raw[start : start + width] = value.to_bytes(width, "little")


def _word(raw: bytearray, random: Random, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    start = random.randrange(len(raw) + 1)
    word = random.choice(words)
    raw[start : start + random.choice((0, 0, 0, len(word)))] = word


def _splice(raw: bytearray, random: Random, others: Sequence[bytes], _: Sequence[bytes]) -> None:
    other = random.choice(others)
    start, begin = random.randrange(len(raw) + 1), random.randrange(len(other) + 1)
    raw[start : random.choice((start, len(raw)))] = other[begin : begin + random.choice((8, 64, 512, len(other)))]


_Mutation = Callable[[bytearray, Random, Sequence[bytes], Sequence[bytes]], None]
_MUTATIONS: tuple[_Mutation, ...] = (
    *(_flip, _replace, _truncate, _delete, _repeat, _extreme, _splice),
    *(_word, _word, _word, _extreme),
)
