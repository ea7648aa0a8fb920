"""Text in a chart: how wide it will be, made shorter, and names without what they have in common."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

FONT_SIZE = 12
"""Size of all text, in the units of the chart."""
ROW = 17
"""Height of a row of text."""
_NARROW = frozenset("ijl.,:;'|!()[] tfrI-")
_BROAD = frozenset("mwMW%@&—…")
_ELLIPSIS = "…"


def text_width(text: str) -> float:
    """Return the estimated width of a text; rather more than less, because fonts differ."""
    return FONT_SIZE * sum(map(_character_width, text))


def _character_width(character: str) -> float:
    """Return the width of a character in units of the font size."""
    if character in _NARROW:
        return 0.36
    if character in _BROAD or unicodedata.east_asian_width(character) in "WF":
        return 1.0
    return 0.68 if character.isupper() else 0.6


def shortened(text: str, width: float) -> str:
    """Return a text that is at most ``width`` wide: the middle of a longer one is replaced by an ellipsis."""
    if text_width(text) <= width:
        return text
    for kept in range(min(len(text) - 1, int(width / (0.36 * FONT_SIZE))), 1, -1):
        tail = kept // 2
        short = f"{text[: kept - tail]}{_ELLIPSIS}{text[len(text) - tail :]}"
        if text_width(short) <= width:
            return short
    return _ELLIPSIS


def distinct_parts(names: Sequence[str]) -> list[str]:
    """Return names without the beginning and the end that all of them share: ``ckpt_0500.pt`` becomes ``500``.

    Numbers are not cut, and lose their zeros in front. Names that are equal stay whole.
    """
    if len(set(names)) <= 1:
        return list(names)
    start = re.sub(r"\d+$", "", _shared(names))
    rest = [name[len(start) :] for name in names]
    end = re.sub(r"^\d+", "", _shared([name[::-1] for name in rest])[::-1])
    parts = [name[: len(name) - len(end)] for name in rest]
    return [_plain(part) or name for part, name in zip(parts, names, strict=True)]


def _shared(names: Sequence[str]) -> str:
    """Return the longest common beginning."""
    first, last = min(names), max(names)
    length = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _plain(part: str) -> str:
    """Return a whole number with separators, and any other part unchanged."""
    return f"{int(part):,}" if re.fullmatch(r"[0-9]{1,15}", part) else part
