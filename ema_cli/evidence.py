"""The inputs of a report, found again and compared with what the report says of them.

Paths in a report are relative to where its run was started: they are tried as they are, then from the report's
folder. Of two files the one that has the recorded fingerprint is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from ema_cli.events import Counted, Listener, Opening
from ema_cli.formats.open import open_checkpoint
from ema_cli.produced import Produced
from ema_cli.records import Check, Checkpoint, Role
from ema_cli.report.model import Input, Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInput:
    """An input as the report knows it, and as it is now."""

    known: Input
    checkpoint: Checkpoint | None
    """Open; ``None`` if it cannot be used."""
    failure: str
    """Why it cannot be used; empty if it can."""

    @property
    def hashed_bytes(self) -> int:
        """How many bytes are read for its digest, where the report has one."""
        if self.checkpoint is None or self.known.sha256 is None:
            return 0
        return self.checkpoint.index.size()


def open_inputs(report: Report, output: Produced, opened: ExitStack, listener: Listener) -> list[FoundInput]:
    """Open every input of a report; those that can be used stay open inside the context.

    Raises:
        InputChanged: the system cannot open one, for a reason that says nothing about the file.

    """
    pool = LayoutPool()
    found = []
    for done, known in enumerate(report.inputs):
        listener(Opening(done=done, total=len(report.inputs)))
        found.append(_find(known, report, output, opened, pool))
    return found


def _find(known: Input, report: Report, output: Produced, opened: ExitStack, pool: LayoutPool) -> FoundInput:
    try:
        checkpoint = _open(known, report, output.path.parent, opened, pool)
    except (InputRefused, NothingMatched, UsageError) as refused:
        return FoundInput(known=known, checkpoint=None, failure=refused.message)
    failure = ""
    if not output.identity.isdisjoint(checkpoint.index.identity):
        failure = f"{quoted(known.path)} is overwritten by this output, so that nothing can be recomputed from it"
    elif known.role == Role.AVERAGE and checkpoint.fingerprint != known.fingerprint:
        failure = f"{quoted(known.path)} is not the earlier average any more, so nothing can be recomputed from it"
    return FoundInput(known=known, checkpoint=None if failure else checkpoint, failure=failure)


def _open(known: Input, report: Report, folder: Path, opened: ExitStack, pool: LayoutPool) -> Checkpoint:
    """Return the file that is meant, with its weights where the run found them."""
    key, strip_prefix = (_text(report.command.options.get(name)) for name in ("key", "strip_prefix"))
    if known.role == Role.AVERAGE:
        key, strip_prefix = None, ""  # our own names are as they should be
    usable: list[Checkpoint] = []
    failures: list[EmaAvgError] = []
    for path in dict.fromkeys((Path(known.path), folder / known.path)):
        try:
            checkpoint = open_checkpoint(path, pool=pool, key=key, strip_prefix=strip_prefix)
        except (InputRefused, NothingMatched, UsageError) as failure:
            failures.append(failure)
            continue
        opened.callback(checkpoint.index.close)
        usable.append(checkpoint)
        if checkpoint.fingerprint == known.fingerprint:
            return checkpoint
    if usable:
        return usable[0]
    raise next((failure for failure in failures if not isinstance(failure, NothingMatched)), failures[0])


def _text(option: object) -> str | None:
    return option if isinstance(option, str) else None


def check_input(number: int, found: FoundInput, count: Counted) -> Check:
    """Compare an input with what the report says of it. A recorded digest decides over the time of modification.

    Raises:
        InputChanged: it cannot be read to its end.

    """
    name = f"input {number}"
    if found.checkpoint is None:
        return Check(name=name, ok=False, message=found.failure)
    place = quoted(str(found.checkpoint.path))
    differences = list(_differences(found.known, found.checkpoint, count))
    if differences:
        return Check(name=name, ok=False, message=f"{place} {', '.join(differences)}")
    touched = found.checkpoint.fingerprint != found.known.fingerprint
    return Check(
        name=name, ok=True, message=f"{place} {'was touched, but has the same bytes' if touched else 'is as it was'}"
    )


def _differences(known: Input, checkpoint: Checkpoint, count: Counted) -> Iterator[str]:
    nbytes = checkpoint.index.size()
    if nbytes != known.bytes:
        yield f"has {plural(nbytes, 'byte')}, but {known.bytes:,} were averaged"
    digest = sha256_of_all(checkpoint.index.sources, count.add) if known.sha256 is not None else None
    if digest != known.sha256:
        yield f"has the SHA-256 {digest}, but {quoted(known.sha256 or '')} was averaged"
    then, now = (text.rpartition("-") for text in (known.fingerprint, checkpoint.fingerprint))
    if then[2] != now[2]:
        yield f"has a structure of the digest {now[2]}, but {quoted(then[2])} was averaged"
    elif then[0] != now[0] and nbytes == known.bytes and known.sha256 is None:
        was = quoted(known.fingerprint)
        yield f"was changed or touched since: its fingerprint is {checkpoint.fingerprint}, but {was} was averaged"
