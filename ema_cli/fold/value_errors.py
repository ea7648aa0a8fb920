"""What is looked for only when a block has gone wrong: which input is not finite, what does not fit its type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import ml_dtypes
import numpy as np

from ema_cli.dtypes import BY_NAME, DTYPES
from ema_cli.errors import InputRefused
from ema_cli.fold.decode import NUMPY, Bytes, Float64, components, decode
from ema_cli.fold.lane import Lane
from ema_cli.fold.schedule import Block
from ema_cli.records.plan import Plan, PlannedTensor
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_elements
from ema_cli.text import quoted

LARGEST = {dtype.name: float(ml_dtypes.finfo(NUMPY[dtype.name]).max) for dtype in DTYPES if dtype.averaged}
"""The largest finite number of each averaged type."""
_WIDE = ("F32", "BF16", "F64")
"""Types for what is too large for a narrow one, the usual choice first."""


def refuse_nonfinite(plan: Plan, block: Block, extents: Sequence[tuple[int, Located]], lane: Lane) -> NoReturn:
    """Read the block again, checkpoint by checkpoint, and name the first element that is not finite."""
    tensor = plan.tensors[block.number]
    for i, extent in extents:
        dtype = extent.layout.dtype
        raw = lane.buffer(block.count * dtype.itemsize)
        read_elements(extent, block.start, raw)
        values = np.empty(block.count * components(dtype))
        decode(raw, dtype, values)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            place = _index(tensor, block.start + int(wrong[0]) // components(dtype))
            raise InputRefused(
                f"tensor {quoted(tensor.name)} of {quoted(str(plan.checkpoints[i].path))} holds {values[wrong[0]]} "
                f"at index {place}",
                hint="leave that checkpoint out; or --exclude the tensor; or fold it all the same: --allow-nonfinite",
            )
    raise InputRefused(f"tensor {quoted(tensor.name)} is too large to be averaged in float64")


def refuse_overflow(tensor: PlannedTensor, values: Float64, rounded: Bytes) -> None:
    """Raise if a finite average became infinite in the output's type."""
    written = np.empty_like(values)
    decode(rounded, tensor.dtype, written)
    wrong = np.flatnonzero(np.isfinite(values) & ~np.isfinite(written))
    if len(wrong):
        wider = [name for name in _WIDE if abs(values[wrong[0]]) <= LARGEST[name]]
        raise InputRefused(
            f"tensor {quoted(tensor.name)}: {values[wrong[0]]:g} is too large for {tensor.dtype.torch_name}, "
            f"whose largest number is {LARGEST[tensor.dtype.name]:g}",
            hint=", or ".join(f"--dtype {BY_NAME[name].torch_name}" for name in wider),
        )


def _index(tensor: PlannedTensor, flat: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, tensor.shape)) if tensor.shape else ()
