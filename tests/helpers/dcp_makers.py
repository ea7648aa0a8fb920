"""Makers of torch.distributed.checkpoint folders: real saves, of one process and of four that shard their tensors.

``python -m tests.helpers.dcp_makers FOLDER`` forks the four; they meet through a file and talk by gloo.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

RANKS = 4
STEPS = (100, 200, 300)
_TIMEOUT_SECONDS = 120
Edit = Callable[[Any], object]


def save(folder: Path, state: Mapping[str, object], **options: Any) -> Path:
    """Save with torch, in this process alone."""
    save_with(dcp.FileSystemWriter(folder, sync_files=False, **options), state)
    return folder


def save_with(writer: dcp.StorageWriter, state: Mapping[str, object]) -> None:
    """Save with any writer of torch, in this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({**state}, storage_writer=writer, no_dist=True)


def load(folder: Path, wanted: Mapping[str, torch.Tensor], *above: str) -> dict[str, torch.Tensor]:
    """Load tensors of known shapes with torch, whole; ``above`` is the path of the dictionary that contains them."""
    empty = {name: torch.empty_like(tensor, memory_format=torch.contiguous_format) for name, tensor in wanted.items()}
    nested: dict[str, Any] = empty
    for name in reversed(above):
        nested = {name: nested}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(nested, checkpoint_id=folder, no_dist=True)
    return empty


def edit_metadata(folder: Path, edit: Edit) -> Path:
    """Change what ``.metadata`` declares: ``edit`` gets torch's own object, and may return another."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    assert isinstance(metadata, Metadata)
    changed = edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata if changed is None else changed))
    return folder


def four_ranks(temporary: Path) -> Path:
    """Return a folder saved by four processes, made once for all workers of a test session."""
    folder = temporary / "four_ranks"
    with (temporary / "four_ranks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _run_ranks(folder)
    return folder


def _run_ranks(folder: Path) -> None:
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.helpers.dcp_makers", str(folder)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stderr


def full_tensors(step: int) -> dict[str, torch.Tensor]:
    """Return the tensors of the sharded model at a step, whole; each rank makes the same."""
    torch.manual_seed(step)
    return {
        "rows": torch.randn(8, 3),
        "rows.uneven": torch.randn(7, 3),
        "rows.few": torch.randn(2, 3),
        "rows.bfloat16": torch.randn(9, 2).bfloat16(),
        "columns": torch.randn(5, 8),
        "columns.uneven": torch.randn(3, 10),
        "columns.few": torch.randn(4, 3),
        "grid": torch.randn(6, 10),
        "grid.uneven": torch.randn(5, 7, 2),
        "grid.both.rows": torch.randn(11, 2),
        "hybrid": torch.randn(6, 2),
        "replicated": torch.randn(3, 3),
        "replicated.scalar": torch.tensor(float(step)),
        "counter": torch.arange(8) + step,
        "vector": torch.randn(5),
        "plain": torch.randn(2, 2),
        "plain.empty": torch.empty(0, 3),
    }


def _sharded(full: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Distribute the tensors over the ranks, each in its own way."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - of the ranks alone
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: PLC0415

    line = init_device_mesh("cpu", (RANKS,))
    square = init_device_mesh("cpu", (2, RANKS // 2))
    ways: dict[str, tuple[Any, Any]] = {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "grid": (square, [Shard(0), Shard(1)]),
        "grid.both": (square, [Shard(0), Shard(0)]),
        "hybrid": (square, [Replicate(), Shard(0)]),
        "replicated": (line, [Replicate()]),
        "counter": (line, [Shard(0)]),
        "vector": (line, [Shard(0)]),
    }
    made = {}
    for name, tensor in full.items():
        way = next((way for way in sorted(ways, reverse=True) if name.startswith(way)), None)
        made[name] = tensor if way is None else distribute_tensor(tensor, *ways[way])
    return made


def _save_model(folder: Path) -> None:
    """Save the sharded model with a plain optimizer's state and the step, nested."""
    for step in STEPS:
        model = _sharded(full_tensors(step))
        optimizer = {"state": {name: {"exp_avg": tensor} for name, tensor in model.items()}, "lr": 0.1}
        dcp.save({"model": model, "optimizer": optimizer, "step": step}, checkpoint_id=folder / f"run/ckpt-{step}")


def _save_titan(folder: Path) -> None:
    """Save as torchtitan does: the model's names and the trainer's state, all at the top level."""
    for step in STEPS:
        state = {
            **_sharded(full_tensors(step)),
            "optimizer": {f"state.{name}.exp_avg": tensor for name, tensor in _sharded(full_tensors(step)).items()},
            "lr_scheduler": {"last_epoch": step, "_last_lr": [0.1]},
            "dataloader": {f"dp_rank_{dist.get_rank()}": b"state", "world_size": RANKS},
            "train_state": {"step": torch.tensor(step, dtype=torch.int32), "ntokens_seen": torch.tensor(9 * step)},
        }
        dcp.save(state, checkpoint_id=folder / f"titan/step-{step}")


def _save_fsdp(folder: Path) -> None:
    """Train a model under FSDP2, and save it with its optimizer as torch recommends; keep the weights whole."""
    from torch.distributed.checkpoint import state_dict as states  # noqa: PLC0415 - of the ranks alone
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    whole = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    for step in STEPS:
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights, moments = states.get_state_dict(model, optimizer)
        app = {"model": weights, "optim": moments}
        dcp.save({"app": app}, storage_writer=dcp.FileSystemWriter(folder / f"fsdp/{step}", thread_count=2))
        full = states.get_model_state_dict(model, options=whole)
        if dist.get_rank() == 0:
            torch.save(full, folder / f"fsdp_{step}.pt")


def _save_safetensors(folder: Path) -> None:
    """Save pieces as safetensors; a rank's tensors are in two files."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # noqa: PLC0415 - of the ranks alone

    for step in STEPS:
        model = _sharded(full_tensors(step))
        indices = {name: 1 + number % 2 for number, name in enumerate(model)}
        path = str(folder / f"pieces/step-{step}")
        writer = HuggingFaceStorageWriter(path, fqn_to_index_mapping=indices, save_distributed=True)
        dcp.save(model, storage_writer=writer)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    for make in (_save_model, _save_titan, _save_fsdp, _save_safetensors):
        make(folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    # Imported once, before the processes are forked.
    import torch.distributed.checkpoint.hf_storage
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.distributed.tensor

    torch.multiprocessing.start_processes(_rank, (Path(sys.argv[1]),), RANKS, start_method="fork")
