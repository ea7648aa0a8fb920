"""The streams of the GPU lane, on a fake GPU that runs them in any order that the events allow."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ema_cli.dtypes import BY_NAME
from ema_cli.errors import SystemExhausted
from ema_cli.fold.conversion import NUMPY_TYPES, components
from ema_cli.fold.cuda import TorchLane
from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold
from ema_cli.fold.lanes import Lane, cpu_lane
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.plan import Plan
from tests.helpers.fake_gpu import FakeGpu, FakeGpuLane, fake_gpu
from tests.helpers.outputs import Memory
from tests.helpers.series import random_states, write_series

BLOCK = 8


def sums_of_blocks(lane: Lane, seed: int, averages: int) -> list[list[bytes]]:
    """Return the sums of a few random blocks of several types and lengths, with weights of zero among them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(3):
        count = int(rng.integers(1, BLOCK // 2)) * 2
        lane.start(count)
        for row in range(int(rng.integers(1, 6))):
            dtype = BY_NAME[str(rng.choice(list(NUMPY_TYPES)))]
            raw = lane.buffer(count // components(dtype) * dtype.itemsize)
            with np.errstate(all="ignore"):
                raw[:] = rng.standard_normal(count).astype(NUMPY_TYPES[dtype.name]).view(np.uint8)
            lane.add(raw, dtype, [float(rng.random()) * (row == 0 or rng.random() < 0.7) for _ in range(averages)])
        found.append([total.tobytes() for total in lane.sums()])
    return found


def on_gpu(seed: int, averages: int, breaks: Callable[[FakeGpu], None] = lambda _: None) -> list[list[bytes]]:
    """Return the sums of the GPU lane under an order of operations, on a GPU that is perhaps broken."""
    with fake_gpu(seed) as gpu:
        breaks(gpu)
        return sums_of_blocks(FakeGpuLane(gpu, block_elements=BLOCK, averages=averages), seed, averages)


@given(seed=st.integers(0, 2**32), averages=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_any_order_of_the_streams_gives_the_bits_of_the_cpu(seed: int, averages: int) -> None:
    """Buffers are reused in time and never too early; nothing is allocated and no unpinned memory copied on the way."""
    expected = sums_of_blocks(cpu_lane(block_elements=BLOCK, averages=averages), seed, averages)
    assert on_gpu(seed, averages) == expected


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(lambda gpu: setattr(gpu, "ignores_host", True), id="the host waits for nothing"),
        pytest.param(lambda gpu: setattr(gpu, "deaf_stream", 0), id="the computing stream waits for no copy"),
        pytest.param(lambda gpu: setattr(gpu, "deaf_stream", 1), id="the copying stream waits for no reader"),
    ],
)
def test_the_fake_gpu_notices_a_missing_event(breaks: Callable[[FakeGpu], None]) -> None:
    """Without one kind of waiting, some order gives other sums: so the test above can fail."""
    right = [sums_of_blocks(cpu_lane(block_elements=BLOCK, averages=2), seed, 2) for seed in range(50)]
    assert any(on_gpu(seed, 2, breaks) != right[seed] for seed in range(50))


@pytest.mark.parametrize("seed", range(20))
def test_a_lane_may_be_dropped_in_the_middle_of_its_work(seed: int) -> None:
    """The next owner of its memory, on the stream that it was allocated on, finds nothing written by the old one."""
    with fake_gpu(seed) as gpu:
        lane = FakeGpuLane(gpu, block_elements=BLOCK, averages=2)
        lane.start(BLOCK)
        for _ in range(5):
            lane.add(lane.buffer(BLOCK * 4), BY_NAME["F32"], [0.5, 0.5])
        del lane
        gc.collect()
        for memory, owner in gpu.memory:
            gpu.enqueue(owner, partial(memory.view(torch.uint8).fill_, 1))
        gpu.run_until()
        assert all(bool((memory.view(torch.uint8) == 1).all()) for memory, _ in gpu.memory)


def test_a_fold_in_threads_with_streams_each(tmp_path: Path) -> None:
    """Workers share the device but no buffer: data and statistics are those of the CPU."""
    paths = write_series(tmp_path, random_states(4, torch.bfloat16))
    options = make_options(paths, decay=[0.5, 0.9], output=tmp_path / "{decay}.safetensors", threads=3)

    def run(plan: Plan, make_lane: Callable[[], Lane]) -> object:
        sinks = [Memory(plan.data_bytes) for _ in plan.outputs]
        return fold(plan, sinks, make_lane), [bytes(sink.data) for sink in sinks]

    with planned(options) as plan, fake_gpu(0) as gpu:
        maker = partial(FakeGpuLane, gpu, block_elements=plan.buffers.block_elements, averages=len(plan.outputs))
        assert run(plan, maker) == run(plan, lane_maker("cpu", plan))


@pytest.mark.parametrize("averages", [1, 4])
def test_the_memory_of_the_host_is_the_plans(averages: int, tmp_path: Path) -> None:
    """Pinned buffers, and two of the worker, fit into the buffers that the plan states; all of it is a few blocks."""
    paths = write_series(tmp_path, random_states(2))
    decay = [0.5 + 0.1 * k for k in range(averages)]
    output = tmp_path / "{decay}.safetensors"
    with planned(make_options(paths, decay=decay, output=output, device="cuda", threads=1)) as plan:
        buffers = plan.buffers
    with fake_gpu(0) as gpu:
        FakeGpuLane(gpu, block_elements=buffers.block_elements, averages=averages)
    assert gpu.pinned_bytes + 2 * 8 * buffers.block_elements <= buffers.total_bytes


def test_a_full_gpu_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch reports in several lines becomes one sentence; errors of the program itself stay what they are."""
    message = "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 8 GiB\nSee"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(SystemExhausted, match=r"^the GPU failed: CUDA out of memory$") as found:
        TorchLane(torch.device("cpu"), block_elements=8, averages=1)
    assert found.value.hint.startswith("--device cpu")
    message = "a shape does not match"
    with pytest.raises(RuntimeError, match="shape"):
        TorchLane(torch.device("cpu"), block_elements=8, averages=1)
