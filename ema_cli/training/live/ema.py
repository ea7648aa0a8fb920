"""The live EMA of a model: shadow weights that follow the training step by step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ema_cli.errors import UsageError
from ema_cli.options.keywords import Numbers, StrPath
from ema_cli.training.live.averages import Cohort, held, new_cohorts
from ema_cli.training.live.ema_options import (
    buffer_rule,
    float_type,
    live_methods,
    model_of,
    usable_device,
    whole_number,
)
from ema_cli.training.live.ema_state import cohorts_from, part_of, position_from, state_of
from ema_cli.training.live.fsdp import own_part
from ema_cli.training.live.model_tensors import BufferRule, averaged_tensors, parameters_of
from ema_cli.training.live.shadow_weights import ShadowWeights
from ema_cli.training.live.snapshot import save_snapshots
from ema_cli.training.live.snapshot_load import opened_snapshots
from ema_cli.weights.methods import Init, Warmup
from ema_cli.weights.updates import LiveMethod


class EMA(ShadowWeights):
    """One or several running averages of the weights of a model, one update per training step.

        ema = EMA(model, 0.999)
        for batch in data:
            train_step(model, batch)
            ema.update()
        with ema.applied():
            evaluate(model)

    ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n``. The first weights, theta_1, are those at ``register()``, or at
    the first ``update()`` if that comes first. The other methods: ``ema_cli.weights.updates``. The average of N steps
    has the weights that the command line gives to a checkpoint of each step (``power``: nearly).

    Averaged are the parameters that require a gradient when they are first seen, each by its name; one that appears
    later joins with its own theta_1, one that disappears is dropped. Tied parameters are averaged once. Tensors keep
    their shapes, and are averaged in their own type, 16-bit ones in float32. Of a distributed tensor each process
    averages its own part. A NaN in the weights stays in the average.

    A float32 average of weights that no longer change stops at a relative distance of up to 6e-8 / (1 - d) from them,
    where a step is less than its last digit: ``dtype=torch.float64`` for 1 - d below about 1e-5.

    Args:
        model: may be wrapped in ``torch.compile``, DataParallel, DistributedDataParallel or DeepSpeed's engine (up to
            ZeRO stage 2), or sharded by FSDP2, tensor parallelism, or FSDP1 with ``use_orig_params=True``.
        decay: d in [0, 1) of one step, or several for several averages.
        one_minus_decay: 1 - d, instead of ``decay``.
        half_life: steps after which a share has halved, instead of ``decay``.
        sigma_rel: width of a power-function average, relative to the training time (EDM2, arXiv 2312.02696).
        method: ``"ema"``, ``"ema-warmup"``, ``"uniform"`` or ``"power"``; by default the one whose options are given.
        init: ``"first"``: E_1 = theta_1; ``"debias"``: start from zero, divide by the sum of the weights.
        warmup: how the decay of ``ema-warmup`` grows.
        inv_gamma: parameter of ``warmup="inv-gamma"``.
        power: parameter of ``warmup="inv-gamma"``.
        every: average the weights of every k-th step only, with the decay that k steps mean.
        buffers: ``"average"`` floating-point buffers too, or ``"copy"`` them from the model when they are needed.
        batchnorm: the same for BatchNorm statistics, averaged by default: those of the model do not fit the average,
            which can then evaluate far below it.
        dtype: ``torch.float32`` or ``torch.float64`` for all averages.
        device: where the averages are kept; by default where each parameter is when it is first seen.

    Raises:
        ema_cli.errors.UsageError: a value makes no sense, or the options contradict each other.

    """

    def __init__(
        self,
        model: nn.Module,
        decay: Numbers = (),
        *,
        one_minus_decay: Numbers = (),
        half_life: Numbers = (),
        sigma_rel: Numbers = (),
        method: LiveMethod | Iterable[LiveMethod] = (),
        init: Init | None = None,
        warmup: Warmup | None = None,
        inv_gamma: float | None = None,
        power: float | None = None,
        every: int = 1,
        buffers: BufferRule = "copy",
        batchnorm: BufferRule = "average",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        given = locals()
        super().__init__(model_of(model))
        self.methods = live_methods(given)
        self.every = whole_number("every", every, least=1)
        self._step = 0
        self._buffers = buffer_rule("buffers", buffers)
        self._batchnorm = buffer_rule("batchnorm", batchnorm)
        self._dtype = float_type(dtype)
        self._device = usable_device(device)
        self._cohorts: list[Cohort] = []

    @property
    def step(self) -> int:
        """Training steps so far: calls of ``update``, and those before ``register(step=...)``."""
        return self._step

    @property
    def decay(self) -> float | None:
        """The decay d of one step of the first average; ``None`` if its method has none."""
        return None if (decay := self.methods[0].decay) is None else decay.value

    def register(self, step: int = 0) -> None:
        """Begin the averages with the current weights, those after ``step`` training steps; forget earlier ones.

        Raises:
            ema_cli.errors.UsageError: there is nothing to average, or a tensor has no values yet; nothing has changed.

        """
        self._refuse_applied("register")
        step = whole_number("step", step, least=0)
        self._cohorts = self._begun(self._current(known=()), step)
        self._step = step

    def update(self) -> None:
        """Count one training step and fold its weights into the averages; to be called after ``optimizer.step()``.

        Raises:
            ema_cli.errors.UsageError: a tensor has another shape than before, or there is nothing to average; then the
                step is not counted.

        """
        self._refuse_applied("update")
        step = self._step + 1
        if step % self.every == 0:
            self._fold(step)
        self._step = step

    def _fold(self, step: int) -> None:
        """Fold the current weights into the averages; nothing is changed before all of them are known to fit."""
        known = {name for cohort in self._cohorts for name in cohort.averages[0]}
        current = self._current(known)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.keep(current)]
        new = [held(current, cohort.averages[0]) for cohort in self._cohorts]
        joining = self._begun({name: tensor for name, tensor in current.items() if name not in known}, step)
        for cohort, tensors in zip(self._cohorts, new, strict=True):
            cohort.fold(tensors, self.methods, step)
        self._cohorts += joining

    def _current(self, known: Collection[str]) -> dict[str, torch.Tensor]:
        """Return the tensors to average; ``known`` parameters also if they do not require a gradient."""
        return averaged_tensors(self.model, known, buffers=self._buffers, batchnorm=self._batchnorm)

    def _begun(self, tensors: Mapping[str, torch.Tensor], step: int) -> list[Cohort]:
        return new_cohorts(tensors, averages=len(self.methods), step=step, dtype=self._dtype, device=self._device)

    def average_of(self, average: int) -> dict[str, torch.Tensor]:
        """Return the tensors of one average, numbered from 0 in the order of ``methods``; not copies.

        Raises:
            ema_cli.errors.UsageError: there is none yet, or none of this number.

        """
        number = whole_number("average", average, least=0)
        if number >= len(self.methods):
            raise UsageError(f"average={number} is not below {len(self.methods)}, the number of averages")
        if not self._cohorts:
            first = (self.step // self.every + 1) * self.every
            hint = f"the first is made at step {first}" if self.step else "call register() or update() first"
            raise UsageError("there is no average yet", hint=hint)
        return {name: tensor for cohort in self._cohorts for name, tensor in cohort.averages[number].items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the position in training, for ``torch.save`` beside the model and the optimizer.

        The tensors are the averages themselves, not copies; distributed ones are for ``torch.distributed.checkpoint``.
        """
        state = state_of(self.methods, self._step, self._cohorts)
        part = own_part(self.model)
        return state if part is None else {part: state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, with copies of its tensors.

        Raises:
            ema_cli.errors.UsageError: it has another form, or was made with other methods or for another model; then
                nothing has changed.

        """
        self._refuse_applied("load_state_dict")
        state = part_of(state, own_part(self.model))
        step = position_from(state, self.methods)
        averaged = self._current(known=parameters_of(self.model))
        count, dtype, device = len(self.methods), self._dtype, self._device
        self._cohorts = cohorts_from(state, averaged, averages=count, dtype=dtype, device=device)
        self._step = step

    def save(self, path: StrPath, average: int | None = None, *, force: bool = False) -> tuple[Path, ...]:
        """Write every tensor of the model's ``state_dict``, averages in their own types in place; return the paths.

        Of a sharded model every process calls it. Under DistributedDataParallel the first one writes.

        Args:
            path: a .safetensors file; several averages need ``{decay}``, ``{sigma_rel}`` or ``{label}`` in the name.
                Missing folders are made. A snapshot of this name is replaced.
            average: the one average to save, by number; by default all.
            force: replace a file that is no snapshot.

        Raises:
            ema_cli.errors.UsageError: there is no average yet, or the name does not fit.
            ema_cli.errors.OutputError: a file cannot be written; what has its name is unchanged.

        """
        self.average_of(average or 0)
        chosen = dict(enumerate(self.methods)) if average is None else {average: self.methods[average]}
        return save_snapshots(path, self.model, chosen, self._cohorts, step=self._step, force=force)

    def load(self, path: StrPath) -> None:
        """Continue from what ``save`` wrote to ``path``, on any device; the weights of the model are not changed.

        Raises:
            ema_cli.errors.NothingMatched: there is no such file.
            ema_cli.errors.InputRefused: it is no snapshot, damaged, or of another model or method.
            ema_cli.errors.UsageError: the name does not fit, or the EMA averages other buffers.

        """
        self._refuse_applied("load")
        with opened_snapshots(path, self.model, self.methods) as state:
            self.load_state_dict(state)

    def to(self, device: torch.device | str) -> Self:
        """Keep the averages on another device, such as the CPU.

        Raises:
            ema_cli.errors.UsageError: there is no such device here.

        """
        place = usable_device(device)
        if place is None:
            raise UsageError("to() needs a device", hint='ema.to("cpu")')
        self._cohorts = [cohort.moved(place) for cohort in self._cohorts]
        self._device = place
        return self
