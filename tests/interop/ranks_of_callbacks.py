"""Two processes that train with callbacks, under DistributedDataParallel: ``... ranks_of_callbacks FOLDER``.

Each process stores the weights after each of its steps and its average in ``RANK.pt``, for the judge. Under FSDP2 the
hooks are called by hand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import ema_cli
from tests.helpers.live_training import Weights, weights_of
from tests.interop.models import gpt2

RANKS = 2
STEPS = 4


def train_with_transformers(folder: Path) -> None:
    """Train, stop after half, resume, evaluate by hand; average after each save."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seen: list[Weights] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
            seen.append(weights_of(model))

    generator = torch.Generator().manual_seed(1)
    lines = [torch.randint(0, 9, (8,), generator=generator) for _ in range(24)]
    data: Any = [{"input_ids": line, "labels": line} for line in lines]
    settings: dict[str, Any] = {"save_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.05}
    settings |= {"lr_scheduler_type": "constant", "use_cpu": True, "report_to": [], "disable_tqdm": True}
    for steps in (STEPS // 2, STEPS):
        live = ema_cli.TrainerEMA(decay=0.75)
        averaging = ema_cli.TrainerAverage(decay=0.75, every_n_saves=1)
        arguments = TrainingArguments(output_dir=str(folder), max_steps=steps, **settings)
        trainer = Trainer(gpt2(), arguments, train_dataset=data, callbacks=[live, averaging, Watch()])
        trainer.train(resume_from_checkpoint=steps == STEPS)
    assert live.ema is not None
    report = averaging.average.report
    keep(folder, seen, live.ema, written=report is not None, loss=trainer.evaluate(data[:8])["eval_loss"])


def train_with_lightning(folder: Path) -> None:
    """Train, and average after each save."""
    import lightning.pytorch as pl

    seen: list[Weights] = []

    class Net(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(4, 2)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = (self.net(batch[0]) - 1).pow(2).mean()
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(weights_of(self))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    live = ema_cli.LightningEMA(decay=0.75)
    averaging = ema_cli.LightningAverage(decay=0.75, every_n_saves=1)
    saving = pl.callbacks.ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=-1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=RANKS,
        strategy=pl.strategies.DDPStrategy(process_group_backend="gloo"),
        callbacks=[live, averaging, saving],
        **quiet,
    )
    numbers = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(numbers), batch_size=4))
    assert live.ema is not None
    keep(folder, seen, live.ema, written=averaging.average.report is not None)


def keep_a_sharded_average(folder: Path) -> None:
    """Write the state of an average under FSDP2 as at a save, and continue it; the Trainer uses no FSDP on the CPU."""
    from torch.distributed.fsdp import fully_shard
    from transformers import TrainerControl, TrainerState, TrainingArguments

    model = nn.Linear(7, 3)
    fully_shard(model)
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
    state, control = TrainerState(global_step=0), TrainerControl()
    (folder / "checkpoint-2").mkdir(exist_ok=True)
    dist.barrier()
    before, after = ema_cli.TrainerEMA(decay=0.75), ema_cli.TrainerEMA(decay=0.75)
    before.on_train_begin(arguments, state, control, model=model)
    for step in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        state.global_step = step
        before.on_step_end(arguments, state, control)
    before.on_save(arguments, state, control)
    after.on_train_begin(arguments, state, control, model=model)
    averages: list[Any] = [before.ema, after.ema]
    parts = [{name: part.to_local() for name, part in ema.shadow.items()} for ema in averages]
    torch.save(parts, folder / f"{dist.get_rank()}.pt")


def keep(folder: Path, seen: list[Weights], ema: ema_cli.EMA, **others: Any) -> None:
    """Store what the judge looks at."""
    torch.save({"seen": seen, "average": dict(ema.shadow), **others}, folder / f"{dist.get_rank()}.pt")


def work(rank: int, folder: Path) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    for train in (train_with_transformers, train_with_lightning, keep_a_sharded_average):
        (folder / train.__name__).mkdir(exist_ok=True)
        train(folder / train.__name__)
    dist.barrier()
    os._exit(0)  # without the end of threads that may abort


def main(folder: Path) -> None:
    """Import the frameworks once, and start the processes."""
    alone = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": str(RANKS)}
    os.environ.update(alone)
    import lightning.pytorch
    import transformers

    for loaded in (lightning.pytorch.Trainer, transformers.Trainer):
        assert loaded
    torch.multiprocessing.start_processes(work, (folder,), RANKS, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
