"""Links that loop, lead to the root, or multiply at every level; deep and wide trees: every search ends soon."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ema_cli.batch.find_runs import find_runs
from ema_cli.discovery import folder_listing, patterns
from ema_cli.discovery.patterns import matches
from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.storage import locations
from tests.helpers.found import find
from tests.helpers.series import write_one

MOST_SECONDS = 8
"""Of processor time, on a busy machine; the loops would take hours."""


@contextmanager
def ends() -> Iterator[None]:
    """Check that the block takes little time of the processor."""
    began = time.process_time()
    yield
    assert time.process_time() - began < MOST_SECONDS


def levels(root: Path, depth: int, links: int) -> Path:
    """Make a chain of folders, each with a checkpoint and links to the next one, the last with links to the first."""
    here = root
    for level in range(depth):
        write_one(here / f"ckpt_{level}.pt", step=level)
        (here / "next").mkdir()
        for number in range(links):
            (here / f"link{number}").symlink_to("next")
        here /= "next"
    for number in range(links):
        (here / f"back{number}").symlink_to(root.absolute())
    return root


def crossing(root: Path) -> Path:
    """Make three folders with links to each other and to themselves, to nothing, and to the folder above."""
    for one in "abc":
        write_one(root / one / f"ckpt_{ord(one)}.pt", step=ord(one))
        for other in "abc":
            (root / one / f"to_{other}").symlink_to(f"../{other}")
        (root / one / "nothing").symlink_to("gone")
        (root / one / "itself").symlink_to("itself")
        (root / one / "up").symlink_to("..")
    return root


STARS = ("**/*.pt", "**/**/*.pt", "**/**/**/**/*.pt", "**/*/**/*.pt", "*/**/*/**/*.pt")


@pytest.mark.parametrize("pattern", STARS)
def test_loops_end_and_each_file_is_found_once(tmp_path: Path, pattern: str) -> None:
    """Links between folders and three links at each of six levels: each file once, by a name without links."""
    for root, count in ((levels(tmp_path / "levels", 6, 3), 6), (crossing(tmp_path / "crossing"), 3)):
        with ends():
            found = matches(f"{root}/{pattern}")
        files = {path.resolve() for path in map(Path, found)}
        assert len(files) >= count - 2
        if pattern == "**/*.pt":
            assert len(found) == count
            assert all(path == path.resolve() for path in map(Path, found))


@pytest.mark.parametrize("pattern", STARS)
def test_a_deep_tree_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """Twenty double stars cost no more than their number times the folders of the tree."""
    deep = tmp_path.joinpath(*["x"] * 300)
    deep.mkdir(parents=True)
    write_one(deep / "ckpt_1.pt")
    listed: list[Path] = []
    names = locations.names_in

    def listing(folder: Path) -> dict[str, bool]:
        listed.append(folder)
        return names(folder)

    monkeypatch.setattr(patterns, "names_in", listing)
    assert matches(f"{tmp_path}/{pattern}") == [deep / "ckpt_1.pt"]
    assert len(listed) <= 310 * len(pattern.split("/"))


def test_a_tree_beyond_the_longest_path_is_reported(tmp_path: Path) -> None:
    """Two thousand levels: what has no name for the system is listed as not searched, and the rest is found."""
    write_one(tmp_path / "run" / "ckpt_1.pt", step=1)
    here = os.open(tmp_path / "run", os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("level", dir_fd=here)
        below = os.open("level", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    unreadable: list[str] = []
    with ends():
        assert matches(f"{tmp_path}/run/**/*.pt", unreadable) == [tmp_path / "run" / "ckpt_1.pt"]
        (warning,) = find(f"{tmp_path}/run/**/*.pt").warnings
        find_runs([f"{tmp_path}/run/**/"])
    assert "name too long" in unreadable[0]
    assert warning.code == "folder-unreadable"
    subprocess.run(["rm", "-rf", tmp_path / "run"], check=True)  # too deep for Python's own functions


def test_a_pattern_that_looks_at_too_much_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stars that multiply through links, or a link to a large folder, end with the number and what to do."""
    monkeypatch.setattr(patterns, "MOST_NAMES", 20_000)
    levels(tmp_path / "levels", 6, 3)
    for pattern in ("levels/*/*/*/*/*/*/*/*/*/*/*/*.pt", "levels/*/*/*/*/*/*/*/**/*/*/*/*.pt"):
        with ends(), pytest.raises(InputRefused, match="looks at more than 20,000 files and folders") as refused:
            find(tmp_path / pattern)
        assert "begin the pattern with more of the path" in refused.value.hint
        with ends(), pytest.raises(InputRefused, match="looks at more than"):
            find_runs([f"{tmp_path}/{pattern}"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("/")
    with ends(), pytest.raises(InputRefused, match="looks at more than"):
        find(tmp_path / "root" / "**" / "no_such_checkpoint.pt")


def test_a_folder_that_cannot_be_listed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pattern could not search is named, so that ``--strict`` fails."""
    for name in ("a", "b"):
        write_one(tmp_path / name / f"ckpt_{ord(name)}.pt", step=ord(name))
    names = locations.names_in

    def denied(folder: Path) -> dict[str, bool]:
        if folder.name == "b":
            raise PermissionError(13, "Permission denied")
        return names(folder)

    monkeypatch.setattr(patterns, "names_in", denied)
    for pattern in ("**/*.pt", "*/*.pt"):
        found = find(tmp_path / pattern)
        assert len(found.checkpoints) == 1
        assert [(one.code, '/b"' in one.message) for one in found.warnings] == [("folder-unreadable", True)]


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    """A name of any bytes matches a star."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    write_one(folder / "ckpt_1.pt")
    assert matches(f"{tmp_path}/**/*.pt") == [folder / "ckpt_1.pt"]
    assert matches(f"{tmp_path}/*/*.pt") == [folder / "ckpt_1.pt"]


def test_numbered_links_to_the_folder_itself_end(tmp_path: Path) -> None:
    """A hundred links with the names of steps, to the folder itself or over three levels: the search is bounded."""
    write_one(tmp_path / "loop" / "a.pt")
    for level in range(4):
        (tmp_path / "dag" / f"L{level}").mkdir(parents=True)
    write_one(tmp_path / "dag" / "L3" / "a.pt")
    for number in range(100):
        (tmp_path / "loop" / f"step-{number}").symlink_to(".")
        for level in range(3):
            (tmp_path / "dag" / f"L{level}" / f"step-{number}").symlink_to(f"../L{level + 1}")
    for folder in (tmp_path / "loop", tmp_path / "dag" / "L0"):
        with ends():
            folder_listing.look_into(Folder(folder))
    with ends():
        find_runs([str(tmp_path / "loop")])
    with ends():
        find_runs([str(tmp_path / "dag" / "L0")])
