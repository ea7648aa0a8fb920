"""Raw bytes of a tensor -> float64, exactly: every element type that is averaged is a subset of float64."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType, Kind

Bytes = NDArray[np.uint8]
Float64 = NDArray[np.float64]

NUMPY: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.float32),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The numpy type of one component of each averaged element type."""


def components(dtype: DType) -> int:
    """Return how many real numbers an element has: a complex one is averaged as a pair."""
    return 2 if dtype.kind is Kind.COMPLEX else 1


def decode(raw: Bytes, dtype: DType, out: Float64) -> None:
    """Fill ``out`` with the numbers in ``raw``."""
    if dtype.itemsize == 1:
        np.take(_table(dtype.name), raw, out=out, mode="clip")  # the cast itself is thirty times slower
    else:
        np.copyto(out, raw.view(NUMPY[dtype.name]))


@cache
def _table(name: str) -> Float64:
    """Return the value of each of the 256 codes of an 8-bit type."""
    return np.arange(256, dtype=np.uint8).view(NUMPY[name]).astype(np.float64)
