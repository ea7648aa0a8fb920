"""Two processes that train wrapped and sharded models with a live EMA: ``python -m tests.helpers.live_ranks FOLDER``.

Each stores in ``RANK.pt`` what it saw in each scenario: tensors put together, counts, and messages of errors.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers import live_parallel, live_sharding
from tests.helpers.live_parallel import RANKS


def scenarios(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what each process does, by name."""
    return {
        "ways of FSDP2": live_sharding.ways_of_fsdp2,
        "raised": live_sharding.raised,
        "accumulated": live_sharding.accumulated,
        "orders": live_sharding.orders,
        "copies": live_sharding.copies,
        "states": partial(live_sharding.states, folder),
        "wrapped inside": live_sharding.wrapped_inside,
        "placements": live_parallel.placements,
        "tensor parallel": live_parallel.tensor_parallel,
        "data parallel": live_parallel.data_parallel,
        "ways of FSDP1": partial(live_parallel.ways_of_fsdp1, folder),
        "without names": live_parallel.without_names,
    }


def work(rank: int, folder: Path) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for name, run in scenarios(folder).items():
        try:
            found[name] = run()
        except Exception:  # noqa: BLE001 - the test of the scenario shows it
            found[name] = traceback.format_exc()
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    # Everything is saved and the other process is here: leave without the end of torch's threads, which may abort.
    os._exit(0)


if __name__ == "__main__":
    import torch._dynamo

    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]),), RANKS, start_method="fork")
