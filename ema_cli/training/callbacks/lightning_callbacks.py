"""Callbacks for the Trainer of Lightning: average its checkpoints, or keep a live EMA and evaluate with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ema_cli.errors import EmaAvgError
from ema_cli.formats.open import open_checkpoint
from ema_cli.naming import fill_output_name, run_fields
from ema_cli.options.keywords import Numbers, StrPath
from ema_cli.storage.extents import LayoutPool
from ema_cli.training.callbacks.evaluated_ema import EvaluatedEMA
from ema_cli.training.callbacks.run_average import RunAverage, logged, stand_in
from ema_cli.training.live.ema import EMA

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as missing:
        Callback = stand_in(missing, "pip install lightning")


logger = logging.getLogger(__name__)


class LightningAverage(Callback):  # type: ignore[misc]
    """Average the checkpoints of ``ModelCheckpoint`` when the training ends, with a report beside the output.

        trainer = Trainer(..., callbacks=[ModelCheckpoint(every_n_train_steps=500, save_top_k=-1),
                                          ema_cli.LightningAverage(decay=0.9)])

    Averaged are the checkpoints that this training saved and kept, and earlier ones if it was resumed; not the copy
    ``last.ckpt``. The model is not changed. Errors and warnings are logged, and do not end the training.

    Args:
        decay: d in [0, 1) per checkpoint, as in ``ema_cli.average``.
        output: the ``.safetensors`` file; ``{run}`` is the folder of the checkpoints. An existing output of ema-avg is
            replaced.
        every_n_saves: average after every k-th checkpoint too.
        **options: further keywords of ``ema_cli.average``: ``method="uniform"``, ``half_life=3``, ``last=5``.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

    """

    def __init__(
        self,
        decay: Numbers = (),
        *,
        output: StrPath = "{run}/ema.safetensors",
        every_n_saves: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.average = RunAverage(output=output, every_n_saves=every_n_saves, decay=decay, **options)
        self._output = os.fspath(output)
        self._foreign: list[str] = []
        """What ``ModelCheckpoint`` saved in an earlier training, if it is used again."""

    @property
    def state_key(self) -> str:
        """The name of the state in checkpoints: one for each output."""
        return f"{type(self).__qualname__}({self._output})"

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoints so far."""
        return {"saved": dict(self.average.saved)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with the checkpoints of a resumed training."""
        self.average.begin(state_dict["saved"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an earlier training, unless the trainer continues it."""
        if stage == "fit" and not trainer.global_step:
            self.average.begin({})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find what was saved before a checkpoint without a state of this callback that the training resumes from."""
        self._foreign = [] if trainer.global_step else _kept(trainer)
        for path in _kept(trainer) if trainer.global_step else ():
            if path not in self.average.saved:
                self.average.add(path, _step_inside(Path(path), trainer.global_step))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note what was saved since the last batch, and is complete now."""
        self._add_saved(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the average."""
        self._add_saved(trainer)
        self.average.write()

    def _add_saved(self, trainer: Any) -> None:
        for path in _kept(trainer):
            if path not in self._foreign:
                self.average.add(path, trainer.global_step)


def _kept(trainer: Any) -> list[str]:
    """Return the checkpoints that the ``ModelCheckpoint`` callbacks of a trainer have and keep."""
    paths = [
        path
        for saving in trainer.checkpoint_callbacks
        for path in (getattr(saving, "best_model_path", ""), *getattr(saving, "best_k_models", ()))
    ]
    return [path for path in paths if path]


def _step_inside(path: Path, otherwise: int) -> int:
    """Return the step that a checkpoint states."""
    try:
        checkpoint = open_checkpoint(path, pool=LayoutPool())
    except EmaAvgError:
        return otherwise
    checkpoint.index.close()
    return checkpoint.steps[0].value if checkpoint.steps else otherwise


class LightningEMA(Callback):  # type: ignore[misc]
    """Keep a live EMA of a module, one update per optimizer step, and evaluate with it.

        trainer = Trainer(..., callbacks=[ema_cli.LightningEMA(decay=0.999)])

    Validation, test and prediction compute with the average, and put the module's own weights back, also after an
    error. Checkpoints contain the module's own weights, with the state of the average, which a resumed training
    continues; ``trainer.test(ckpt_path=...)`` uses the average in that checkpoint. A batch with several optimizer
    steps is one update. The average begins with the weights after the first step.

    Args:
        decay: d in [0, 1) per step, as in ``ema_cli.EMA``; of several averages the first is evaluated.
        output: write a checkpoint of the averaged module at the end, for ``load_from_checkpoint``; ``{run}`` is the
            trainer's ``default_root_dir``.
        **options: further keywords of ``ema_cli.EMA``.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

    """

    def __init__(self, decay: Numbers = (), *, output: StrPath | None = None, **options: Any) -> None:
        super().__init__()
        self._live = EvaluatedEMA({"decay": decay, **options})
        self._output = output
        self._loaded: Mapping[str, Any] | None = None
        """The state in a checkpoint, until the module is on its device."""
        self._is_loaded = False
        """Whether the average is that of the weights which this run of the trainer began with."""
        self._last_step = 0
        """Optimizer steps at the last update."""

    @property
    def ema(self) -> EMA | None:
        """The EMA of the training; ``None`` before it."""
        return self._live.ema

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the average; nothing before it begins, or if a process has only a part of it."""
        if self._live.is_sharded:
            logger.warning("the EMA of a sharded module is not saved; a resumed training begins a new one")
            return {}
        return {} if self._live.begun is None else self._live.begun.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the average of a checkpoint."""
        self._loaded = state_dict

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Forget the average of an earlier training, unless the trainer continues it."""
        self._loaded, self._is_loaded = None, False
        is_continued = trainer.global_step and self.ema is not None and self.ema.model is pl_module
        if stage == "fit" and not is_continued:
            self._live.begin(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Continue the average of the checkpoint, if the training is resumed from one."""
        self._load(trainer, pl_module)
        self._last_step = trainer.global_step
        if self.ema is not None and self._live.begun is None and trainer.global_step:
            logger.warning("the EMA begins anew at step %d", self._last_step)
            self.ema.register(self._last_step)

    def _load(self, trainer: Any, pl_module: Any) -> None:
        """Take the average of the checkpoint that was loaded, once; none, if weights were loaded without one."""
        if self._is_loaded:
            return
        self._is_loaded = True
        if self._loaded is not None or trainer.ckpt_path:
            self._live.begin(pl_module)
        if self._loaded is not None and self.ema is not None:
            with logged("the average of the checkpoint is not used"):
                self.ema.load_state_dict(self._loaded)
        self._loaded = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average the weights, unless gradients are only accumulated."""
        if self.ema is not None and trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.ema.update()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the average into the module."""
        self._load(trainer, pl_module)
        self._live.apply(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the module's own weights back; Lightning calls ``ModelCheckpoint`` after all other callbacks."""
        self._live.restore()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Put the module's own weights back."""
        self._live.restore()

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint that is saved during an evaluation contain the module's own weights."""
        if self._live.is_applied:
            self._live.restore()
            own = trainer.strategy.lightning_module_state_dict()
            checkpoint["state_dict"] = {name: value.clone() for name, value in own.items()}
            self._live.apply(pl_module)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Write the averaged module, if there is an output."""
        ema = self._live.begun
        if self._output is not None and ema is not None:
            with logged("the averaged module was not written"):
                self._write(ema, trainer, os.fspath(self._output))

    def _write(self, ema: EMA, trainer: Any, output: str) -> None:
        for number, method in enumerate(ema.methods):
            fields = {**method.name_fields(), **run_fields(trainer.default_root_dir)}
            with self._live.applied(ema.model, number):
                trainer.save_checkpoint(fill_output_name(output, fields), weights_only=True)
