"""How an average of all checkpoints is made from an average of the first M of them.

With A = sum_(i<=M) v_i theta_i known and sum_i w_i theta_i wanted, A can be gone on from exactly when the first weights
keep their proportions, ``w_i = c v_i`` for i < M; then

    sum_i w_i theta_i = c A + e theta_M + sum_(i>M) w_i theta_i,    e = w_M - c v_M

Methods that draw a line from theta_M to theta_(M+1) give theta_M more than it had before, e > 0; the others do not look
back, e = 0. c and e are read off the weights themselves, so this holds for any method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_ROUNDING = 1e-12
"""What two ways to compute one weight may differ by, relative to it."""
_LAST_DIGITS = 8 * math.ulp(0)
"""What weights near the smallest float64, which have lost digits, may be off by."""


def split(before: Sequence[float], full: Sequence[float]) -> tuple[float, float] | None:
    """Return c and e, ``None`` if the average cannot be gone on from.

    Args:
        before: v, the weights of the first M checkpoints alone.
        full: w, the weights of all, at least M.

    """
    *older, last = zip(before, full[: len(before)], strict=True)
    largest, its_share = max(older, default=last)
    if largest == 0:
        return last[1] / last[0], 0.0
    scale = its_share / largest
    doubt = _LAST_DIGITS / largest  # of the scale
    if any(abs(w - scale * v) > _ROUNDING * its_share + doubt * v + _LAST_DIGITS for v, w in older):
        return None
    rest = last[1] - scale * last[0]
    if abs(rest) <= _ROUNDING * last[1] + doubt * last[0] + _LAST_DIGITS:
        return scale, 0.0
    return (scale, rest) if rest > 0 else None
