"""A method in the metadata of a file: its name and parameters, floats so that they are read back exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ema_cli.options.declaration import read_values
from ema_cli.options.weighting import WeightOptions
from ema_cli.weights.methods import SPECS, Decay, Method

_ROUNDING = 1e-12


def store_method(method: Method) -> dict[str, str]:
    """Return the name, under ``method``, and the parameters of a method as texts."""
    plain = {"method": method.name} | {key: value for key, value in method.plain().items() if key != "name"}
    texts = {key: repr(value) if isinstance(value, float) else value for key, value in plain.items()}
    return {key: str(text) for key, text in texts.items() if text is not None}


def read_method(stored: Mapping[str, str]) -> Method:
    """Return the method in the metadata of a file, its parameters checked like those of the command line.

    Raises:
        KeyError: there is no method.
        ValueError: it is unknown, or has a parameter that is no number.
        EmaAvgError: a parameter is out of range.

    """
    name = stored["method"]
    if name not in SPECS:
        raise ValueError(name)
    keys = ("per", "init", "warmup", "shape") if name == "ema" else ("init", "warmup", "shape")
    given: dict[str, Any] = {key: stored[key] for key in keys if key in stored}
    given |= {key: float(stored[key]) for key in ("inv_gamma", "power") if key in stored}
    given |= {key: [float(stored[key])] for key in ("one_minus_decay", "sigma_rel") if key in stored}
    options = WeightOptions(**read_values(WeightOptions, {"method": name, **given}))
    options.check_weights()
    (method,) = options.expand()
    return method if method.decay is None else replace(method, decay=_decay(stored, method.decay.complement))


def _decay(stored: Mapping[str, str], complement: float) -> Decay:
    value = float(stored["decay"])
    if not math.isclose(1 - value, complement, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        raise ValueError("decay")
    half_life = Decay.of_half_life(float(stored["half_life"])).half_life if "half_life" in stored else None
    return Decay(value=value, complement=complement, half_life=half_life)
