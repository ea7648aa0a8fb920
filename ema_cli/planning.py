"""From an ordered series to the plan: what is read, written and copied, and every reason why it cannot be.

Input -> output: ``Series`` and ``Options`` -> ``Plan``. Tensors are matched by name, never by position. No tensor
data is read; all incompatibilities of all checkpoints are told at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ema_cli import __version__
from ema_cli.caveats import find_caveats
from ema_cli.dtypes import BY_TORCH_NAME, DType, Kind
from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.safetensors import build_header
from ema_cli.matching import Chosen, choose_tensors, refuse_differences
from ema_cli.naming import OUTPUT_FIELDS, fill_output_name, is_batch_norm_statistic
from ema_cli.options import OUR_METADATA, Options
from ema_cli.records import (
    Action,
    Buffers,
    Checkpoint,
    Method,
    Plan,
    PlannedOutput,
    PlannedTensor,
    Series,
    Weighting,
)
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import human_bytes, quoted, shortlist
from ema_cli.weights.choices import describe_choices
from ema_cli.weights.schedules import decay_from_half_life, solve

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
    weightings = [
        Weighting(method=method, weights=solve(method, len(checkpoints)))
        for method in _methods(options, len(checkpoints))
    ]
    layouts = list({id(c.index.layouts): c.index.layouts for c in checkpoints}.values())
    numbers = {id(layout): number for number, layout in enumerate(layouts)}
    chosen = [choose_tensors(layout, options) for layout in layouts]
    layout_numbers = tuple(numbers[id(c.index.layouts)] for c in checkpoints)
    refuse_differences(checkpoints, layout_numbers, chosen)
    tensors = _plan_tensors(checkpoints, layout_numbers, chosen, options)
    used = _used(weightings)
    outputs = [_plan_output(weighting, series, tensors, options) for weighting in weightings]
    _refuse_equal_paths(outputs)
    return Plan(
        series=series,
        outputs=tuple(outputs),
        tensors=tensors,
        layout_numbers=layout_numbers,
        used=used,
        data_bytes=sum(tensor.nbytes for tensor in tensors),
        read_bytes=_read_bytes(tensors, checkpoints, layout_numbers, used),
        buffers=_buffers(tensors, len(weightings), options),
        notices=(*series.notices, *find_caveats(weightings, tensors, chosen)),
    )


def _used(weightings: Sequence[Weighting]) -> tuple[int, ...]:
    """Return the checkpoints with a share in any average, and the last; one without takes no part and is not read."""
    shares = list(zip(*(weighting.weights for weighting in weightings), strict=True))
    return tuple(i for i, of_one in enumerate(shares) if any(of_one) or i == len(shares) - 1)


def _methods(options: Options, checkpoints: int) -> list[Method]:
    if options.method == "uniform":
        return [Method(name="uniform")]
    if options.half_lives:
        return [
            Method(name="ema", decay=decay_from_half_life(half_life), half_life=half_life, init=options.init)
            for half_life in options.half_lives
        ]
    if not options.decays:
        message, hint = describe_choices(checkpoints)
        raise UsageError(message, hint=hint)
    return [Method(name="ema", decay=decay, init=options.init) for decay in options.decays]


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


def _plan_output(
    weighting: Weighting, series: Series, tensors: Sequence[PlannedTensor], options: Options
) -> PlannedOutput:
    layouts = [TensorLayout(name=t.name, dtype=t.dtype, shape=t.shape, strides=None) for t in tensors]
    header, _ = build_header(layouts, _metadata(weighting.method, series, options))
    method = weighting.method
    unnamed = "ema.safetensors" if method.decay is None else "ema_{decay}.safetensors"
    template = str(options.output) if options.output is not None else unnamed
    name = fill_output_name(template, decay=method.decay, half_life=method.half_life)
    unknown = next((field for field in OUTPUT_FIELDS if field in name), None)
    if unknown is not None:
        raise UsageError(f"the output {quoted(name)}: this average has no {unknown}", hint="name it without")
    return PlannedOutput(weighting=weighting, path=Path(name), header=header)


def _metadata(method: Method, series: Series, options: Options) -> dict[str, str]:
    ours: dict[str, object | None] = {
        "version": __version__,
        "method": method.name,
        "decay": None if method.decay is None else repr(method.decay),
        "init": method.init,
        "per": "checkpoint" if method.decay is not None else None,
        "checkpoints": len(series.members),
        "first_step": series.members[0].step.value if series.members[0].step else None,
        "last_step": series.members[-1].step.value if series.members[-1].step else None,
        "options_fingerprint": _options_fingerprint(method, options),
    }
    written = {f"{OUR_METADATA}{key}": str(value) for key, value in ours.items() if value is not None}
    return {**options.metadata, **written, "format": "pt"}


def _options_fingerprint(method: Method, options: Options) -> str:
    """Hash every option that decides the bytes of an output, beside the inputs."""
    deciding = {
        **asdict(method),
        "key": options.key,
        "include": options.include,
        "exclude": options.exclude,
        "strip_prefix": options.strip_prefix,
        "buffers": options.buffers,
        "dtype": options.dtype,
        "allow_nonfinite": options.allow_nonfinite,
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]


def _refuse_equal_paths(outputs: Sequence[PlannedOutput]) -> None:
    paths = [output.path for output in outputs]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"several averages would be written to {quoted(str(twice))}", hint="run them one by one")


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


def _buffers(tensors: Sequence[PlannedTensor], averages: int, options: Options) -> Buffers:
    """Size the blocks: raw bytes, upcast, product, last checkpoint, scratch; rounding; an accumulator per average."""
    per_element = 8 * (5 + 4 + averages)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = options.threads or min(cores, _MOST_THREADS)
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
