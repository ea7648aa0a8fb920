"""Snapshots of several live EMAs in one series: ``ema_0.99_step100`` and ``ema_0.999_step100`` are two series."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile

from ema_cli.discovery.beside_series import OpenedCheckpoint
from ema_cli.errors import InputRefused, Proposal, RunWarning
from ema_cli.records.live_snapshot import method_of_snapshot
from ema_cli.storage.locations import Location, literal
from ema_cli.text import quoted, shortlist

_HINT = "average the snapshots of each by themselves"
_DIGITS = "0123456789"
_Kinds = Mapping[str, Sequence[OpenedCheckpoint]]
"""The snapshots of each live EMA, by its method in words."""


def find_mixed_snapshots(checkpoints: Sequence[OpenedCheckpoint]) -> Iterator[RunWarning]:
    """Yield a warning if snapshots that were named are of several live EMAs.

    Raises:
        InputRefused: a folder has snapshots of several; with the command for each of them.

    """
    kinds: dict[str, list[OpenedCheckpoint]] = {}
    for opened in checkpoints:
        if opened.checkpoint.is_snapshot:
            method = method_of_snapshot(opened.checkpoint.metadata)
            kinds.setdefault(method.label if method else "unknown", []).append(opened)
    if len(kinds) < 2:  # noqa: PLR2004 - one series
        return
    message = f"the snapshots are of several live EMAs: {shortlist(kinds)}"
    runs = {opened.candidate.run for opened in checkpoints}
    (run,) = runs if len(runs) == 1 else (None,)
    if run is not None:
        raise InputRefused(f"{quoted(str(run))}: {message}", hint=_HINT, proposals=list(_each(run, kinds)))
    yield RunWarning(code="runs-mixed", message=message, hint=_HINT)


def _each(run: Location, kinds: _Kinds) -> Iterator[Proposal]:
    """Yield the command for the snapshots of each live EMA."""
    for kind, members in kinds.items():
        others = [opened.candidate.name for other, found in kinds.items() if other != kind for opened in found]
        names = [opened.candidate.name for opened in members]
        pattern = _pattern(names)
        wanted = [f"{literal(run)}/{pattern}"]
        if any(fnmatchcase(name, pattern) for name in others):
            wanted = [f"{literal(run)}/{glob.escape(name)}" for name in names]
        yield Proposal(reason="average each by itself", changes={"paths": tuple(wanted)})


def _pattern(names: Sequence[str]) -> str:
    """Return a pattern that matches names which differ in a number."""
    if len(names) == 1:
        return glob.escape(names[0])
    head = _common(names).rstrip(_DIGITS)
    tail = _common([name[len(head) :][::-1] for name in names])[::-1].lstrip(_DIGITS)
    return f"{glob.escape(head)}*{glob.escape(tail)}"


def _common(names: Sequence[str]) -> str:
    """Return what all names begin with."""
    return "".join(one[0] for one in takewhile(lambda one: len(set(one)) == 1, zip(*names, strict=False)))
