"""Tables and lines fit any width: nothing is cut, and no label, number or short word is broken."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from ema_cli.cli.table import Column, Table, lines_of, numbers
from ema_cli.cli.wrapping import Styled, broken, shortened, wrapped

WORDS = st.text("abcdefgh", min_size=1, max_size=12)
NUMBERS = st.one_of(st.integers(0, 10**7).map("{:,}".format), st.floats(0, 100).map("{:.1f} %".format), st.just("-"))
NAMES = st.lists(st.text("xyz_", min_size=1, max_size=12), min_size=1, max_size=12).map(".".join)
TITLES = st.lists(WORDS, min_size=1, max_size=3).map("\n".join)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Return a table of numbers, with names, optional columns and keys or without."""
    titles = draw(st.lists(TITLES, min_size=1, max_size=8))
    columns = [Column(title="no", number=True), Column(title="name", name=True), *numbers(*titles)]
    cells = st.tuples(NUMBERS, NAMES, *[NUMBERS] * len(titles))
    return Table(
        columns=columns, rows=draw(st.lists(cells, min_size=1, max_size=5)), keys=draw(st.sampled_from([0, 2]))
    )


def shown(table: Table, width: int) -> list[str]:
    """Return the lines of a table as text."""
    return [str(line) for line in lines_of(table, width)]


def squeezed(text: str | Sequence[str]) -> str:
    """Return text without blanks and line breaks."""
    return "".join("".join(text).split())


@settings(max_examples=50, deadline=None)
@given(table=tables(), width=st.integers(60, 200))
def test_a_table_fits_and_keeps_its_cells(table: Table, width: int) -> None:
    """Every number and title word is whole, in the order of the rows, and no line is longer than the terminal."""
    lines = shown(table, width)
    assert max(map(cell_len, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]
    text = "\n".join(lines)
    titles = [word for column in table.columns if not column.name for word in column.title.split()]
    values = [cell for number, _, *cells in table.rows for cell in (number, *cells)]
    for whole in (*titles, *map(str, values)):
        assert re.search(rf"(?<![\w.,]){re.escape(whole)}(?![\w.,])", text), whole
    for _, name, *_ in table.rows:
        assert all(part in text for part in str(name).split("."))


@settings(max_examples=50, deadline=None)
@given(table=tables())
def test_without_a_limit_a_row_is_a_line(table: Table) -> None:
    """In a pipe each row is one line with the whole name, below one line of titles."""
    lines = shown(table, 10**6)
    assert len(lines) == 1 + len(table.rows)
    for line, row in zip(lines[1:], table.rows, strict=True):
        assert squeezed(line) == squeezed(list(map(str, row)))


@settings(max_examples=50, deadline=None)
@given(name=NAMES, width=st.integers(24, 80))
def test_a_name_is_broken_after_its_dots(name: str, width: int) -> None:
    """No part is broken, nothing is lost, and each line fits."""
    lines = broken(name, width)
    assert max(map(len, lines)) <= width
    assert squeezed(lines) == name
    assert all(line.endswith(".") for line in lines[:-1])


def test_names_are_not_broken_in_numbers() -> None:
    """A dot or minus in a number is no place to break; what cannot be broken loses its middle."""
    assert broken("runs/lr0.0003-wd0.1-bs512/seed", 21) == ["runs/lr0.0003-wd0.1-", "  bs512/seed"]
    assert broken("x" * 50, 24) == [f"{'x' * 11}…{'x' * 10}"]
    assert cell_len(shortened("名" * 50, 24)) <= 24


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.one_of(WORDS, NUMBERS), min_size=1, max_size=40), width=st.integers(30, 120))
def test_lines_wrap_between_words(words: list[str], width: int) -> None:
    """The words of a line are the same in several lines, numbers stay with their units, and lines are not too long."""
    line = " ".join(words)
    lines = [one.plain for one in wrapped(Text(line), width)]
    assert [word for one in lines for word in one.split()] == line.split()
    assert max(map(len, lines)) <= width
    assert not [one for one in lines if one.strip().startswith("%")]


def test_options_stay_with_their_values() -> None:
    """A line of a command is broken before an option; the fields of a result stay together; a path is never broken."""
    hint = "  try: ema-avg update-bn OUT --model MODEL --data DATA -o NEW; or accept them: --buffers average"
    assert [line.plain for line in wrapped(Text(hint), 45)] == [
        "  try: ema-avg update-bn OUT --model MODEL",
        "    --data DATA -o NEW; or accept them:",
        "    --buffers average",
    ]
    result = f"wrote /{'long' * 15}/ema.safetensors  76.4 kB  13 checkpoints  1.35 s  sha256 8b36…"
    assert [line.plain for line in wrapped(Text(result), 40)] == [
        "wrote",
        f"  /{'long' * 15}/ema.safetensors",
        "  76.4 kB  13 checkpoints  1.35 s",
        "  sha256 8b36…",
    ]


def test_optional_columns_go_first() -> None:
    """The last optional column is omitted first; a text for the rest of the line is shortened."""
    columns = [
        *(Column(title="name", name=True), Column(title="shape", optional=True), Column(title="type", optional=True)),
        *(*numbers("distance"), Column(rest=True)),
    ]
    rows = [["a" * 20, "(128, 128)", "float32", "1,234.5", "an explanation that is longer than the terminal is wide"]]
    table = Table(columns=columns, rows=rows)
    assert shown(table, 90)[1].endswith("1,234.5  an explanation tha… terminal is wide")
    assert [title for title in ("shape", "type", "distance") if title in shown(table, 50)[0]] == ["shape", "distance"]
    assert shown(table, 32) == [f" {'name':20}  distance", f" {'a' * 20}   1,234.5"]


def test_a_line_has_the_styles_of_its_pieces() -> None:
    """On a terminal a line is the text of rich that its pieces make; blanks at its end are gone, in any style."""
    line = Styled(("share", "dim"), "  ", Styled(("ckpt", "bold"), " 1")).rstrip()
    assert str(line) == "share  ckpt 1"
    assert line.rich() == Text.assemble(("share", "dim"), "  ", ("ckpt", "bold"), " 1")
    assert str(Styled("a ", ("  ", "dim"), "").rstrip()) == "a"
    assert not str(Styled(" ", ("  ", "dim")).rstrip())
