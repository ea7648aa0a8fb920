"""From an ordered series to the plan: what is read, written and copied, and every reason why it cannot be.

Input -> output: ``Series`` and ``Options`` -> ``Plan``. Tensors are matched by name, never by position. No tensor
data is read; all incompatibilities of all checkpoints are told at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ema_cli.errors import RunWarning, UsageError
from ema_cli.options.average import Options
from ema_cli.planning.matching import Chosen, choose_tensors, match_tensors
from ema_cli.planning.outputs import plan_outputs
from ema_cli.planning.refusals import refuse_quantized, refuse_unreadable
from ema_cli.planning.side_files import find_companions
from ema_cli.planning.tensors import count_read_bytes, plan_tensors
from ema_cli.planning.ties import DroppedTies, drop_ties
from ema_cli.planning.warnings import find_caveats, tell_choices, tell_unmatched
from ema_cli.planning.weighing import weigh
from ema_cli.records.files import SideFile
from ema_cli.records.plan import ROW_ELEMENTS, Buffers, Plan, PlannedTensor
from ema_cli.records.series import Checkpoint, Role, Series
from ema_cli.text import human_bytes
from ema_cli.weights.methods import Weighting

_BLOCK_ELEMENTS = 3 << 16
"""Large enough that calls cost little beside the work, small enough for the caches."""
_BUFFER_BYTES = 32_000_000
"""Of all threads together, unless ``--max-memory`` says otherwise."""
_CUDA_BLOCK = 1 << 22
_CUDA_BUFFER_BYTES = 1_000_000_000
_MOST_THREADS = 4


def make_plan(series: Series, options: Options) -> Plan:
    """Return the plan for averaging ``series``.

    Raises:
        UsageError: no decay was given, or the options leave nothing to do.
        InputRefused: the checkpoints are not checkpoints of one model.

    """
    checkpoints = [member.checkpoint for member in series.members]
    weightings = weigh(series, options)
    refuse_unreadable(checkpoints, options)
    refuse_quantized(checkpoints, options)
    layouts = list({id(c.index.layouts): c.index.layouts for c in checkpoints}.values())
    numbers = {id(layout): number for number, layout in enumerate(layouts)}
    chosen = [choose_tensors(layout, options) for layout in layouts]
    layout_numbers = tuple(numbers[id(c.index.layouts)] for c in checkpoints)
    used = _used(weightings)
    dropped = _drop_ties(checkpoints, layout_numbers, chosen, used, options)
    chosen = [{name: one for name, one in c.items() if name not in dropped.kept_for} for c in chosen]
    lacked = series.continuation.lacking if series.continuation else ()
    matched = match_tensors(checkpoints, layout_numbers, chosen, options, lacked)
    fresh = [chosen[number] for number in sorted(_numbers_of_checkpoints(series, layout_numbers))]
    tensors = plan_tensors(checkpoints, layout_numbers, matched, dropped.kept_for, options)
    carried, remarks = _companions(checkpoints[-1], options)
    return Plan(
        series=series,
        outputs=plan_outputs(weightings, series, tensors, options, carried=carried, lacking=matched.lacking),
        tensors=tensors,
        layout_numbers=layout_numbers,
        used=used,
        data_bytes=sum(tensor.nbytes for tensor in tensors),
        read_bytes=count_read_bytes(tensors, checkpoints, layout_numbers, used),
        buffers=_buffers(tensors, len(weightings), options),
        warnings=(
            *series.warnings,
            *tell_choices(checkpoints),
            *tell_unmatched(matched, dropped),
            *find_caveats(weightings, series.timeline, tensors, fresh),
            *remarks,
        ),
    )


def _drop_ties(
    checkpoints: Sequence[Checkpoint],
    layout_numbers: Sequence[int],
    chosen: Sequence[Chosen],
    used: Sequence[int],
    options: Options,
) -> DroppedTies:
    """Return the names of tied tensors that are not written: none unless ``--tied drop`` was given."""
    if options.tied == "keep":
        return DroppedTies(kept_for={})
    return drop_ties([checkpoints[i] for i in used], [chosen[layout_numbers[i]] for i in used])


def _companions(last: Checkpoint, options: Options) -> tuple[tuple[SideFile, ...], tuple[RunWarning, ...]]:
    """Return what an output folder takes over from the folder of the last checkpoint."""
    if options.max_shard_size is None:
        return (), ()
    return find_companions(last, None if options.dtype == "same" else options.dtype)


def _numbers_of_checkpoints(series: Series, layout_numbers: Sequence[int]) -> set[int]:
    """Return the layouts of checkpoints; an earlier average may well be stored in another type."""
    numbered = zip(series.members, layout_numbers, strict=True)
    return {number for member, number in numbered if member.role is not Role.AVERAGE}


def _used(weightings: Sequence[Weighting]) -> tuple[int, ...]:
    """Return the checkpoints with a share in any average, and the last; one without takes no part and is not read."""
    shares = list(zip(*(weighting.weights for weighting in weightings), strict=True))
    return tuple(i for i, of_one in enumerate(shares) if any(of_one) or i == len(shares) - 1)


def default_threads() -> int:
    """Return how many threads a fold has unless it is told: the cores, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def _buffers(tensors: Sequence[PlannedTensor], averages: int, options: Options) -> Buffers:
    """Size the blocks: raw bytes, upcast, product, last checkpoint, scratch; rounding; an accumulator per average."""
    per_element = 8 * (5 + 4 + averages)
    threads = options.threads or default_threads()
    block, memory = (_BLOCK_ELEMENTS, _BUFFER_BYTES) if options.device == "cpu" else (_CUDA_BLOCK, _CUDA_BUFFER_BYTES)
    memory = memory if options.max_memory is None else options.max_memory
    largest = max(tensor.elements for tensor in tensors)
    block = max(2, min(block, largest))  # a complex number takes two places
    smallest = min(ROW_ELEMENTS, block)
    block += -block % smallest
    while threads > 1 and threads * smallest * per_element > memory:
        threads -= 1
    block = min(block, memory // (threads * per_element))
    block -= block % smallest
    if block < smallest:
        least = human_bytes(smallest * per_element)
        raise UsageError(f"--max-memory is too little: the buffers need at least {least}")
    return Buffers(threads=threads, block_elements=block, bytes_per_element=per_element)
