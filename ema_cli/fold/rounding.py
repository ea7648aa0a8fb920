"""float64 -> the output's element type, correctly rounded (to nearest, ties to even). The one rounding of the fold.

numpy rounds float64 to float32 and float16 directly. For narrower types the libraries go through float32 and round
twice, which is wrong for about half of the values near a midpoint; rounding to float32 *to odd* first keeps the
information that the second rounding needs (Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.fold.decode import NUMPY, Bytes, Float64

_DIRECT = ("F64", "C64", "F32", "F16")


def round_to(values: Float64, dtype: DType) -> Bytes:
    """Return ``values`` as the bytes of ``dtype``. What is too large becomes infinite (or NaN, without infinities)."""
    target = NUMPY[dtype.name]
    narrow = values if dtype.name in _DIRECT else _to_float32_odd(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return narrow.astype(target).view(np.uint8)


def _to_float32_odd(values: Float64) -> NDArray[np.float32]:
    """Round to float32 toward zero, then set the last bit of what was inexact."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    bits -= (np.abs(back) > np.abs(values)).view(np.uint8)  # the magnitude is the low 31 bits
    inexact = (back != values) & ~np.isnan(values)
    bits |= inexact.view(np.uint8)
    return nearest
