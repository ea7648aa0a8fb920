"""Outputs of this program that have no room for its metadata: the report beside them recognizes them.

A file in the format of its inputs (``--format same``), or a folder of torch.distributed.checkpoint, is an output if the
report beside it lists it, and every file with weights is as reported. A file with the name, the size and the
modification time of the report is not read: one that was replaced by another of the same size and time is taken for the
output. Any other file of the reported size is read, and its SHA-256 decides: the output was copied or renamed together
with its report. Side files do not count, unless the weights are read from them.

A report that was edited, or belongs to another file, thus never makes a checkpoint an output by its name alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ema_cli.errors import EmaAvgError
from ema_cli.events import Counted, Listener, ignore
from ema_cli.formats.json_text import parse_object
from ema_cli.naming import report_name
from ema_cli.records.files import FileRole
from ema_cli.records.record_types import build
from ema_cli.records.reported_output import File, Output, is_inner_name
from ema_cli.records.series import Checkpoint, Mark
from ema_cli.storage.digest import sha256_of
from ema_cli.storage.locations import Location, absolute, identity_of, open_source
from ema_cli.storage.source import ByteSource

_UNMARKED = ("same", "dcp")
"""Formats of outputs without metadata of this program."""
_LARGEST_REPORT = 1 << 27
_LEVELS = 2
"""Levels of folders of an output above its weights: ``averaged/global_step100/``."""
_MOST_DIGESTS = 1000

OnBytes = Callable[[int], None]
_digests: dict[object, str] = {}
"""Of files that were read, by their state: a run examines an output several times."""


def marked(checkpoint: Checkpoint, listener: Listener = ignore) -> Checkpoint:
    """Return a checkpoint with its ``mark``: whether the report beside it recognizes it as an output.

    One in a store is not recognized.
    """
    if not isinstance(checkpoint.path, Path):
        return checkpoint
    mark = _mark(checkpoint.path, checkpoint.index.identity, listener)
    return checkpoint if mark is Mark.NONE else replace(checkpoint, mark=mark)


def output_without_metadata(path: Location, listener: Listener = ignore) -> Output | None:
    """Return what the report says of an output without metadata; ``None`` if there is no such output at ``path``."""
    if not isinstance(path, Path):
        return None
    output = _listed(path)
    return output if output is not None and _is_as_reported(path, output, frozenset(), listener) else None


def is_as_reported(path: Path, known: File | Output, *, on_bytes: OnBytes = lambda _: None) -> bool:
    """Whether a file has the size and the time of its report or, if only the time differs, the digest."""
    return _has_reported_time(path, known) or _has_reported_digest(path, known, on_bytes)


def _mark(path: Path, opened: frozenset[object], listener: Listener) -> Mark:
    """Return the mark of a checkpoint at ``path`` that was read from the files ``opened``."""
    for place in _places(path):
        output = _listed(place)
        if output is None:
            continue
        files = {identity_of(place / name) for name in output.named_files()}
        is_named = Path(output.path).name == place.name
        if opened <= files:
            if _is_as_reported(place, output, opened, listener):
                return Mark.OURS
            return Mark.CHANGED if is_named else Mark.NONE
        if place.name == path.name and is_named:
            return Mark.CHANGED
    return Mark.NONE


def _places(path: Path) -> Iterator[Path]:
    """Yield the paths of the outputs that a checkpoint may be, or be inside; links are followed at last."""
    own, real = Path(absolute(path)), Path(os.path.realpath(path))
    for start in dict.fromkeys((own, real)):
        yield start
        yield from list(start.parents)[:_LEVELS]


def _listed(place: Path) -> Output | None:
    """Return the output without metadata that the report beside it lists, if it is of the same kind."""
    report = place.with_name(report_name(place.name)) if place.name else None
    try:
        status = report.stat() if report is not None else None
    except (OSError, ValueError):
        return None
    if report is None or status is None or not stat.S_ISREG(status.st_mode):
        return None
    output = _read(report, (status.st_ino, status.st_size, status.st_mtime_ns))
    return output if output is not None and bool(output.files) == place.is_dir() else None


@lru_cache(maxsize=8)
def _read(report: Path, state: object) -> Output | None:  # noqa: ARG001 - the state is part of the key
    """Return the one output in a report; ``None`` unless it is well formed and has no metadata."""
    try:
        with open_source(report) as source:
            raw = source.read(0, source.size()) if source.size() <= _LARGEST_REPORT else b""
        averages = parse_object(raw)["averages"]
        if not isinstance(averages, list) or len(averages) != 1:
            return None
        output: Output = build(Output, averages[0]["output"])
    except (EmaAvgError, KeyError, TypeError, ValueError, RecursionError):
        return None
    safe = all(is_inner_name(file.name) for file in output.files)
    return output if safe and output.format in _UNMARKED else None


def _is_as_reported(place: Path, output: Output, opened: frozenset[object], listener: Listener) -> bool:
    """Whether all weights of an output are as reported, and its files that were ``opened``."""
    weights = {
        place / name: file
        for name, file in output.named_files().items()
        if isinstance(file, Output) or file.role != FileRole.SIDE_FILE or identity_of(place / name) in opened
    }
    is_renamed = Path(output.path).name != place.name
    unknown = {path: file for path, file in weights.items() if is_renamed or not _has_reported_time(path, file)}
    return (
        bool(weights)
        and all(_is_file_of(path, file.bytes) for path, file in unknown.items())
        and _match(unknown, listener)
    )


def _match(files: Mapping[Path, File | Output], listener: Listener) -> bool:
    """Whether files have the digests of their report; they are read."""
    count = Counted("hashing", sum(file.bytes for file in files.values()), listener)
    return all(_has_reported_digest(path, file, count.add) for path, file in files.items())


def _has_reported_time(path: Path, known: File | Output) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    regular = stat.S_ISREG(status.st_mode)
    return regular and (status.st_size, status.st_mtime_ns) == (known.bytes, known.modified_ns)


def _is_file_of(path: Path, size: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _has_reported_digest(path: Path, known: File | Output, on_bytes: OnBytes) -> bool:
    try:
        with open_source(path) as source:
            return source.size() == known.bytes and _digest(source, on_bytes) == known.sha256
    except EmaAvgError:
        return False


def _digest(source: ByteSource, on_bytes: OnBytes) -> str:
    """Return the SHA-256 of a file; it is read once."""
    known = _digests.get(source.state)
    if known is None:
        known = sha256_of(source, on_bytes)
        if not source.raise_if_changed():
            if len(_digests) >= _MOST_DIGESTS:
                _digests.clear()
            _digests[source.state] = known
    return known
