"""The share of the newest weights in one update of a live average: the methods as recurrences.

    E_1 = theta_1,  E_n = (1 - s_n) E_(n-1) + s_n theta_n,    theta_n the weights at step t_n,  D = t_n - t_(n-1)

Nothing is known of the model between two updates; it is taken to have had the later weights. So, unrolled, the s_n are
the weights in closed form for checkpoints at the same steps: ``ema_hold`` for ``ema`` (where D = 1, ``ema`` itself),
``uniform``, and ``ema_warmup`` where D = 1. ``power`` has w_1 = F(t_1), w_n = F(t_n) - F(t_(n-1)) with F(t) =
(t/T)^(gamma+1), as EDM2 computes it; the closed form for checkpoints has lines between them.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from ema_cli.weights.methods import Method
from ema_cli.weights.reconstruction import gamma_from_sigma_rel
from ema_cli.weights.schedules import warm_decay

LiveMethod = Literal["ema", "ema-warmup", "uniform", "power"]
LIVE_METHODS: tuple[LiveMethod, ...] = get_args(LiveMethod)
"""Methods whose weights do not depend on what comes later."""


def share_of_update(method: Method, *, first_step: int, last_step: int, step: int, updates: int) -> float:
    """Return s_n in [0, 1], the share of the weights at ``step`` in the average.

    ``ema``: 1 - d^D; with ``init="debias"`` divided by 1 - d^(step - first_step + 1) (Kingma & Ba 2015, section 3).
    ``ema-warmup``: 1 minus the product of the decays of the D steps since the last update, the n-th step after
    ``first_step`` having the decay of the n-th update.
    ``uniform``: 1/n.
    ``power``: 1 - (last_step/step)^(gamma+1) (Karras et al. 2024, arXiv 2312.02696, section 3.1).

    Args:
        method: one of ``LIVE_METHODS``.
        first_step: training step of the first weights in the average.
        last_step: training step of the update before.
        step: training step of the new weights, after ``last_step``.
        updates: how many weights are in the average already, at least 1.

    """
    if method.name == "uniform":
        return 1 / (updates + 1)
    if method.name == "power":
        assert method.sigma_rel is not None  # noqa: S101 - a power profile has a width
        exponent = gamma_from_sigma_rel(method.sigma_rel) + 1
        return -math.expm1(exponent * math.log1p((last_step - step) / step)) if last_step else 1.0
    if method.name == "ema-warmup":
        return _warm_share(method, range(last_step - first_step + 1, step - first_step + 1))
    assert method.decay is not None  # noqa: S101 - an EMA has a decay
    rate = method.decay.rate
    if math.isinf(rate):
        return 1.0
    share = -math.expm1(-rate * (step - last_step))
    return share / -math.expm1(-rate * (step - first_step + 1)) if method.init == "debias" else share


def _warm_share(method: Method, updates: range) -> float:
    """Return 1 minus the product of the decays of these updates, without subtracting from 1."""
    complements = [warm_decay(number, method)[1] for number in updates]
    if len(complements) == 1 or 1.0 in complements:
        return max(complements)
    return -math.expm1(math.fsum(math.log1p(-complement) for complement in complements))
