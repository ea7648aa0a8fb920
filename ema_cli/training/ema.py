"""The live EMA of a model: shadow weights that follow the training step by step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from ema_cli.api import Numbers, keywords_in_errors
from ema_cli.errors import UsageError
from ema_cli.options.declaration import read_values
from ema_cli.options.weighting import WeightOptions
from ema_cli.text import plural, quoted, shortlist
from ema_cli.training.averages import Cohort, copy_into, new_cohort
from ema_cli.training.fsdp import refuse_copy
from ema_cli.training.model_tensors import BufferRule, averaged_buffers, parameters_of, tensors_of, unwrapped
from ema_cli.weights.methods import Init, Method, Warmup
from ema_cli.weights.updates import LIVE_METHODS, LiveMethod


class EMA:
    """One or several running averages of the weights of a model, one update per training step.

        ema = EMA(model, 0.999)
        for batch in data:
            train_step(model, batch)
            ema.update()
        with ema.applied():
            evaluate(model)

    ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n``. The first weights, theta_1, are those at ``register()``, or at
    the first ``update()`` if that comes first.

    Averaged are the parameters that require a gradient when they are first seen, each by its name; one that appears
    later joins with its own theta_1. Tied parameters are averaged once. Tensors are averaged in their own type, 16-bit
    ones in float32. Of a distributed tensor each process averages its own part.

    Args:
        model: may be wrapped in ``torch.compile``, DistributedDataParallel, or sharded by FSDP2.
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
        batchnorm: the same for BatchNorm statistics.
        dtype: type of the averages, such as ``torch.float64``.
        device: where the averages are kept; by default beside the parameters.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

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
        batchnorm: BufferRule = "copy",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        weighting = {
            "method": method,
            "decay": decay,
            "one_minus_decay": one_minus_decay,
            "half_life": half_life,
            "sigma_rel": sigma_rel,
            "init": init,
            "warmup": warmup,
            "inv_gamma": inv_gamma,
            "power": power,
        }
        self.model = model
        self.methods = _methods(weighting)
        if every < 1:
            raise UsageError(f"every={every} must be at least 1")
        self.every = every
        self.step = 0
        """Training steps so far: calls of ``update``, and those before ``register(step=...)``."""
        self._rules = {"buffers": buffers, "batchnorm": batchnorm}
        self._dtype = dtype
        self._device = None if device is None else torch.device(device)
        self._cohorts: list[Cohort] = []
        self._replaced: dict[str, torch.Tensor] | None = None
        """The model's own tensors while an average is applied."""

    def register(self, step: int = 0) -> None:
        """Begin the averages with the current weights, those after ``step`` training steps; forget earlier ones."""
        self._refuse_applied("register")
        self.step = step
        self._cohorts = []
        self._join(self._current())

    def update(self) -> None:
        """Count one training step and fold its weights into the averages; to be called after ``optimizer.step()``."""
        self._refuse_applied("update")
        self.step += 1
        if self.step % self.every:
            return
        current = self._current()
        for cohort in self._cohorts:
            cohort.update(current, self.methods, self.step)
        self._join(current)

    def _current(self) -> dict[str, torch.Tensor]:
        """Return the tensors to average: parameters that require a gradient, or did, and the chosen buffers."""
        known = {name for cohort in self._cohorts for name in cohort.averages[0]}
        found = parameters_of(self.model).items()
        chosen = {name: parameter for name, parameter in found if parameter.requires_grad or name in known}
        return chosen | dict(averaged_buffers(self.model, **self._rules))

    def _join(self, current: Mapping[str, torch.Tensor]) -> None:
        """Begin the averages of tensors that have none yet."""
        known = {name for cohort in self._cohorts for name in cohort.averages[0]}
        new = {name: tensor for name, tensor in current.items() if name not in known}
        if new:
            count = len(self.methods)
            cohort = new_cohort(new, averages=count, step=self.step, dtype=self._dtype, device=self._device)
            self._cohorts.append(cohort)

    @property
    def begun(self) -> bool:
        """Whether there is an average yet."""
        return bool(self._cohorts)

    @property
    def shadow(self) -> dict[str, torch.Tensor]:
        """The first average, by the names of the model's tensors."""
        return self.average_of(0)

    def average_of(self, average: int) -> dict[str, torch.Tensor]:
        """Return the tensors of one average, numbered from 0 in the order of ``methods``.

        Raises:
            ema_cli.errors.UsageError: there is none yet, or none of this number.

        """
        if not -len(self.methods) <= average < len(self.methods):
            raise UsageError(f"average={average}: there is {plural(len(self.methods), 'average')}, numbered from 0")
        if not self._cohorts:
            raise UsageError("there is no average yet", hint="call register() or update() first")
        return {name: tensor for cohort in self._cohorts for name, tensor in cohort.averages[average].items()}

    def apply_shadow(self, average: int = 0) -> None:
        """Put an average into the model; ``restore`` undoes it exactly."""
        self._refuse_applied("apply_shadow")
        averaged = self.average_of(average)
        places = self._places(averaged)
        self._replaced = {name: place.detach().clone() for name, place in places.items()}
        copy_into(places, averaged)

    def restore(self) -> None:
        """Put the model's own weights back, bit for bit.

        Raises:
            ema_cli.errors.UsageError: no average is applied.

        """
        if self._replaced is None:
            raise UsageError("no average is applied", hint="call apply_shadow() first, or use: with ema.applied():")
        places = self._places(self._replaced)
        copy_into(places, self._replaced)
        self._replaced = None

    @contextmanager
    def applied(self, average: int = 0) -> Iterator[nn.Module]:
        """Put an average into the model inside a ``with`` block; its own weights return after it, also on an error."""
        self.apply_shadow(average)
        try:
            yield self.model
        finally:
            self.restore()

    def average_model(self, average: int = 0) -> nn.Module:
        """Return a copy of the model, without wrappers, with the weights of an average."""
        averaged = self.average_of(average)
        refuse_copy(self.model)
        model = copy.deepcopy(unwrapped(self.model))
        tensors = tensors_of(model)
        copy_into({name: tensors[name] for name in averaged if name in tensors}, averaged)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the position in training, for ``torch.save`` beside the model and the optimizer."""
        return {
            "methods": [method.plain() for method in self.methods],
            "step": self.step,
            "cohorts": [
                {
                    "first_step": cohort.first_step,
                    "last_step": cohort.last_step,
                    "updates": cohort.updates,
                    "averages": [dict(average) for average in cohort.averages],
                }
                for cohort in self._cohorts
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises:
            ema_cli.errors.UsageError: it was made with other methods or parameters, or for another model.

        """
        self._refuse_applied("load_state_dict")
        methods = [method.plain() for method in self.methods]
        if list(state["methods"]) != methods:
            raise UsageError(f"the state was made with {state['methods']}, and this EMA has {methods}")
        self._refuse_others(name for cohort in state["cohorts"] for name in cohort["averages"][0])
        self.step = state["step"]
        self._cohorts = [
            Cohort(
                first_step=saved["first_step"],
                last_step=saved["last_step"],
                updates=saved["updates"],
                averages=tuple(
                    {name: tensor.to(self._device or tensor.device, copy=True) for name, tensor in average.items()}
                    for average in saved["averages"]
                ),
            )
            for saved in state["cohorts"]
        ]

    def _refuse_others(self, names: Iterable[str]) -> None:
        own = tensors_of(self.model)
        foreign = [quoted(name) for name in names if name not in own]
        if foreign:
            raise UsageError(f"the model has no {shortlist(foreign)}")

    def to(self, device: torch.device | str) -> Self:
        """Keep the averages on another device, such as the CPU."""
        self._device = torch.device(device)
        for cohort in self._cohorts:
            for average in cohort.averages:
                average.update({name: tensor.to(self._device) for name, tensor in average.items()})
        return self

    def _places(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the model's tensors of these names that it still has."""
        own = tensors_of(self.model)
        return {name: own[name] for name in names if name in own}

    def _refuse_applied(self, call: str) -> None:
        if self._replaced is not None:
            raise UsageError(f"{call}() while an average is applied", hint="call restore() first")


def _methods(weighting: Mapping[str, Any]) -> tuple[Method, ...]:
    """Return the methods that the options choose.

    Raises:
        UsageError: the options contradict each other, or choose a method that needs the later weights too.

    """
    with keywords_in_errors():
        options = WeightOptions(**read_values(WeightOptions, weighting))
        options.check_weights()
        if options.lacks_decay:
            raise UsageError("EMA needs a decay", hint="--decay 0.999, --half-life 1000 or --sigma-rel 0.1")
        methods = tuple(options.expand())
        for method in methods:
            if method.name not in LIVE_METHODS:
                raise UsageError(
                    f"--method {method.name} cannot be computed during training",
                    hint=f"save checkpoints and average them; during training: {', '.join(LIVE_METHODS)}",
                )
        return methods
