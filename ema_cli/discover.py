"""From what was named on the command line to opened checkpoints.

Input -> output: files, folders and patterns -> checkpoints whose structure was read, and what was left out and why.
A file that is named must be usable; in a folder, what is not a checkpoint of the series is left out and named.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched
from ema_cli.events import Listener, Opening, ignore
from ema_cli.formats.names import SUFFIXES, TRAINER_STATE
from ema_cli.formats.open import open_checkpoint
from ema_cli.naming import natural_key
from ema_cli.options import Options
from ema_cli.records import Checkpoint, LeftOut, Notice
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted, shortlist

_ALIAS = re.compile(r"(?:^|[._-])(?:last(?:-v\d+)?|latest|best|final|ema|swa|avg|averaged?)(?:[._-]|$)", re.IGNORECASE)
_LAST = re.compile(r"(?:^|[._-])(?:last(?:-v\d+)?|latest|final)(?:[._-]|$)", re.IGNORECASE)
_ALIAS_REASON = "by its name a copy, or an average, of checkpoints of the numbered series (name the file to use it)"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_SHARDED_FOLDER = ("model.safetensors.index.json", "pytorch_model.bin.index.json", ".metadata")
_MOST_FAULTS = 10
AVERAGES_AVERAGED = "averages-averaged"
"""Code of the warning that all inputs are outputs of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The checkpoints of a run, in the order of the command line, folders in natural order."""

    checkpoints: tuple[Checkpoint, ...]
    left_out: tuple[LeftOut, ...]
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: Path
    in_folder: bool
    """Found in a folder rather than named."""
    is_copy: bool = False
    """By its name the last of a numbered series, and so usually a copy of another file."""


@dataclass(slots=True)
class _Search:
    """What has been found so far."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    copies: list[Checkpoint] = field(default_factory=list)
    """What by its name is a copy of the last checkpoint."""
    left_out: list[LeftOut] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    faults: list[EmaAvgError] = field(default_factory=list)
    refused: list[EmaAvgError] = field(default_factory=list)
    """Why files of a folder were left out."""


def discover(options: Options, listener: Listener = ignore) -> Found:
    """Open every checkpoint that ``options.paths`` mean.

    Raises:
        NothingMatched: nothing matched, or something that was named is missing.
        InputRefused: something that was named cannot be used; all such files are told at once.

    """
    search = _Search()
    candidates = [candidate for name in options.paths for candidate in _expand(name, search)]
    pool = LayoutPool()
    try:
        for number, candidate in enumerate(candidates):
            listener(Opening(done=number, total=len(candidates)))
            _open(candidate, options, pool, search)
        _raise_faults(search.faults)
        _leave_out_copies(search)
        _leave_out_own_outputs(search)
        _leave_out_repeats(search)
        if not search.checkpoints:
            _raise_nothing(options, search)
    except BaseException:
        close_all([*search.checkpoints, *search.copies])
        raise
    return Found(checkpoints=tuple(search.checkpoints), left_out=tuple(search.left_out), notices=tuple(search.notices))


def close_all(checkpoints: Iterable[Checkpoint]) -> None:
    """Close the files of ``checkpoints``."""
    for checkpoint in checkpoints:
        checkpoint.index.close()


def _expand(name: str, search: _Search) -> Iterator[_Candidate]:
    try:
        found = matches(Path(name), name)
        if not found:
            search.faults.append(NothingMatched(f"no file matches {quoted(name)}"))
        for path in found:
            if path.is_dir():
                yield from _in_folder(path, search)
            else:
                yield _Candidate(path, in_folder=False)
    except OSError as error:
        search.faults.append(InputRefused(f"{quoted(name)} cannot be searched: {error.strerror}"))


def matches(path: Path, name: str) -> list[Path]:
    """Return the one file or folder of that name or, if there is none and it is a pattern, all that match."""
    if path.exists() or not glob.has_magic(name):
        return [path]
    return [Path(match) for match in sorted(glob.glob(name, recursive=True), key=natural_key)]  # noqa: PTH207 - a pattern


def _in_folder(folder: Path, search: _Search) -> Iterator[_Candidate]:
    sharded = next((name for name in _SHARDED_FOLDER if (folder / name).exists()), None)
    if sharded is not None:
        search.faults.append(
            InputRefused(
                f"{quoted(str(folder))} is one sharded checkpoint (it has {sharded}); only single files are read yet",
                hint="merge the shards of each checkpoint into one file first",
            )
        )
        return
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    files.sort(key=lambda path: natural_key(path.name))
    numbered = any(re.search(r"\d", path.stem) and not _ALIAS.search(path.stem) for path in files)
    for path in files:
        if not path.is_file():
            continue
        alias = numbered and _is_alias(path)
        if TRAINER_STATE.search(path.name):
            search.left_out.append(LeftOut(path=path, reason="state of the trainer, not a model"))
        elif alias and not _LAST.search(path.stem):
            search.left_out.append(LeftOut(path=path, reason=_ALIAS_REASON))
        else:
            yield _Candidate(path, in_folder=True, is_copy=alias)


def _is_alias(path: Path) -> bool:
    """Whether a file is called ``last``, ``best`` or the like, and has no number of its own."""
    return _ALIAS.search(path.stem) is not None and not re.search(r"\d", re.sub(r"-v\d+$", "", path.stem))


def _open(candidate: _Candidate, options: Options, pool: LayoutPool, search: _Search) -> None:
    try:
        if _SHARD.search(candidate.path.name):
            raise InputRefused(f"{quoted(str(candidate.path))} is one shard of a model; only whole files are read yet")
        checkpoint = open_checkpoint(candidate.path, pool=pool, key=options.key, strip_prefix=options.strip_prefix)
    except InputRefused as refused:
        if not candidate.in_folder:
            search.faults.append(refused)
            return
        search.refused.append(refused)
        search.notices.append(
            Notice(
                code="unusable-left-out",
                message=f"left out {refused.message}",
                hint=refused.hint,
            )
        )
    except NothingMatched as missing:
        search.faults.append(missing)
    else:
        (search.copies if candidate.is_copy else search.checkpoints).append(checkpoint)


def _leave_out_copies(search: _Search) -> None:
    """``last.ckpt`` is a copy of a numbered file, unless the step inside says that it is newer than all of them."""
    steps = {checkpoint.steps[0] for checkpoint in search.checkpoints if checkpoint.steps}
    units = {step.unit for step in steps}
    for copy in search.copies:
        newest = copy.steps[0] if copy.steps else None
        if newest and units == {newest.unit} and newest.value > max(step.value for step in steps):
            search.checkpoints.append(copy)
        else:
            search.left_out.append(LeftOut(path=copy.path, reason=_ALIAS_REASON))
            copy.index.close()


def _raise_faults(faults: list[EmaAvgError]) -> None:
    """Raise all faults as one error of the gravest kind: what is missing first."""
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    kind = NothingMatched if any(isinstance(fault, NothingMatched) for fault in faults) else InputRefused
    lines = [f"  {fault.message}" for fault in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"  and {len(faults) - _MOST_FAULTS:,} more")
    hint = next((fault.hint for fault in faults if fault.hint), "")
    raise kind("\n".join([f"{plural(len(faults), 'input')} cannot be used:", *lines]), hint=hint)


def _leave_out_own_outputs(search: _Search) -> None:
    """An earlier output that a pattern or folder caught is not a checkpoint of the run."""
    ours = [checkpoint for checkpoint in search.checkpoints if checkpoint.made_by_us]
    if not ours:
        return
    if len(ours) == len(search.checkpoints):
        message = "the inputs are outputs of ema-avg: this averages averages"
        search.notices.append(Notice(code=AVERAGES_AVERAGED, message=message))
        return
    search.checkpoints = [checkpoint for checkpoint in search.checkpoints if not checkpoint.made_by_us]
    search.left_out.extend(LeftOut(path=c.path, reason="an earlier output of ema-avg", ours=True) for c in ours)
    close_all(ours)


def _leave_out_repeats(search: _Search) -> None:
    """A file that is named twice is folded once."""
    first: dict[object, Checkpoint] = {}
    for checkpoint in search.checkpoints:
        known = first.setdefault(checkpoint.index.identity, checkpoint)
        if known is not checkpoint:
            reason = f"the same file as {quoted(str(known.path))}"
            search.left_out.append(LeftOut(path=checkpoint.path, reason=reason))
            checkpoint.index.close()
    search.checkpoints = list(first.values())


def _raise_nothing(options: Options, search: _Search) -> None:
    _raise_faults(search.refused)
    named = shortlist(quoted(name) for name in options.paths)
    reasons = shortlist(f"{quoted(left.path.name)}: {left.reason}" for left in search.left_out)
    why = f"; left out were {reasons}" if reasons else ""
    nested = next((f for name in options.paths for s in SUFFIXES for f in Path(name).glob(f"*/*{s}")), None)
    hint = "name files ending in .pt, .pth, .ckpt, .bin or .safetensors, or the folder that holds them"
    if nested is not None:
        hint = f"the folders inside hold some: ema-avg '{nested.parent.parent}/*/{nested.name}'"
    raise NothingMatched(f"no checkpoint in {named}{why}", hint=hint)
