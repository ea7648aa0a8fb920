"""The inputs of a report, found again and compared with what the report says of them.

Paths in a report are relative to where its run was started: they are tried as they are, then from the report's
folder. Of two files the one that has the recorded fingerprint is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from ema_cli.events import Counted, Listener, Opening
from ema_cli.fold.content_digests import digest_of
from ema_cli.formats.open import open_checkpoint
from ema_cli.records.plan import Action
from ema_cli.records.series import Checkpoint, Role
from ema_cli.report.model import Input, Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, locate
from ema_cli.storage.url import Url
from ema_cli.text import plural, quoted
from ema_cli.verify.output import Check, WrittenOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInput:
    """An input as the report knows it, and as it is now."""

    known: Input
    checkpoint: Checkpoint | None
    """Open; ``None`` if it cannot be used."""
    failure: str
    """Why it cannot be used; empty if it can."""
    averaged: frozenset[str]
    """The tensors that its digest of contents is that of."""

    def hashed_bytes(self, *, contents: bool) -> int:
        """Return how many bytes are read for its digest, where the report has one."""
        if self.checkpoint is None:
            return 0
        if self.known.sha256 is not None:
            return self.checkpoint.index.size()
        layouts = self.checkpoint.index.layouts if contents and self.known.content is not None else ()
        return sum(layout.nbytes for layout in layouts if layout.name in self.averaged)


def open_inputs(report: Report, output: WrittenOutput, opened: ExitStack, listener: Listener) -> list[FoundInput]:
    """Open every input of a report; those that can be used stay open inside the context.

    Raises:
        InputChanged: the system cannot open one, for a reason that says nothing about the file.

    """
    pool = LayoutPool()
    averaged = frozenset(tensor.name for tensor in report.averages[0].tensors if tensor.action == Action.AVERAGED)
    found = []
    for done, known in enumerate(report.inputs):
        listener(Opening(done=done, total=len(report.inputs)))
        checkpoint, failure = _find(known, report, output, opened, pool)
        found.append(FoundInput(known=known, checkpoint=checkpoint, failure=failure, averaged=averaged))
    return found


def _find(
    known: Input, report: Report, output: WrittenOutput, opened: ExitStack, pool: LayoutPool
) -> tuple[Checkpoint | None, str]:
    """Return the file that is meant; or none, and why it cannot be used."""
    try:
        checkpoint = _open(known, report, output.path.parent, opened, pool)
    except (InputRefused, NothingMatched, UsageError) as refused:
        return None, refused.message
    if not output.identity.isdisjoint(checkpoint.index.identity):
        return None, f"{quoted(known.path)} is overwritten by this output, so that nothing can be recomputed from it"
    if known.role == Role.AVERAGE and checkpoint.fingerprint != known.fingerprint:
        return None, f"{quoted(known.path)} is not the earlier average any more, so nothing can be recomputed from it"
    return checkpoint, ""


def _open(known: Input, report: Report, folder: Location, opened: ExitStack, pool: LayoutPool) -> Checkpoint:
    """Return the file that is meant, with its weights where the run found them."""
    key, strip_prefix = (_text(report.command.options.get(name)) for name in ("key", "strip_prefix"))
    if known.role == Role.AVERAGE:
        key, strip_prefix = None, ""  # our own names are as they should be
    usable: list[Checkpoint] = []
    failures: list[EmaAvgError] = []
    for path in _places(known.path, folder):
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


def _places(name: str, folder: Location) -> tuple[Location, ...]:
    """Return where a file may lie that a report calls ``name``."""
    place = locate(name)
    return (place,) if isinstance(place, Url) else tuple(dict.fromkeys((place, folder / name)))


def _text(option: object) -> str | None:
    return option if isinstance(option, str) else None


def check_input(number: int, found: FoundInput, count: Counted, *, contents: bool) -> Check:
    """Compare an input with what the report says of it. A recorded digest decides over the time of modification.

    Args:
        number: of the input, from 1 on.
        found: the input.
        count: told of the bytes that are read.
        contents: read the averaged tensors and compare their digest, too.

    Raises:
        InputChanged: it cannot be read to its end.

    """
    name = f"input {number}"
    if found.checkpoint is None:
        return Check(name=name, ok=False, message=found.failure)
    place = quoted(str(found.checkpoint.path))
    differences = list(_differences(found, found.checkpoint, count, contents=contents))
    if differences:
        return Check(name=name, ok=False, message=f"{place} {', '.join(differences)}")
    touched = found.checkpoint.fingerprint != found.known.fingerprint
    same = "bytes" if found.known.sha256 is not None else "weights"
    return Check(
        name=name, ok=True, message=f"{place} {f'was touched, but has the same {same}' if touched else 'is as it was'}"
    )


def _differences(found: FoundInput, checkpoint: Checkpoint, count: Counted, *, contents: bool) -> Iterator[str]:
    known, nbytes = found.known, checkpoint.index.size()
    by_content = contents and known.content is not None and known.sha256 is None
    if nbytes != known.bytes:
        yield f"has {plural(nbytes, 'byte')}, but {known.bytes:,} were averaged"
    digest = sha256_of_all(checkpoint.index.sources, count.add) if known.sha256 is not None else None
    if digest != known.sha256:
        yield f"has the SHA-256 {digest}, but {quoted(known.sha256 or '')} was averaged"
    content = digest_of(checkpoint.index, found.averaged, count.add) if by_content else known.content
    if content != known.content:
        yield f"holds other weights: their digest is {content}, but {quoted(known.content or '')} was averaged"
    then, now = (text.rpartition("-") for text in (known.fingerprint, checkpoint.fingerprint))
    if then[2] != now[2]:
        yield f"has a structure of the digest {now[2]}, but {quoted(then[2])} was averaged"
    elif then[0] != now[0] and nbytes == known.bytes and known.sha256 is None and not by_content:
        was = quoted(known.fingerprint)
        yield f"was changed or touched since: its fingerprint is {checkpoint.fingerprint}, but {was} was averaged"
