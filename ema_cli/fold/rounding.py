"""float64 -> the output's element type, correctly rounded (to nearest, ties to even). The one rounding of the fold.

numpy rounds float64 to float32 and float16 directly. For narrower types the libraries go through float32 and round
twice, which is wrong for about half of the values near a midpoint; rounding to float32 *to odd* first keeps the
information that the second rounding needs (Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums").
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.fold.decode import NUMPY, Bytes, Float64

_DIRECT = ("F64", "C64", "F32", "F16")
_HIGHEST_BIT = 0x8000
_LOWER_HALF = 0 if sys.byteorder == "little" else 1


def round_to(values: Float64, dtype: DType) -> Bytes:
    """Return ``values`` as the bytes of ``dtype``. What is too large becomes infinite (or NaN, without infinities)."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name in _DIRECT:
            return values.astype(NUMPY[dtype.name]).view(np.uint8)
        narrow = _to_float32_for_bfloat16(values) if dtype.name == "BF16" else _to_float32_odd(values)
        return narrow.astype(NUMPY[dtype.name]).view(np.uint8)


def _to_float32_for_bfloat16(values: Float64) -> NDArray[np.float32]:
    """Round to float32 in the ordinary way, and to odd only where that lands on a midpoint of two bfloat16.

    bfloat16 is the upper half of float32, so a midpoint has exactly the highest of the lower bits set; anywhere else
    the second rounding goes where a single one would.
    """
    nearest = values.astype(np.float32)
    midpoints = np.flatnonzero(nearest.view(np.uint16)[_LOWER_HALF::2] == _HIGHEST_BIT)
    if len(midpoints):
        nearest[midpoints] = _to_float32_odd(values[midpoints])
    return nearest


def _to_float32_odd(values: Float64) -> NDArray[np.float32]:
    """Round to float32 toward zero, then set the last bit of what was inexact."""
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    bits -= (np.abs(back) > np.abs(values)).view(np.uint8)  # the magnitude is the low 31 bits
    inexact = (back != values) & ~np.isnan(values)
    bits |= inexact.view(np.uint8)
    return nearest
