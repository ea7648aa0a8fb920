"""The tensors of the output: averaged or copied, from which checkpoint, in which type, at which offset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from ema_cli.dtypes import BY_TORCH_NAME, DType, Kind
from ema_cli.formats.safetensors import rank
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options.average import Options
from ema_cli.planning.matching import Matched, why_copied
from ema_cli.planning.refusals import refuse_scales
from ema_cli.records.plan import Action, PlannedTensor
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import TensorLayout

if TYPE_CHECKING:
    from ema_cli.planning.lora_exact import JoinedTensor

_ALPHA = "alpha of a LoRA update, which grows with the rank"


def plan_tensors(
    checkpoints: Sequence[Checkpoint],
    layout_numbers: Sequence[int],
    matched: Matched,
    replaced_by: Mapping[str, str],
    options: Options,
    *,
    joined: Mapping[str, JoinedTensor] = MappingProxyType({}),
) -> tuple[PlannedTensor, ...]:
    """Return the tensors of the output, in the order of its data section.

    ``layout_numbers`` has the layout of each checkpoint; ``replaced_by`` the name that is written, by each tied name
    that is not written; ``joined`` how factors of LoRA updates are written (``--lora exact``).

    Raises:
        InputRefused: a tensor is of a type that is only used for scales.

    """
    last = len(checkpoints) - 1
    reference = matched.tensors[layout_numbers[last]]
    refuse_scales((name, layout.dtype) for name, (_, layout) in reference.items())
    reasons = {name: _why_copied(name, layout, matched, options) for name, (_, layout) in reference.items()}
    reasons |= {name: _ALPHA if tensor.action is Action.SCALED else "" for name, tensor in joined.items()}
    first = matched.tensors[layout_numbers[0]]
    from_first = {name for name in first if is_batch_norm_statistic(name)} if options.buffers == "first" else set()
    read = {name: first[name][1] if name in from_first else layout for name, (_, layout) in reference.items()}
    dtypes = {name: _output_dtype(layout.dtype, reasons[name], options) for name, layout in read.items()}
    ties = checkpoints[last].ties
    stands_for: dict[str, list[str]] = {}
    for name, kept in sorted(replaced_by.items()):
        stands_for.setdefault(kept, []).append(name)
    planned = []
    offset = 0
    for name in sorted(read, key=lambda name: rank(name, dtypes[name])):
        dtype, tied_to = dtypes[name], ties.get(name)
        shape = joined[name].shape if name in joined else read[name].shape
        tensor = PlannedTensor(
            name=name,
            shape=shape,
            elements=math.prod(shape),
            dtype=dtype,
            action=_action(reasons[name], joined.get(name)),
            pieces=joined[name].pieces if name in joined else None,
            why_copied=reasons[name],
            positions=tuple([found[name][0] if name in found else -1 for found in matched.tensors]),
            copied_from=0 if name in from_first else last,
            offset=offset,
            tied_to=tied_to if tied_to in reference else None,
            stands_for=tuple(stands_for.get(name, ())),
        )
        planned.append(tensor)
        offset += tensor.nbytes
    return tuple(planned)


def _action(why_copied: str, joined: JoinedTensor | None) -> Action:
    if joined is not None:
        return joined.action
    return Action.COPIED if why_copied else Action.AVERAGED


def _why_copied(name: str, layout: TensorLayout, matched: Matched, options: Options) -> str:
    """Return why a tensor is copied, for people; empty if it is averaged."""
    reason = why_copied(name, layout.dtype, options)
    return reason or ("not in every checkpoint" if name in matched.lacking else "")


def _output_dtype(dtype: DType, why_copied: str, options: Options) -> DType:
    """Return the requested type; copied and complex tensors keep their own."""
    if options.dtype == "same" or why_copied or dtype.kind is Kind.COMPLEX:
        return dtype
    return BY_TORCH_NAME[options.dtype]
