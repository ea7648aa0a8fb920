"""What the leaves beside and among the weights of a pickle are: trained tensors, numpy arrays, numbers, bytes."""

from __future__ import annotations

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.tree import Tensor
from ema_cli.formats.torch.objects import UnsupportedTensor

EXTRA_STATE = "_extra_state"
"""The name under which ``nn.Module.get_extra_state`` is stored; Transformer Engine keeps its FP8 scales there."""
_ARRAYS = ("_reconstruct", "_frombuffer")
"""The functions that rebuild a numpy array: protocols up to 4, and 5."""


def is_trained(tensor: Tensor) -> bool:
    """Whether a tensor may have been trained: floating-point numbers, and more than one of them."""
    if isinstance(tensor, UnsupportedTensor):
        return True
    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    alone = all(size == 1 for size in tensor.shape)
    return (dtype is None or dtype.averaged) and not alone and 0 not in tensor.shape


def is_numpy_array(value: object) -> bool:
    """Whether a value is a pickled numpy array of floating-point numbers."""
    return _is_of_numpy(value, _ARRAYS)


def is_number(value: object) -> bool:
    """Whether a value is a floating-point number of Python or numpy."""
    return isinstance(value, float) or _is_of_numpy(value, ("scalar",))


def _is_of_numpy(value: object, functions: tuple[str, ...]) -> bool:
    if not isinstance(value, Inert) or not isinstance(value.kind, Global) or value.kind.name not in functions:
        return False
    if value.kind.module.partition(".")[0] != "numpy":
        return False
    state = value.state if isinstance(value.state, tuple) else ()
    return any(_is_float_type(part) for part in (*value.args[:4], *state[:4]))


def _is_float_type(value: object) -> bool:
    """Whether a value is a numpy type of floating-point or complex numbers."""
    match value:
        case Inert(kind=Global(name="dtype"), args=(str(name), *_)):
            return name.lstrip("<>=|")[:1] in ("f", "c")
    return False
