"""From what was named on the command line to opened checkpoints.

Input -> output: files, folders and patterns -> checkpoints whose structure was read, and what was left out and why.
A checkpoint that is named must be usable; in a run, what is not a checkpoint of the series is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from ema_cli.discovery.candidates import Search, raise_faults
from ema_cli.discovery.folder_listing import Candidate, look_into
from ema_cli.discovery.opening import open_in_turn
from ema_cli.discovery.patterns import matches
from ema_cli.errors import InputRefused, NothingMatched, RunWarning
from ema_cli.events import Listener, Opening, ignore
from ema_cli.formats.file_names import SUFFIXES
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import format_of
from ema_cli.formats.structure import refusal_of
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint, LeftOut
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, is_folder
from ema_cli.text import quoted, shortlist


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The checkpoints of a run, in the order of the command line, folders in natural order."""

    checkpoints: tuple[Checkpoint, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[RunWarning, ...]


def discover(options: Options, listener: Listener = ignore) -> Found:
    """Open every checkpoint that ``options.paths`` mean.

    Raises:
        NothingMatched: nothing matched, or something that was named is missing.
        InputRefused: something that was named cannot be used; all such files are told at once.

    """
    search = Search()
    candidates = [candidate for name in options.paths for candidate in _expand(name, search)]
    pool = LayoutPool()
    try:
        with closing(open_in_turn([candidate.path for candidate in candidates], options, pool)) as opened:
            for number, (candidate, open_one) in enumerate(zip(candidates, opened, strict=True)):
                listener(Opening(done=number, total=len(candidates)))
                _sort_in(candidate, open_one, search)
        raise_faults(search.faults)
        search.leave_out_copies()
        search.leave_out_own_outputs()
        search.leave_out_repeats()
        if not search.checkpoints:
            _raise_nothing(options, search)
    except BaseException:
        close_all([*search.checkpoints, *search.copies])
        raise
    return Found(
        checkpoints=tuple(search.checkpoints), left_out=tuple(search.left_out), warnings=tuple(search.warnings)
    )


def close_all(checkpoints: Iterable[Checkpoint]) -> None:
    """Close the files of ``checkpoints``."""
    for checkpoint in checkpoints:
        checkpoint.index.close()


def _expand(name: str, search: Search) -> Iterator[Candidate]:
    """Yield what may be a checkpoint of all that one name means."""
    try:
        found = matches(name)
        if not found:
            search.faults.append(NothingMatched(f"no file matches {quoted(name)}"))
        for location in found:
            if is_folder(location):
                yield from _in_folder(location, search)
            else:
                yield Candidate(path=location, in_folder=False)
    except OSError as error:
        search.faults.append(InputRefused(f"{quoted(name)} cannot be searched: {error.strerror}"))


def _in_folder(location: Location, search: Search) -> Iterator[Candidate]:
    """Yield the folder itself if it is a checkpoint, else those in it."""
    try:
        contents = look_into(Folder(location))
    except InputRefused as refused:
        search.faults.append(refusal_of(str(location), refused))
        return
    if contents.whole:
        yield Candidate(path=location, in_folder=False)
    search.left_out.extend(contents.left_out)
    yield from contents.candidates


def _sort_in(candidate: Candidate, open_one: Callable[[], Checkpoint], search: Search) -> None:
    """Add a checkpoint; in a run, one that is incomplete or was rotated away meanwhile is left out with a word."""
    try:
        checkpoint = open_one()
    except (InputRefused, NothingMatched) as refused:
        if not candidate.in_folder:
            search.faults.append(refused)
            return
        search.refused.append(refused)
        message = f"left out {refused.message}"
        search.warnings.append(RunWarning(code="unusable-left-out", message=message, hint=refused.hint))
    else:
        (search.copies if candidate.is_copy else search.checkpoints).append(checkpoint)


def _raise_nothing(options: Options, search: Search) -> None:
    """Say that nothing was found, and where something may be."""
    raise_faults(search.refused)
    named = shortlist(quoted(name) for name in options.paths)
    reasons = shortlist(f"{quoted(left.path.name)}: {left.reason}" for left in search.left_out)
    why = f"; left out were {reasons}" if reasons else ""
    hint = "name files ending in .pt, .pth, .ckpt, .bin or .safetensors, or the folder that holds them"
    nested = next((found for name in options.paths for found in _nested(name)), "")
    if nested:
        hint = f"the folders inside hold some: ema-avg '{nested}'"
    raise NothingMatched(f"no checkpoint in {named}{why}", hint=hint)


def _nested(name: str) -> Iterator[str]:
    """Yield patterns for the checkpoints that lie in the folders of a folder."""
    for location in filter(is_folder, matches(name)):
        folder = Folder(location)
        for inner in sorted(folder.folders):
            found = folder.inside(inner)
            if format_of(found) is not None:
                yield f"{location}/*/"
            yield from (f"{location}/*/{file}" for file in sorted(found.files) if file.lower().endswith(SUFFIXES))
