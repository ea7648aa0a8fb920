"""The share of the newest weights in one update of a live average: the methods as recurrences.

    E_n = (1 - s_n) E_(n-1) + s_n theta_n,    theta_n the weights at step t_n,    D = t_n - t_(n-1)

Unrolled, s_n gives the weights that ``solve`` computes in closed form for checkpoints at the same steps (``ema-hold``
for ``ema``, as nothing is known of the model between two updates).
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
    ``ema-warmup``: 1 minus the product of the decays of the D steps since the last update.
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
        decays = (warm_decay(n, method)[0] for n in range(last_step - first_step + 1, step - first_step + 1))
        return 1 - math.prod(decays)
    assert method.decay is not None  # noqa: S101 - an EMA has a decay
    rate = method.decay.rate
    if math.isinf(rate):
        return 1.0
    share = -math.expm1(-rate * (step - last_step))
    return share / -math.expm1(-rate * (step - first_step + 1)) if method.init == "debias" else share
