"""The threads and the GPU of each process, where several share a host."""

from __future__ import annotations

import os
from dataclasses import replace

from ema_cli.options.average import Options
from ema_cli.planning.make_plan import default_threads


def with_own_threads(options: Options, sharing: int) -> Options:
    """Return the options with the threads of one of ``sharing`` processes on the same cores, unless they are given."""
    if options.threads is not None:
        return options
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return replace(options, threads=max(1, min(default_threads(), cores // sharing)))


def device_of_rank(name: str, local_rank: int) -> str:
    """Return the GPU of a process: ``cuda`` means one for each; another name means what it says."""
    if name != "cuda":
        return name
    import torch  # noqa: PLC0415 - only where a GPU was asked for

    count = torch.cuda.device_count()
    return f"cuda:{local_rank % count}" if count else name
