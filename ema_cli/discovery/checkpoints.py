"""From the names on the command line to opened checkpoints.

Input -> output: files, folders and patterns -> checkpoints whose structure was read, and the inputs that were skipped,
with the reasons. A checkpoint that is named must be usable; in a folder, unusable ones are skipped with a warning.

On a disk the checkpoints are opened one after the other, in a store several at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from ema_cli.discovery.folder_listing import Candidate, look_into, matches
from ema_cli.discovery.search import Search, raise_faults
from ema_cli.errors import InputRefused, NothingMatched, Proposal, RunWarning
from ema_cli.events import Listener, Opening, ignore
from ema_cli.formats.file_names import SUFFIXES, parse_shard_name
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import format_of
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix
from ema_cli.formats.structure import refusal_of
from ema_cli.options.average import Options
from ema_cli.options.name_filter import name_filter
from ema_cli.records.series import Checkpoint, Skipped
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, is_folder
from ema_cli.storage.remote.daemon_pool import DaemonPool
from ema_cli.storage.url import Url
from ema_cli.text import quoted, shortlist

_OPENERS = DaemonPool("open", threads=16)


@dataclass(frozen=True, slots=True, kw_only=True)
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
    search = Search()
    candidates = [candidate for name in options.paths for candidate in _expand(name, search)]
    pool = LayoutPool()
    try:
        with closing(_open_in_turn([candidate.path for candidate in candidates], options, pool)) as opened:
            for number, (candidate, open_one) in enumerate(zip(candidates, opened, strict=True)):
                listener(Opening(done=number, total=len(candidates)))
                _sort_in(candidate, open_one, search)
        raise_faults(search.faults)
        opened_ones = [*search.checkpoints, *search.copies]
        if opened_ones:
            refuse_unused_prefix(options.strip_prefix, [checkpoint.stripped for checkpoint in opened_ones])
        search.skip_copies()
        search.skip_own_outputs()
        search.skip_repeats()
        if not search.checkpoints:
            _raise_nothing(options, search)
    except BaseException:
        close_all([*search.checkpoints, *search.copies])
        raise
    return Found(checkpoints=tuple(search.checkpoints), skipped=tuple(search.skipped), warnings=tuple(search.warnings))


def close_all(checkpoints: Iterable[Checkpoint]) -> None:
    """Close the files of ``checkpoints``."""
    for checkpoint in checkpoints:
        checkpoint.index.close()


def _expand(name: str, search: Search) -> Iterator[Candidate]:
    """Yield the possible checkpoints that one name means."""
    try:
        found = matches(name)
        if not found:
            search.faults.append(NothingMatched(f"no file matches {quoted(name)}"))
        for location in found:
            shard = parse_shard_name(location.name)
            if is_folder(location):
                yield from _in_folder(location, search)
            elif shard is not None and shard.count > 1:
                message = f"{quoted(str(location))} is shard {shard.number:,} of {shard.count:,} of a model"
                hint = f"name the folder that contains all shards: {location.parent}"
                search.faults.append(InputRefused(message, hint=hint))
            else:
                yield Candidate(path=location, in_folder=False)
    except OSError as error:
        search.faults.append(InputRefused(f"{quoted(name)} cannot be searched: {error.strerror}"))


def _in_folder(location: Location, search: Search) -> Iterator[Candidate]:
    """Yield the folder itself if it is a checkpoint, else the checkpoints in it."""
    try:
        contents = look_into(Folder(location))
    except InputRefused as refused:
        search.faults.append(refusal_of(str(location), refused))
        return
    if contents.whole:
        yield Candidate(path=location, in_folder=False)
    search.skipped.extend(contents.skipped)
    yield from contents.candidates


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
    futures = deque(_OPENERS.submit(partial(open_one, location)) for location in locations)
    try:
        while futures:
            yield futures.popleft().result
    finally:
        for future in futures:
            future.cancel()
            future.add_done_callback(_close)


def _close(future: Future[Checkpoint]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().index.close()


def _sort_in(candidate: Candidate, open_one: Callable[[], Checkpoint], search: Search) -> None:
    """Add a checkpoint; in a folder, skip one that is incomplete or was deleted meanwhile, with a warning."""
    try:
        checkpoint = open_one()
    except (InputRefused, NothingMatched) as refused:
        if not candidate.in_folder:
            search.faults.append(refused)
            return
        search.refused.append(refused)
        message = f"skipped {refused.message}"
        search.warnings.append(RunWarning(code="unusable-left-out", message=message, hint=refused.hint))
    else:
        (search.copies if candidate.is_copy else search.checkpoints).append(checkpoint)


def _raise_nothing(options: Options, search: Search) -> None:
    """Raise that nothing was found, and where checkpoints may be."""
    raise_faults(search.refused)
    named = shortlist(quoted(name) for name in options.paths)
    reasons = shortlist(f"{quoted(entry.path.name)} ({entry.reason})" for entry in search.skipped)
    why = f"; skipped {reasons}" if reasons else ""
    hint = "name files ending in .pt, .pth, .ckpt, .bin or .safetensors, or the folder that contains them"
    nested = dict.fromkeys(found for name in options.paths for found in _nested(name))
    proposals = [
        Proposal(reason="the folders inside contain checkpoints", changes={"paths": (pattern,)}) for pattern in nested
    ]
    raise NothingMatched(f"no checkpoint in {named}{why}", hint=hint, proposals=proposals)


def _nested(name: str) -> Iterator[str]:
    """Yield patterns for the checkpoints in the subfolders of a folder."""
    for location in filter(is_folder, matches(name)):
        folder = Folder(location)
        for inner in sorted(folder.folders):
            found = folder.inside(inner)
            if format_of(found) is not None:
                yield f"{location}/*/"
            yield from (f"{location}/*/{file}" for file in sorted(found.files) if file.lower().endswith(SUFFIXES))
