"""From the names on the command line to opened checkpoints.

Input -> output: files, folders and patterns -> checkpoints whose structure was read, and the inputs that were skipped,
with the reasons. A checkpoint that is named must be usable; in a folder, unusable ones are skipped with a warning.

On a disk the checkpoints are opened one after the other, in a store several at a time.
"""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from ema_cli.discovery.beside_series import OpenedCheckpoint
from ema_cli.discovery.candidates import Candidate
from ema_cli.discovery.folder_listing import inner_folders, look_into
from ema_cli.discovery.lone_shards import lone_shard, proposals_for_shards
from ema_cli.discovery.mixed_series import refuse_averages_of_others, refuse_mixed_series
from ema_cli.discovery.mixed_snapshots import find_mixed_snapshots
from ema_cli.discovery.nothing_found import proposals_for_models
from ema_cli.discovery.patterns import matches
from ema_cli.discovery.search import Search, raise_faults
from ema_cli.discovery.unused_names import (
    faults_of_unused,
    no_checkpoint,
    propose_folder,
    propose_options_for,
    refuse_shared_weights,
)
from ema_cli.errors import InputRefused, NothingMatched, RunWarning
from ema_cli.events import Listener, Opening, ignore
from ema_cli.formats.folder import Folder
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.own_outputs import marked
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix
from ema_cli.formats.structure import SeveralModels, refusal_of
from ema_cli.options.average import Options
from ema_cli.options.name_filter import name_filter
from ema_cli.record import record
from ema_cli.records.series import Checkpoint, Skipped
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, is_folder, locate
from ema_cli.storage.nearest_path import nearest_paths
from ema_cli.storage.url import Url
from ema_cli.text import quoted, shortlist

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ema_cli.storage.remote.daemon_pool import DaemonPool

_OPENERS = 16
"""Threads that open checkpoints in a store."""


@record
class Found:
    """The checkpoints of a run, in the order of the command line, folders in natural order."""

    checkpoints: tuple[Checkpoint, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[RunWarning, ...]


def discover(options: Options, listener: Listener = ignore) -> Found:
    """Open every checkpoint that ``options.paths`` name.

    Raises:
        NothingMatched: nothing matched, or something that was named is missing.
        InputRefused: something that was named cannot be used; all such files are reported at once.

    """
    search, folders = Search(), _folders(options.paths)
    candidates = [candidate for name in options.paths for candidate in _expand(name, search, folders)]
    pool = LayoutPool()
    try:
        with closing(_open_in_turn([candidate.path for candidate in candidates], options, pool)) as opened:
            for number, (candidate, open_one) in enumerate(zip(candidates, opened, strict=True)):
                listener(Opening(done=number, total=len(candidates)))
                _sort_in(candidate, open_one, search, listener)
        search.sort_out_weightless()
        _propose_models(search, options)
        if search.shards:
            search.shards[0].proposals = tuple(proposals_for_shards(options.paths))
        faults = [*search.shards, *search.faults]
        propose_options_for(options, faults)
        faults += faults_of_unused(search) if faults or search.used else ()
        propose_folder(search, faults)
        raise_faults(faults)
        opened_ones = [one.checkpoint for one in [*search.members, *search.beside]]
        if opened_ones:
            refuse_unused_prefix(options.strip_prefix, [checkpoint.stripped for checkpoint in opened_ones])
        search.skip_own_outputs()
        search.skip_snapshots()
        search.warnings.extend(find_mixed_snapshots(search.members))
        search.skip_repeats()
        search.skip_second_saves()
        refuse_mixed_series(search.members)
        if not options.key:
            refuse_averages_of_others(search.members)
        search.place_beside()
        if not search.members:
            _raise_nothing(options, search)
        refuse_shared_weights(search, options)
        search.warn_of_changed_outputs()
    except BaseException:
        close_all(one.checkpoint for one in [*search.members, *search.beside])
        raise
    return Found(checkpoints=tuple(search.checkpoints), skipped=tuple(search.skipped), warnings=tuple(search.warnings))


def find_candidates(names: Sequence[str]) -> list[Candidate]:
    """Return the files and folders that may be checkpoints, for names as on the command line; nothing is opened.

    Raises:
        NothingMatched: a pattern matches nothing.
        InputRefused: a name cannot be looked up, or is one shard of a checkpoint.

    """
    search, folders = Search(), _folders(names)
    candidates = [candidate for name in names for candidate in _expand(name, search, folders)]
    raise_faults([*search.shards, *search.faults])
    return candidates


def close_all(checkpoints: Iterable[Checkpoint]) -> None:
    """Close the files of ``checkpoints``."""
    for checkpoint in checkpoints:
        checkpoint.index.close()


def _folders(names: Sequence[str]) -> dict[Location, Callable[[], bool]]:
    """Ask stores about all names at once; return, for each, a function that returns whether it is a folder."""
    locations = [locate(name) for name in names if "://" in name and not glob.has_magic(name)]
    return {
        location: _openers().submit(partial(is_folder, location)).result
        for location in locations
        if isinstance(location, Url) and not location.is_web
    }


def _expand(name: str, search: Search, folders: Mapping[Location, Callable[[], bool]]) -> Iterator[Candidate]:
    """Yield the possible checkpoints that one name means."""
    unreadable: list[str] = []
    try:
        found = matches(name, unreadable)
        if not found:
            location = locate(name)
            is_web = isinstance(location, Url) and location.is_web
            hint = "a web server cannot list its files: name them" if is_web else partial(nearest_paths, location)
            search.faults.append(NothingMatched(f"no file matches {quoted(name)}", hint=hint))
        search.named[name] = found
        for location in found:
            if folders.get(location, partial(is_folder, location))():
                yield from (replace(candidate, named=location) for candidate in _in_folder(location, search))
            elif shard := lone_shard(location):
                search.shards.append(shard)
            else:
                yield Candidate(path=location, in_folder=False, named=location)
    except OSError as error:
        search.faults.append(InputRefused(f"{quoted(name)} cannot be searched: {error.strerror}"))
    except InputRefused as refused:
        search.faults.append(refused)
    if unreadable:
        search.warnings.append(RunWarning(code="folder-unreadable", message=f"not searched: {shortlist(unreadable)}"))


def _in_folder(location: Location, search: Search) -> Iterator[Candidate]:
    """Yield the folder itself if it is a checkpoint, else the checkpoints in it, or in the one folder below."""
    try:
        folder = Folder(location)
        contents = look_into(folder)
        inner = inner_folders(folder) if contents.is_empty else []
    except InputRefused as refused:
        search.faults.append(refusal_of(str(location), refused))
        return
    search.skipped.extend(contents.skipped)
    if contents.is_empty and (len(inner) != 1 or inner[0].is_parts(location)):
        search.inner[location] = inner
        return
    if contents.is_empty:
        contents = inner[0].listing
        search.skipped.extend(contents.skipped)
    search.warnings.extend(contents.warnings)
    if contents.whole:
        yield Candidate(path=inner[0].location if inner else location, in_folder=False)
    alone = len(contents.candidates) == 1
    yield from (replace(candidate, in_folder=not alone) for candidate in contents.candidates)


def _open_in_turn(
    locations: Sequence[Location], options: Options, pool: LayoutPool
) -> Generator[Callable[[], Checkpoint]]:
    """Yield, for each location in turn, a function that returns its checkpoint or raises why there is none.

    Close the generator: it closes checkpoints in a store that were opened and not asked for.
    """
    wanted = name_filter(options.include, options.exclude)
    open_one = partial(open_checkpoint, pool=pool, keys=options.key, strip_prefix=options.strip_prefix, wanted=wanted)
    if not any(isinstance(location, Url) for location in locations):
        yield from (partial(open_one, location) for location in locations)
        return
    futures = deque(_openers().submit(partial(open_one, location)) for location in locations)
    try:
        while futures:
            yield futures.popleft().result
    finally:
        for future in futures:
            future.cancel()
            future.add_done_callback(_close)


@cache
def _openers() -> DaemonPool:
    """Return the threads that open checkpoints in a store, the same for all runs."""
    from ema_cli.storage.remote.daemon_pool import DaemonPool  # noqa: PLC0415 - local files need none of it

    return DaemonPool("open", threads=_OPENERS)


def _close(future: Future[Checkpoint]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().index.close()


def _sort_in(candidate: Candidate, open_one: Callable[[], Checkpoint], search: Search, listener: Listener) -> None:
    """Add a checkpoint; in a folder, skip one that is incomplete or was deleted meanwhile, with a warning."""
    try:
        checkpoint = open_one()
    except (InputRefused, NothingMatched) as refused:
        if isinstance(refused, SeveralModels):
            search.several[candidate.path] = refused.models
        if candidate.reason:
            search.skipped.append(Skipped(path=candidate.path, reason=candidate.reason))
            return
        if not candidate.in_folder:
            search.faults.append(refused)
            return
        search.refuse(candidate, refused)
    else:
        search.add(OpenedCheckpoint(candidate=candidate, checkpoint=marked(checkpoint, listener)))


def _propose_models(search: Search, options: Options) -> None:
    """Add to the refusal of folders with several models the command for each of them."""
    refusals = [
        refused
        for refused in [*search.faults, *(why for _, why in search.refused)]
        if isinstance(refused, SeveralModels)
    ]
    if refusals:
        refusals[0].proposals = tuple(proposals_for_models(search.several, options.paths))


def _raise_nothing(options: Options, search: Search) -> None:
    """Raise that nothing was found, and where checkpoints may be."""
    raise_faults([refused for _, refused in search.refused])
    raise no_checkpoint(options.paths, search)
