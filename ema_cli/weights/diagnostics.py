"""Numbers that say what an average is: how many checkpoints count in it, how old it is, what it does to the updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ema_cli.records import Notice, Weighting
from ema_cli.weights.schedules import decay_for_first_share

_DOMINATING = 0.5
_SMALL_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """A description of the shares of one average; field by field as in the report."""

    effective_checkpoints: float
    """1 / sum w_i^2 (Kish): the variance of averaged noise falls by this factor."""
    mean_age: float
    """sum w_i (t_N - t_i), in ``mean_age_unit``."""
    mean_age_unit: str
    """``step``, ``epoch`` or ``checkpoint``."""
    first: float
    """Share of the first checkpoint."""
    last: float
    """Share of the last checkpoint."""
    largest: float
    """The largest share."""
    implied_lr: tuple[float, ...]
    """W_i = sum_(j>=i) w_j: the factor by which the average scales the update that led to checkpoint i."""


def diagnose(weights: Sequence[float], positions: Sequence[int] | None, unit: str) -> Diagnostics:
    """Describe ``weights``.

    Args:
        weights: one per checkpoint, in fold order.
        positions: t_i, the step of each checkpoint; ``None`` to count checkpoints.
        unit: of ``positions``.

    """
    times = positions if positions is not None else range(len(weights))
    age = math.fsum(w * (times[-1] - t) for w, t in zip(weights, times, strict=True))
    return Diagnostics(
        effective_checkpoints=1 / math.fsum(w * w for w in weights),
        mean_age=age,
        mean_age_unit=unit if positions is not None else "checkpoint",
        first=weights[0],
        last=weights[-1],
        largest=max(weights),
        implied_lr=tuple(min(1.0, tail) for tail in accumulate(reversed(weights)))[::-1],
    )


def warn_about(weighting: Weighting) -> list[Notice]:
    """Return what the user should know about these shares before trusting the average."""
    count = len(weighting.weights)
    if count == 1:
        message = "there is one checkpoint, so the average is a copy of it"
        return [Notice(code="one-checkpoint", message=message, hint="name more checkpoints, or their folder")]
    if weighting.method.decay is None or weighting.weights[0] <= _DOMINATING or weighting.method.init == "debias":
        return []
    decay, better = f"{weighting.method.decay:g}", short_decay(decay_for_first_share(count, _SMALL_SHARE))
    return [
        Notice(
            code="first-dominates",
            message=(
                f"the first checkpoint keeps {percent(weighting.weights[0])} of this average: decay {decay} applies "
                f"per checkpoint, and {count} checkpoints are few for it"
            ),
            hint=(
                f"--decay {better} (leaves it {percent(float(better) ** (count - 1))}); --init debias; --method uniform"
            ),
        )
    ]


def short_decay(decay: float) -> str:
    """Return a decay as text that keeps two digits of 1 - d, so that it never reads as 1."""
    digits = 1 - math.floor(math.log10(1 - decay))
    return f"{decay:.{digits}f}".rstrip("0")


def percent(share: float) -> str:
    """Return a share as text: ``13.4 %``; a share that is not zero never reads as zero."""
    if 0 < share < 0.0005:  # noqa: PLR2004 - what one decimal can show
        return f"{100 * share:.1g} %"
    return f"{100 * share:.1f} %"
