"""From a name on the command line to possible checkpoints, by the names of files and folders: nothing is opened.

A name is a file, a folder or a pattern. A folder is one checkpoint (``checkpoint-500``), or a run that contains
checkpoints: files, folders or both. In a run, a model beside numbered checkpoint folders is a copy of the last
checkpoint, which trainers write when they finish.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import SUFFIXES, TRAINER_STATE, is_numbered, parse_shard_name, skeleton
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import format_of
from ema_cli.formats.huggingface.weight_names import names_of_weights
from ema_cli.naming import natural_key
from ema_cli.records.series import Skipped
from ema_cli.storage.locations import Location, is_file, is_folder, locate, names_in
from ema_cli.storage.url import Url

ALIAS_REASON = "its name suggests a copy or average of the numbered checkpoints (name the file to use it)"
_ALIAS = re.compile(r"(?:^|[._-])(?:last(?:-v\d+)?|latest|best|final|ema|swa|avg|averaged?)(?:[._-]|$)", re.IGNORECASE)
_LAST = re.compile(r"(?:^|[._-])(?:last(?:-v\d+)?|latest|final)(?:[._-]|$)", re.IGNORECASE)
_UNFINISHED = re.compile(r"^\.|(?:^|[._-])(?:te?mp|partial|incomplete)(?:[._-]|$)", re.IGNORECASE)
_INNER = re.compile(r"global_step[0-9]+")
"""DeepSpeed's name for its folder, in a run and in the checkpoint of another trainer."""
_MAGIC = re.compile(r"[*\[]")
"""Characters that make a URL a pattern; a question mark begins its query."""
_ROOT_PARTS = 2
"""Parts of a URL before the first folder: the scheme, and the bucket or host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file or a folder that may be a checkpoint."""

    path: Location
    in_folder: bool
    """Found in a folder, not named."""
    is_copy: bool = False
    """Its name says that it is the last of a numbered series, so it is usually a copy of another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderListing:
    """The possible checkpoints in a folder."""

    whole: bool = False
    """The folder itself is a checkpoint."""
    members: tuple[str, ...] = ()
    """Names of the checkpoint folders in it, in natural order."""
    candidates: tuple[Candidate, ...] = ()
    """The checkpoints of a run: these folders, and files."""
    skipped: tuple[Skipped, ...] = ()


def matches(name: str) -> list[Location]:
    """Return the file or folder of that name or, if there is none and it is a pattern, all that match.

    Raises:
        OSError: the system cannot look it up.

    """
    location = locate(name)
    if isinstance(location, Url):
        return _matching_urls(name) if _MAGIC.search(name) else [location]
    if location.exists() or not glob.has_magic(name):
        return [location]
    pattern = str(location) + ("/" if name.endswith("/") else "")  # a slash at the end means folders
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - a pattern
    return [locate(match) for match in sorted(found, key=natural_key)]


def _matching_urls(pattern: str) -> list[Location]:
    """Return the matches of a pattern in a store, which lists one folder at a time."""
    parts = Url(pattern).parts
    found: list[Location] = [Url(*parts[:_ROOT_PARTS])]
    for part in parts[_ROOT_PARTS:]:
        found = [match for folder in found if is_folder(folder) for match in _matching_names(folder, part)]
    if pattern.endswith("/"):
        found = [match for match in found if is_folder(match)]
    return sorted(dict.fromkeys(found), key=lambda match: natural_key(str(match)))


def _matching_names(folder: Location, part: str) -> Iterator[Location]:
    """Yield the matches of one part of a pattern in one folder; ``**`` matches the folder and all below it."""
    names = names_in(folder)
    if part != "**":
        yield from (folder / name for name in names if name == part or (fnmatchcase(name, part) and name[0] != "."))
        return
    yield folder
    for name, inner in names.items():
        if inner and name[0] != ".":
            yield from _matching_names(folder / name, part)


def look_into(folder: Folder) -> FolderListing:
    """Return the possible checkpoints in a folder."""
    whole = format_of(folder) is not None
    members = _members(folder)
    if whole and (not members or (len(members) == 1 and _INNER.fullmatch(members[0]))):
        return FolderListing(whole=True)
    folders = [Candidate(path=folder.location / name, in_folder=True) for name in members]
    found = [*folders, *(_alias_folders(folder) if members else ()), *_files(folder, is_run=bool(members))]
    return FolderListing(
        members=tuple(members),
        candidates=tuple(entry for entry in found if isinstance(entry, Candidate)),
        skipped=tuple(entry for entry in found if isinstance(entry, Skipped)),
    )


def _members(folder: Folder) -> list[str]:
    """Return the numbered checkpoint folders, and incomplete folders with the same kind of name."""
    numbered = [
        name
        for name in sorted(folder.folders, key=natural_key)
        if is_numbered(name) and not _UNFINISHED.search(name) and not TRAINER_STATE.search(name)
    ]
    kinds = {name: _kind(folder, name) for name in numbered}
    alike = {skeleton(name) for name, kind in kinds.items() if kind == "checkpoint"}
    return [name for name, kind in kinds.items() if kind and (kind == "checkpoint" or skeleton(name) in alike)]


def _kind(folder: Folder, name: str) -> str:
    """Return ``checkpoint``, ``unreadable``, ``other``, or an empty string for an empty folder."""
    try:
        inner = folder.inside(name)
        if format_of(inner) is not None:
            return "checkpoint"
    except InputRefused:
        return "unreadable"
    return "other" if inner.files or inner.folders else ""


def _alias_folders(folder: Folder) -> Iterator[Skipped]:
    """Yield the checkpoint folders of a run that are called ``final`` or similar, without a number."""
    for name in sorted(folder.folders):
        if _ALIAS.search(name) and not is_numbered(name) and _kind(folder, name) == "checkpoint":
            yield Skipped(path=folder.location / name, reason=ALIAS_REASON)


def _files(folder: Folder, *, is_run: bool) -> Iterator[Candidate | Skipped]:
    """Yield the checkpoint files of a folder, and skipped ones; a run also has numbered checkpoint folders."""
    suffixed = [name for name in folder.files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    names = sorted(suffixed, key=natural_key)
    numbered = is_run or any(re.search(r"\d", PurePosixPath(name).stem) and not _ALIAS.search(name) for name in names)
    copies = names_of_weights(folder.files) if is_run else ()
    yield from (Skipped(path=folder.location / name, reason=ALIAS_REASON) for name in copies)
    for name in names:
        path = folder.location / name
        if name in copies or (copies and parse_shard_name(name)) or not is_file(path):
            continue
        alias = numbered and _is_alias(name, is_run=is_run)
        if parse_shard_name(name):
            yield Skipped(path=path, reason="one shard of a model, beside complete checkpoints")
        elif TRAINER_STATE.search(name):
            yield Skipped(path=path, reason="state of the trainer, not a model")
        elif alias and not _LAST.search(PurePosixPath(name).stem):
            yield Skipped(path=path, reason=ALIAS_REASON)
        else:
            yield Candidate(path=path, in_folder=True, is_copy=alias)


def _is_alias(name: str, *, is_run: bool) -> bool:
    """Whether a name has no number and is like ``last`` or ``best``; beside numbered folders, any name without one."""
    stem = re.sub(r"-v\d+$", "", PurePosixPath(name).stem)
    return (is_run or _ALIAS.search(stem) is not None) and not re.search(r"\d", stem)
