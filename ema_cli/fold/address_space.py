"""Where the address space is limited (``ulimit -v``), see that there is enough before the work begins.

numpy's BLAS ends the whole process by itself where it gets no memory, and leaves behind what was half written.
"""

from __future__ import annotations

import resource
from pathlib import Path

from ema_cli.errors import SystemExhausted
from ema_cli.records.plan import Buffers
from ema_cli.text import human_bytes

_LIBRARIES_BYTES = 128 << 20
"""For numpy, if it is not loaded yet, and what else the program takes while it plans."""
_THREAD_BYTES = 72 << 20
"""The stack of a thread, and the heap that the C library reserves for it."""
_BLAS_BYTES = 40 << 20
"""The buffer that the BLAS has for each thread of the fold."""


def check_address_space(buffers: Buffers | None = None, outputs: int = 0) -> None:
    """Raise if there is not the memory that the work takes.

    Args:
        buffers: of the fold; without them, what planning takes is asked for.
        outputs: that are written at a time, each by a thread of its own.

    Raises:
        SystemExhausted: telling what is allowed, and what is needed.

    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    needed = _taken_bytes() + (_work_bytes(buffers, outputs) if buffers else _LIBRARIES_BYTES)
    if needed > limit:
        fact = f"there is not enough memory: the address space is limited to {human_bytes(limit)}"
        raise SystemExhausted(
            f"{fact}, {human_bytes(needed)} are needed",
            hint=f"ulimit -v {needed >> 10}" + (", or --threads 1" if buffers and buffers.threads > 1 else ""),
        )


def _work_bytes(buffers: Buffers, outputs: int) -> int:
    threads = buffers.threads + outputs
    return buffers.total_bytes + threads * _THREAD_BYTES + buffers.threads * _BLAS_BYTES


def _taken_bytes() -> int:
    """Return the address space that is taken now; nothing where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()
