"""Check a limited address space (``ulimit -v``) before the work begins.

numpy's BLAS ends the whole process when it gets no memory, and half-written files would be left behind.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.errors import SystemExhausted
from ema_cli.text import human_bytes

if TYPE_CHECKING:
    from ema_cli.records.plan import Buffers

_LIBRARIES_BYTES = 128 << 20
"""Memory for numpy, if it is not loaded yet, and for planning."""
_THREAD_BYTES = 72 << 20
"""The stack of a thread, and the heap that the C library reserves for it."""
_BLAS_BYTES = 40 << 20
"""The buffer of the BLAS for each thread of the fold."""


def check_address_space(buffers: Buffers | None = None, outputs: int = 0) -> None:
    """Raise if the address space is too small for the work.

    Args:
        buffers: of the fold; ``None`` checks for the memory that planning takes.
        outputs: files that are written at the same time; each has a thread of its own.

    Raises:
        SystemExhausted: the message has the limit and the size that is needed.

    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    needed = _used_bytes() + (_work_bytes(buffers, outputs) if buffers else _LIBRARIES_BYTES)
    if needed > limit:
        fact = f"there is not enough memory: the address space is limited to {human_bytes(limit)}"
        raise SystemExhausted(
            f"{fact}, but {human_bytes(needed)} is needed",
            hint=f"ulimit -v {needed >> 10}" + (", or --threads 1" if buffers and buffers.threads > 1 else ""),
        )


def _work_bytes(buffers: Buffers, outputs: int) -> int:
    threads = buffers.threads + outputs
    return buffers.total_bytes + threads * _THREAD_BYTES + buffers.threads * _BLAS_BYTES


def _used_bytes() -> int:
    """Return the address space in use; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()
