"""The compiled kernel of the fold, or why numpy is used instead. The results are the same bytes.

The functions of the kernel are those of ``_kernel.pyi``. Types have numbers there: ``CODES``.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

NUMPY_VARIABLE = "EMA_AVG_NUMPY"
"""Environment variable: any value makes the fold use numpy, to compare both."""
_TYPES = "F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"
CODES = {name: code for code, name in enumerate(_TYPES)} | {"C64": 1}
"""The number of each averaged type in the kernel; complex numbers are pairs of float32."""
_INTERFACE = 3
"""Number of what the functions take and give, the same in ``_kernel.c``."""


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
    if found.INTERFACE != _INTERFACE:
        return None, "the compiled kernel is of another version: install ema-avg again"
    if _is_outdated(Path(str(found.__file__))):
        return None, "the compiled kernel is older than its source: install ema-avg again"
    return found, ""


def _is_outdated(kernel_file: Path) -> bool:
    """Return whether a C source beside the kernel has changed since: after a pull, or a build that failed.

    A clone has the sources there; an installed package has not.
    """
    built = kernel_file.stat().st_mtime_ns
    sources = [path for path in kernel_file.parent.iterdir() if path.suffix in (".c", ".h")]
    return any(path.stat().st_mtime_ns > built for path in sources)


kernel, _reason = find_kernel()
READS_FILES = kernel is not None and bool(kernel.HAS_READS)
"""Whether the kernel can read: the processor has instructions for CRC-32."""


def lane_name() -> str:
    """Return what the fold on the CPU uses: ``avx512``, ``avx2``, ``neon`` or ``baseline`` code, or ``numpy``."""
    return str(kernel.lane()) if kernel else "numpy"


def describe_lane() -> str:
    """Return the same in words, with the reason for numpy."""
    return f"compiled ({lane_name()})" if kernel else f"numpy ({_reason})"
