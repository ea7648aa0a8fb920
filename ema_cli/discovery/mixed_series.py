"""Several models side by side in one folder, each with its own numbered series: ``G_1000.pth`` and ``D_1000.pth``.

An average that is skipped because of its name may be that of another model: ``G_ema_1000.pth`` beside ``D_1000.pth``.
"""

from __future__ import annotations

import glob
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from ema_cli.discovery.beside_series import OpenedCheckpoint
from ema_cli.errors import InputRefused, Proposal
from ema_cli.formats.file_names import is_weights, skeleton
from ema_cli.formats.open import look_at
from ema_cli.formats.series_names import AVERAGE, has_number, why_skipped
from ema_cli.formats.state_dict.trainer_averages import is_of_another_model
from ema_cli.naming import natural_key, report_name
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import Location, literal, names_in
from ema_cli.storage.url import Url
from ema_cli.text import quoted, shortlist

_FEWEST = 2
"""Checkpoints of a series."""
_MOST_AVERAGES = 4
"""Files that are called averages, of which the tensors are compared."""


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
            raise _several_models(run, list(series))


def refuse_averages_of_others(checkpoints: Sequence[OpenedCheckpoint]) -> None:
    """Raise if averages that are skipped in a folder are not those of its series, nor of the only other file there.

    Those beside the last checkpoint are opened, one of each kind; in a store none is.

    Raises:
        InputRefused: with the command for each model.

    """
    last = {opened.candidate.run: opened.checkpoint for opened in checkpoints}
    for run, checkpoint in last.items():
        if run is None or isinstance(run, Url):
            continue
        own = checkpoint.path.relative_to(run).as_posix()
        for name in _averages_beside(run, checkpoint.path.parent):
            average = look_at(run / name)
            if average is None or average.made_by_us or checkpoint.unreadable:
                continue
            if is_of_another_model(_matrices(average), _matrices(checkpoint)):
                raise _several_models(run, [skeleton(own), skeleton(name)])


def _averages_beside(run: Location, folder: Location) -> Iterator[str]:
    """Yield the paths below ``run`` of files in a folder that are called averages: the last of each kind."""
    try:
        names = names_in(folder)
    except OSError:  # removed meanwhile
        return
    averages = [name for name in names if is_weights(name) and why_skipped(name) == AVERAGE]
    if folder == run:
        averages = [name for name in averages if has_number(name)]
    kinds = {skeleton(name): name for name in sorted(averages, key=natural_key) if report_name(name) not in names}
    yield from ((folder / name).relative_to(run).as_posix() for name in list(kinds.values())[:_MOST_AVERAGES])


def _matrices(checkpoint: Checkpoint) -> Counter[tuple[int, ...]]:
    layouts = [layout for layout in checkpoint.index.layouts if layout.dtype.averaged]
    return Counter(layout.shape for layout in layouts if sum(size > 1 for size in layout.shape) > 1)


def _several_models(run: Location, kinds: Sequence[str]) -> InputRefused:
    """Return the refusal of a folder with several models, each with its kind of names, as ``skeleton`` returns them."""
    patterns = [glob.escape(kind).replace("0", "*") for kind in kinds]
    return InputRefused(
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
