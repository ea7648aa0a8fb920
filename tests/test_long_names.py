"""Names of outputs up to the longest that the file system takes: the hidden names beside them fit, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import OutputError, OutputLocked
from ema_cli.verification.checks import verify
from ema_cli.write.lock import output_lock
from ema_cli.write.temp_names import journal_name, leftovers_of, lock_name, longest_name, resumable_name, temporary_name
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series

MOST = 255
"""Bytes of a name on the usual file systems."""
SUFFIX = ".safetensors"


def named(letter: str, size: int, suffix: str = SUFFIX) -> str:
    """Return a name of exactly so many bytes, of one letter as often as it fits."""
    room = size - len(suffix)
    return letter * (room // len(letter.encode())) + "x" * (room % len(letter.encode())) + suffix


@pytest.mark.parametrize("size", [232, 233, 234, 252, 255])
@pytest.mark.parametrize("letter", ["a", "é", "漢", "\N{PARTY POPPER}"])
@pytest.mark.parametrize("options", [{}, {"resume": True}], ids=["plain", "resume"])
def test_a_file_of_a_long_name_is_written(letter: str, size: int, options: Any, tmp_path: Path) -> None:
    """With its report and a page, again with --force, and verified; nothing is left."""
    paths = write_series(tmp_path / "run", random_states(2))
    output, page = tmp_path / named(letter, size), tmp_path / named(letter, 255, ".html")
    for decay in (0.5, 0.9):
        ema_cli.average(paths, decay=decay, output=output, report=page, force=True, **options)
    assert verify(output).ok
    report = f"{output.name.removesuffix(SUFFIX)}.report.json"
    assert listing(tmp_path) == {"run", output.name, report, page.name}


def test_a_folder_of_a_long_name_leaves_room_for_its_report(tmp_path: Path, ema_avg: Run) -> None:
    """One byte more is refused before the work, with the largest size that fits."""
    write_series(tmp_path / "run", random_states(2))
    fits, long = named("a", MOST - len(".report.json"), ""), named("a", MOST - len(".report.json") + 1, "")
    for decay in ("0.5", "0.9"):
        assert ema_avg("run", "--decay", decay, "-o", f"{fits}/", "--force").returncode == 0
    assert verify(tmp_path / fits).ok
    for command in ((), ("plan",)):
        refused = ema_avg(*command, "run", "--decay", "0.5", "-o", f"{long}/")
        assert "would have a name of 256 bytes" in refused.stderr
        assert "choose a name of at most 243 bytes" in refused.stderr
        assert refused.returncode == (0 if command else 5)
    assert listing(tmp_path) == {"run", fits, f"{fits}.report.json"}


def test_a_name_that_is_too_long_itself_is_refused(tmp_path: Path) -> None:
    """As the system refuses it."""
    paths = write_series(tmp_path / "run", random_states(2))
    with pytest.raises(OutputError, match="File name too long"):
        ema_cli.average(paths, decay=0.5, output=tmp_path / named("a", 256))
    assert listing(tmp_path) == {"run"}


def test_outputs_that_begin_alike_have_their_own_hidden_names(tmp_path: Path) -> None:
    """The leftovers of one are not those of the other, and each has its own lock."""
    one, other = (tmp_path / f"{'a' * 240}{end}" for end in ("1", "2"))
    mine, others = (temporary_name(path) for path in (one, other))
    for path in (mine, others):
        path.write_text("half")
    with output_lock(one):
        assert not mine.exists()
        assert others.exists()
        with output_lock(other):
            assert not others.exists()
        with pytest.raises(OutputLocked), output_lock(one):
            pass
    assert listing(tmp_path) == set()


def test_short_names_are_as_before(tmp_path: Path) -> None:
    """What an older version left is recognized, and its locks are respected."""
    path = tmp_path / "ema.safetensors"
    assert [make(path).name for make in (lock_name, journal_name, resumable_name)] == [
        ".ema.safetensors.lock",
        ".ema.safetensors.journal",
        ".ema.safetensors.resume.partial",
    ]
    left = tmp_path / ".ema.safetensors.0123456789ab.partial"
    left.write_text("half")
    assert leftovers_of(path) == [left]


@given(st.binary(min_size=1, max_size=MOST).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
def test_any_name_gets_hidden_names_that_fit(raw: bytes) -> None:
    """Also bytes that are no text; a name is cut between its characters."""
    name = os.fsdecode(raw)
    if name in (".", ".."):
        return
    path = Path("/tmp") / name
    for make in (lock_name, journal_name, resumable_name, temporary_name):
        made = os.fsencode(make(path).name)
        assert len(made) <= longest_name(path.parent)
        try:
            raw.decode()
        except UnicodeDecodeError:
            continue
        made.decode()
