"""From what was named to the folders of training runs.

Input -> output: folders and patterns -> run folders, in natural order. A folder that directly holds checkpoints is a
run, and is not searched further; any other is searched for runs. Every folder is visited once, so links that lead
back cannot hold up the search. Only names are read, and the first bytes of files whose suffix says little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ema_cli.discover import matches
from ema_cli.errors import NothingMatched, UsageError
from ema_cli.formats.names import SUFFIXES, TRAINER_STATE
from ema_cli.formats.torch_legacy import looks_like_pickle
from ema_cli.formats.zip_archive import looks_like_zip
from ema_cli.naming import natural_key, report_name
from ema_cli.records import Notice
from ema_cli.text import quoted, shortlist

_VAGUE = (".bin", ".tar")
"""Suffixes of checkpoints, and of much else."""
_HEAD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The runs that were found."""

    folders: tuple[Path, ...]
    """Those named that hold nothing are among them: their jobs say what is wrong."""
    notices: tuple[Notice, ...]


@dataclass(slots=True)
class _Search:
    seen: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of the folders that were visited."""
    empty: list[Path] = field(default_factory=list)
    """What was named and holds no run."""
    files: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    nested: list[Path] = field(default_factory=list)
    """Runs that have folders with checkpoints inside."""


def find_runs(names: Sequence[str]) -> Runs:
    """Return the run folders that ``names`` mean: runs, folders to search for them, and patterns.

    Raises:
        UsageError: a name is empty.
        NothingMatched: there is no run at all.

    """
    if "" in names:
        raise UsageError("a run is named by an empty text", hint="is a variable of the shell not set?")
    search = _Search()
    folders = [folder for name in names for path in matches(Path(name), name) for folder in _runs_in(path, search)]
    if not folders:
        _raise_nothing(names, search)
    named = [Path(name) for name in names if not matches(Path(name), name)]
    return Runs(folders=(*folders, *search.empty, *named), notices=tuple(_notices(search)))


def _runs_in(path: Path, search: _Search) -> list[Path]:
    """Return the runs at or below what was named."""
    if path.is_file():
        search.files.append(path)
        return []
    found = list(_walk(path, search))
    if not found and not any(_walk(path, _Search())):  # not even runs that were found before, by another name
        search.empty.append(path)
    return found


def _walk(root: Path, search: _Search) -> Iterator[Path]:
    """Yield the runs below ``root``, depth first."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        identity = _identity(folder)
        if identity is None or identity in search.seen:
            continue
        search.seen.add(identity)
        folders, files = _list(folder, search)
        if holds_checkpoints(folder, files):
            if any(holds_checkpoints(inner, _list(inner, search)[1]) for inner in folders):
                search.nested.append(folder)
            yield folder
        else:
            waiting.extend(reversed(folders))


def _list(folder: Path, search: _Search) -> tuple[list[Path], list[str]]:
    """Return the folders and the names of the files in a folder, without the hidden ones."""
    folders: list[Path] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                if path.is_dir():  # the entry's own answer fails on a link to itself
                    folders.append(path)
                elif path.is_file():
                    files.append(entry.name)
    except OSError as error:
        search.unreadable.append(f"{quoted(str(folder))} ({error.strerror})")
    return sorted(folders, key=lambda path: natural_key(path.name)), files


def holds_checkpoints(folder: Path, files: Sequence[str]) -> bool:
    """Whether one of the files of a folder may be a checkpoint: not state of the trainer, not an output of ours."""
    names = set(files)
    return any(
        name.lower().endswith(SUFFIXES)
        and TRAINER_STATE.search(name) is None
        and report_name(name) not in names
        and (not name.lower().endswith(_VAGUE) or _begins_like_one(folder / name))
        for name in files
    )


def _begins_like_one(path: Path) -> bool:
    """Whether a file begins as those that torch writes: ``train.bin`` may be anything."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True  # the job will say what is wrong
    return looks_like_zip(head) or looks_like_pickle(head)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _notices(search: _Search) -> Iterator[Notice]:
    if search.files:
        some = shortlist(quoted(str(path)) for path in search.files)
        yield Notice(code="not-a-folder", message=f"left out {some}: a run is a folder")
    if search.unreadable:
        yield Notice(code="folder-unreadable", message=f"not searched: {shortlist(search.unreadable)}")
    if search.nested:
        some = shortlist(quoted(str(path)) for path in search.nested)
        message = f"{some}: a run, as checkpoints lie in it, so the checkpoints in folders inside are not averaged"
        yield Notice(code="runs-in-runs", message=message, hint=f"name them: ema-avg batch '{search.nested[0]}/*/'")


def _raise_nothing(names: Sequence[str], search: _Search) -> None:
    named = shortlist(quoted(name) for name in names)
    if search.files:
        hint = f"ema-avg {search.files[0]} averages files"
        raise UsageError(f"no run in {named}: a run is a folder, not a file", hint=hint)
    if not any(path.exists() for name in names for path in matches(Path(name), name)):
        raise NothingMatched(f"there is no {named}")
    why = f"; not searched: {shortlist(search.unreadable)}" if search.unreadable else ""
    raise NothingMatched(
        f"no run in {named}: no folder there directly holds checkpoints{why}",
        hint="checkpoints end in .pt, .pth, .ckpt, .bin or .safetensors",
    )
