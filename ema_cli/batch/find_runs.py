"""From the names on the command line to the folders of training runs.

Input -> output: folders and patterns -> run folders, in natural order. A folder that directly contains checkpoints,
files or folders, is a run and is not searched further; a folder that is itself a checkpoint is not a run; any other is
searched for runs. Every folder is visited once, so circular links do no harm. Only names are read, and the first bytes
of files with an ambiguous suffix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from ema_cli.discovery.folder_listing import look_into
from ema_cli.discovery.patterns import matches
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, RunWarning, UsageError
from ema_cli.formats.file_names import NAME_A_CHECKPOINT, is_weights
from ema_cli.formats.folder import Folder
from ema_cli.formats.torch.first_bytes import looks_like_pickle, looks_like_zip
from ema_cli.naming import natural_key, report_name
from ema_cli.record import record
from ema_cli.storage.locations import Location, identity_of, is_file, is_folder, locate, open_source
from ema_cli.storage.nearest_path import nearest_paths
from ema_cli.text import quoted, shortlist

_VAGUE = (".bin", ".tar")
"""Suffixes of checkpoints, and of many other files."""
_HEAD_BYTES = 512


@record
class Runs:
    """The runs that were found."""

    folders: tuple[Location, ...]
    """Includes named folders without checkpoints: their jobs report the problem."""
    warnings: tuple[RunWarning, ...]


@dataclass(slots=True)
class _Search:
    seen: set[object] = field(default_factory=set)
    """Identities of the visited folders."""
    above: defaultdict[object, set[object]] = field(default_factory=lambda: defaultdict(set))
    """The folders that a visited folder is in, or is linked from, by their identities."""
    runs: list[object] = field(default_factory=list)
    """Identities of the runs."""
    files: list[Location] = field(default_factory=list)
    checkpoints: list[Location] = field(default_factory=list)
    """Folders that are one checkpoint each, outside of runs."""
    unreadable: list[str] = field(default_factory=list)
    inner: dict[Location, dict[object, Location]] = field(default_factory=dict)
    """The folders inside each run, by their identities: they are not searched."""


def find_runs(names: Sequence[str]) -> Runs:
    """Return the run folders of ``names``: runs, folders to search for runs, and patterns.

    Raises:
        UsageError: a name is empty.
        InputRefused: the system cannot look up a name.
        NothingMatched: there is no run at all.

    """
    if "" in names:
        raise UsageError("the name of a run is empty", hint="is a shell variable not set?")
    search = _Search()
    found = {name: _matches(name, search) for name in names}
    folders = [run for locations in found.values() for location in locations for run in _runs_in(location, search)]
    if not folders:
        _raise_nothing(found, search)
    named = {location for locations in found.values() for location in locations}
    missing = [locate(name) for name, locations in found.items() if not locations]
    empty = _without_runs(found, search)
    return Runs(folders=(*folders, *empty, *missing), warnings=tuple(_warnings(search, named)))


def _matches(name: str, search: _Search) -> list[Location]:
    try:
        return matches(name, search.unreadable)
    except OSError as error:
        raise InputRefused(f"{quoted(name)} cannot be searched: {error.strerror}") from error


def _runs_in(location: Location, search: _Search) -> list[Location]:
    """Return the runs at or below a location."""
    if not is_folder(location) and is_file(location):
        search.files.append(location)
        return []
    return list(_walk(location, search))


def _without_runs(found: Mapping[str, Sequence[Location]], search: _Search) -> list[Location]:
    """Return the named folders without a run, not even one that was found by another name."""
    holding, todo = set[object](), list(search.runs)
    while todo:
        identity = todo.pop()
        if identity not in holding:
            holding.add(identity)
            todo.extend(search.above[identity])
    known = {*search.files, *search.checkpoints}
    named = dict.fromkeys(location for locations in found.values() for location in locations)
    return [location for location in named if location not in known and identity_of(location) not in holding]


def _walk(root: Location, search: _Search) -> Iterator[Location]:
    """Yield the runs below ``root``, depth first."""
    waiting: list[tuple[Location, object]] = [(root, None)]
    while waiting:
        location, above = waiting.pop()
        identity = identity_of(location)
        if above is not None:
            search.above[identity].add(above)
        if identity is None or identity in search.seen:
            continue
        search.seen.add(identity)
        folder = _list(location, search)
        if folder is None:
            continue
        contents = look_into(folder)
        inner = [name for name in folder.folders if not name.startswith(".") and name not in contents.members]
        if contents.whole:
            search.checkpoints.append(location)
        elif contents.members or _holds_files(folder):
            search.inner[location] = {identity_of(location / name): location / name for name in inner}
            search.runs.append(identity)
            yield location
        else:
            waiting.extend((location / name, identity) for name in sorted(inner, key=natural_key, reverse=True))


def _list(location: Location, search: _Search) -> Folder | None:
    """List a folder; remember it if it cannot be listed."""
    try:
        return Folder(location)
    except InputRefused as refused:
        search.unreadable.append(f"{quoted(str(location))} ({refused.message})")
        return None


def _is_run(location: Location, search: _Search) -> bool:
    folder = _list(location, search)
    if folder is None:
        return False
    contents = look_into(folder)
    return not contents.whole and (bool(contents.members) or _holds_files(folder))


def _has_more_runs(inner: Mapping[object, Location], search: _Search) -> bool:
    """Whether one of the folders inside a run is a run, and was not named itself."""
    return any(_is_run(folder, search) for identity, folder in inner.items() if identity not in search.seen)


def _holds_files(folder: Folder) -> bool:
    """Whether a file of a folder may be a checkpoint: not state of the trainer, not an output of this program."""
    return any(
        is_weights(name)
        and report_name(name) not in folder.files
        and is_file(folder.location / name)
        and (not name.lower().endswith(_VAGUE) or _begins_like_torch(folder.location / name))
        for name in folder.files
    )


def _begins_like_torch(location: Location) -> bool:
    """Whether a file begins like a file of torch: ``train.bin`` may be anything."""
    try:
        with open_source(location) as source:
            head = source.read(0, min(_HEAD_BYTES, source.size()))
    except EmaAvgError:
        return True  # the job will report the error
    return looks_like_zip(head) or looks_like_pickle(head)


def _warnings(search: _Search, named: Collection[Location]) -> Iterator[RunWarning]:
    if search.files:
        some = shortlist(quoted(str(path)) for path in search.files)
        yield RunWarning(code="not-a-folder", message=f"skipped {some}: a run is a folder")
    checkpoints = [location for location in search.checkpoints if location in named]
    if checkpoints:
        some = shortlist(quoted(str(path)) for path in checkpoints)
        hint = f"a run is the folder that contains the checkpoints: {checkpoints[0].parent}"
        yield RunWarning(code="not-a-run", message=f"skipped {some}: one checkpoint, not a run", hint=hint)
    if search.unreadable:
        yield RunWarning(code="folder-unreadable", message=f"not searched: {shortlist(search.unreadable)}")
    nested = [run for run, inner in search.inner.items() if _has_more_runs(inner, search)]
    if nested:
        some = shortlist(quoted(str(path)) for path in nested)
        one = len(nested) == 1
        run = "contains checkpoints, so it is a run" if one else "contain checkpoints, so they are runs"
        whose = "its" if one else "their"
        message = f"{some} {run}, and the checkpoints in {whose} subfolders are not averaged"
        yield RunWarning(code="runs-in-runs", message=message, hint="name the subfolders: ema-avg batch 'RUN/*/'")


def _raise_nothing(found: Mapping[str, Sequence[Location]], search: _Search) -> NoReturn:
    named = shortlist(quoted(name) for name in found)
    if search.files:
        raise UsageError(
            f"no run in {named}: a run is a folder, not a file", hint="files are averaged by: ema-avg CKPT..."
        )
    if not any(is_folder(location) for locations in found.values() for location in locations):
        first = locate(next(iter(found)))
        raise NothingMatched(f"there is no {named}", hint=partial(nearest_paths, first))
    why = f"; not searched: {shortlist(search.unreadable)}" if search.unreadable else ""
    if search.checkpoints:
        some = shortlist(quoted(str(path)) for path in search.checkpoints)
        hint = "a run is the folder that contains checkpoints; checkpoints are averaged by: ema-avg CKPT..."
        raise NothingMatched(f"no run in {named}, only single checkpoints: {some}{why}", hint=hint)
    raise NothingMatched(
        f"no run in {named}: no folder there directly contains checkpoints{why}",
        hint=NAME_A_CHECKPOINT,
    )
