"""The GPU lane on torch's ``cpu`` device: the same operations in the same order, so the same bits as the CPU lane."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ema_cli.dtypes import BY_NAME
from ema_cli.errors import InputRefused, UsageError
from ema_cli.fold import break_even, devices
from ema_cli.fold.conversion import NUMPY_TYPES, components
from ema_cli.fold.cuda import TorchLane, find_device
from ema_cli.fold.devices import lane_maker, resolve_device
from ema_cli.fold.engine import fold
from ema_cli.fold.lanes import Lane, cpu_lane
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.fold_results import FoldOutcome
from ema_cli.records.plan import Plan
from ema_cli.report.preview import plan_document
from tests.helpers.exact import DTYPES
from tests.helpers.outputs import Memory
from tests.helpers.series import random_states, write_series

DEVICE = torch.device("cpu")


def torch_lane(plan: Plan) -> Callable[[], Lane]:
    """Return a maker of torch lanes for a plan."""
    return partial(TorchLane, DEVICE, block_elements=plan.buffers.block_elements, averages=len(plan.outputs))


def run(plan: Plan, make_lane: Callable[[], Lane], *, allow_nonfinite: bool = False) -> tuple[list[bytes], FoldOutcome]:
    """Fold in memory; return the data sections, and the statistics with the geometry."""
    sinks = [Memory(plan.data_bytes) for _ in plan.outputs]
    outcome = fold(plan, sinks, make_lane, allow_nonfinite=allow_nonfinite, measure_geometry=True)
    return [bytes(sink.data) for sink in sinks], outcome


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.filterwarnings("ignore:.*float8")
def test_both_lanes_give_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    """For every element type, several averages at once, many blocks and threads: data and statistics are equal."""
    paths = write_series(tmp_path, random_states(5, dtype))
    options = make_options(
        paths,
        decay=[0.0, 0.5, 0.999],
        output=tmp_path / "ema_{decay}.safetensors",
        threads=2,
        max_memory=2 * 1024 * 96,
    )
    with planned(options) as plan:
        assert plan.buffers.block_elements < 37 * 29
        assert run(plan, torch_lane(plan)) == run(plan, lane_maker("cpu", plan))


def test_both_lanes_fold_mixed_types_alike(tmp_path: Path) -> None:
    """A series of several types, with copied integers among them, is the same on both lanes."""
    dtypes = [torch.float64, torch.float16, torch.float32, torch.bfloat16]
    states = [{"w": torch.randn(999).to(dtype), "n": torch.arange(7)} for dtype in dtypes]
    paths = write_series(tmp_path, states)
    with planned(make_options(paths, method="uniform")) as plan:
        assert run(plan, torch_lane(plan)) == run(plan, lane_maker("cpu", plan))


def test_both_lanes_name_what_is_not_finite(tmp_path: Path) -> None:
    """The search for non-finite inputs runs on the lane's buffers, and finds the same tensor."""
    states = [{"w": torch.ones(100)} for _ in range(5)]
    states[3]["w"][41] = math.inf
    paths = write_series(tmp_path, states)
    with planned(make_options(paths, decay=0.5)) as plan:
        for make_lane in (torch_lane(plan), lane_maker("cpu", plan)):
            with pytest.raises(InputRefused, match=r'ckpt_400.pt" holds inf at index \(41,\)'):
                run(plan, make_lane)


def test_both_lanes_fold_nonfinite_numbers_alike(tmp_path: Path) -> None:
    """Infinities and their differences follow IEEE 754 on both."""
    states = [{"w": torch.tensor([1.0, math.inf, -math.inf])}, {"w": torch.tensor([math.inf, math.inf, math.inf])}]
    paths = write_series(tmp_path, states)
    with planned(make_options(paths, decay=0.5)) as plan:
        found = [run(plan, lane, allow_nonfinite=True)[0][0] for lane in (torch_lane(plan), lane_maker("cpu", plan))]
    values = [np.frombuffer(data, np.float32).tolist() for data in found]
    assert values[0][:2] == values[1][:2] == [math.inf, math.inf]
    assert all(math.isnan(row[2]) for row in values)


def sums_of(lane: Lane, name: str, blocks: list[NDArray[Any]], weights: list[list[float]]) -> list[NDArray[Any]]:
    """Add blocks of raw numbers to a lane; return the bits of its sums, any NaN as the same one."""
    lane.start(len(blocks[0]))
    for values, shares in zip(blocks, weights, strict=True):
        raw = lane.buffer(values.nbytes)
        raw[:] = values.view(np.uint8)
        lane.add(raw, BY_NAME[name], shares)
    return [np.where(np.isnan(total), np.nan, total).view(np.uint64) for total in lane.sums()]


@pytest.mark.parametrize("name", sorted(NUMPY_TYPES))
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_lanes_agree_on_any_numbers(name: str, data: st.DataObject) -> None:
    """Any codes of a type, of odd lengths too, with weights of 1 to 4 averages, zero among them: the same bits.

    NaN, infinities, denormals and the signs of zeros included.
    """
    kind = NUMPY_TYPES[name]
    averages = data.draw(st.integers(1, 4))
    count = data.draw(st.integers(1, 9)) * components(BY_NAME[name])
    codes = st.lists(st.integers(0, 2 ** (8 * kind.itemsize) - 1), min_size=count, max_size=count)
    share = st.one_of(st.just(0.0), st.floats(-1, 2))
    blocks, weights = [], []
    for _ in range(data.draw(st.integers(0, 4))):
        blocks.append(np.array(data.draw(codes), dtype=f"<u{kind.itemsize}").view(kind))
        weights.append([data.draw(share) for _ in range(averages)])
    blocks.append(np.arange(count).astype(kind))
    weights.append([0.25] * averages)  # an average without a weight has no sum
    with np.errstate(over="ignore", invalid="ignore"):
        cpu = sums_of(cpu_lane(block_elements=18, averages=averages), name, blocks, weights)
        gpu = sums_of(TorchLane(DEVICE, block_elements=18, averages=averages), name, blocks, weights)
    np.testing.assert_array_equal(cpu, gpu)


def test_a_missing_gpu_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing device is an error with a hint before anything is read."""
    monkeypatch.setattr("ema_cli.fold.cuda.count_gpus", lambda: 0)
    paths = write_series(tmp_path, random_states(2))
    with planned(make_options(paths, decay=0.5)) as plan, pytest.raises(UsageError, match="finds 0 GPUs") as refused:
        lane_maker("cuda", plan)
    assert refused.value.hint == "use --device cpu"
    with pytest.raises(UsageError, match="--device cuda:3"):
        find_device("cuda:3")


def test_the_gpu_is_the_current_one_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker thread begins with the first GPU as its current one, whatever the caller has chosen."""
    monkeypatch.setattr("ema_cli.fold.cuda.count_gpus", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert find_device("cuda") == torch.device("cuda", 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)


def test_a_model_runs_on_a_gpu_if_torch_finds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver torch is not imported; with a driver but no usable GPU the CPU is used."""
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path / "nothing")
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path)
    for count, device in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr("ema_cli.fold.cuda.count_gpus", lambda count=count: count)
        assert resolve_device("auto") == device
    assert resolve_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("seconds", "gpus", "expected"),
    [
        (1e-9, 1, ("cpu", "arithmetic 0.0 s on the CPU, start and copies 3.0 s on a GPU")),
        (1.0, 1, ("cuda", "arithmetic 8192.0 s on the CPU, start and copies 3.0 s on a GPU")),
        (1.0, 0, ("cpu", "torch finds no GPU")),
    ],
)
def test_auto_takes_a_gpu_only_where_it_pays(
    seconds: float, gpus: int, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic of the CPU decides, for all numbers and threads; the plan says why, and has the right buffers."""
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path)
    monkeypatch.setattr("ema_cli.fold.cuda.count_gpus", lambda: gpus)
    monkeypatch.setattr(break_even, "cpu_seconds_per_number", lambda *_: seconds)
    paths = write_series(tmp_path, [{"w": torch.ones(1 << 12, dtype=torch.complex64)}] * 2)
    with planned(make_options(paths, decay=0.5, device="auto", threads=2)) as plan:
        assert (plan.device, plan.device_reason) == expected
        document = plan_document(plan, ())
        assert (document["device"], document["device_reason"]) == expected


def test_auto_without_a_driver_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the CPU, and the plan says why; a device that was named has no reason."""
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path / "nothing")
    monkeypatch.setattr(break_even, "estimate", lambda _: pytest.fail("measured"))
    paths = write_series(tmp_path, random_states(2))
    for device, reason in (("auto", "no NVIDIA driver"), ("cpu", "")):
        with planned(make_options(paths, decay=0.5, device=device)) as plan:
            assert (plan.device, plan.device_reason) == ("cpu", reason)


def test_the_estimate_is_numbers_times_what_one_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every type of a plan counts with its own time, complex numbers as two; the bytes to copy are those read."""
    times = {"F32": 1.0, "C64": 10.0}
    monkeypatch.setattr(break_even, "cpu_seconds_per_number", lambda name, averages: times[name] * averages)
    monkeypatch.setattr(break_even, "COPY_BYTES_PER_SECOND", 1.0)
    state = {"w": torch.ones(100), "z": torch.ones(7, dtype=torch.complex64), "n": torch.ones(50, dtype=torch.int64)}
    paths = write_series(tmp_path, [state] * 3)
    output = tmp_path / "{decay}.safetensors"
    with planned(make_options(paths, decay=[0.5, 0.9], output=output, threads=1, device="cpu")) as plan:
        found = break_even.estimate(plan)
    assert found.cpu_seconds == 3 * 2 * (100 + 2 * 7 * 10)
    assert found.gpu_seconds == break_even.START_SECONDS + 3 * (4 * 100 + 8 * 7)


@pytest.mark.parametrize("name", sorted(NUMPY_TYPES))
def test_the_arithmetic_of_the_cpu_is_measured(name: str) -> None:
    """For every type; the result is a time."""
    assert break_even.cpu_seconds_per_number(name, 2) > 0
