"""Lines of text and names in a limited width: broken between words, and names after dots or slashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.cells import cell_len

from ema_cli.text import regex

if TYPE_CHECKING:
    from rich.text import Text

HANG = 2
"""Blanks before the continuation of a line."""
_FIELD = regex(r"\s*(?:\S| (?! ))+\s*")
"""Words with one blank between them; two blanks are between the fields of a line."""
_WORD = regex(r"\s*(?:--[\w-]+ (?=[^\s-]))?\S+(?: \d\S*)?(?:(?<=\d) (?:%|[kMGT]?B(?:/s)?|s)(?!\w)\S*)?\s*")
"""A word; a number is one with its unit and the word before it, and an option with its value."""
_PLACES = tuple(regex(rf"(?<=[{marks}])(?!(?<=\d[.,])\d|[{marks}]|$)") for marks in ("./", "_:,=-"))
"""Where names are broken: after dots and slashes, and what is still too long after other marks; not in a number."""


class Styled:
    """A line of text whose pieces may have styles. Only a terminal needs the text of rich, whose import takes 10 ms."""

    def __init__(self, *pieces: Styled | tuple[str, str] | str) -> None:
        self.pieces: list[tuple[str, str]] = []
        """Each with its style."""
        for piece in pieces:
            match piece:
                case Styled():
                    self.pieces += piece.pieces
                case str():
                    self.pieces.append((piece, ""))
                case _:
                    self.pieces.append(piece)

    def __str__(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def rstrip(self) -> Styled:
        """Return the line without blanks at its end."""
        pieces = list(self.pieces)
        while pieces:
            text, style = pieces.pop()
            if text.rstrip():
                return Styled(*pieces, (text.rstrip(), style))
        return Styled()

    def rich(self) -> Text:
        """Return the text of rich."""
        from rich.text import Text  # noqa: PLC0415 - see above

        return Text.assemble(*self.pieces)


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """Yield a line of text in lines of at most ``width``; a longer word, such as a path, stays whole."""
    from rich.text import Text  # noqa: PLC0415 - only on a terminal

    plain = text.plain
    indent = len(plain) - len(plain.lstrip()) + HANG
    starts, first, place, room = [], 0, 0, width
    for part in _fields(plain, width - indent):
        if plain[first:place].strip() and cell_len((plain[first:place] + part).rstrip()) > room:
            starts.append(place)
            first, room = place, width - indent
        place += len(part)
    for number, line in enumerate(text.divide(starts)):
        line.rstrip()
        yield Text(" " * indent) + line if number else line


def _fields(line: str, width: int) -> Iterator[str]:
    """Yield the fields of a line; one longer than ``width`` word by word."""
    for field in _FIELD.findall(line):
        yield from [field] if cell_len(field.strip()) <= width else _WORD.findall(field)


def broken(name: str, width: int) -> list[str]:
    """Return a name or text in lines of at most ``width``; a part without a place to break is cut in the middle."""
    lines = [""]
    for part in _parts(name, max(width - HANG, 1)):
        if lines[-1].strip() and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append(" " * HANG)
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _parts(name: str, width: int) -> Iterator[str]:
    """Yield parts that fit ``width``: words, and the parts of longer words."""
    parts = _WORD.findall(name)
    for places in _PLACES:
        parts = [one for part in parts for one in (places.split(part) if cell_len(part.rstrip()) > width else [part])]
    yield from (shortened(part, width) for part in parts)


def shortened(text: str, width: int) -> str:
    """Return text of at most ``width``, with an ellipsis for the middle of a longer one."""
    kept = len(text)
    short = text.rstrip() if cell_len(text) > width else text
    while cell_len(short) > width:
        kept = min(kept - 1, width - 1)
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short
