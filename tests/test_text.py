"""Text from files made harmless, and sizes for people."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli import text as own
from ema_cli.text import (
    LONGEST_NAME,
    human_bytes,
    is_writable_text,
    listing,
    parse_bytes,
    percent,
    plural,
    quoted,
    regex,
    safe_lines,
    safe_text,
    shortlist,
)

ANY_TEXT = st.text(st.characters(codec=None), max_size=400)


@given(ANY_TEXT)
@settings(deadline=None)
def test_safe_text_is_printable_and_bounded(text: str) -> None:
    """Whatever a file contains becomes printable characters of bounded length on one line."""
    shown = safe_text(text)
    assert shown.isprintable()
    assert len(shown) <= 10 * LONGEST_NAME
    assert safe_text(shown, limit=len(shown) + 1) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=LONGEST_NAME))
@settings(deadline=None)
def test_harmless_text_is_left_alone(text: str) -> None:
    """Names in any script pass unchanged."""
    assert safe_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("line\u2028separator", r"line\u2028separator"),
        ("\udcff", r"\udcff"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    """Escape sequences, line breaks, reversed text and undecodable bytes are shown as escapes."""
    assert safe_text(text) == shown


@pytest.mark.parametrize("limit", [1, 2, 3, 9, 10])
def test_the_middle_of_a_long_text_is_cut(limit: int) -> None:
    """A long text keeps its beginning and its end, and is no longer than the limit."""
    shown = safe_text("beginning-and-end", limit=limit)
    assert len(shown) <= limit
    assert "…" in shown
    assert safe_text("beginning-and-end", limit=9) == "begi…-end"


def test_quoted_text_is_safe() -> None:
    """Messages show names in quotes, escaped."""
    assert quoted("a\x07") == r'"a\x07"'


@given(st.integers(0, 10**15))
@settings(deadline=None)
def test_human_bytes_is_close_and_short(size: int) -> None:
    """A size in words is within a percent of the true one, and never shows 1000 of a unit."""
    number, unit = human_bytes(size).split()
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    value = float(number.replace(",", ""))
    assert value * scale == pytest.approx(size, rel=0.051)
    assert value < 1000 or unit == "TB"


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (545_000_000, "545 MB"),
        (4_100_000_000, "4.1 GB"),
        (3e12, "3.0 TB"),
    ],
)
def test_human_bytes_examples(size: float, shown: str) -> None:
    """Sizes are decimal, with one decimal below a hundred."""
    assert human_bytes(size) == shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("512MB", 512_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("2k", 2000),
        ("2KiB", 2048),
        ("0.5TB", 500_000_000_000),
        (" 7 B ", 7),
    ],
)
def test_sizes_can_be_written_as_people_do(text: str, size: int) -> None:
    """Decimal and binary units, with and without a B, with and without a space."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e3", "5 PB", "5 MBs", "five"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=text or "^$"):
        parse_bytes(text)


@given(st.lists(st.text("ab", min_size=1), max_size=20), st.integers(1, 10))
@settings(deadline=None)
def test_a_shortlist_says_how_many_it_leaves_out(items: list[str], most: int) -> None:
    """At most ``most`` items are listed; the rest is counted."""
    shown = shortlist(items, most=most)
    assert shown.startswith(", ".join(items[:most]))
    assert shown.endswith(f" and {len(items) - most} more") == (len(items) > most)


def test_a_listing_says_how_many_lines_it_leaves_out() -> None:
    """The title, then the lines below it, indented, and the number of the others."""
    assert listing("wrong:", ["a", "b"], most=2) == "wrong:\n  a\n  b"
    assert listing("wrong:", ["a", "b", "c", "d"], most=2) == "wrong:\n  a\n  b\n  and 2 more"


@given(st.lists(st.text(max_size=20), min_size=1, max_size=20), st.integers(1, 12))
def test_the_lines_of_a_message_are_safe_and_few(lines: list[str], most: int) -> None:
    """A message has its own lines, each printable; the number of those that are not shown is the last line."""
    message = "\n".join(lines)
    count = message.count("\n") + 1
    shown = safe_lines(message, most=most)
    assert len(shown) <= most
    assert all(line.isprintable() for line in shown)
    if count <= most:
        assert len(shown) == count
    else:
        assert shown[-1] == f"and {plural(count - most + 1, 'more line')}"


def test_lines_keep_their_indentation() -> None:
    """A list inside a message stays a list."""
    assert safe_lines("two are bad:\n  a\n  b\x1b") == ["two are bad:", "  a", "  b\\x1b"]


def test_plural() -> None:
    """One is singular, all other numbers plural, with thousands separated."""
    assert [plural(count, "tensor") for count in (0, 1, 2, 1234)] == [
        "0 tensors",
        "1 tensor",
        "2 tensors",
        "1,234 tensors",
    ]


@pytest.mark.parametrize(("value", "fits"), [("plain", True), ("ünï", True), ("", True), ("\udc80", False), (3, False)])
def test_writable_text_is_what_utf8_can_hold(value: object, fits: bool) -> None:
    """Undecodable bytes of file names, and values that are not text, cannot be written as metadata."""
    assert is_writable_text(value) is fits


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.134, "13.4 %"), (0.0003123, "0.03 %"), (12.345, "1,234.5 %"), (1234.5, "123,450 %"), (1e20, "1.00e+22 %")],
)
def test_percent_examples(share: float, shown: str) -> None:
    """Large ones have separators and no decimals that mean nothing."""
    assert percent(share) == shown


def test_an_expression_is_compiled_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of the expressions of all formats are needed; one that is used costs no more than a compiled one."""
    compile_now, compiled = re.compile, []

    def count(written: str, flags: int) -> re.Pattern[str]:
        compiled.append(written)
        return compile_now(written, flags)

    monkeypatch.setattr(re, "compile", count)
    number = regex(r"\D+(\d+)", re.ASCII)
    assert not compiled
    assert [bool(number.fullmatch(name)) for name in ("step_12", "step", "step_3")] == [True, False, True]
    assert compiled == [r"\D+(\d+)"]


def test_every_expression_can_be_compiled() -> None:
    """A mistake in an expression is not found only by the run that needs it."""
    root = Path(ema_cli.__file__).parent
    checked = 0
    for path in sorted(root.rglob("*.py")):
        if "regex(" in path.read_text(encoding="utf-8") and path.name != "text.py":
            module = importlib.import_module(".".join(("ema_cli", *path.relative_to(root).with_suffix("").parts)))
            for held in vars(module).values():
                if isinstance(held, own._Regex):
                    assert held.pattern, path
                    checked += 1
    assert checked
