"""The GPU lane: torch, a ring of pinned buffers, one stream that copies and one that computes.

The rules of CUDA streams that this file follows:

* An operation on a stream starts when the call has long returned. A buffer is written again only after an event says
  that its last use is over: ``copied`` for the host's buffer, ``read`` for the device's, ``returned`` for the sums.
* The allocator gives memory of one stream back to that stream alone. All device memory belongs to the stream that
  computes, which waits for each copy, so a lane may be dropped at any time. The first copy waits for that stream in
  turn, which may still have work of an earlier owner of the memory.
* Nothing is allocated per block. Copies are contiguous: others go through temporary memory that is not pinned.
* Events block: a thread that waits for the GPU takes no processor time.

On torch's ``cpu`` device the same operations run in order, without pinning and streams. The tests use this on machines
without a GPU, and a GPU of their own that runs streams in any order that the events allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from ema_cli.dtypes import DType, Kind
from ema_cli.errors import SystemExhausted, UsageError
from ema_cli.fold.conversion import Bytes, Float64
from ema_cli.text import plural

_RING = 3
"""Buffers: one is filled, one is copied, and one waits while the other threads hold the interpreter."""


def count_gpus() -> int:
    """Return how many GPUs torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_device(name: str) -> torch.device:
    """Return the torch device called ``name``; ``cuda`` is the one that the caller has chosen with torch.

    Raises:
        UsageError: this machine, or this build of torch, does not have the device.

    """
    count = count_gpus()
    device = torch.device(name)
    if (device.index or 0) >= count:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds {plural(count, 'GPU')}", hint="use --device cpu"
        )
    if name == "cuda" and torch.cuda.is_initialized():
        return torch.device("cuda", torch.cuda.current_device())
    return device


class _InOrder:
    """The event of a device that does everything in order."""

    def record(self, stream: torch.cuda.Stream | None) -> None:
        """Do nothing."""

    def wait(self, stream: torch.cuda.Stream | None) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


_Event = torch.cuda.Event | _InOrder


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One buffer of the ring, on the host and on the device."""

    host: torch.Tensor
    device: torch.Tensor
    copied: _Event
    """The host buffer is copied: it may be filled again."""
    read: _Event
    """The device buffer is read: it may be filled again."""


@contextmanager
def _failures_named() -> Iterator[None]:
    """Turn a failure of CUDA, which any later call may report, into an error with a hint.

    Raises:
        SystemExhausted: no memory is left on the GPU, or it cannot be used.

    """
    try:
        yield
    except RuntimeError as error:
        if "CUDA" not in str(error):
            raise
        fact = str(error).partition("\n")[0].partition(". ")[0]
        raise SystemExhausted(f"the GPU failed: {fact}", hint="--device cpu, or less memory: --max-memory") from error


class TorchLane:
    """Weighted sums with torch; see ``Lane``.

    Bytes on the device per element of a block: 8 in each buffer of the ring, 8 of upcast numbers, 8 of products if
    there are several averages, 8 per average.
    """

    @_failures_named()
    def __init__(self, device: torch.device, *, block_elements: int, averages: int) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._compute = torch.cuda.Stream(device) if self._cuda else None
        self._copy = torch.cuda.Stream(device) if self._cuda else None
        self._next = 0
        self._empty = [True] * averages
        self._count = 0
        with _on(self._compute):  # also makes ``device`` the current one, for which host memory is pinned
            self._slots = [self._make_slot(block_elements * 8) for _ in range(_RING)]
            self._upcast = self._numbers(block_elements)
            self._product = self._numbers(block_elements if averages > 1 else 0)
            self._sums = [self._numbers(block_elements) for _ in range(averages)]
            self._results = [self._on_host(block_elements, torch.float64) for _ in range(averages)]
            self._returned = self._event()

    def _make_slot(self, nbytes: int) -> _Slot:
        device = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        slot = _Slot(host=self._on_host(nbytes, torch.uint8), device=device, copied=self._event(), read=self._event())
        slot.read.record(self._compute)
        return slot

    def _numbers(self, count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.float64, device=self._device)

    def _on_host(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device="cpu", pin_memory=self._cuda)

    def _event(self) -> _Event:
        return torch.cuda.Event(blocking=True) if self._cuda else _InOrder()

    def start(self, count: int) -> None:
        """Begin a block."""
        self._count = count
        self._empty = [True] * len(self._empty)

    @_failures_named()
    def buffer(self, nbytes: int) -> Bytes:
        """Return the next host buffer of the ring, once its last copy to the device is done."""
        self._next = (self._next + 1) % _RING
        slot = self._slots[self._next]
        slot.copied.synchronize()
        return slot.host.numpy()[:nbytes]

    @_failures_named()
    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Copy to the device, upcast, multiply, add. ``mul`` and ``add`` stay apart: a fused one rounds once."""
        slot = self._slots[self._next]
        nbytes = len(raw)
        with _on(self._copy):
            slot.read.wait(self._copy)
            slot.device[:nbytes].copy_(slot.host[:nbytes], non_blocking=True)
            slot.copied.record(self._copy)
        with _on(self._compute):
            slot.copied.wait(self._compute)
            upcast = self._upcast[: self._count]
            upcast.copy_(slot.device[:nbytes].view(_torch_dtype(dtype)))
            slot.read.record(self._compute)
            self._accumulate(upcast, weights)

    def _accumulate(self, upcast: torch.Tensor, weights: Sequence[float]) -> None:
        for k, weight in enumerate(weights):
            if weight == 0:
                continue
            total = self._sums[k][: self._count]
            if self._empty[k]:
                torch.mul(upcast, weight, out=total)
                self._empty[k] = False
            else:
                in_place = k == len(weights) - 1  # the last average may overwrite the upcast numbers
                product = upcast if in_place else self._product[: self._count]
                torch.add(total, torch.mul(upcast, weight, out=product), out=total)

    @_failures_named()
    def sums(self) -> Sequence[Float64]:
        """Bring the sums to the host. Meanwhile other threads read, compute and write their blocks."""
        with _on(self._compute):
            for total, result in zip(self._sums, self._results, strict=True):
                result[: self._count].copy_(total[: self._count], non_blocking=True)
            self._returned.record(self._compute)
        self._returned.synchronize()
        return [result.numpy()[: self._count] for result in self._results]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _torch_dtype(dtype: DType) -> torch.dtype:
    """Return the type of one component; complex numbers are folded as pairs."""
    found = torch.float32 if dtype.kind is Kind.COMPLEX else getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)  # noqa: S101 - narrows getattr for the type checker
    return found
