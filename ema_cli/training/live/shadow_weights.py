"""Averages in place of the weights of a model: applied to it and taken out again, or in a copy of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import nn

from ema_cli.errors import UsageError
from ema_cli.text import quoted, safe_text, shortlist
from ema_cli.training.live.averages import copies_of, copy_into, fits, held
from ema_cli.training.live.fsdp import refuse_copy
from ema_cli.training.live.model_tensors import local, tensors_of, unwrapped
from ema_cli.write.held_signals import held_signals

_APPLIED: WeakValueDictionary[int, ShadowWeights] = WeakValueDictionary()
"""By the ``id`` of a model, what replaced its weights: a second EMA of the model must wait until they are back."""


class ShadowWeights(ABC):
    """One or several averages of the weights of a model, which can stand in for them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._replaced: dict[str, torch.Tensor] | None = None
        """Copies of the model's own tensors while an average is applied."""

    @abstractmethod
    def average_of(self, average: int) -> dict[str, torch.Tensor]:
        """Return the tensors of one average, by the names of the model's tensors."""

    @property
    def is_applied(self) -> bool:
        """Whether an average is in the model now."""
        return self._replaced is not None

    @property
    def shadow(self) -> dict[str, torch.Tensor]:
        """The first average, by the names of the model's tensors: a new dict, but the tensors themselves, not copies.

        So a tensor is set by ``ema.shadow[name].copy_(new)``; a tensor that is put into the dict changes nothing.
        """
        return self.average_of(0)

    def apply_shadow(self, average: int = 0) -> None:
        """Put an average into the model, rounded to nearest in its types; ``restore`` undoes it exactly.

        The tensors of the model stay the same objects, so the optimizer keeps its parameters. Until ``restore``, a copy
        of the model's own weights takes as much memory as the weights.

        Raises:
            ema_cli.errors.UsageError: one is applied already, there is none, or a tensor has another shape than its
                average; then the model is unchanged.

        """
        self._refuse_applied("apply_shadow")
        averaged = self.average_of(average)
        places = self._places(averaged)
        held(places, {name: averaged[name] for name in places})
        self._replaced = copies_of(places)
        _APPLIED[id(unwrapped(self.model))] = self
        try:
            copy_into(places, averaged)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the model's own weights back, bit for bit; Ctrl-C waits until they are.

        Raises:
            ema_cli.errors.UsageError: no average is applied; or a tensor was removed or resized since, and all others
                are back.

        """
        if self._replaced is None:
            raise UsageError("no average is applied", hint="call apply_shadow() first, or use: with ema.applied():")
        with held_signals():
            own, now = self._replaced, self._places(self._replaced)
            places = {name: place for name, place in now.items() if fits(local(place), own[name])}
            copy_into(places, own)
            self._replaced = None
            _APPLIED.pop(id(unwrapped(self.model)), None)
        if lost := [quoted(name) for name in own if name not in places]:
            raise UsageError(f"removed or resized while an average was applied, so not restored: {shortlist(lost)}")

    @contextmanager
    def applied(self, average: int = 0) -> Iterator[nn.Module]:
        """Put an average into the model inside a ``with`` block; its own weights return after it, also on an error."""
        self._refuse_applied("applied")
        try:
            self.apply_shadow(average)
            yield self.model
        finally:
            if self._replaced is not None:
                self.restore()

    @torch.inference_mode(mode=False)
    def average_model(self, average: int = 0) -> nn.Module:
        """Return a copy of the model, without wrappers, with the weights of an average; the rest is as in the model.

        Raises:
            ema_cli.errors.UsageError: there is no such average, or the model cannot be copied.

        """
        averaged = self.average_of(average)
        refuse_copy(self.model)
        try:
            model = copy.deepcopy(unwrapped(self.model))
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise UsageError(
                f"copy.deepcopy cannot copy the model: {safe_text(str(error))}",
                hint="evaluate it in place: with ema.applied(): ...",
            ) from error
        tensors = tensors_of(model)
        copy_into({name: tensors[name] for name in averaged if name in tensors}, averaged)
        return model

    def _places(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the model's tensors of these names that it still has."""
        own = tensors_of(self.model)
        return {name: own[name] for name in names if name in own}

    def _refuse_applied(self, call: str) -> None:
        if self._replaced is not None or id(unwrapped(self.model)) in _APPLIED:
            raise UsageError(f"{call}() while an average is applied", hint="call restore() first")
