"""Errors about values: find the element that is not finite, or that does not fit the type of the output.

Called only after a block has failed, so the search may read the inputs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from ema_cli.dtypes import BY_NAME
from ema_cli.errors import InputRefused
from ema_cli.fold.conversion import LARGEST, Bytes, Float64, components, decode, numbers_in
from ema_cli.fold.lanes import Lane
from ema_cli.fold.schedule import Block
from ema_cli.records.plan import Plan, PlannedTensor
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_elements
from ema_cli.text import quoted

_WIDE = ("F32", "BF16", "F64")
"""Types to suggest for a number that is too large for a narrow type, the usual choice first."""


def refuse_nonfinite(plan: Plan, block: Block, extents: Sequence[tuple[int, Located]], lane: Lane) -> NoReturn:
    """Read a block again, checkpoint by checkpoint, and name the first element that is not finite.

    Args:
        plan: of the run.
        block: it has an average that is not finite.
        extents: pairs of checkpoint and extent, in fold order.
        lane: lends its read buffer.

    Raises:
        InputRefused: always.

    """
    tensor = plan.tensors[block.number]
    for i, extent in extents:
        dtype = extent.layout.dtype
        raw = lane.buffer(block.count * dtype.itemsize)
        read_elements(extent, block.start, raw)
        values = numbers_in(raw, dtype)
        nonfinite = np.flatnonzero(~np.isfinite(values))
        if len(nonfinite):
            where = _place(tensor, block.start + int(nonfinite[0]) // components(dtype))
            raise InputRefused(
                f"tensor {quoted(tensor.name)} of {quoted(str(plan.checkpoints[i].path))} holds "
                f"{values[nonfinite[0]]}{where}",
                hint="average without that checkpoint, --exclude the tensor, or accept it with --allow-nonfinite",
            )
    raise InputRefused(f"tensor {quoted(tensor.name)} is too large to be averaged in float64")


def refuse_nonfinite_piece(plan: Plan, tensor: PlannedTensor, i: int) -> NoReturn:
    """Raise because a piece of a concatenated tensor is not finite; ``i`` is its checkpoint.

    Raises:
        InputRefused: always.

    """
    raise InputRefused(
        f"tensor {quoted(tensor.name)} of {quoted(str(plan.checkpoints[i].path))} holds NaN or infinity",
        hint="average without that checkpoint",
    )


def refuse_overflow(tensor: PlannedTensor, values: Float64, rounded: Bytes) -> None:
    """Raise if a finite average became infinite in the type of the output.

    Args:
        tensor: that is averaged.
        values: (block,) float64, the average.
        rounded: the same in the type of the output.

    Raises:
        InputRefused: a finite value became infinite.

    """
    written = np.empty_like(values)
    decode(rounded, tensor.dtype, written)
    overflowed = np.flatnonzero(np.isfinite(values) & ~np.isfinite(written))
    if len(overflowed):
        value = values[overflowed[0]]
        wider = [name for name in _WIDE if abs(value) <= LARGEST[name]]
        raise InputRefused(
            f"tensor {quoted(tensor.name)}: {value:g} is too large for {tensor.dtype.torch_name} "
            f"(largest number: {LARGEST[tensor.dtype.name]:g})",
            hint=", or ".join(f"--dtype {BY_NAME[name].torch_name}" for name in wider),
        )


def _place(tensor: PlannedTensor, flat: int) -> str:
    """Return where an element is, in words; nothing for a scalar, which has no index."""
    return f" at index {tuple(int(i) for i in np.unravel_index(flat, tensor.shape))}" if tensor.shape else ""
