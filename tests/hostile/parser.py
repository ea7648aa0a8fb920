"""A parser as the fuzzer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.hostile.tokens import Grammar, varied

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """A parser and how it is fuzzed."""

    seeds: Sequence[bytes]
    mutate: Mutate
    run: Callable[[bytes], object]
    """Parses once; may raise ``EmaAvgError`` and ``PickleError``, and nothing else."""


def simple(seeds: Sequence[bytes], grammar: Grammar, run: Callable[[bytes], object]) -> Parser:
    """Return a parser; one grammar mutates its inputs."""
    return Parser(seeds=seeds, mutate=lambda seed, random: varied(seed, seeds, grammar, random), run=run)
