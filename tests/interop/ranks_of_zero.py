"""Three processes of DeepSpeed on the CPU save in many settings: ``python -m tests.interop.ranks_of_zero FOLDER``.

DeepSpeed's own script also joins each checkpoint, for the judge.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RANKS = 3
STEPS = (1, 2)
_BF16 = {"bf16": {"enabled": True}}
SETTINGS: dict[str, dict[str, Any]] = {
    "stage_3": {**_BF16, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "stage_3_persistent": {**_BF16, "zero_optimization": {"stage": 3}},
    "stage_3_sub_groups": {
        **_BF16,
        "zero_optimization": {"stage": 3, "sub_group_size": 20, "stage3_param_persistence_threshold": 0},
    },
    "stage_3_float32": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "stage_2": {**_BF16, "zero_optimization": {"stage": 2}},
    "stage_2_round_robin": {**_BF16, "zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "stage_1": {**_BF16, "zero_optimization": {"stage": 1}},
    "stage_1_bf16": {**_BF16, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
}
"""Of DeepSpeed, by the name of the run. The last has the optimizer of bfloat16."""


class Network(torch.nn.Module):
    """Odd sizes, buffers, tied weights, and a layer that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.offset: torch.Tensor
        self.seen: torch.Tensor
        self.embedding = torch.nn.Embedding(11, 7)
        self.first = torch.nn.Linear(7, 5)
        self.register_buffer("offset", torch.linspace(0, 1, 5))
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("count", torch.tensor(3))
        self.frozen = torch.nn.Linear(5, 7, bias=False).requires_grad_(requires_grad=False)
        self.head = torch.nn.Linear(7, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits. Each rank sees other tokens."""
        self.seen += tokens.float().mean()
        hidden = self.first(self.embedding(tokens)) + self.offset.to(self.scale.dtype)
        logits: torch.Tensor = self.head(self.frozen(hidden) * self.scale)
        return logits


def engine_of(name: str) -> Any:
    """Return an engine with one of the settings."""
    import deepspeed

    torch.manual_seed(0)
    model = Network()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [one for one in trained if one.ndim > 1]},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    settings = {"train_micro_batch_size_per_gpu": 4, "zero_allow_untested_optimizer": True, **SETTINGS[name]}
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=0.1), config=settings)[0]


def train_step(engine: Any) -> None:
    """Train for one step."""
    loss = engine(torch.randint(0, 11, (4,))).float().pow(2).mean()
    engine.backward(loss)
    engine.step()


def train(name: str, folder: Path) -> None:
    """Train with one of the settings, and save after each step."""
    engine = engine_of(name)
    torch.manual_seed(dist.get_rank())
    for _ in STEPS:
        train_step(engine)
        engine.save_checkpoint(str(folder / name))


def resume(name: str, folder: Path) -> None:
    """Load the averaged checkpoint as for training; store what each rank then has; train on."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    engine = engine_of(name)
    loaded, _ = engine.load_checkpoint(str(folder), f"averaged_{name}")
    assert loaded is not None
    found: dict[str, Any] = {"steps": engine.global_steps, "moments": {}, "model": {}, "weights": {}}
    found["buffers"] = dict(engine.module.named_buffers())
    for key, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found["model"][key] = parameter.detach().clone()
        if parameter.requires_grad:
            found["weights"][key] = safe_get_full_fp32_param(parameter)
            found["moments"][key] = safe_get_full_optimizer_state(parameter, "exp_avg")
    torch.save(found, folder / f"resumed_{name}_{dist.get_rank()}.pt")
    train_step(engine)


def work(rank: int, folder: Path, resumed: Sequence[str]) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    import deepspeed
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{len(resumed)}", rank=rank, world_size=RANKS)
    deepspeed.init_distributed("gloo")
    for name in resumed:
        resume(name, folder)
    for name in () if resumed else SETTINGS:
        train(name, folder)
        dist.barrier()
        if rank == 0 and name != "stage_1_bf16":  # which the script refuses
            for step in STEPS:
                whole = get_fp32_state_dict_from_zero_checkpoint(str(folder / name), f"global_step{step}")
                torch.save({key: tensor.clone() for key, tensor in whole.items()}, folder / f"{name}_{step}.pt")
    dist.barrier()
    os._exit(0)  # without the end of threads that may abort


def main(folder: Path, *resumed: str) -> None:
    """Set what the launcher of DeepSpeed sets, import it once, and start the processes.

    They train and save, or load the averages of some runs.
    """
    alone = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(alone | {"WORLD_SIZE": str(RANKS)})
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # or else it compiles one, to talk over shared memory
    torch.multiprocessing.start_processes(work, (folder, resumed), RANKS, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
