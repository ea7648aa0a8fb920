"""Tables that fit a width, and break no number and no short word.

A table has a line for each row, as long as that fits: titles go on several lines, then columns that matter least are
omitted, then long names are broken. If that is not enough, the table is split, or stacked: each name is on a line of
its own, with its values below, in columns or, where even these do not fit, each after its title.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from rich.cells import cell_len

from ema_cli.cli.wrapping import HANG, Styled, broken, shortened
from ema_cli.record import record
from ema_cli.text import safe_text

Cell = str | Styled
_GAP = 2
"""Blanks between columns."""
_LEAST_NAME = 24
"""Columns for names in a row; with fewer, each name is on a line of its own."""
_AMPLE_NAME = 60
"""Columns for names that are worth an optional column."""

_LONGEST_NAME = 1_000


@record
class Column:
    """A column of a table."""

    title: str = ""
    """May have line breaks, which count where the title does not fit on one line."""
    number: bool = False
    """Aligned at the right."""
    name: bool = False
    """A name or text of any length, which may be broken. A table has at most one such column."""
    optional: bool = False
    """Omitted where there is too little space; of several, the last is the first to go."""
    rest: bool = False
    """Optional, and shortened to the space that is left."""


@record
class Table:
    """Rows of cells, under titles unless no column has one."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    keys: int = 0
    """The number of columns that each part of the table repeats, if it may be split; 0 if not."""
    indent: int = 1
    """Blanks before each line."""


def numbers(*titles: str) -> list[Column]:
    """Return columns of numbers."""
    return [Column(title=title, number=True) for title in titles]


def whole_name(name: str) -> str:
    """Return the name of a tensor or file in safe form, whole: a table breaks it where it has to."""
    return safe_text(name, limit=_LONGEST_NAME)


def lines_of(table: Table, width: int) -> Iterator[Styled]:
    """Yield the lines of a table in the best form that fits ``width``."""
    while _total(table, most=_AMPLE_NAME) > width and (optional := _optional(table)):
        table = _without(table, optional[-1], width)
    if _total(table) <= width:
        return _grid(table, tall=_total(table, tall=False) > width)
    several = table.keys and len(table.columns) > table.keys + 1
    if several and _total(_only(table, range(table.keys + 2))) <= width:
        return _split(table, width)
    return _narrow(table, width)


def _optional(table: Table) -> list[int]:
    return [at for at, column in enumerate(table.columns) if column.optional or column.rest]


def _without(table: Table, at: int, width: int) -> Table:
    """Return a table without a column, or with what fits of it."""
    column = table.columns[at]
    others = _only(table, [one for one in range(len(table.columns)) if one != at])
    left = width - _total(others, most=_AMPLE_NAME) - _GAP
    if not column.rest or left < _LEAST_NAME:
        return others
    columns = [*table.columns[:at], replace(column, rest=False), *table.columns[at + 1 :]]
    rows = [[*row[:at], shortened(str(row[at]), left), *row[at + 1 :]] for row in table.rows]
    return replace(table, columns=columns, rows=rows)


def _only(table: Table, places: Sequence[int]) -> Table:
    """Return a table with some of its columns."""
    rows = [[row[at] for at in places] for row in table.rows]
    return replace(table, columns=[table.columns[at] for at in places], rows=rows)


def _widths(table: Table, *, tall: bool) -> list[int]:
    """Return the width of each column, with its title on one line, or on several if ``tall``."""
    return [
        max([*map(cell_len, _title(column, tall=tall)), *(cell_len(str(row[at])) for row in table.rows)])
        for at, column in enumerate(table.columns)
    ]


def _total(table: Table, *, tall: bool = True, most: int | None = None) -> int:
    """Return the width of the rows, with at most ``most`` for a name."""
    widths = [
        min(width, most) if most and column.name else width
        for column, width in zip(table.columns, _widths(table, tall=tall), strict=True)
    ]
    return table.indent + sum(widths) + _GAP * (len(widths) - 1)


def _grid(table: Table, *, tall: bool = True, name_width: int | None = None) -> Iterator[Styled]:
    """Yield the titles and a line for each row, or several where a name is longer than ``name_width``."""
    widths = [
        name_width if name_width and column.name else width
        for column, width in zip(table.columns, _widths(table, tall=tall), strict=True)
    ]
    for titles in _title_lines(table, tall=tall):
        yield _line(table, titles, widths)
    for row in table.rows:
        parts = [
            broken(str(cell), width) if cell_len(str(cell)) > width else [cell]
            for cell, width in zip(row, widths, strict=True)
        ]
        for cells in zip_longest(*parts, fillvalue=""):
            yield _line(table, cells, widths)


def _title_lines(table: Table, *, tall: bool) -> list[list[Cell]]:
    """Return the lines of the titles; shorter ones are at the bottom."""
    titles = [_title(column, tall=tall)[::-1] for column in table.columns]
    if not any(map(any, titles)):
        return []
    lines = [*zip_longest(*titles, fillvalue="")][::-1]
    return [[Styled((cell, "dim")) for cell in line] for line in lines]


def _line(table: Table, cells: Sequence[Cell], widths: Sequence[int]) -> Styled:
    pieces: list[Cell] = [" " * table.indent]
    for at, (column, cell, width) in enumerate(zip(table.columns, cells, widths, strict=True)):
        blanks = " " * (width - cell_len(str(cell)))
        pieces.append(" " * _GAP if at else "")
        pieces += [blanks, cell] if column.number else [cell, blanks]
    return Styled(*pieces).rstrip()


def _split(table: Table, width: int) -> Iterator[Styled]:
    """Yield a table in parts, each with the columns of the keys and some others."""
    keys, values = list(range(table.keys)), list(range(table.keys, len(table.columns)))
    parts, rest = 0, values
    while rest:
        parts, rest = parts + 1, rest[_how_many(table, keys, rest, width) :]
    most = math.ceil(len(values) / parts)  # so that all parts are as wide
    while values:
        count = min(most, _how_many(table, keys, values, width))
        yield from lines_of(replace(_only(table, [*keys, *values[:count]]), keys=0), width)
        values = values[count:]
        if values:
            yield Styled()


def _how_many(table: Table, keys: list[int], values: list[int], width: int) -> int:
    """Return how many of the columns ``values`` fit beside ``keys``: at least one."""
    count = 1
    while count < len(values) and _total(_only(table, [*keys, *values[: count + 1]])) <= width:
        count += 1
    return count


def _narrow(table: Table, width: int) -> Iterator[Styled]:
    """Yield a table with its names broken, or on lines of their own."""
    name = next((at for at, column in enumerate(table.columns) if column.name), None)
    if name is None:
        return _grid(table)
    left = width - _total(table) + _widths(table, tall=True)[name]
    return _grid(table, name_width=left) if left >= _LEAST_NAME else _stacked(table, name, width)


def _stacked(table: Table, name: int, width: int) -> Iterator[Styled]:
    """Yield each name on a line of its own, and its values below."""
    others = _only(table, [at for at in range(len(table.columns)) if at != name])
    others, margin = replace(others, indent=table.indent + HANG), " " * table.indent
    if _total(others) <= width:
        lines = [*_grid(others)]
        titles, values = lines[: -len(table.rows)], [[line] for line in lines[-len(table.rows) :]]
        yield from [Styled((margin + table.columns[name].title, "dim")), *titles] if titles else []
    else:
        values = [*_pairs(others, width)]
    for row, below in zip(table.rows, values, strict=True):
        yield from (Styled((margin + line, "bold")) for line in broken(str(row[name]), width - table.indent))
        yield from below


def _pairs(table: Table, width: int) -> Iterator[list[Styled]]:
    """Yield for each row its values after their titles, on as many lines as for the others."""
    titles = [column.title.replace("\n", " ") for column in table.columns]
    rows = [
        [Styled((title, "dim"), " " if title else "", cell) for title, cell in zip(titles, row, strict=True)]
        for row in table.rows
    ]
    table, rest, lines = replace(table, columns=[Column()] * len(titles), rows=rows), list(range(len(titles))), []
    while rest:
        count = _how_many(table, [], rest, width)
        lines.append(_grid(_only(table, rest[:count])))
        rest = rest[count:]
    yield from map(list, zip(*lines, strict=True))


def _title(column: Column, *, tall: bool) -> list[str]:
    return column.title.split("\n") if tall else [column.title.replace("\n", " ")]
