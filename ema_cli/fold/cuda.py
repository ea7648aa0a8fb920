"""The GPU lane: torch, a ring of pinned buffers, one stream that copies and one that computes.

On torch's ``cpu`` device the same operations run in order, without pinning and streams. The tests use this on machines
without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ema_cli.dtypes import DType, Kind
from ema_cli.errors import UsageError
from ema_cli.fold.conversion import Bytes, Float64
from ema_cli.text import plural

_RING = 3


def count_gpus() -> int:
    """Return how many GPUs torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_device(name: str) -> torch.device:
    """Return the torch device called ``name``.

    Raises:
        UsageError: this machine, or this build of torch, does not have the device.

    """
    count = count_gpus()
    device = torch.device(name)
    if (device.index or 0) >= count:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds {plural(count, 'GPU')}", hint="use --device cpu"
        )
    return device


@dataclass(slots=True)
class _Slot:
    """One buffer of the ring, on the host and on the device."""

    host: torch.Tensor
    device: torch.Tensor
    copied: torch.cuda.Event | None
    """The host buffer may be filled again."""
    used: torch.cuda.Event | None
    """The device buffer may be filled again."""


class TorchLane:
    """Weighted sums with torch; see ``Lane``."""

    def __init__(self, device: torch.device, *, block_elements: int, averages: int) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._compute = torch.cuda.Stream(device) if self._cuda else None
        self._copy = torch.cuda.Stream(device) if self._cuda else None
        self._slots = [self._make_slot(block_elements * 8) for _ in range(_RING)]
        self._next = 0
        self._sums = torch.empty((averages, block_elements), dtype=torch.float64, device=device)
        self._result = torch.empty((averages, block_elements), dtype=torch.float64, pin_memory=self._cuda)
        self._empty = [True] * averages
        self._count = 0

    def _make_slot(self, nbytes: int) -> _Slot:
        return _Slot(
            host=torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda),
            device=torch.empty(nbytes, dtype=torch.uint8, device=self._device),
            copied=torch.cuda.Event() if self._cuda else None,
            used=torch.cuda.Event() if self._cuda else None,
        )

    def start(self, count: int) -> None:
        """Begin a block."""
        self._count = count
        self._empty = [True] * len(self._empty)

    def buffer(self, nbytes: int) -> Bytes:
        """Return the next host buffer of the ring, once its last copy to the device is done."""
        self._next = (self._next + 1) % _RING
        slot = self._slots[self._next]
        if slot.copied is not None:
            slot.copied.synchronize()
        return slot.host.numpy()[:nbytes]

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Copy to the device, upcast, multiply, add. ``mul`` and ``add`` stay apart: a fused one rounds once."""
        slot = self._slots[self._next]
        nbytes = len(raw)
        with _on(self._copy):
            if self._copy is not None and slot.used is not None and slot.copied is not None:
                self._copy.wait_event(slot.used)
            slot.device[:nbytes].copy_(slot.host[:nbytes], non_blocking=True)
            if slot.copied is not None:
                slot.copied.record()
        with _on(self._compute):
            if self._compute is not None and slot.copied is not None:
                self._compute.wait_event(slot.copied)
            upcast = slot.device[:nbytes].view(_torch_dtype(dtype)).to(torch.float64)
            self._accumulate(upcast, weights)
            if slot.used is not None:
                slot.used.record()

    def _accumulate(self, upcast: torch.Tensor, weights: Sequence[float]) -> None:
        for k, weight in enumerate(weights):
            if weight == 0:
                continue
            total = self._sums[k, : self._count]
            if self._empty[k]:
                torch.mul(upcast, weight, out=total)
                self._empty[k] = False
            else:
                total.add_(torch.mul(upcast, weight))

    def sums(self) -> Sequence[Float64]:
        """Bring the sums to the host."""
        with _on(self._compute):
            self._result[:, : self._count].copy_(self._sums[:, : self._count], non_blocking=True)
        if self._compute is not None:
            self._compute.synchronize()
        return [total[: self._count] for total in self._result.numpy()]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _torch_dtype(dtype: DType) -> torch.dtype:
    """Return the type of one component; complex numbers are folded as pairs."""
    found = torch.float32 if dtype.kind is Kind.COMPLEX else getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)  # noqa: S101 - narrows getattr for the type checker
    return found
