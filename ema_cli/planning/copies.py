"""Checkpoints that hold the same weights: one of them is usually a copy that was not meant to count twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ema_cli.errors import RunWarning
from ema_cli.records.plan import Plan
from ema_cli.text import plural, quoted, shortlist


def warn_of_copies(plan: Plan, contents: Mapping[int, str]) -> list[RunWarning]:
    """Return a warning if the averaged tensors of some checkpoints are the same.

    Args:
        plan: what was folded.
        contents: the digest of what each checkpoint holds, by its position.

    """
    same: dict[str, list[str]] = defaultdict(list)
    for i, digest in contents.items():
        same[digest].append(quoted(plan.checkpoints[i].path.name))
    groups = [names for names in same.values() if len(names) > 1]
    if not groups:
        return []
    copies = sum(len(names) - 1 for names in groups)
    message = f"{shortlist(' = '.join(names) for names in groups)}: the same weights, so "
    message += f"{plural(copies, 'checkpoint')} counted again"
    hint = "leave the copies out; it is fine if the weights did not change between the steps"
    return [RunWarning(code="same-weights", message=message, hint=hint)]
