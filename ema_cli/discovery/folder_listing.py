"""What a folder holds, by the names in it and in its folders: nothing is opened.

A folder is one checkpoint (``checkpoint-500``), or a run that holds checkpoints: files, folders or both. In a run, a
model that lies beside numbered checkpoint folders is a copy of the last, as trainers leave it when they end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import SUFFIXES, TRAINER_STATE, is_numbered, parse_shard_name, skeleton
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import format_of
from ema_cli.formats.huggingface.weight_names import names_of_weights
from ema_cli.naming import natural_key
from ema_cli.records.series import LeftOut
from ema_cli.storage.locations import Location, is_file

ALIAS_REASON = "by its name a copy, or an average, of checkpoints of the numbered series (name the file to use it)"
_ALIAS = re.compile(r"(?:^|[._-])(?:last(?:-v\d+)?|latest|best|final|ema|swa|avg|averaged?)(?:[._-]|$)", re.IGNORECASE)
_LAST = re.compile(r"(?:^|[._-])(?:last(?:-v\d+)?|latest|final)(?:[._-]|$)", re.IGNORECASE)
_UNFINISHED = re.compile(r"^\.|(?:^|[._-])(?:te?mp|partial|incomplete)(?:[._-]|$)", re.IGNORECASE)
_INNER = re.compile(r"global_step[0-9]+")
"""What DeepSpeed calls its folder, in a run and in the checkpoint of another trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file or a folder that may be a checkpoint."""

    path: Location
    in_folder: bool
    """Found in a folder rather than named."""
    is_copy: bool = False
    """By its name the last of a numbered series, and so usually a copy of another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderListing:
    """What was found in a folder."""

    whole: bool = False
    """The folder is one checkpoint itself."""
    members: tuple[str, ...] = ()
    """Checkpoint folders in it, in natural order."""
    candidates: tuple[Candidate, ...] = ()
    """The checkpoints of a run: those folders, and files."""
    left_out: tuple[LeftOut, ...] = ()


def look_into(folder: Folder) -> FolderListing:
    """Return what a folder holds."""
    whole = format_of(folder) is not None
    members = _members(folder)
    if whole and (not members or (len(members) == 1 and _INNER.fullmatch(members[0]))):
        return FolderListing(whole=True)
    folders = [Candidate(path=folder.location / name, in_folder=True) for name in members]
    found = [*folders, *(_alias_folders(folder) if members else ()), *_files(folder, is_run=bool(members))]
    return FolderListing(
        members=tuple(members),
        candidates=tuple(one for one in found if isinstance(one, Candidate)),
        left_out=tuple(one for one in found if isinstance(one, LeftOut)),
    )


def _members(folder: Folder) -> list[str]:
    """Return the numbered checkpoint folders, and those that are called as they are and are not: incomplete ones."""
    numbered = [name for name in sorted(folder.folders, key=natural_key) if _may_be_member(name)]
    kinds = {name: _kind(folder, name) for name in numbered}
    alike = {skeleton(name) for name, kind in kinds.items() if kind == "checkpoint"}
    return [name for name, kind in kinds.items() if kind and (kind == "checkpoint" or skeleton(name) in alike)]


def _may_be_member(name: str) -> bool:
    return is_numbered(name) and not _UNFINISHED.search(name) and not TRAINER_STATE.search(name)


def _kind(folder: Folder, name: str) -> str:
    """Return what a folder inside is: a checkpoint, something else, or nothing if it is empty."""
    try:
        inner = folder.inside(name)
        if format_of(inner) is not None:
            return "checkpoint"
    except InputRefused:
        return "unreadable"
    return "other" if inner.files or inner.folders else ""


def _alias_folders(folder: Folder) -> Iterator[LeftOut]:
    """Yield the checkpoint folders of a run that are called ``final`` or the like, and have no number."""
    for name in sorted(folder.folders):
        if _ALIAS.search(name) and not is_numbered(name) and _kind(folder, name) == "checkpoint":
            yield LeftOut(path=folder.location / name, reason=ALIAS_REASON)


def _files(folder: Folder, *, is_run: bool) -> Iterator[Candidate | LeftOut]:
    """Yield the checkpoint files of a run, and what is left out of them.

    Args:
        folder: that holds them.
        is_run: it has numbered checkpoint folders, too.

    """
    names = sorted(filter(_has_suffix, folder.files), key=natural_key)
    numbered = is_run or any(re.search(r"\d", PurePosixPath(name).stem) and not _ALIAS.search(name) for name in names)
    copies = names_of_weights(folder.files) if is_run else ()
    yield from (LeftOut(path=folder.location / name, reason=ALIAS_REASON) for name in copies)
    for name in names:
        path = folder.location / name
        if name in copies or (copies and parse_shard_name(name)) or not is_file(path):
            continue
        alias = numbered and _is_alias(name, is_run=is_run)
        if parse_shard_name(name):
            yield LeftOut(path=path, reason="one shard of a model, beside checkpoints that are whole")
        elif TRAINER_STATE.search(name):
            yield LeftOut(path=path, reason="state of the trainer, not a model")
        elif alias and not _LAST.search(PurePosixPath(name).stem):
            yield LeftOut(path=path, reason=ALIAS_REASON)
        else:
            yield Candidate(path=path, in_folder=True, is_copy=alias)


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _is_alias(name: str, *, is_run: bool) -> bool:
    """Whether a file is called ``last``, ``best`` or the like, and has no number; beside folders that have one, any."""
    stem = re.sub(r"-v\d+$", "", PurePosixPath(name).stem)
    return (is_run or _ALIAS.search(stem) is not None) and not re.search(r"\d", stem)
