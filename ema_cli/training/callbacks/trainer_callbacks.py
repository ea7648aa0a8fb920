"""Callbacks for the Trainer of transformers: average its checkpoints, or keep a live EMA and evaluate with it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ema_cli.errors import UsageError
from ema_cli.naming import fill_output_name, run_fields
from ema_cli.options.keywords import Numbers, StrPath
from ema_cli.text import quoted
from ema_cli.training.callbacks.calling_trainer import resumed_from, run_folder, trainer_of
from ema_cli.training.callbacks.evaluated_ema import EvaluatedEMA
from ema_cli.training.callbacks.run_average import RunAverage, logged, stand_in
from ema_cli.training.live.ema import EMA

try:
    from transformers import TrainerCallback
except ImportError as missing:
    TrainerCallback = stand_in(missing, "pip install 'transformers[torch]'")

logger = logging.getLogger(__name__)

EMA_FILE = "ema_state.pt"
"""In a checkpoint folder of the Trainer: what the live EMA continues from."""


class TrainerAverage(TrainerCallback):  # type: ignore[misc]
    """Average the checkpoints of a training when it ends, with a report beside the output.

        trainer = Trainer(..., callbacks=[ema_cli.TrainerAverage(decay=0.9)])

    The output is a folder that ``from_pretrained`` loads. Averaged are the checkpoints that this training saved, and
    earlier ones if it was resumed; with ``save_total_limit``, those that are left. The model of the trainer is not
    changed. Errors and warnings are logged, and do not end the training.

    Args:
        decay: d in [0, 1) per checkpoint, as in ``ema_cli.average``.
        output: a folder if it ends with a slash, else a ``.safetensors`` file; ``{run}`` is the trainer's
            ``output_dir``. An existing output of ema-avg is replaced.
        every_n_saves: average after every k-th checkpoint too.
        **options: further keywords of ``ema_cli.average``: ``method="uniform"``, ``half_life=3``, ``last=5``.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

    """

    def __init__(
        self,
        decay: Numbers = (),
        *,
        output: StrPath = "{run}/ema/",
        every_n_saves: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.average = RunAverage(output=output, every_n_saves=every_n_saves, decay=decay, **options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget an earlier training; find the checkpoints before the one that this training resumes from."""
        self.average.begin({})
        if (resumed := resumed_from(self)) is not None:
            earlier = _checkpoints(resumed.parent, before=state.global_step)
            self.average.begin({**dict(earlier), str(resumed): state.global_step})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note a checkpoint, which is complete now."""
        self.average.add(str(_checkpoint(self, args, state)), state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the average."""
        self.average.write()


class TrainerEMA(TrainerCallback):  # type: ignore[misc]
    """Keep a live EMA of the model of a Trainer, one update per optimizer step, and evaluate with it.

        trainer = Trainer(..., callbacks=[ema_cli.TrainerEMA(decay=0.999)])

    Every evaluation and prediction of the trainer, during the training, after it or by hand, computes with the average
    and puts the model's own weights back, also after an error. What the trainer saves are the model's own weights; the
    state of the average is in the same folder, and a resumed training continues it. With ``load_best_model_at_end``
    the average is that of the best checkpoint. The average begins with the weights after the first step.

    Args:
        decay: d in [0, 1) per step, as in ``ema_cli.EMA``; of several averages the first is evaluated.
        output: write the averaged model into this folder at the end, as ``save_model`` does; ``{run}`` is the
            trainer's ``output_dir``.
        **options: further keywords of ``ema_cli.EMA``.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

    """

    def __init__(self, decay: Numbers = (), *, output: StrPath | None = None, **options: Any) -> None:
        super().__init__()
        self._live = EvaluatedEMA({"decay": decay, **options})
        self._output = output

    @property
    def ema(self) -> EMA | None:
        """The EMA of the training; ``None`` before it."""
        return self._live.ema

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the evaluations of the trainer use the average."""
        self._join(trainer_of(self))

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Begin an average, or continue that of the checkpoint."""
        self._join(trainer_of(self))
        ema = self._live.begin(model)
        if state.global_step:
            self._continue(ema, resumed_from(self) or _checkpoint(self, args, state), args, state)

    def _join(self, trainer: Any) -> None:
        if trainer is None:
            return
        if sum(isinstance(one, TrainerEMA) for one in trainer.callback_handler.callbacks) > 1:
            raise UsageError("a trainer has one TrainerEMA", hint="give it several decays: decay=(0.99, 0.999)")
        evaluate = trainer.evaluation_loop
        if getattr(evaluate, "func", None) is not _evaluate:
            trainer.evaluation_loop = functools.partial(_evaluate, trainer, evaluate)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Average the weights of an optimizer step."""
        if self.ema is not None:
            self.ema.update()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the state of the average into the checkpoint; under FSDP each process its own part."""
        ema = self._live.begun
        if ema is not None and (self._live.is_sharded or state.is_world_process_zero):
            path = _checkpoint(self, args, state) / (_part(args) if self._live.is_sharded else EMA_FILE)
            with logged(f"the state of the EMA was not written to {quoted(str(path))}"):
                torch.save(ema.state_dict(), path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the average of the best checkpoint, if the trainer has loaded its weights, and write the output."""
        ema = self._live.begun
        if ema is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._continue(ema, Path(state.best_model_checkpoint), args, state)
        if self._output is not None:
            with logged("the averaged model was not written"):
                self._write(ema, os.fspath(self._output), args)

    def _write(self, ema: EMA, output: str, args: Any) -> None:
        trainer, run = trainer_of(self), run_fields(str(run_folder(self, args)))
        for number, method in enumerate(ema.methods):
            with self._live.applied(ema.model, number):
                folder = fill_output_name(output, {**method.name_fields(), **run})
                trainer.save_model(folder, _internal_call=True)  # as for a checkpoint: nothing is pushed to the Hub

    def _continue(self, ema: EMA, checkpoint: Path, args: Any, state: Any) -> None:
        """Load the average from a checkpoint, or begin with the weights that the model has now."""
        part = checkpoint / _part(args)
        try:
            path = part if part.exists() else checkpoint / EMA_FILE
            ema.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # noqa: BLE001 - torch raises many; the training is worth more than the average
            logger.warning("the EMA begins anew at step %d: %s", state.global_step, error)
            ema.register(state.global_step)

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Put the average into the model inside a ``with`` block, if there is one of this model."""
        return self._live.applied(model)


def _evaluate(trainer: Any, evaluate: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Run ``Trainer.evaluation_loop`` with the average in the model, if the callback has not been removed."""
    with ExitStack() as applied:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TrainerEMA):
                applied.enter_context(callback.applied(trainer.model))
        return evaluate(*arguments, **keywords)


def _part(args: Any) -> str:
    """Return the name of the file for the part of this process."""
    return f"ema_state_{args.process_index}_of_{args.world_size}.pt"


def _checkpoint(callback: TrainerCallback, args: Any, state: Any) -> Path:
    """Return the folder of the checkpoint of the current step."""
    return run_folder(callback, args) / f"checkpoint-{state.global_step}"


def _checkpoints(folder: Path, *, before: int) -> Iterator[tuple[str, int]]:
    """Yield the checkpoints of a run before a step, with their steps."""
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdecimal() and int(step) < before:
            yield str(path), int(step)
