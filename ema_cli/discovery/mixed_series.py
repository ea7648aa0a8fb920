"""Several models side by side in one folder, each with its own numbered series: ``G_1000.pth`` and ``D_1000.pth``."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from ema_cli.discovery.beside_series import OpenedCheckpoint
from ema_cli.errors import InputRefused, Proposal
from ema_cli.formats.file_names import skeleton
from ema_cli.storage.locations import Location, literal
from ema_cli.text import quoted, shortlist

_FEWEST = 2
"""Checkpoints of a series."""


def refuse_mixed_series(checkpoints: Sequence[OpenedCheckpoint]) -> None:
    """Raise if the files of a folder are several series of models that share few tensors.

    Raises:
        InputRefused: with the command for each of them.

    """
    by_run: dict[Location, dict[str, list[OpenedCheckpoint]]] = defaultdict(lambda: defaultdict(list))
    for opened in checkpoints:
        if opened.candidate.run is not None:
            by_run[opened.candidate.run][skeleton(opened.candidate.name)].append(opened)
    for run, kinds in by_run.items():
        series = {kind: found for kind, found in kinds.items() if len(found) >= _FEWEST}
        if len(series) > 1 and all(_differ(a[0], b[0]) for a, b in combinations(series.values(), 2)):
            patterns = [glob.escape(kind).replace("0", "*") for kind in series]
            raise InputRefused(
                f"{quoted(str(run))} holds several models: {shortlist(map(quoted, patterns))}",
                hint="average each model by itself, named by a quoted pattern",
                proposals=[
                    Proposal(reason="average each model by itself", changes={"paths": (f"{literal(run)}/{pattern}",)})
                    for pattern in patterns
                ],
            )


def _differ(one: OpenedCheckpoint, other: OpenedCheckpoint) -> bool:
    """Whether two checkpoints share less than half of the names of their tensors."""
    names = [{layout.name for layout in opened.checkpoint.index.layouts} for opened in (one, other)]
    return 2 * len(names[0] & names[1]) < min(map(len, names))
