"""Several runs in one series: their steps differ, so that only the rest of the names shows it.

The names of one run differ in the step, and in what changes with it. What else several of them share is the name of a
run, and the steps of two runs interleave: ``a/step_1``, ``b/step_2``, ``a/step_3``. A run that was continued in another
folder has steps after those of the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import product

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
                runs = " and ".join(shortlist(quoted(names[n]) for n in group) for group in (one, other))
                message = f"the {chosen.unit}s of two kinds of names interleave, which may be two runs: {runs}"
                yield RunWarning(code="runs-mixed", message=message, hint=_HINT)
                return
    other_form = [] if chosen.inside else [name for name in of_other_form(names) if not has_place(name)]
    if other_form:
        message = f"the names of other checkpoints have another form than {shortlist(map(quoted, other_form))}"
        yield RunWarning(code="runs-mixed", message=f"{message}, which may not be of this series", hint=_HINT)


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
