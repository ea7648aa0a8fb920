"""The memory of a tensor: an array of numpy or a tensor of torch that owns it, and its bytes for the fold to fill."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import ml_dtypes  # noqa: F401 - so that numpy knows bfloat16 and the 8-bit types by name
import numpy as np

from ema_cli.errors import UsageError
from ema_cli.fold.conversion import Bytes
from ema_cli.record import record
from ema_cli.records.plan import PlannedTensor
from ema_cli.text import quoted

Framework = Literal["np", "pt"]
"""numpy or torch, in the words of ``safetensors.safe_open``."""


@record
class Filled:
    """The memory of one tensor."""

    array: Any
    """A ``numpy.ndarray`` or a ``torch.Tensor`` in host memory, contiguous, with the shape and type of the output."""
    raw: Bytes
    """The same memory as bytes."""

    def equals(self, other: Filled) -> bool:
        """Whether two tensors have the same type, shape and bytes."""
        same_form = (self.array.dtype, self.array.shape) == (other.array.dtype, other.array.shape)
        return self is other or (same_form and np.array_equal(self.raw, other.raw))


def memory_maker(framework: Framework) -> Callable[[PlannedTensor], Filled]:
    """Return a function that allocates the memory of a tensor; torch is imported only if it is asked for.

    Raises:
        UsageError: there is no such framework, or torch is not installed.

    """
    if framework not in get_args(Framework):
        known = " or ".join(f'framework="{known}"' for known in get_args(Framework))
        raise UsageError(f"framework={quoted(str(framework))} is not known", hint=known)
    if framework == "pt" and find_spec("torch") is None:
        raise UsageError(
            "tensors of torch need torch, which is not installed", hint='pip install torch; or framework="np"'
        )
    return _of_numpy if framework == "np" else _of_torch()


def _of_numpy(tensor: PlannedTensor) -> Filled:
    array = np.empty(tensor.shape, dtype=np.dtype(tensor.dtype.torch_name))
    return Filled(array=array, raw=array.reshape(-1).view(np.uint8))


def _of_torch() -> Callable[[PlannedTensor], Filled]:
    import torch  # noqa: PLC0415 - takes seconds

    def make(tensor: PlannedTensor) -> Filled:
        array = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.torch_name), device="cpu")
        return Filled(array=array, raw=array.reshape(-1).view(torch.uint8).numpy())

    return make
