"""Names on the command line without a checkpoint: each is an error, also beside names with checkpoints.

A folder whose download failed is empty. If it were skipped, a part of the series would be missing in the average.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ema_cli.discovery.nothing_found import describe_inner, hint_for, proposals_for
from ema_cli.discovery.other_files import other_files
from ema_cli.discovery.patterns import whole_folder
from ema_cli.discovery.search import Search
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, Proposal, UsageError
from ema_cli.formats.file_names import NAME_A_CHECKPOINT
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import contents_of
from ema_cli.options.average import Options
from ema_cli.storage.locations import Location, literal
from ema_cli.text import listing, plural, quoted, shortlist

_MOST_LINES = 8


def no_checkpoint(names: Sequence[str], search: Search) -> NothingMatched:
    """Return the error that no name has a checkpoint, with what is there instead and where checkpoints may be."""
    named = shortlist(map(quoted, names))
    reasons = shortlist(f"{quoted(entry.path.name)} ({entry.reason})" for entry in search.skipped)
    why = f"; skipped {reasons}" if reasons else ""
    inner = [one for found in search.inner.values() for one in found]
    inside = describe_inner(inner) if inner else ""
    proposals = [proposal for place, found in search.inner.items() for proposal in proposals_for(place, found)]
    others = [kind for found in search.named.values() for location in found for kind in other_files(location)]
    proposals += [
        Proposal(reason="these files are checkpoints, whatever their suffix", changes={"paths": (kind.pattern,)})
        for kind in others
        if kind.pattern
    ]
    hints = [hint_for(place, found) for place, found in search.inner.items()]
    hints += [kind.next_step for kind in others if kind.line]
    lines = [kind.line for kind in others if kind.line]
    if lines:
        inside = listing(f"{inside}, but files of other formats:", lines, most=_MOST_LINES)
    return NothingMatched(
        f"no checkpoint in {named}{why}{inside}", hint=next(filter(None, hints), NAME_A_CHECKPOINT), proposals=proposals
    )


def propose_options_for(options: Options, faults: Sequence[EmaAvgError]) -> None:
    """Propose the command of someone who wrote the decay or the output without its flag: ``run/ 0.8 out.safetensors``.

    It is proposed if all that is wrong are such names, which do not exist.
    """
    missing = [name for name in options.paths if not os.path.lexists(name)]
    decays = [name for name in missing if re.fullmatch(r"0?[.]\d+", name)]
    last = next((name for name in options.paths[::-1] if name not in decays), "")
    outputs = [name for name in missing if name.endswith(".safetensors") and name == last]
    others = tuple(name for name in options.paths if name not in (*decays, *outputs))
    if not others or len(decays) > 1 or not 0 < len(faults) == len(decays) + len(outputs):
        return
    if any(fault.hint for fault in faults):  # a name that is like it exists
        return
    changes: dict[str, Any] = {"paths": others}
    if decays:
        changes["decay"] = (*options.decay, float(decays[0]))
    if outputs and options.output is None:
        changes["output"] = Path(outputs[0])
    faults[0].proposals = (Proposal(reason="a decay and an output are given as options", changes=changes),)


def propose_folder(search: Search, faults: Sequence[EmaAvgError]) -> None:
    """Propose the folder to someone who named everything in it, ``run/*``, also what is no checkpoint.

    Whoever named a part of it meant no other file. A folder without a checkpoint may be a download that failed.
    """
    if not faults or not search.used or search.inner or any(fault.proposals for fault in faults):
        return
    folder = whole_folder([location for found in search.named.values() for location in found])
    if folder is not None:
        reason = "name the folder, of which only the checkpoints are taken"
        faults[0].proposals = (Proposal(reason=reason, changes={"paths": (literal(folder),)}),)


def faults_of_unused(search: Search) -> Iterator[EmaAvgError]:
    """Yield an error for each named folder without a checkpoint, beside others that have one."""
    used = search.used
    others = tuple(_names_of(used, search))
    alone = Proposal(reason="get it again, or average the others alone", changes={"paths": others})
    for folder, inner in search.inner.items():
        yield NothingMatched(
            f"no checkpoint in {quoted(str(folder))}: {_contents(folder)}{describe_inner(inner) if inner else ''}",
            hint=hint_for(folder, inner) or "get it again, or name only files and folders with checkpoints",
            proposals=[alone] if others and not inner else (),
        )
    yield from (refused for candidate, refused in search.refused if candidate.named not in used)


def _names_of(used: set[Location | None], search: Search) -> Iterator[str]:
    """Yield the names that have a checkpoint; nothing if other matches of such a name have none."""
    kept = {name: [location in used for location in found] for name, found in search.named.items()}
    if not any(any(are) and not all(are) for are in kept.values()):
        yield from (name for name, are in kept.items() if any(are))


def _contents(folder: Location) -> str:
    """Return what a folder has, in words."""
    with suppress(InputRefused):
        listed = Folder(folder)
        return contents_of(listed) if listed.files or listed.folders else "it is empty; perhaps a download failed"
    return "it cannot be read"


def refuse_shared_weights(search: Search, options: Options) -> None:
    """Raise if each name was given a weight, and one means several checkpoints or none: another would get its weight.

    Raises:
        UsageError: it says what each such name means.

    """
    if options.weights is None or len(options.weights) != len(options.paths) or len(options.paths) == 1:
        return
    counts = Counter(opened.candidate.named for opened in search.members)
    means = {name: sum(counts[location] for location in search.named[name]) for name in options.paths}
    wrong = [f"{quoted(name)} is {plural(count, 'checkpoint')}" for name, count in means.items() if count != 1]
    if wrong:
        given = f"{plural(len(options.weights), 'weight')} for {plural(len(options.paths), 'name')}"
        raise UsageError(f"{given}, but {shortlist(wrong)}", hint="give each checkpoint a name and a weight")
