"""Inputs as sequences of words: opcodes, JSON tokens, lines. Changing words gets past the first check."""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from tests.hostile.mutate import JSON_WORDS, PICKLE_WORDS, TOML_WORDS, changed, mutated

_JSON = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+0-9.eE]+|[a-zA-Z]+|\s+|.', re.DOTALL)
_TOML = re.compile(rb'"[^"\n]*"|\'[^\'\n]*\'|[-+0-9.eE]+|[\w-]+|\n+|[ \t]+|.', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Grammar:
    """How the inputs of a format are split, and words that mean something in it."""

    tokens: Callable[[bytes], Sequence[bytes]]
    words: Sequence[bytes]


@cache
def _pickle_tokens(raw: bytes) -> Sequence[bytes]:
    places = []
    try:
        places = [place for _, _, place in pickletools.genops(raw) if place]
    except Exception:  # noqa: BLE001 - of what is no pickle the opcodes up to there
        places = places or [len(raw) // 2]
    return [raw[begin:end] for begin, end in zip([0, *places], [*places, len(raw)], strict=True)]


@cache
def _json_tokens(raw: bytes) -> Sequence[bytes]:
    return _JSON.findall(raw)


@cache
def _toml_tokens(raw: bytes) -> Sequence[bytes]:
    return _TOML.findall(raw)


@cache
def _lines(raw: bytes) -> Sequence[bytes]:
    return raw.splitlines(keepends=True)


PICKLE = Grammar(_pickle_tokens, PICKLE_WORDS)
JSON = Grammar(_json_tokens, JSON_WORDS)
TOML = Grammar(_toml_tokens, TOML_WORDS)


def lines(words: Sequence[bytes]) -> Grammar:
    """Return the grammar of a text of lines; any line may be one of the words."""
    return Grammar(_lines, words)


def varied(seed: bytes, seeds: Sequence[bytes], grammar: Grammar, random: Random) -> bytes:
    """Return a seed with one to six mutations: of its bytes, or twice as often of its words."""
    if random.randrange(3) == 0:
        return mutated(seed, seeds, grammar.words, random)
    made = list(grammar.tokens(seed))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
        random.choice(_EDITS)(made, random, grammar.tokens(random.choice(seeds)), grammar.words)
    return b"".join(made)


def _delete(made: list[bytes], random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    start = random.randrange(len(made) + 1)
    del made[start : start + random.choice((1, 1, 2, 4, 16))]


def _repeat(made: list[bytes], random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    start = random.randrange(len(made) + 1)
    made[start:start] = made[start : start + random.choice((1, 1, 2, 4, 8))] * random.choice((1, 1, 2, 8, 70))


def _swap(made: list[bytes], random: Random, _: Sequence[bytes], __: Sequence[bytes]) -> None:
    if made:
        one, other = random.randrange(len(made)), random.randrange(len(made))
        made[one], made[other] = made[other], made[one]


def _insert(made: list[bytes], random: Random, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    made.insert(random.randrange(len(made) + 1), random.choice(words))


def _replace(made: list[bytes], random: Random, other: Sequence[bytes], words: Sequence[bytes]) -> None:
    if made:
        made[random.randrange(len(made))] = random.choice(random.choice((words, other or words)))


def _change(made: list[bytes], random: Random, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    """Change bytes inside a word: the argument of an opcode, a digit of a number."""
    if made:
        place = random.randrange(len(made))
        made[place] = changed(made[place], words, random)


def _take(made: list[bytes], random: Random, other: Sequence[bytes], _: Sequence[bytes]) -> None:
    """Take a run of words from another input."""
    start, begin = random.randrange(len(made) + 1), random.randrange(len(other) + 1)
    made[start:start] = other[begin : begin + random.choice((1, 2, 8, 32))]


_Edit = Callable[[list[bytes], Random, Sequence[bytes], Sequence[bytes]], None]
_EDITS: tuple[_Edit, ...] = (_delete, _repeat, _swap, _insert, _insert, _replace, _replace, _change, _change, _take)
