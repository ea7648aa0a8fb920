"""The possible checkpoints in a folder, by the names of files and folders: nothing is opened.

A folder is one checkpoint (``checkpoint-500``), or a run that contains checkpoints: files, folders or both. A folder
of a run may have its only checkpoint inside: ``step-100/lit_model.pth``, ``000100/pretrained_model/``. In a run, a
model beside numbered checkpoint folders is a copy of the last checkpoint, which trainers write when they finish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import truediv

from ema_cli.discovery.candidates import Candidate, FolderListing, InnerFolder
from ema_cli.discovery.missed_members import missed_members
from ema_cli.errors import InputRefused, RunWarning
from ema_cli.formats.file_names import SUFFIXES, TRAINER_STATE, is_numbered, is_weights, parse_shard_name, skeleton
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import format_of
from ema_cli.formats.huggingface.weight_names import names_of_weights
from ema_cli.formats.series_names import NAME_TO_USE, has_number, is_special, split_names
from ema_cli.formats.torch_ranks.rank_file_names import later_ranks
from ema_cli.name_numbers import canonical_name, name_form
from ema_cli.naming import natural_key, report_name
from ema_cli.records.series import Skipped
from ema_cli.storage.locations import Location, identity_of, is_file, is_link
from ema_cli.storage.url import Url
from ema_cli.text import regex

COPY_REASON = f"its name suggests a copy of the last checkpoint {NAME_TO_USE}"
DANGLING = "a link to a file that is gone"
MOST_LEVELS = 3
"""Levels of folders below the named one that are searched for a run."""
_INNER_LEVELS = 2
"""Levels of folders below a numbered one that are searched for its checkpoint."""
_MOST_FOLDERS = 1000
"""Folders that are searched in vain."""
_MOST_NAMES = 2_000_000
"""Names in the folders that are listed."""
_FOLDER_COST = 50
"""Listing a folder takes as long as so many names."""
_UNFINISHED = regex(r"^\.|(?:^|[._-])(?:te?mp|partial|incomplete)(?:[._-]|$)", re.IGNORECASE)
_STATE = regex(rf"{TRAINER_STATE.pattern}|(?<!model)_state$", re.IGNORECASE)
"""Names of folders that hold no weights: ``training_state`` of lerobot, ``recipe_state`` of torchtune."""
_INNER = regex(r"global_step[0-9]+")
"""DeepSpeed's name for its folder, in a run and in the checkpoint of another trainer."""


@dataclass(slots=True, eq=False, repr=False)
class _Budget:
    """Bounds the search of folders without checkpoints."""

    left: int = field(default_factory=lambda: _MOST_FOLDERS)
    names_left: int = field(default_factory=lambda: _MOST_NAMES)
    """Of all folders that are listed; links may lead to the same ones again and again."""

    known: dict[tuple[object, int], tuple[str, ...] | str] = field(default_factory=dict)
    """What ``_inside`` returned for a folder, by its identity, and the levels below it."""

    def inside(self, folder: Folder, name: str) -> Folder | None:
        """Return a folder inside another; ``None`` if it cannot be listed, or too much was listed already."""
        if self.names_left <= 0:
            return None
        try:
            below = folder.inside(name)
        except InputRefused:
            return None
        self.names_left -= len(below.files) + len(below.folders) + _FOLDER_COST
        return below


def look_into(folder: Folder, inner: int = _INNER_LEVELS, budget: _Budget | None = None) -> FolderListing:
    """Return the possible checkpoints in a folder.

    Args:
        folder: the folder.
        inner: levels below a numbered folder that may be searched.
        budget: shared by the parts of one search.

    """
    budget = budget or _Budget()
    whole = format_of(folder) is not None
    members = _members(folder, 0 if whole else inner, budget)
    if whole and (not members or (len(members) == 1 and _INNER.fullmatch(next(iter(members))))):
        return FolderListing(whole=True)
    copies = names_of_weights(folder.files) if members else ()
    skipped = [Skipped(path=folder.location / name, reason=COPY_REASON) for name in copies]
    skipped.extend(_useless(folder, copies))
    paths = {**members, **{name: folder.location / name for name in _files(folder, copies)}}
    special = {}
    if members or any(map(has_number, paths)):
        special = _special_folders(folder, members, inner, budget)
    found: list[Candidate | Skipped | RunWarning] = list(_candidates(folder, {**paths, **special}))
    series = [entry.name for entry in found if isinstance(entry, Candidate) and not entry.beside]
    if len(series) > 1:
        known = {*paths, *special, *later_ranks(folder.files), *(entry.path.name for entry in skipped)}
        found.extend(missed_members(folder, series, known))
    return FolderListing(
        members=(*members, *special),
        candidates=tuple(entry for entry in found if isinstance(entry, Candidate)),
        skipped=(*skipped, *(entry for entry in found if isinstance(entry, Skipped))),
        warnings=tuple(entry for entry in found if isinstance(entry, RunWarning)),
    )


def inner_folders(
    folder: Folder,
    levels: int = MOST_LEVELS,
    inner: int = _INNER_LEVELS,
    budget: _Budget | None = None,
    seen: set[object] | None = None,
) -> list[InnerFolder]:
    """Return the folders below a folder that have checkpoints, each once. The search is bounded, and ends at series.

    Args:
        folder: it has no checkpoints itself.
        levels: below it that may be searched.
        inner: levels below a numbered folder that may be searched.
        budget: shared by the parts of one search.
        seen: identities of the folders that were searched.

    """
    budget = budget or _Budget()
    seen = {identity_of(folder.location)} if seen is None else seen
    found: list[InnerFolder] = []
    for name in sorted(folder.folders, key=natural_key) if levels else ():
        identity = identity_of(folder.location / name)
        if _UNFINISHED.search(name) or _STATE.search(name) or identity is None or identity in seen or not budget.left:
            continue
        seen.add(identity)
        budget.left -= 1
        below = budget.inside(folder, name)
        if below is None:
            continue
        listing = look_into(below, inner, budget)
        if not listing.is_empty:
            found.append(InnerFolder(location=below.location, listing=listing))
        if not listing.whole and not listing.is_series:
            found.extend(inner_folders(below, levels - 1, inner, budget, seen))
    return found


def _members(folder: Folder, inner: int, budget: _Budget) -> dict[str, Location]:
    """Return the numbered checkpoint folders by name, and incomplete folders with the same kind of name.

    A folder is numbered by its words, or as it is named like the files beside it: ``m-500`` beside ``m-400.pt``.
    """
    files = [name for name in folder.files if is_weights(name) and has_number(name)]
    forms, taken = {name_form(name) for name in files}, {canonical_name(name) for name in files}
    numbered = [
        name
        for name in sorted(folder.folders, key=natural_key)
        if (is_numbered(name) or (name_form(name) in forms and canonical_name(name) not in taken))
        and not _UNFINISHED.search(name)
        and not TRAINER_STATE.search(name)
    ]
    places = {name: _place(folder, name, inner, budget) for name in numbered}
    alike = {skeleton(name) for name, place in places.items() if isinstance(place, Location)}
    return {
        name: place if isinstance(place, Location) else folder.location / name
        for name, place in places.items()
        if place and (isinstance(place, Location) or skeleton(name) in alike)
    }


def _place(folder: Folder, name: str, inner: int, budget: _Budget) -> Location | str:
    """Return the one checkpoint that a folder is or has inside; else ``other``, or nothing for an empty folder."""
    location = folder.location / name
    key = identity_of(location), inner
    if key not in budget.known:
        budget.known[key] = _inside(folder, name, inner, budget)
    found = budget.known[key]
    return found if isinstance(found, str) else reduce(truediv, found, location)


def _inside(folder: Folder, name: str, inner: int, budget: _Budget) -> tuple[str, ...] | str:
    """Return the path of that checkpoint below the folder, which may have further names through links."""
    below = budget.inside(folder, name)
    if below is None:
        return "other"
    if format_of(below) is not None:
        return ()
    before = budget.left
    models = _models_in(below, inner, budget) if inner and budget.left else []
    if len(models) == 1:
        budget.left = before
        return tuple(models[0].parts[len(below.location.parts) :])
    return "other" if below.files or below.folders else ""


def _models_in(folder: Folder, inner: int, budget: _Budget) -> list[Location]:
    """Return the checkpoints in a folder that is none itself."""
    budget.left -= 1
    here = InnerFolder(location=folder.location, listing=look_into(folder, inner - 1, budget))
    below = inner_folders(folder, inner, inner - 1, budget)
    return [model for one in (here, *below) for model in one.models]


def _special_folders(
    folder: Folder, members: Mapping[str, Location], inner: int, budget: _Budget
) -> dict[str, Location]:
    """Return the checkpoint folders of a run that are called ``final`` or similar."""
    names = [name for name in sorted(folder.folders) if is_special(name) and name not in members]
    places = {name: _place(folder, name, inner, budget) for name in names if not _UNFINISHED.search(name)}
    return {name: place for name, place in places.items() if isinstance(place, Location)}


def _useless(folder: Folder, copies: tuple[str, ...]) -> Iterator[Skipped]:
    """Yield what cannot be a checkpoint: state of the trainer, shards, links to nothing."""
    for name in sorted(folder.files, key=natural_key):
        suffixed = name.lower().endswith(SUFFIXES) and not name.startswith(".")
        if not suffixed and not is_numbered(name):
            continue
        path = folder.location / name
        if not is_file(path):
            if is_link(path) and identity_of(path) is None:
                yield Skipped(path=path, reason=DANGLING)
        elif suffixed and parse_shard_name(name):
            if not copies:
                yield Skipped(path=path, reason="one shard of a model, beside complete checkpoints")
        elif suffixed and TRAINER_STATE.search(name):
            yield Skipped(path=path, reason="state of the trainer, not a model")


def _files(folder: Folder, copies: tuple[str, ...]) -> list[str]:
    """Return the names of the files that may be checkpoints."""
    parts = {*copies, *later_ranks(folder.files)}
    names = [name for name in folder.files if is_weights(name) and not parse_shard_name(name) and name not in parts]
    return [name for name in sorted(names, key=natural_key) if is_file(folder.location / name)]


def _candidates(folder: Folder, paths: Mapping[str, Location]) -> Iterator[Candidate | Skipped]:
    """Yield the possible checkpoints of a folder, those beside its series last, and skipped ones."""
    split = split_names(list(paths))
    found = Candidate(path=folder.location, in_folder=True, run=folder.location)
    yield from (replace(found, path=paths[name], name=name) for name in split.series)
    yield from (replace(found, path=paths[name], name=name, beside=True) for name in split.beside)
    for name, reason in split.skipped.items():
        if report_name(name) in folder.files or _may_be_snapshot(paths[name]):  # or an output of this program
            yield replace(found, path=paths[name], name=name, beside=True, reason=reason)
        else:
            yield Skipped(path=paths[name], reason=reason)


def _may_be_snapshot(path: Location) -> bool:
    """Whether a file that is called an average may be a snapshot of a live EMA; in a store it is not opened."""
    return not isinstance(path, Url) and path.suffix == ".safetensors" and is_file(path)
