"""From an ordered series to the plan: the weights of each average, and what is read, averaged, copied and written.

Input -> output: ``Series`` and ``Options`` -> ``Plan``. Tensors are matched by name, never by position. No tensor
data is read; all incompatibilities of all checkpoints are reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ema_cli.errors import RunWarning, UsageError
from ema_cli.options.average import Options
from ema_cli.planning.matching import choose_tensors, match_tensors
from ema_cli.planning.outputs import plan_outputs
from ema_cli.planning.refusals import refuse_quantized, refuse_unreadable
from ema_cli.planning.side_files import plan_side_files
from ema_cli.planning.tensors import plan_tensors
from ema_cli.planning.ties import DroppedTies, drop_ties
from ema_cli.planning.unused_patterns import warn_of_unused_patterns
from ema_cli.planning.warnings import warn_of_chosen_weights, warn_of_plan, warn_of_unmatched
from ema_cli.records.files import SideFile
from ema_cli.records.garbage import without_collections
from ema_cli.records.plan import LARGEST_RUN, ROW_ELEMENTS, Buffers, Plan, PlannedTensor
from ema_cli.records.series import Continuation, Role, Series
from ema_cli.text import human_bytes
from ema_cli.weights.choices import describe_choices
from ema_cli.weights.methods import Method, Weighting
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline

if TYPE_CHECKING:
    from ema_cli.planning.lora_exact import ExactUpdates

_BLOCK_ELEMENTS = 3 << 16
"""Large enough that the calls cost little, small enough for the caches."""
_BUFFER_BYTES = 32_000_000
"""Of all threads together, unless ``--max-memory`` is given."""
_CUDA_BLOCK = 1 << 20
"""Large enough for the bus and for the calls of torch; larger blocks cost the host more and pin more memory."""
_CUDA_BUFFER_BYTES = 500_000_000
_MOST_THREADS = 8


@without_collections()
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
    dropped = DroppedTies(replaced_by={})
    if options.tied == "drop":
        dropped = drop_ties([checkpoints[i] for i in used], [chosen[layout_numbers[i]] for i in used])
    chosen = [{name: tensor for name, tensor in c.items() if name not in dropped.replaced_by} for c in chosen]
    lacked = series.continuation.lacking if series.continuation else ()
    exact = None
    if options.lora == "exact":
        from ema_cli.planning.lora_exact import ExactUpdates  # noqa: PLC0415 - few checkpoints have LoRA updates

        exact = ExactUpdates(checkpoints, [chosen[number] for number in layout_numbers], weightings)
    matched = match_tensors(checkpoints, layout_numbers, chosen, options, lacked, joined=exact.axes if exact else {})
    joined = exact.tensors if exact else {}
    tensors = plan_tensors(checkpoints, layout_numbers, matched, dropped.replaced_by, options, joined=joined)
    side_files, side_file_warnings = plan_side_files(checkpoints[-1], options, _configs(exact) if exact else {})
    outputs = plan_outputs(weightings, series, tensors, options, side_files=side_files, lacking=matched.lacking)
    # A previous average may be stored in another type, which is no reason to warn.
    members = zip(series.members, layout_numbers, strict=True)
    of_checkpoints = sorted({number for member, number in members if member.role is not Role.AVERAGE})
    return Plan(
        series=series,
        outputs=outputs,
        tensors=tensors,
        layout_numbers=layout_numbers,
        used=used,
        data_bytes=sum(tensor.nbytes for tensor in tensors),
        buffers=_buffers(tensors, len(weightings), options),
        device=_device(options),
        warnings=(
            *series.warnings,
            *warn_of_chosen_weights(checkpoints),
            *warn_of_unused_patterns(checkpoints, options),
            *warn_of_unmatched(matched, dropped),
            *warn_of_plan(weightings, series.timeline, tensors, [chosen[i] for i in of_checkpoints], options),
            *side_file_warnings,
            *(outputs[0].placement.warnings if outputs[0].placement else ()),
            *(_warn_of_scale(exact, side_files, options) if exact else ()),
        ),
    )


def _configs(exact: ExactUpdates) -> dict[str, bytes]:
    """Return the configuration of joined LoRA updates by its name, if the checkpoints have one."""
    from ema_cli.formats.huggingface.adapter_config import ADAPTER_CONFIG  # noqa: PLC0415 - as above
    from ema_cli.planning.lora_config import joined_config  # noqa: PLC0415

    return {ADAPTER_CONFIG: joined_config(exact.config, exact.updates)} if exact.config else {}


def _warn_of_scale(exact: ExactUpdates, side_files: Sequence[SideFile], options: Options) -> Iterator[RunWarning]:
    from ema_cli.planning.lora_config import warn_of_scale  # noqa: PLC0415 - as above

    return warn_of_scale(exact, side_files, folder=options.max_shard_size is not None)


def weigh(series: Series, options: Options) -> list[Weighting]:
    """Return the weights of every average that ``options`` ask for, in their order.

    Raises:
        UsageError: no decay was given, or a method does not fit the checkpoints.

    """
    timeline = series.timeline
    if series.continuation is not None:
        return [_weigh_continuation(series.continuation, timeline)]
    if options.lacks_decay:
        message, hint = describe_choices(timeline, options.method_names, options.per)
        raise UsageError(message, hint=hint)
    weightings = []
    for method in options.expand():
        _refuse_epochs(method, series, options)
        shares = solve(method, timeline)
        weightings.append(Weighting(method=method, weights=shares, shares=shares))
    return weightings


def _weigh_continuation(continuation: Continuation, timeline: Timeline) -> Weighting:
    """Return the factors of the previous average and its last checkpoint, then the shares of the new checkpoints."""
    shares = solve(continuation.method, timeline)
    inside = (continuation.scale, continuation.last_factor) if continuation.last_factor else (continuation.scale,)
    return Weighting(method=continuation.method, weights=(*inside, *shares[len(continuation.folded) :]), shares=shares)


def _refuse_epochs(method: Method, series: Series, options: Options) -> None:
    """Refuse a decay per step for checkpoints numbered in epochs, unless the user says that it is per epoch."""
    units = {member.step.unit for member in series.members if member.step}
    if method.uses_steps and method.decay is not None and units == {"epoch"} and options.clock is None:
        raise UsageError(
            f"{method.label} is per step, but the checkpoints are numbered in epochs",
            hint="--clock epochs if the decay is per epoch; otherwise give the steps with --steps",
        )


def _used(weightings: Sequence[Weighting]) -> tuple[int, ...]:
    """Return the checkpoints with a share in any average, and the last; the others are not read."""
    shares = list(zip(*(weighting.weights for weighting in weightings), strict=True))
    return tuple(i for i, of_checkpoint in enumerate(shares) if any(of_checkpoint) or i == len(shares) - 1)


def default_threads() -> int:
    """Return the default number of threads of a fold: the cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def _device(options: Options) -> str:
    """Return the device to plan for; ``auto`` is decided when the plan is made, which is for the CPU then."""
    return "cpu" if options.device == "auto" else options.device


def _buffers(tensors: Sequence[PlannedTensor], averages: int, options: Options) -> Buffers:
    """Size the blocks: a sum per average, and what numpy needs besides, or the kernel.

    numpy: raw bytes, upcast, product, two of concatenated pieces, four to round. The kernel: every rounded average. A
    GPU lane, on the host: three raw buffers, two of concatenated pieces, four to round.
    """
    per_element = 8 * (averages + max(9, averages + 1))
    threads = options.threads or default_threads()
    block, memory = (_BLOCK_ELEMENTS, _BUFFER_BYTES) if _device(options) == "cpu" else (_CUDA_BLOCK, _CUDA_BUFFER_BYTES)
    memory = memory if options.max_memory is None else options.max_memory
    sizes = [tensor.elements for tensor in tensors]
    largest = max(*sizes, min(sum(sizes), LARGEST_RUN))
    block = max(2, min(block, largest))  # a complex number takes two elements
    smallest = min(ROW_ELEMENTS, block)
    block += -block % smallest
    while threads > 1 and threads * smallest * per_element > memory:
        threads -= 1
    block = min(block, memory // (threads * per_element))
    block -= block % smallest
    if block < smallest:
        least = human_bytes(smallest * per_element)
        raise UsageError(f"--max-memory is too small: the buffers need at least {least}")
    return Buffers(threads=threads, block_elements=block, bytes_per_element=per_element)
