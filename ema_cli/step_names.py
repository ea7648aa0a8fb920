"""The numbers in the names of a series, and which of them count steps. Pure text; files and folders alike.

A number in a name is a step only with a reason: a word marks it (``step_100``, ``11epoch``), or it is the only number
that differs between the names, and nothing contradicts it. ``rank_0`` is a part of a checkpoint, ``seed3`` another
run, ``0.31`` a loss, ``10x`` none of these. Units and exponents belong to the number: ``800k``, ``1M``, ``2e5``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise

SUFFIXES = re.compile(r"(?:\.(?:pt|pth|ckpt|bin|tar|safetensors))+$", re.IGNORECASE)
"""Suffixes of checkpoint files, which belong to no name."""
_WORDS = {
    "step": "step steps iter iters iteration iterations ite it its update updates ba batch batches",
    "epoch": "epoch epochs ep e",
    "checkpoint": "checkpoint checkpoints ckpt ckpts chkpt chkpnt snapshot snapshots",
    "part": "rank ranks localrank globalrank shard shards part parts layer layers stage stages tp pp mp dp sdp of"
    " consolidated",
    "run": "seed fold kfold cv run trial exp lr wd bs size split member gpu cuda device proc process node worker expert"
    " top client drop dropout",
    "index": "agent task head block chunk ens ensemble",
    "value": "loss wer cer eer ppl perplexity fid kid bleu rouge acc accuracy map miou iou dice auc score reward rew"
    " psnr ssim lpips mse rmse mae nll err error recall precision metric val remaining",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
"""What the number after a word counts. The numbers of parts and runs are not steps, nor are results. An ``index`` may
be either: ``agent_0`` and ``agent_1`` are two, ``agent_5000`` and ``agent_10000`` are steps."""
_VALUE = re.compile(
    r"(?:loss|score|reward|accuracy|error)[=_.+ -]{0,2}$|(?:^|[^a-z])(?:f|acc|top|bleu|rouge|recall)@?\d[=_-]$",
    re.IGNORECASE,
)
"""The end of what is before a result: ``valloss90``, ``f1_90``."""
_AFTER = r"(?:steps?|iters?|iterations?|updates?|batches|ba|epochs?|ep)"
_CLOCK = r"[-_T+. ]{1,2}[0-2]\d[-_:.h]?[0-5]\d(?:[-_:.m]?[0-5]\d)?(?:\+\d\d)?"
_DATE = rf"(?:19|20)\d\d(?:([-_.])(?:0[1-9]|1[0-2])\2[0-3]\d(?:{_CLOCK})?|(?:0[1-9]|1[0-2])[0-3]\d{_CLOCK})"
_COMPACT_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_NUMBER = re.compile(
    rf"(?P<date>(?<!\d){_DATE}(?!\d))"
    r"|(?P<digits>\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?P<fraction>(?:\.\d+)*)(?:e(?P<exponent>\+?\d{1,2}|-\d+)(?![a-z0-9]))?"
    rf"(?:(?P<unit>[kmb])(?=(?:{_AFTER})?(?![a-z0-9])))?",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"(?<=step[=_-])\d{1,3}(?:_\d{3})+(?!\d)", re.IGNORECASE)
"""A step in groups of three digits, if the other names are of one form with it: ``step_1_000`` beside ``step_900``."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_BARE_UNITS = ("", "k", "K", "M", "B")
"""Units of a number without a word: ``7b`` and ``100m`` are sizes of models."""
_WORD_BEFORE = re.compile(r"([A-Za-z]+)[=_.+ -]{0,2}$")
_WORD_AFTER = re.compile(rf"[ _-]?({_AFTER})(?![a-z])(?![=_.+ -]{{0,2}}\d)|[-_](of)[-_]\d", re.IGNORECASE)
_NEXT_WORD = re.compile(rf"(?:{_AFTER})[=_-]?\d", re.IGNORECASE)
_CAMEL = re.compile(r"[A-Z][a-z]+$")
_NEGATIVE = re.compile(r"[=_]-$")
_SHORT = 2
"""Letters of a word that is not read directly after a digit, where it may belong to a hash."""
_MOST_DIGITS = 18
_DATE_DIGITS = 16
"""Year to second, and a counter of two digits."""
_STEP_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedStep:
    """A step read from a name."""

    value: int
    unit: str
    """``step`` or ``epoch``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameNumber:
    """A number in a name."""

    value: int | None
    """``None`` if it is not whole, or is part of a word."""
    text: str
    """As it is written."""
    kind: str
    """``step``, ``epoch``, ``checkpoint``, ``part``, ``run``, ``index``, ``value``, ``time``; empty without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameColumn:
    """A number in each name of a series."""

    unit: str
    """``step``, ``epoch`` or ``time``, which is a date."""
    values: tuple[int | None, ...]
    word: str
    """The kind of the word that marks it, such as ``checkpoint``; empty if it is the only number that differs;
    ``mixed`` if it is not the same in all names, which may count differently."""


@dataclass(frozen=True, slots=True)
class ParsedName:
    """A name, cut into its numbers and the text around them."""

    skeleton: tuple[str, ...]
    """Equal for the names of one series."""
    numbers: tuple[NameNumber, ...]

    def last(self, kind: str) -> int | None:
        """Return the last number after a word of a kind."""
        return next((one.value for one in self.numbers[::-1] if one.kind == kind and one.value is not None), None)


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


def has_step_word(name: str) -> bool:
    """Whether a word says that a number in a name counts steps, epochs or checkpoints."""
    parsed = parse_name(name)
    return any(parsed.last(kind) is not None for kind in ("step", "epoch", "checkpoint"))


def name_form(name: str) -> tuple[str, ...]:
    """Return the text around the numbers of a name, without its suffix: equal for the names of one series."""
    return parse_name(name).skeleton


def parse_name(name: str) -> ParsedName:
    """Return the numbers of a name, and what is around them, without its suffix."""
    return _parse(SUFFIXES.sub("", name))


def canonical_name(name: str) -> tuple[str | int, ...]:
    """Return a name with its whole numbers as values: equal for ``step_005.pt`` and ``step_5.pt``."""
    stem, parts, begin = SUFFIXES.sub("", name), list[str | int](), 0
    for found in _NUMBER.finditer(stem):
        value = _value(found, "step")
        parts += [stem[begin : found.start()], found.group() if value is None else value]
        begin = found.end()
    return (*parts, stem[begin:])


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


def _parse(stem: str) -> ParsedName:
    skeleton, numbers, begin = list[str](), list[NameNumber](), 0
    for found in _NUMBER.finditer(stem):
        before, after = stem[begin : found.start()], stem[found.end() :]
        kind = "time" if found["date"] else _kind(before, after, adjacent=bool(begin))
        kind = "value" if not kind and _VALUE.search(stem[: found.start()]) else kind
        whole = (_is_whole(after) and not _NEGATIVE.search(before)) or kind == "time"
        numbers.append(NameNumber(value=_value(found, kind) if whole else None, text=found.group(), kind=kind))
        skeleton.append(before)
        begin = found.end()
    return ParsedName((*skeleton, stem[begin:]), tuple(numbers))


def _kind(before: str, after: str, *, adjacent: bool) -> str:
    """Return what a number counts, by the word before it, else by the word after it (``11epoch``, ``1-of-3``)."""
    found = _WORD_BEFORE.search(before)
    if found is not None:
        word = found[1]
        in_hash = adjacent and found.start() == 0 and len(word) <= _SHORT
        camel = _CAMEL.search(word)
        kind = _KINDS.get(word.lower()) or (_KINDS.get(camel[0].lower()) if camel else None)
        if kind is not None and not in_hash:
            return kind
    following = _WORD_AFTER.match(after)
    return _KINDS[(following[1] or following[2]).lower()] if following else ""


def _is_whole(after: str) -> bool:
    """Whether the text after a number lets it end there: no letter, or a word that counts this or the next number."""
    return re.match(r"[A-Za-z]", after) is None or bool(_WORD_AFTER.match(after) or _NEXT_WORD.match(after))


def _value(found: re.Match[str], kind: str) -> int | None:
    """Return the whole number that a match means, with its exponent and unit; ``None`` for any other."""
    if found["date"]:
        return int("".join(re.findall(r"\d", found["date"])).ljust(_DATE_DIGITS, "0"))
    fraction, exponent, unit = found["fraction"], found["exponent"] or "", found["unit"] or ""
    counted = kind in ("step", "epoch") or unit in _BARE_UNITS
    if not counted or exponent.startswith("-") or (fraction and not (unit or exponent)) or fraction.count(".") > 1:
        return None
    digits = found["digits"].replace(",", "")
    if len(digits + fraction) > _MOST_DIGITS:
        return None
    value = Decimal(digits + fraction).scaleb(int(exponent or 0)) * _UNITS[unit.lower()]
    return int(value) if value == value.to_integral_value() and value < _STEP_LIMIT else None


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
