"""Two processes of Megatron Core on the CPU, and what it saves: ``python -m tests.interop.ranks_of_megatron FOLDER``.

Each has half of a model that is split by tensor parallelism. The first process also stores what
Megatron itself loads of each, whole, for the judge.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from tests.interop.judge import disturb

RANKS = 2
STEPS = (900, 1000)


def network() -> torch.nn.Module:
    """Return this process's half of a small GPT in bfloat16."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        use_cpu_initialization=True,
        tensor_model_parallel_size=RANKS,
        params_dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    made: torch.nn.Module = GPTModel(config, get_gpt_layer_local_spec(), vocab_size=32, max_sequence_length=8)
    return made


def train(folder: Path) -> None:
    """Save at two steps as Megatron does by default, and keep what it loads again."""
    from megatron.core import dist_checkpointing, parallel_state

    parallel_state.initialize_model_parallel(RANKS)
    model = network()
    for step in STEPS:
        disturb(model, seed=step)
        place = folder / "run" / f"iter_{step:07d}"
        place.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        dist_checkpointing.save(model.sharded_state_dict(), str(place))  # type: ignore[operator]
        whole = dist_checkpointing.load_plain_tensors(str(place))
        save_in_torch_format(model, step, folder)
        if dist.get_rank() == 0:
            torch.save(whole, folder / f"whole_{step}.pt")


def save_in_torch_format(model: torch.nn.Module, step: int, folder: Path) -> None:
    """Save this process's half as Megatron-LM's ``--ckpt-format torch`` does; also with the parameters themselves.

    Only a parameter has the attributes of its split, ``partition_dim`` and others.
    """
    ways = {
        "torch": model.state_dict_for_save_checkpoint(),  # type: ignore[operator]
        "kept": model.state_dict(keep_vars=True),
    }
    for way, state in ways.items():
        place = folder / way / f"iter_{step:07d}" / f"mp_rank_{dist.get_rank():02d}"
        place.mkdir(parents=True, exist_ok=True)
        torch.save({"checkpoint_version": 3.0, "iteration": step, "model": state}, place / "model_optim_rng.pt")


def work(rank: int, folder: Path) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # Megatron waits for its GPU before it saves; there is none to wait for.
    torch.cuda.synchronize = torch.cuda.current_device = lambda: None  # type: ignore[assignment,return-value]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    train(folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    from megatron.core import dist_checkpointing  # noqa: F401 - imported once, before the processes part
    from megatron.core.models.gpt import gpt_layer_specs, gpt_model  # noqa: F401

    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]),), RANKS, start_method="fork")
