"""Two processes that save and load snapshots of sharded models: ``python -m tests.helpers.snapshot_ranks FOLDER``.

Each stores in ``RANK.pt`` what it saw.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from ema_cli import EMA
from tests.helpers.live_checks import error_of, whole
from tests.helpers.live_nets import STEPS, UnevenNet, set_weights
from tests.helpers.live_sharding import sharded

RANKS = 2


def trained(model: nn.Module, steps: tuple[int, ...] = STEPS) -> EMA:
    """Return a live EMA of some steps."""
    ema = EMA(model, 0.5)
    for step in steps:
        set_weights(model, step)
        ema.update()
    return ema


def saves(folder: Path) -> dict[str, Any]:
    """Save by both processes; load into shards, and go on."""
    ema = trained(sharded())
    file = folder / "new" / "ema_step3.safetensors"
    (path,) = ema.save(file)
    is_there = path.exists()
    whole_mesh = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("copies", "parts"))
    hybrid = UnevenNet()
    fully_shard(hybrid, mesh=whole_mesh)
    trained(hybrid).save(folder / "hybrid.safetensors")
    continued = EMA(sharded(), 0.5)
    continued.load(file)
    for one in (ema, continued):
        set_weights(one.model, 4)
        one.update()
    return {"there": is_there, "step": continued.step, "average": whole(ema.shadow), "loaded": whole(continued.shadow)}


def failures(folder: Path) -> dict[str, Any]:
    """Fail in the first process: at a foreign file, and where the space is reserved."""
    ema = trained(sharded())
    foreign = folder / "foreign.safetensors"
    if not dist.get_rank():
        foreign.write_bytes(b"mine")
    dist.barrier()
    found = {"foreign": error_of(lambda: ema.save(foreign))}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not dist.get_rank():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    found["full"] = error_of(lambda: ema.save(folder / "full.safetensors"))
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    ema.save(folder / "after.safetensors")
    return found | {"after": (folder / "after.safetensors").exists()}


def copies(folder: Path) -> dict[str, Any]:
    """Save under DistributedDataParallel by both processes, and by the first alone; and under FSDP1."""
    ema = trained(nn.parallel.DistributedDataParallel(UnevenNet()))
    ema.save(folder / "copies.safetensors")
    if not dist.get_rank():
        ema.save(folder / "alone.safetensors")
    dist.barrier()
    flat = FullyShardedDataParallel(UnevenNet(), use_orig_params=True, device_id=torch.device("cpu"))
    one = EMA(flat, 0.5)
    one.register()
    message = error_of(lambda: one.save(folder / "flat.safetensors"))
    return {"flat": message, "files": sorted(path.name for path in folder.glob("*.safetensors"))}


def work(rank: int, folder: Path) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = {run.__name__: run(folder) for run in (saves, failures, copies)}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # without the end of torch's threads, which may abort


if __name__ == "__main__":
    import torch._dynamo

    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]),), RANKS, start_method="fork")
