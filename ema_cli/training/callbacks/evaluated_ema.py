"""A live EMA that takes the place of a model's weights while a trainer evaluates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from ema_cli.errors import UsageError
from ema_cli.training.live.ema import EMA
from ema_cli.training.live.fsdp import own_part


class EvaluatedEMA:
    """The EMA of a training, which begins with each training and may be missing.

    Args:
        options: keywords of ``ema_cli.EMA``.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        EMA(nn.Identity(), **options)  # refuses contradictions now, not when a training begins
        self.ema: EMA | None = None

    def begin(self, model: nn.Module) -> EMA:
        """Begin an average without weights yet; forget an earlier one."""
        self.ema = EMA(model, **self._options)
        return self.ema

    @property
    def begun(self) -> EMA | None:
        """The EMA, if it has an average yet."""
        try:
            return self.ema if self.ema is not None and self.ema.shadow else None
        except UsageError:
            return None

    @property
    def is_applied(self) -> bool:
        """Whether an average is in the model now."""
        return self.ema is not None and self.ema.is_applied

    @property
    def is_sharded(self) -> bool:
        """Whether the average of this process is a part, which fits no other process."""
        ema = self.begun
        if ema is None:
            return False
        return own_part(ema.model) is not None or any(isinstance(one, DTensor) for one in ema.shadow.values())

    def apply(self, model: nn.Module, average: int = 0) -> None:
        """Put an average into the model, if there is one of this model and none is applied."""
        ema = self.begun
        if ema is not None and ema.model is model and not ema.is_applied:
            ema.apply_shadow(average)

    def restore(self) -> None:
        """Put the model's own weights back, if an average is applied."""
        if self.ema is not None and self.ema.is_applied:
            self.ema.restore()

    @contextmanager
    def applied(self, model: nn.Module, average: int = 0) -> Iterator[None]:
        """Apply inside a ``with`` block, also one that is inside another."""
        is_mine = not self.is_applied
        try:
            self.apply(model, average)
            yield
        finally:
            if is_mine:
                self.restore()
