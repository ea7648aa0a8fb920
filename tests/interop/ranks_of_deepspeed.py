"""Two processes of DeepSpeed on the CPU, and what it saves: ``python -m tests.interop.ranks_of_deepspeed FOLDER``.

For each run of a stage of ZeRO, the first process also stores the whole tensors of each step, for the judge.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ema_cli import EMA
from ema_cli.errors import UsageError

RANKS = 2
STEPS = (1, 2)
STAGES = (0, 2, 3)
"""Of ZeRO: nothing is shared out, optimizer and gradients are, parameters are too."""


def network() -> torch.nn.Module:
    """Return a small network in bfloat16."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    return torch.nn.Sequential(*layers).to(torch.bfloat16)


def train(stage: int, folder: Path) -> None:
    """Train for some steps, and let the engine save after each."""
    import deepspeed

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    settings = {"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}, "zero_optimization": zero}
    settings |= {"zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    ema = EMA(engine, 0.5)
    for step in STEPS:
        loss = engine(torch.randn(4, 7, dtype=torch.bfloat16)).float().pow(2).sum()
        engine.backward(loss)
        engine.step()
        refused = updated(ema)
        engine.save_checkpoint(str(folder / "run"))
        whole = joined(engine) if stage == STAGES[-1] else engine.module_state_dict()
        if dist.get_rank() == 0:
            torch.save({name: tensor.detach().clone() for name, tensor in whole.items()}, folder / f"whole_{step}.pt")
            torch.save({"refused": refused, "average": {} if refused else ema.shadow}, folder / "live.pt")


def updated(ema: EMA) -> str:
    """Update a live EMA; return why it cannot be."""
    try:
        ema.update()
    except UsageError as error:
        return f"{error.message} | {error.hint}"
    return ""


def joined(engine: Any) -> dict[str, torch.Tensor]:
    """Return the float32 parameters that the ranks have together, and the buffers as float32."""
    from deepspeed.utils import safe_get_full_fp32_param

    tensors = {name: safe_get_full_fp32_param(parameter) for name, parameter in engine.module.named_parameters()}
    for name, buffer in engine.module.named_buffers():
        tensors[name] = buffer.float() if buffer.is_floating_point() else buffer
    return tensors


def work(rank: int, folder: Path) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    import deepspeed

    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    deepspeed.init_distributed("gloo")
    for stage in STAGES:
        (folder / f"stage_{stage}").mkdir(exist_ok=True)
        train(stage, folder / f"stage_{stage}")
    dist.barrier()
    os._exit(0)  # without the end of threads that may abort


def main(folder: Path) -> None:
    """Set what the launcher of DeepSpeed sets, import it once, and start the processes."""
    alone = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(alone | {"WORLD_SIZE": str(RANKS)})
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # or else it compiles one, to talk over shared memory
    torch.multiprocessing.start_processes(work, (folder,), RANKS, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
