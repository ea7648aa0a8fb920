"""When a GPU pays: ``--device auto``.

The GPU lane reads, checks, rounds and writes on the host, as the CPU lane does. It takes over the arithmetic alone,
and pays if that takes longer on the CPU than torch takes to start and the bytes take to the device.

``scripts/gpu_check`` measures both constants on a machine with a GPU, and compares this rule with whole runs.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import cache

from ema_cli.dtypes import BY_NAME
from ema_cli.fold.conversion import components
from ema_cli.fold.lanes import cpu_lane
from ema_cli.records.plan import Action, Plan

START_SECONDS = 3.0
"""What a run on the GPU takes to start: torch 1.5 s on the development machine, and an allowance for CUDA's libraries,
its context and the pinned buffers, which nobody has measured yet."""
COPY_BYTES_PER_SECOND = 12e9
"""From pinned memory to the device: the least of the GPUs in use, PCI Express 3.0 with 16 lanes."""
_TRIAL_NUMBERS = 1 << 16
_TRIAL_BLOCKS = 8
_TRIALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The time that the GPU would take over, and the time that it would cost."""

    cpu_seconds: float
    """Of the arithmetic on the CPU, by all threads together."""
    gpu_seconds: float

    @property
    def gpu_pays(self) -> bool:
        """Whether the run is shorter on a GPU."""
        return self.cpu_seconds > self.gpu_seconds

    def __str__(self) -> str:
        return f"arithmetic {self.cpu_seconds:.1f} s on the CPU, start and copies {self.gpu_seconds:.1f} s on a GPU"


def estimate(plan: Plan) -> BreakEven:
    """Return the times of a plan made for the CPU: its numbers times what one takes, measured here in milliseconds."""
    numbers = Counter[str]()
    for tensor in plan.tensors:
        if tensor.action is Action.AVERAGED:
            readers = plan.readers(tensor)
            numbers[plan.layout(tensor, readers[-1]).dtype.name] += tensor.elements * len(readers)
    of_each = [
        count * components(BY_NAME[name]) * cpu_seconds_per_number(name, len(plan.outputs))
        for name, count in numbers.items()
    ]
    copied_bytes = sum(count * BY_NAME[name].itemsize for name, count in numbers.items())
    return BreakEven(
        cpu_seconds=sum(of_each) / plan.buffers.threads,
        gpu_seconds=START_SECONDS + copied_bytes / COPY_BYTES_PER_SECOND,
    )


@cache
def cpu_seconds_per_number(name: str, averages: int) -> float:
    """Return the processor time that the CPU lane takes per number of a type: the least of a few trials."""
    lane = cpu_lane(block_elements=_TRIAL_NUMBERS, averages=averages)
    dtype = BY_NAME[name]
    nbytes = _TRIAL_NUMBERS // components(dtype) * dtype.itemsize
    taken = []
    for trial in range(1 + _TRIALS):
        started = time.thread_time()
        lane.start(_TRIAL_NUMBERS)
        for _ in range(_TRIAL_BLOCKS):
            raw = lane.buffer(nbytes)
            if trial == 0:
                raw.fill(0)  # what is in new memory may be slow to compute with
            lane.add(raw, dtype, [1 / averages] * averages)
        lane.sums()
        taken.append(time.thread_time() - started)
    return min(taken) / (_TRIAL_BLOCKS * _TRIAL_NUMBERS)
