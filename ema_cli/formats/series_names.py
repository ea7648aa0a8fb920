"""Which names in a folder are a numbered series, and which are beside it: ``final``, ``best``, ``ema``, ``init``.

Trainers write further files beside the numbered checkpoints: averages, the start of the training, copies of one of
them. Names decide what cannot be a member of the series; what may be one is decided by the step inside.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import field
from itertools import takewhile
from pathlib import PurePosixPath

from ema_cli.formats.file_names import is_numbered
from ema_cli.name_numbers import has_step_word, name_form
from ema_cli.record import record
from ema_cli.text import regex

NAME_TO_USE = "(name the file to use it)"
"""What to do about a file that is skipped."""
AVERAGE = "an average"
_SKIPPED = {
    AVERAGE: regex(
        r"(?:^|[._-])(?:ema|swa|avg|ave|averaged?|averages|mean|soup|merged)(?![a-z_]*(?<!epoch)(?<!step)=)(?:\d|[._-]|$)",
        re.IGNORECASE,
    ),
    "the start of a training": regex(r"(?:^|[._-])(?:init|initial|pre-?trained)(?:[._-]|$)", re.IGNORECASE),
    "an unfinished save": regex(r"(?:^|[._-])(?:te?mp|partial|incomplete)(?:[._-]|$)", re.IGNORECASE),
    "a backup": regex(r"(?:^|[._-])(?:backup|bak|recovery)(?:[._-]|$)", re.IGNORECASE),
}
"""What is no checkpoint of the series, whatever step is inside. ``avg_loss=0.31`` is a value, and names no average."""
_ALIAS = regex(r"(?:^|[._-])(?:last|latest|best|final)(?:[._-]|$)", re.IGNORECASE)
_VERSION = regex(r"-v\d+$")
"""Lightning's number of a file of the same name: ``last-v1.ckpt``."""
_FURTHER = regex(r"[._-]\D*\d.*")
_FEWEST = 2
"""Numbered names that are a series."""


@record
class SplitNames:
    """The names of the possible checkpoints in a folder."""

    series: tuple[str, ...]
    """The numbered series; if nothing is numbered, all names that may be checkpoints."""
    beside: tuple[str, ...] = ()
    """Members of the series only with a step of their own; those with a number come first."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Never members of the series, with the reasons."""


def split_names(names: Collection[str]) -> SplitNames:
    """Split the names of files and folders that may be checkpoints; the order is kept.

    Averages are the series only if there are no other numbered names.
    """
    reasons = {name: why_skipped(name) for name in names}
    others = [name for name in names if not reasons[name]]
    averages = dict.fromkeys(name for name in names if reasons[name] and has_number(name))
    if len(averages) >= _FEWEST and not any(map(has_number, others)):
        skipped = {name: f"beside numbered averages {NAME_TO_USE}" for name in names if name not in averages}
        return SplitNames(series=tuple(averages), skipped=skipped)
    if not others:
        return SplitNames(series=tuple(names))
    counted = [name for name in others if has_number(name)]
    if len(counted) == 1 and not is_numbered(counted[0]):
        counted = []  # the number of "resnet50.pt" is no step
    counted = _with_words(counted)
    stems = sorted(map(_stem, counted))
    plain = [name for name in counted if not _ALIAS.search(_stem(name)) and not _begins_others(_stem(name), stems)]
    series = plain or counted
    apart = set(of_other_form(series))
    series = [name for name in series if name not in apart] or others
    members = set(series)
    left = sorted((name for name in others if name not in members), key=lambda name: not has_number(name))
    reasons |= {name: "a second file of that name, perhaps of another run" for name in left if _has_version(name)}
    return SplitNames(
        series=tuple(series),
        beside=tuple(name for name in left if not reasons[name]),
        skipped={
            name: f"its name says that it is {reason} {NAME_TO_USE}" for name, reason in reasons.items() if reason
        },
    )


def why_skipped(name: str) -> str:
    """Return what a name says a file is that is no checkpoint of a series; empty for other names."""
    return next((what for what, pattern in _SKIPPED.items() if pattern.search(_stem(name))), "")


def has_place(name: str) -> bool:
    """Whether the step in a name beside a series gives it a place: in ``step=19-last``, not in ``crash_step_19``."""
    return _ALIAS.search(_stem(name)) is not None


def is_special(name: str) -> bool:
    """Whether a name has one of the words that are usual beside a series."""
    return bool(why_skipped(name)) or _ALIAS.search(_stem(name)) is not None


def of_other_form(names: Collection[str]) -> list[str]:
    """Return names like no other one that are made from the common form: ``crash_step_9`` beside ``step_1``."""
    forms = {name: "0".join(name_form(name)) for name in names}
    several = {form for form, count in Counter(forms.values()).items() if count >= _FEWEST}
    return [name for name, form in forms.items() if form not in several and any(one in form for one in several)]


def has_number(name: str) -> bool:
    """Whether a name has a number, other than Lightning's version."""
    return re.search(r"\d", _stem(name)) is not None


def _with_words(counted: list[str]) -> list[str]:
    """Return the names with a word before a step, if several have one; ``net_metric=0.93.pt`` is beside them."""
    found = [name for name in counted if has_step_word(name)]
    return found if len(found) >= _FEWEST else counted


def _begins_others(stem: str, stems: Sequence[str]) -> bool:
    """Whether several of the sorted ``stems`` are this one and a number: ``mine_v2-000001`` and ``mine_v2-000002``."""
    following = (stems[at] for at in range(bisect_left(stems, stem), len(stems)))
    begun = takewhile(lambda other: other.startswith(stem), following)
    return sum(_FURTHER.fullmatch(other[len(stem) :]) is not None for other in begun) >= _FEWEST


def _has_version(name: str) -> bool:
    """Whether Lightning found a file of that name, which it had not written in this run."""
    return _VERSION.search(PurePosixPath(name).stem) is not None


def _stem(name: str) -> str:
    """Return a name without its suffix and its version."""
    return _VERSION.sub("", PurePosixPath(name).stem)
