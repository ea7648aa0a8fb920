"""The numbers in one name, and what the words beside them say that they count. Pure text.

A word marks a step (``step_100``, ``11epoch``), a part of a checkpoint (``rank_0``) or another run (``seed3``);
``0.31`` is a loss, ``10x`` none of these. Units and exponents belong to the number: ``800k``, ``1M``, ``2e5``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from ema_cli.record import record
from ema_cli.text import regex

SUFFIXES = regex(r"(?:\.(?:pt|pth|ckpt|bin|tar|safetensors))+$", re.IGNORECASE)
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
_VALUE = regex(
    r"(?:loss|score|reward|accuracy|error)[=_.+ -]{0,2}$|(?:^|[^a-z])(?:f|acc|top|bleu|rouge|recall)@?\d[=_-]$",
    re.IGNORECASE,
)
"""The end of what is before a result: ``valloss90``, ``f1_90``."""
_AFTER = r"(?:steps?|iters?|iterations?|updates?|batches|ba|epochs?|ep)"
_CLOCK = r"[-_T+. ]{1,2}[0-2]\d[-_:.h]?[0-5]\d(?:[-_:.m]?[0-5]\d)?(?:\+\d\d)?"
_DATE = rf"(?:19|20)\d\d(?:([-_.])(?:0[1-9]|1[0-2])\2[0-3]\d(?:{_CLOCK})?|(?:0[1-9]|1[0-2])[0-3]\d{_CLOCK})"
_DATE_DIGITS = 8
"""At least: year, month and day."""


def _number_or(date: str) -> re.Pattern[str]:
    return regex(
        rf"(?P<date>{date})"
        r"|(?P<digits>\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?P<fraction>(?:\.\d+)*)"
        r"(?:e(?P<exponent>\+?\d{1,2}|-\d+)(?![a-z0-9]))?"
        rf"(?:(?P<unit>[kmb])(?=(?:{_AFTER})?(?![a-z0-9])))?",
        re.IGNORECASE,
    )


_NUMBER_OR_DATE = _number_or(rf"(?<!\d){_DATE}(?!\d)")
_NUMBER = _number_or("(?!)")
"""Without the dates, which take longer to compile than all other expressions of most runs."""
_UNITS = {"": 0, "k": 3, "m": 6, "b": 9}
"""Powers of ten."""
_BARE_UNITS = ("", "k", "K", "M", "B")
"""Units of a number without a word: ``7b`` and ``100m`` are sizes of models."""
_WORD_BEFORE = regex(r"([A-Za-z]+)[=_.+ -]{0,2}$")
_WORD_AFTER = regex(rf"[ _-]?({_AFTER})(?![a-z])(?![=_.+ -]{{0,2}}\d)|[-_](of)[-_]\d", re.IGNORECASE)
_NEXT_WORD = regex(rf"(?:{_AFTER})[=_-]?\d", re.IGNORECASE)
_CAMEL = regex(r"[A-Z][a-z]+$")
_NEGATIVE = regex(r"[=_]-$")
_SHORT = 2
"""Letters of a word that is not read directly after a digit, where it may belong to a hash."""
MOST_DIGITS = 18
_TIME_DIGITS = 16
"""Year to second, and a counter of two digits."""
STEP_LIMIT = 1 << 62
"""Valid steps are below this, and have at most ``MOST_DIGITS`` digits."""


@record
class NameNumber:
    """A number in a name."""

    value: int | None
    """``None`` if it is not whole, or is part of a word."""
    text: str
    """As it is written."""
    kind: str
    """``step``, ``epoch``, ``checkpoint``, ``part``, ``run``, ``index``, ``value``, ``time``; empty without a word."""


@record
class ParsedName:
    """A name, cut into its numbers and the text around them."""

    skeleton: tuple[str, ...]
    """Equal for the names of one series."""
    numbers: tuple[NameNumber, ...]

    def last(self, kind: str) -> int | None:
        """Return the last number after a word of a kind."""
        return next((one.value for one in self.numbers[::-1] if one.kind == kind and one.value is not None), None)


@lru_cache(maxsize=512)
def parse_name(name: str) -> ParsedName:
    """Return the numbers in a name without its suffix, and the text around them."""
    stem = SUFFIXES.sub("", name)
    skeleton, numbers, begin = list[str](), list[NameNumber](), 0
    for found in _find_numbers(stem):
        before, after = stem[begin : found.start()], stem[found.end() :]
        kind = "time" if found["date"] else _kind(before, after, adjacent=bool(begin))
        kind = "value" if not kind and _VALUE.search(stem[: found.start()]) else kind
        whole = (_is_whole(after) and not _NEGATIVE.search(before)) or kind == "time"
        numbers.append(NameNumber(value=_value(found, kind) if whole else None, text=found.group(), kind=kind))
        skeleton.append(before)
        begin = found.end()
    return ParsedName(skeleton=(*skeleton, stem[begin:]), numbers=tuple(numbers))


def has_step_word(name: str) -> bool:
    """Whether a word says that a number in a name counts steps, epochs or checkpoints."""
    parsed = parse_name(name)
    return any(parsed.last(kind) is not None for kind in ("step", "epoch", "checkpoint"))


def name_form(name: str) -> tuple[str, ...]:
    """Return the text around the numbers of a name, without its suffix: equal for the names of one series."""
    return parse_name(name).skeleton


def canonical_name(name: str) -> tuple[str | int, ...]:
    """Return a name with its whole numbers as values: equal for ``step_005.pt`` and ``step_5.pt``."""
    stem, parts, begin = SUFFIXES.sub("", name), list[str | int](), 0
    for found in _find_numbers(stem):
        value = _value(found, "step")
        parts += [stem[begin : found.start()], found.group() if value is None else value]
        begin = found.end()
    return (*parts, stem[begin:])


def _find_numbers(stem: str) -> Iterator[re.Match[str]]:
    may_be_date = sum(map(str.isdecimal, stem)) >= _DATE_DIGITS
    return (_NUMBER_OR_DATE if may_be_date else _NUMBER).finditer(stem)


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
        return int("".join(re.findall(r"\d", found["date"])).ljust(_TIME_DIGITS, "0"))
    fraction, exponent, unit = found["fraction"], found["exponent"] or "", found["unit"] or ""
    counted = kind in ("step", "epoch") or unit in _BARE_UNITS
    if not counted or exponent.startswith("-") or (fraction and not (unit or exponent)) or fraction.count(".") > 1:
        return None
    digits = found["digits"].replace(",", "")
    if len(digits + fraction) > MOST_DIGITS:
        return None
    decimals = fraction.removeprefix(".")
    power = int(exponent or 0) + _UNITS[unit.lower()] - len(decimals)
    value, rest = divmod(int(digits + decimals) * 10 ** max(power, 0), 10 ** max(-power, 0))
    return value if not rest and value < STEP_LIMIT else None
