"""What to propose where nothing can be averaged as it was named: each model inside; never a mixture of runs."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence

from ema_cli.discovery.candidates import InnerFolder
from ema_cli.errors import Proposal
from ema_cli.formats.file_names import is_numbered, skeleton
from ema_cli.storage.locations import Location, full_name, literal, locate
from ema_cli.text import plural, quoted, shortlist

_MOST_PATHS = 8
"""Paths that a command names one by one."""
_FOLDERS_INSIDE = "the folders inside contain checkpoints"


def describe_inner(inner: Sequence[InnerFolder]) -> str:
    """Return what the folders below a folder contain, in words."""
    inside = [f"{quoted(str(one.location))} ({plural(len(one.models), 'checkpoint')})" for one in inner]
    return f"; the folders inside have checkpoints: {shortlist(inside)}"


def hint_for(location: Location, inner: Sequence[InnerFolder]) -> str:
    """Return what to do about several series in the folders below a folder; empty if there are not several."""
    if any(one.is_parts(location) for one in inner):
        return "name the checkpoints by a quoted pattern: ema-avg 'RUN/*/NAME.pt'"
    if sum(one.listing.is_series for one in inner) > 1:
        return "name one of the folders, or average each run by itself: ema-avg batch RUNS/"
    return ""


def proposals_for(location: Location, inner: Sequence[InnerFolder]) -> Iterator[Proposal]:
    """Yield commands for what is below a folder, if it is one run or one model of several.

    Folders with a series each are runs: they are never proposed together. Nor are parts of one checkpoint.
    """
    runs = [one for one in inner if one.listing.is_series]
    if len(runs) == 1 and not runs[0].is_parts(location):
        (run,) = runs
        yield Proposal(reason="one of the folders inside has a series", changes={"paths": (full_name(run.location),)})
    if 1 < len(runs) <= _MOST_PATHS and not any(one.is_parts(location) for one in inner):
        each = tuple(full_name(one.location) for one in runs)
        yield Proposal(reason="name one of the folders, or average each run by itself", changes={}, runs=each)
    if runs:
        return
    tails: dict[tuple[str, ...], list[Location]] = {}
    depth = len(location.parts)
    for model in (model for one in inner for model in one.models):
        tails.setdefault(model.parts[depth + 1 :], []).append(location / model.parts[depth])
    shared = [("/".join(tail), folders) for tail, folders in tails.items() if len(folders) > 1]
    for reason, spelled in ((_FOLDERS_INSIDE, _everywhere), (f"{_FOLDERS_INSIDE}, here one by one", _one_by_one)):
        for end, folders in shared:
            paths = spelled(location, folders, end)
            if paths:
                yield Proposal(reason=reason, changes={"paths": paths})


def proposals_for_models(several: Mapping[Location, Sequence[str]], named: Sequence[str]) -> Iterator[Proposal]:
    """Yield a command for each model of the checkpoint folders that hold several models.

    Args:
        several: names of the files of the models in each folder.
        named: the command line.

    """
    folders = list(several)
    shared = [model for model in next(iter(several.values()), ()) if all(model in names for names in several.values())]
    for model in shared:
        by_name = {full_name(folder): full_name(folder / model) for folder in folders}
        if set(by_name) <= {full_name(locate(name)) for name in named}:
            paths = tuple(by_name.get(full_name(locate(name)), name) for name in named)
        else:
            paths = _everywhere(folders[0].parent, folders, model) or _one_by_one(folders[0].parent, folders, model)
        yield Proposal(reason="name the model to average", changes={"paths": paths})


def _everywhere(parent: Location, folders: Sequence[Location], end: str) -> tuple[str, ...]:
    """Return the pattern of a name in all folders of one kind; nothing if they are not in one folder."""
    if any(folder.parent != parent for folder in folders):
        return ()
    kinds = {skeleton(folder.name) for folder in folders if is_numbered(folder.name)}
    if len(folders) == 1:
        return (full_name(folders[0] / end),)
    one_kind = len(kinds) == 1 and all(is_numbered(folder.name) for folder in folders)
    name = glob.escape(kinds.pop()).replace("0", "*") if one_kind else "*"
    return (f"{literal(parent)}/{name}/{end}",)


def _one_by_one(_: Location, folders: Sequence[Location], end: str) -> tuple[str, ...]:
    """Return the name in each folder; nothing if they are many."""
    if len(folders) > _MOST_PATHS:
        return ()
    return tuple(full_name(folder / end if end else folder) for folder in folders)
