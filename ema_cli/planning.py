"""From an ordered series to the plan: what is read, written and copied, and every reason why it cannot be.

Input -> output: ``Series`` and ``Options`` -> ``Plan``. Tensors are matched by name, never by position. No tensor
data is read; all incompatibilities of all checkpoints are told at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ema_cli.caveats import find_caveats
from ema_cli.companions import find_companions
from ema_cli.dtypes import BY_TORCH_NAME, DType, Kind
from ema_cli.errors import InputRefused, UsageError
from ema_cli.files import SideFile
from ema_cli.formats.safetensors import build_header
from ema_cli.matching import Chosen, choose_tensors, refuse_differences
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options import Options
from ema_cli.outputs import plan_outputs
from ema_cli.records import (
    Action,
    Buffers,
    Checkpoint,
    Notice,
    Plan,
    PlannedTensor,
    Role,
    Series,
    Weighting,
)
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import human_bytes, quoted, shortlist
from ema_cli.weighing import weigh

_BLOCK_ELEMENTS = 3 << 16
"""Large enough that calls cost little beside the work, small enough for the caches."""
_BUFFER_BYTES = 32_000_000
"""Of all threads together, unless ``--max-memory`` says otherwise."""
_CUDA_BLOCK = 1 << 22
_CUDA_BUFFER_BYTES = 1_000_000_000
_SMALLEST_BLOCK = 1 << 10
_MOST_THREADS = 4


def make_plan(series: Series, options: Options) -> Plan:
    """Return the plan for averaging ``series``.

    Raises:
        UsageError: no decay was given, or the options leave nothing to do.
        InputRefused: the checkpoints are not checkpoints of one model.

    """
    checkpoints = [member.checkpoint for member in series.members]
    weightings = weigh(series, options)
    layouts = list({id(c.index.layouts): c.index.layouts for c in checkpoints}.values())
    numbers = {id(layout): number for number, layout in enumerate(layouts)}
    chosen = [choose_tensors(layout, options) for layout in layouts]
    layout_numbers = tuple(numbers[id(c.index.layouts)] for c in checkpoints)
    refuse_differences(checkpoints, layout_numbers, chosen)
    fresh = [chosen[number] for number in sorted(_numbers_of_checkpoints(series, layout_numbers))]
    tensors = _plan_tensors(checkpoints, layout_numbers, chosen, options)
    used = _used(weightings)
    carried, remarks = _companions(checkpoints[-1], layout_numbers[-1], tensors, options)
    return Plan(
        series=series,
        outputs=plan_outputs(weightings, series, tensors, options, carried),
        tensors=tensors,
        layout_numbers=layout_numbers,
        used=used,
        data_bytes=sum(tensor.nbytes for tensor in tensors),
        read_bytes=_read_bytes(tensors, checkpoints, layout_numbers, used),
        buffers=_buffers(tensors, len(weightings), len(used), options),
        notices=(*series.notices, *find_caveats(weightings, series.timeline, tensors, fresh), *remarks),
    )


def _companions(
    last: Checkpoint, layout_number: int, tensors: Sequence[PlannedTensor], options: Options
) -> tuple[tuple[SideFile, ...], tuple[Notice, ...]]:
    """Return what an output folder takes over from the folder of the last checkpoint."""
    if options.max_shard_size is None:
        return (), ()
    averaged = [tensor for tensor in tensors if tensor.action is Action.AVERAGED]
    rounded = any(last.index.layouts[t.positions[layout_number]].dtype is not t.dtype for t in averaged)
    return find_companions(last, options.dtype if rounded and options.dtype != "same" else None)


def _numbers_of_checkpoints(series: Series, layout_numbers: Sequence[int]) -> set[int]:
    """Return the layouts of checkpoints; an earlier average may well be stored in another type."""
    numbered = zip(series.members, layout_numbers, strict=True)
    return {number for member, number in numbered if member.role is not Role.AVERAGE}


def _used(weightings: Sequence[Weighting]) -> tuple[int, ...]:
    """Return the checkpoints with a share in any average, and the last; one without takes no part and is not read."""
    shares = list(zip(*(weighting.weights for weighting in weightings), strict=True))
    return tuple(i for i, of_one in enumerate(shares) if any(of_one) or i == len(shares) - 1)


def _plan_tensors(
    checkpoints: Sequence[Checkpoint],
    layout_numbers: Sequence[int],
    chosen: Sequence[Chosen],
    options: Options,
) -> tuple[PlannedTensor, ...]:
    last = len(checkpoints) - 1
    reference = chosen[layout_numbers[last]]
    codes = [quoted(name) for name, (_, layout) in reference.items() if layout.dtype.kind is Kind.CODE]
    if codes:
        raise InputRefused(
            f"scales of a quantized model cannot be averaged: {shortlist(codes)}",
            hint="average the training checkpoints, then quantize; or leave these out with --exclude",
        )
    actions = {name: _action(name, layout, options) for name, (_, layout) in reference.items()}
    sources = {name: 0 if options.buffers == "first" and is_batch_norm_statistic(name) else last for name in reference}
    layouts = [
        TensorLayout(
            name=name,
            dtype=_output_dtype(chosen[layout_numbers[sources[name]]][name][1].dtype, actions[name], options),
            shape=layout.shape,
            strides=None,
        )
        for name, (_, layout) in reference.items()
    ]
    ties = checkpoints[last].ties
    planned = []
    offset = 0
    for layout in build_header(layouts, {})[1]:
        name = layout.name
        tied_to = ties.get(name)
        planned.append(
            PlannedTensor(
                name=name,
                shape=layout.shape,
                elements=layout.elements,
                dtype=layout.dtype,
                action=actions[name],
                positions=tuple(tensors[name][0] for tensors in chosen),
                copied_from=sources[name],
                offset=offset,
                tied_to=tied_to if tied_to in reference else None,
            )
        )
        offset += layout.nbytes
    return tuple(planned)


def _action(name: str, layout: TensorLayout, options: Options) -> Action:
    kept = options.buffers != "average" and is_batch_norm_statistic(name)
    return Action.AVERAGED if layout.dtype.averaged and not kept else Action.COPIED


def _output_dtype(dtype: DType, action: Action, options: Options) -> DType:
    """The type asked for, where there is something to round: copied and complex tensors keep their own."""
    if options.dtype == "same" or action is Action.COPIED or dtype.kind is Kind.COMPLEX:
        return dtype
    return BY_TORCH_NAME[options.dtype]


def _read_bytes(
    tensors: Sequence[PlannedTensor],
    checkpoints: Sequence[Checkpoint],
    layout_numbers: Sequence[int],
    used: Sequence[int],
) -> int:
    total = 0
    for tensor in tensors:
        readers = used if tensor.action is Action.AVERAGED else [tensor.copied_from]
        for i in readers:
            layout = checkpoints[i].index.layouts[tensor.positions[layout_numbers[i]]]
            total += layout.nbytes
    return total


def default_threads() -> int:
    """Return how many threads a fold has unless it is told: the cores, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def _buffers(tensors: Sequence[PlannedTensor], averages: int, checkpoints: int, options: Options) -> Buffers:
    """Size the blocks: raw bytes, upcast, product, last checkpoint, scratch; rounding; an accumulator per average.

    The full geometry holds the block of every checkpoint besides.
    """
    per_element = 8 * (5 + 4 + averages + (checkpoints if options.geometry == "full" else 0))
    threads = options.threads or default_threads()
    block, memory = (_BLOCK_ELEMENTS, _BUFFER_BYTES) if options.device == "cpu" else (_CUDA_BLOCK, _CUDA_BUFFER_BYTES)
    memory = memory if options.max_memory is None else options.max_memory
    largest = max(tensor.elements for tensor in tensors)
    block = max(2, min(block, largest))  # a complex number takes two places
    smallest = min(_SMALLEST_BLOCK, block)
    while threads > 1 and threads * smallest * per_element > memory:
        threads -= 1
    block = min(block, memory // (threads * per_element))
    if block < smallest:
        least = human_bytes(smallest * per_element)
        raise UsageError(f"--max-memory is too little: the buffers need at least {least}")
    return Buffers(threads=threads, block_elements=block, bytes_per_element=per_element)
