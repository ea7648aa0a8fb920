"""Integers that change from checkpoint to checkpoint may be codes of a quantizer: copying those of the last is wrong.

Compared are a sample of each tensor, in the last checkpoint and in all others, or some of them if there are many. Not
compared: single numbers, which are counters, and the bytes of ``get_extra_state``, which belong to the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ema_cli.dtypes import Kind
from ema_cli.errors import RunWarning
from ema_cli.evidence.pieces import is_remote
from ema_cli.records.plan import Action, Plan, PlannedTensor
from ema_cli.storage.strided_read import read_block
from ema_cli.text import plural, quoted, safe_text, shortlist

_PIECE_BYTES = 1 << 14
_MOST_PIECES = 4
"""Of one tensor."""
_BUDGET = 256
"""Pieces that are read of one checkpoint on a disk; the largest tensors come first."""
_REMOTE_BUDGET = 2
"""Pieces that are read of one checkpoint in a store."""
_MOST_READS = 8
"""Checkpoints that are compared where the budget is used up; more where it is not."""


def warn_of_integers(plan: Plan) -> list[RunWarning]:
    """Return a warning if copied integers or bools differ between the checkpoints.

    Raises:
        InputChanged: a checkpoint cannot be read.

    """
    differing: list[PlannedTensor] = []
    alike: list[PlannedTensor] = []
    for tensor in plan.tensors:
        if _may_be_codes(tensor) and len(_holders(plan, tensor)) > 1:
            (differing if _differs_in_layout(plan, tensor) else alike).append(tensor)
    differing += _differing_in_sample(plan, sorted(alike, key=lambda tensor: -tensor.elements))
    if not differing:
        return []
    named = (f"{quoted(tensor.name)} ({safe_text(tensor.dtype.torch_name)} {tensor.shape})" for tensor in differing)
    return [
        RunWarning(
            code="integers-differ",
            message=f"{plural(len(differing), 'tensor')} of integers or bools changed from checkpoint to checkpoint; "
            f"the output has the values of the last: {shortlist(named)}",
            hint="codes of quantized weights do not fit averaged scales: average first, then quantize; counters and "
            "caches are rightly copied",
        )
    ]


def _may_be_codes(tensor: PlannedTensor) -> bool:
    is_whole = tensor.action is Action.COPIED and tensor.dtype.kind in (Kind.INTEGER, Kind.BOOL)
    if not is_whole or tensor.elements <= 1 or tensor.tied_to is not None:
        return False
    from ema_cli.formats.state_dict.leaf_kinds import EXTRA_STATE  # noqa: PLC0415 - few models have such tensors

    return tensor.name.rpartition(".")[2] != EXTRA_STATE


def _holders(plan: Plan, tensor: PlannedTensor) -> list[int]:
    """Return the checkpoints in use that have a tensor."""
    return [i for i in plan.used if tensor.positions[plan.layout_numbers[i]] >= 0]


def _differs_in_layout(plan: Plan, tensor: PlannedTensor) -> bool:
    layouts = {plan.layout_numbers[i]: plan.layout(tensor, i) for i in _holders(plan, tensor)}
    return len({(layout.shape, layout.dtype) for layout in layouts.values()}) > 1


def _differing_in_sample(plan: Plan, tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """Return the tensors that differ in the sample, as far as the budget goes."""
    budget, most = (_REMOTE_BUDGET, 1) if is_remote(plan, plan.used) else (_BUDGET, _MOST_PIECES)
    chosen: list[tuple[PlannedTensor, list[tuple[int, int]]]] = []
    needed = 0
    for tensor in tensors:
        pieces = list(_pieces(tensor, most))
        if needed + len(pieces) > budget:
            break
        needed += len(pieces)
        chosen.append((tensor, pieces))
    count = _MOST_READS * budget // max(needed, 1)
    return [tensor for tensor, pieces in chosen if _differs(plan, tensor, pieces, count)]


def _differs(plan: Plan, tensor: PlannedTensor, pieces: Sequence[tuple[int, int]], count: int) -> bool:
    """Whether pieces of a tensor differ between the checkpoint that is copied and ``count`` others, evenly spaced."""
    others = [i for i in _holders(plan, tensor) if i != tensor.copied_from]
    count = min(count, len(others))
    some = {others[(len(others) - 1) * number // max(count - 1, 1)] for number in range(count)}
    copied = plan.extent(tensor, tensor.copied_from)
    wanted = [read_block(copied, *piece).tobytes() for piece in pieces]
    return any(
        read_block(plan.extent(tensor, i), *piece).tobytes() != bytes_of_last
        for i in sorted(some)
        for piece, bytes_of_last in zip(pieces, wanted, strict=True)
    )


def _pieces(tensor: PlannedTensor, most: int) -> Iterator[tuple[int, int]]:
    """Yield the first element and the number of elements of each piece: all of a small tensor, else evenly spaced."""
    size, elements = tensor.dtype.itemsize, tensor.elements
    if elements * size <= _PIECE_BYTES * most:
        yield 0, elements
        return
    count = _PIECE_BYTES // size
    for number in range(most):
        yield (elements - count) * number // max(most - 1, 1), count
