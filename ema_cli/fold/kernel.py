"""The compiled kernel of the fold, or why numpy is used instead. The results are the same bytes.

The build gives the kernel the CRC-32 of the C source that it was compiled from. A kernel that was compiled from another
source than the one beside it, after a pull or a build that failed, is not used.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from types import ModuleType

NUMPY_VARIABLE = "EMA_AVG_NUMPY"
"""Environment variable: any value makes the fold use numpy, to compare both."""
_SOURCE = Path(__file__).with_name("_kernel.c")


def find_kernel() -> tuple[ModuleType | None, str]:
    """Return the kernel and an empty string; or ``None`` and the reason why it is not used."""
    if os.environ.get(NUMPY_VARIABLE):
        return None, f"{NUMPY_VARIABLE} is set"
    try:
        import ema_cli.fold._kernel as found  # noqa: PLC0415 - it may be absent
    except ModuleNotFoundError:
        return None, "the compiled kernel is not installed"
    except ImportError as error:
        return None, f"the compiled kernel cannot be loaded: {error}"
    if _SOURCE.exists() and getattr(found, "SOURCE_CRC32", None) != zlib.crc32(_SOURCE.read_bytes()):
        return None, "the compiled kernel was built from another version of its source: install ema-avg again"
    return found, ""


kernel, _reason = find_kernel()


def lane_name() -> str:
    """Return what the fold on the CPU uses: ``avx512``, ``avx2``, ``neon`` or ``baseline`` code, or ``numpy``."""
    return str(kernel.lane()) if kernel else "numpy"


def describe_lane() -> str:
    """Return the same in words, with the reason for numpy."""
    return f"compiled ({lane_name()})" if kernel else f"numpy ({_reason})"
