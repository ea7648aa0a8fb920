"""A GPU for machines without one: torch's ``cpu`` device, whose streams run late and in any order that events allow.

Operations on a stream are put into its queue and run when somebody waits for them, or at random before. A program that
lacks an event computes with bytes that are not there yet, or that were overwritten, under some order. Memory begins
with work of an earlier owner in the queue of its stream, as memory of torch's caching allocator does. What would be
slow on a GPU is an error: memory that is allocated during the work, copies through memory that is not pinned.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ema_cli.dtypes import DType
from ema_cli.fold.conversion import Bytes, Float64
from ema_cli.fold.cuda import TorchLane

_FREE = {torch.device, torch.Tensor.__getitem__, torch.Tensor.view, torch.Tensor.numpy}
"""Calls that read and write no elements."""
_JUNK = 0xA5


class Marker:
    """A place in a queue that an event stands for."""

    done = False


class FakeStream:
    """A queue of operations, and markers to wait for."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.queue: deque[Callable[[], object] | Marker] = deque()
        self.number = len(_GPU.streams)
        _GPU.streams.append(self)

    @property
    def blocked(self) -> bool:
        """Whether there is nothing to do, or something to wait for."""
        return not self.queue or (isinstance(self.queue[0], Marker) and not self.queue[0].done)


class FakeEvent:
    """As ``torch.cuda.Event``: one that was never recorded is complete, and waiting is for the last record before."""

    def __init__(self, *, blocking: bool) -> None:
        assert blocking, "waiting for it takes processor time"
        self._marker: Marker | None = None

    def record(self, stream: FakeStream) -> None:
        """Mark the work in the queue of ``stream`` so far."""
        self._marker = marker = Marker()
        _GPU.enqueue(stream, lambda: setattr(marker, "done", True))

    def wait(self, stream: FakeStream) -> None:
        """Let later work of ``stream`` wait."""
        if self._marker is not None and not _GPU.ignores_waits(stream):
            _GPU.enqueue(stream, self._marker)

    def synchronize(self) -> None:
        """Run streams at random until the marked work is done."""
        if self._marker is not None and not _GPU.ignores_host:
            _GPU.run_until(self._marker)


class FakeGpu(TorchFunctionMode):
    """The device: runs the queues of its streams in an order that ``seed`` chooses."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.streams: list[FakeStream] = []
        self.memory: list[tuple[torch.Tensor, FakeStream]] = []
        """Memory of the device, with the stream that it was allocated on."""
        self.ignores_host = False
        """A broken GPU: the host does not wait."""
        self.deaf_stream: int | None = None
        """A broken GPU: this stream does not wait."""
        self.pinned_bytes = 0
        """Memory of the host that was pinned."""
        self._pinned: set[int] = set()
        self._random = random.Random(seed)
        self._eagerness = self._random.choice([0.0, 0.3, 0.9])
        self._favourite = self._random.randrange(2)
        self._lock = threading.RLock()
        self._local = threading.local()

    def ignores_waits(self, stream: FakeStream) -> bool:
        """Return whether the GPU is broken in this way."""
        return self.deaf_stream == stream.number

    def enqueue(self, stream: FakeStream, operation: Callable[[], object] | Marker) -> None:
        """Put an operation into the queue of a stream, and run some of all queues."""
        with self._lock:
            stream.queue.append(operation)
            while self._random.random() < self._eagerness and self._step():
                pass

    def run_until(self, marker: Marker | None = None) -> None:
        """Run streams at random until the marked work is done, or all is."""
        with self._lock:
            while not (marker and marker.done) and self._step():
                pass
            assert marker is None or marker.done

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        """Make a stream the current one of the thread."""
        before = getattr(self._local, "stream", None)
        self._local.stream = stream
        yield
        self._local.stream = before

    def _step(self) -> bool:
        """Run the next operation of a stream; return whether there was one."""
        ready = [stream for stream in self.streams if not stream.blocked]
        if not ready:
            return False
        liked = [stream for stream in ready if stream.number % 2 == self._favourite]
        operation = self._random.choice(liked if liked and self._random.random() < 0.8 else ready).queue.popleft()
        if not isinstance(operation, Marker):
            self._local.running = True
            operation()
            self._local.running = False
        return True

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Allocate, or put the operation into the queue of the current stream."""
        kwargs = kwargs or {}
        if getattr(self._local, "running", False) or func in _FREE or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        if func is torch.empty:
            return self._allocate(*args, **kwargs)
        if func is torch.Tensor.copy_:
            self._check_copy(*args, **kwargs)
        else:
            assert func in (torch.mul, torch.add), f"{func} is not known to do nothing"
            assert "out" in kwargs, f"{func} allocates"
        self.enqueue(self._local.stream, lambda: func(*args, **kwargs))
        return kwargs.get("out", args[0])

    def _allocate(
        self, count: int, *, dtype: torch.dtype, device: torch.device | str, pin_memory: bool = False
    ) -> torch.Tensor:
        memory = torch.empty(count, dtype=dtype)
        memory.view(torch.uint8).fill_(_JUNK)
        if pin_memory:
            assert str(device) == "cpu"
            self._pinned.add(memory.untyped_storage().data_ptr())
            self.pinned_bytes += memory.nbytes
        else:
            stream = self._local.stream
            self.memory.append((memory, stream))
            self.enqueue(stream, lambda: memory.view(torch.uint8).fill_(_JUNK))
        return memory

    def _check_copy(self, to: torch.Tensor, source: torch.Tensor, *, non_blocking: bool = False) -> None:
        """Raise if a copy between host and device would not be a plain one of the copy engine."""
        owned = {memory.untyped_storage().data_ptr() for memory, _ in self.memory}
        ends = [tensor.untyped_storage().data_ptr() for tensor in (to, source)]
        if all(end in owned for end in ends):
            return
        assert all(end in owned | self._pinned for end in ends), "not pinned"
        assert non_blocking, "the host waits"
        assert to.is_contiguous(), "temporary memory"
        assert source.is_contiguous(), "temporary memory"
        assert to.dtype == source.dtype, "temporary memory"


_GPU = FakeGpu(0)


@contextmanager
def fake_gpu(seed: int) -> Iterator[FakeGpu]:
    """Replace the streams of torch by those of a new GPU."""
    global _GPU  # noqa: PLW0603 - what torch.cuda is to the lane
    _GPU = FakeGpu(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", FakeStream)
        patch.setattr(torch.cuda, "Event", FakeEvent)
        patch.setattr(torch.cuda, "stream", _GPU.on)
        yield _GPU


class FakeGpuLane:
    """A ``TorchLane`` on the fake GPU, for any thread; see ``Lane``."""

    def __init__(self, gpu: FakeGpu, *, block_elements: int, averages: int) -> None:
        self._gpu = gpu
        with gpu:
            self._lane = TorchLane(torch.device("cuda"), block_elements=block_elements, averages=averages)

    def start(self, count: int) -> None:
        """Begin a block."""
        self._lane.start(count)

    def buffer(self, nbytes: int) -> Bytes:
        """Return memory to read into."""
        with self._gpu:
            return self._lane.buffer(nbytes)

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Add a block."""
        with self._gpu:
            self._lane.add(raw, dtype, weights)

    def sums(self) -> Sequence[Float64]:
        """Return the sums."""
        with self._gpu:
            return self._lane.sums()
