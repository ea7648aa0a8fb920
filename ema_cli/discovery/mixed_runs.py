"""Several runs in one series: their steps differ, so that only the rest of the names shows it.

The names of one run differ in the step, and in what changes with it. What else several of them share is the name of a
run, and the steps of two runs interleave: ``a/step_1``, ``b/step_2``, ``a/step_3``. A run that was continued in another
folder has steps after those of the first. In one folder names that begin in two ways are of two runs whatever their
steps are: ``pretrain_step9000`` and ``finetune_step100``. So are numbered runs whose steps begin again:
``run1_step9000`` and ``run2_step100``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise, product

from ema_cli.discovery.witnesses import Witness, names_below
from ema_cli.errors import RunWarning
from ema_cli.formats.series_names import has_place, of_other_form
from ema_cli.name_numbers import parse_name
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import absolute
from ema_cli.text import quoted, shortlist

_HINT = "average each run by itself, named by its folder or a quoted pattern; if they are one, use --order given"
_FEWEST = 2
"""Checkpoints of a run."""
_MOST_DIGITS = 3
"""Of the number of a run; one with more may be a date."""
_SEPARATORS = "._-+= "
_Groups = dict[Hashable, list[int]]
"""Positions of the checkpoints that share a part of their names."""


def find_mixed_runs(checkpoints: Sequence[Checkpoint], chosen: Witness) -> Iterator[RunWarning]:
    """Yield a warning if the names show that checkpoints ordered by steps or epochs are of several runs."""
    if chosen.unit not in ("step", "epoch"):
        return
    names = names_below([absolute(checkpoint.path) for checkpoint in checkpoints])
    for groups, fewest in _partitions(names, inside=chosen.inside):
        others = [group for group in groups.values() if len(group) >= fewest]
        runs_of_several = [group for group in others if len(group) >= _FEWEST]
        for one, other in product(runs_of_several, others):
            if one is not other and _interleave(*([chosen.values[n] or 0 for n in group] for group in (one, other))):
                yield _mixed(f"the {chosen.unit}s of two kinds of names interleave", names, one, other)
                return
        for one, other in pairwise(_counted(groups)):
            if max(chosen.values[n] or 0 for n in other) < min(chosen.values[n] or 0 for n in one):
                yield _mixed(f"the {chosen.unit}s of the second of two kinds of names begin again", names, one, other)
                return
    begun = [] if chosen.inside else _begun_in_two_ways(names)
    if begun:
        yield _mixed("the names begin in two ways", names, *begun)
        return
    other_form = [] if chosen.inside else [name for name in of_other_form(names) if not has_place(name)]
    if other_form:
        message = f"the names of other checkpoints have another form than {shortlist(map(quoted, other_form))}"
        yield RunWarning(code="runs-mixed", message=f"{message}, which may not be of this series", hint=_HINT)


def _mixed(what: str, names: Sequence[str], *runs: Sequence[int]) -> RunWarning:
    listed = " and ".join(shortlist(quoted(names[n]) for n in run) for run in runs)
    return RunWarning(code="runs-mixed", message=f"{what}, which may be two runs: {listed}", hint=_HINT)


def _begun_in_two_ways(names: Sequence[str]) -> list[list[int]]:
    """Return the names of one folder by their first word, if several words have two names or more; else nothing."""
    in_one_folder = len({name.rpartition("/")[0] for name in names}) == 1
    groups = _grouped([parse_name(name).skeleton[0].strip(_SEPARATORS).lower() for name in names])
    several = [group for group in groups.values() if len(group) >= _FEWEST]
    return several if in_one_folder and len(several) > 1 else []


def _counted(groups: _Groups) -> list[list[int]]:
    """Return the groups of two or more in the order of the numbers that they share, if these count: 0, 1, 2."""
    numbers = [one for one in groups if isinstance(one, str) and one.isdecimal() and len(one) <= _MOST_DIGITS]
    values = sorted(numbers, key=int)
    if len(numbers) < len(groups) or any(int(b) - int(a) != 1 for a, b in pairwise(values)):
        return []
    return [groups[label] for label in values if len(groups[label]) >= _FEWEST]


def _partitions(names: Sequence[str], *, inside: bool) -> Iterator[tuple[_Groups, int]]:
    """Yield the checkpoints by each part of their names that may be that of a run, and how many make a run.

    With a clock inside, one run may save two kinds of files, but not in two folders.
    """
    parsed = [parse_name(name) for name in names]
    if len({one.skeleton for one in parsed}) == 1:
        for place in zip(*(one.numbers for one in parsed), strict=True):
            kind = place[0].kind
            fraction = any("." in number.text for number in place)
            if kind in ("part", "run", "index") or not (kind or fraction):
                yield _grouped([number.text for number in place]), _FEWEST if not kind else 1
        return
    folders, files = zip(*((name.rpartition("/")[0], name.rpartition("/")[2]) for name in names), strict=True)
    if not inside:
        yield _grouped([one.skeleton for one in parsed]), _FEWEST
    elif len({parse_name(file).skeleton for file in files}) == 1:
        yield _grouped(folders), _FEWEST


def _grouped(keys: Sequence[Hashable]) -> _Groups:
    groups: _Groups = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    return groups


def _interleave(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether each of two groups begins before the other ends."""
    return min(one) < max(other) and min(other) < max(one)
