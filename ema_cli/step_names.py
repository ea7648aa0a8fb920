"""The numbers in the names of a series that count steps. Pure text; files and folders alike.

A number is a step only with a reason: a word marks it, or it is the only number that differs between the names, and
nothing contradicts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from ema_cli.name_numbers import NameNumber, ParsedName, parse_name
from ema_cli.record import record
from ema_cli.text import regex

_COMPACT_DATE = regex(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_GROUPED = regex(r"(?<=step[=_-])\d{1,3}(?:_\d{3})+(?!\d)", re.IGNORECASE)
"""A step in groups of three digits, if the other names are of one form with it: ``step_1_000`` beside ``step_900``."""


@record
class NamedStep:
    """A step read from a name."""

    value: int
    unit: str
    """``step`` or ``epoch``."""


@record
class NameColumn:
    """A number in each name of a series."""

    unit: str
    """``step``, ``epoch`` or ``time``, which is a date."""
    values: tuple[int | None, ...]
    word: str
    """The kind of the word that marks it, such as ``checkpoint``; empty if it is the only number that differs;
    ``mixed`` if it is not the same in all names, which may count differently."""


def steps_from_names(names: Sequence[str]) -> list[NamedStep | None]:
    """Return the step in each name of a series: a file name, a folder name, or ``checkpoint-500/model.bin``.

    All are from one column of numbers if there is one that all names have; otherwise each name has its own best.
    """
    columns = [column for column in name_columns(names) if column.unit != "time"]
    epochs = next((column.values for column in columns if column.unit == "epoch"), None)
    whole = [one for one in columns if None not in one.values and not (epochs and inversion(one.values, epochs))]
    for least in (len(names), min(len(names), 2)):
        for column in whole:
            if len(set(column.values)) >= least:
                return [_named(value, column.unit) for value in column.values]
    each = zip(*([_named(value, column.unit) for value in column.values] for column in columns), strict=True)
    same = len(names) > 1 and any(len(set(column.values)) == 1 and None not in column.values for column in columns)
    return [next(filter(None, found), None) for found in each] if columns and not same else [None] * len(names)


def _named(value: int | None, unit: str) -> NamedStep | None:
    return None if value is None else NamedStep(value=value, unit=unit)


def name_columns(names: Sequence[str]) -> list[NameColumn]:
    """Return the numbers in the names of a series that may order it, best first: steps, epochs, dates.

    If the names are equal except for their numbers, a column has one place in all of them.
    """
    parsed = [parse_name(name) for name in names]
    several = len({one.skeleton for one in parsed}) > 1
    joined = [parse_name(_GROUPED.sub(lambda found: found[0].replace("_", ""), name)) for name in names]
    parsed = joined if several and len({one.skeleton for one in joined}) == 1 else parsed
    alike = len(names) > 1 and len({one.skeleton for one in parsed}) == 1
    found = _columns_of_places(parsed) if alike else _columns_of_words(parsed)
    return [column for column in found if any(value is not None for value in column.values)]


def inversion(first: Sequence[int | None], second: Sequence[int | None]) -> tuple[int, int] | None:
    """Return two positions that two columns order differently, in the order of the first; ``None`` if none.

    Positions without a number are ignored, and equal numbers contradict no order.
    """
    both = [n for n, pair in enumerate(zip(first, second, strict=True)) if None not in pair]
    ordered = sorted(both, key=lambda n: (first[n] or 0, second[n] or 0))
    for earlier, later in pairwise(ordered):
        if (second[earlier] or 0) > (second[later] or 0):
            return earlier, later
    return None


def _columns_of_places(parsed: Sequence[ParsedName]) -> Iterator[NameColumn]:
    """Yield the columns of names that are equal except for their numbers: the last place of each kind that differs."""
    places = [_dated(place) for place in zip(*(one.numbers for one in parsed), strict=True)]
    worded: list[NameColumn] = []
    for unit in ("step", "epoch"):
        columns = [_values(place) for place in places if place[0].kind == unit and None not in _values(place)]
        differing = [column for column in columns if len(set(column)) > 1]
        worded += [NameColumn(unit=unit, values=column, word=unit) for column in (differing or columns)[-1:]]
    yield from worded
    if all(column.unit == "epoch" and len(set(column.values)) < len(parsed) for column in worded):
        yield from (bare for bare in _bare(places) if not any(inversion(bare.values, one.values) for one in worded))
    times = [_values(place) for place in places if place[0].kind == "time"]
    yield from (NameColumn(unit="time", values=column, word="time") for column in times[:1] if len(set(column)) > 1)


def _dated(place: Sequence[NameNumber]) -> Sequence[NameNumber]:
    """Return the numbers as dates, if each of several is one: ``20240131``."""
    bare = all(not number.kind and _COMPACT_DATE.fullmatch(number.text) for number in place)
    return [replace(number, kind="time") for number in place] if bare and len(place) > 1 else place


def _bare(places: Sequence[Sequence[NameNumber]]) -> Iterator[NameColumn]:
    """Yield the number without a word of a unit that differs.

    Results (``wer_31``) are ignored. If several differ, it is the last, if it increases with the others
    (``checkpoint_3_5000``: epoch and update); else the one after a word such as ``ckpt``. There is none among names of
    several parts or runs.
    """
    differing = [place for place in places if len(set(_values(place))) > 1]
    counted = [
        place for place in differing if place[0].kind in ("", "checkpoint", "index") and None not in _values(place)
    ]
    if not counted or any(place[0].kind in ("part", "run") or _is_index(place) for place in differing):
        return
    columns = [_values(place) for place in counted]
    rows = sorted(zip(*columns, strict=True), key=lambda row: [value or 0 for value in row])
    last = [row[-1] or 0 for row in rows]
    chosen = counted[-1] if last == sorted(last) else None
    chosen = chosen or next((place for place in counted if place[0].kind == "checkpoint"), None)
    if chosen is not None:
        yield NameColumn(unit="step", values=_values(chosen), word=chosen[0].kind.removeprefix("index"))


def _is_index(place: Sequence[NameNumber]) -> bool:
    """Whether numbers after a word such as ``agent`` count things, one after the other: 0, 1, 2."""
    values = {value for value in _values(place) if value is not None}
    return place[0].kind == "index" and min(values, default=2) <= 1 and max(values, default=0) < len(values) + 1


def _columns_of_words(parsed: Sequence[ParsedName]) -> Iterator[NameColumn]:
    """Yield the columns of names of several kinds: the last number after a word, or what differs from similar names."""
    epochs = [one.last("epoch") for one in parsed]
    bare = [None if epoch is not None else other for epoch, other in zip(epochs, _by_likeness(parsed), strict=True)]
    spelled = [one.last("step") for one in parsed]
    steps = [other if step is None else step for step, other in zip(spelled, bare, strict=True)]
    yield NameColumn(unit="step", values=tuple(steps), word="mixed" if any(bare) else "step")
    yield NameColumn(unit="epoch", values=tuple(epochs), word="epoch")


def _by_likeness(parsed: Sequence[ParsedName]) -> list[int | None]:
    """Return the number of each name that differs from the names like it, else the one after ``ckpt`` and the like."""
    found = [one.last("checkpoint") for one in parsed]
    for skeleton in {one.skeleton for one in parsed}:
        alike = [n for n, one in enumerate(parsed) if one.skeleton == skeleton]
        for column in _bare(list(zip(*(parsed[n].numbers for n in alike), strict=True))) if len(alike) > 1 else ():
            for n, value in zip(alike, column.values, strict=True):
                found[n] = value
    return found


def _values(place: Sequence[NameNumber]) -> tuple[int | None, ...]:
    return tuple(number.value for number in place)
