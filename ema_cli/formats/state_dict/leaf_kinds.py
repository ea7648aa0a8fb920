"""What the leaves beside and among the weights of a pickle are: trained tensors, numpy arrays, numbers, bytes."""

from __future__ import annotations

import re

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.tree import Tensor
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.text import regex

EXTRA_STATE = "_extra_state"
"""The name under which ``nn.Module.get_extra_state`` is stored; Transformer Engine keeps its FP8 scales there."""
_ARRAYS = ("_reconstruct", "_frombuffer")
"""The functions that rebuild a numpy array: protocols up to 4, and 5."""
_TRAINED_NUMBERS = regex(
    r"(?:^|[_.])(?:logit_(?:scale|bias)|log_(?:alpha|std|sigma|vars?|temperature|temp|ent_coef))$", re.IGNORECASE
)
"""Single numbers that are trained: of CLIP and SigLIP, of SAC and other policies, of weighted losses."""
_DEEPEST_LIST = 3
_MOST_ENTRIES = 100
"""Entries of a list that are examined."""
_RESULTS = regex(r"loss|err|cost", re.IGNORECASE)
"""Names of results, which some trainers save without detaching them."""


def is_trained(tensor: Tensor) -> bool:
    """Whether a tensor may have been trained: floating-point numbers, and more than one of them."""
    if isinstance(tensor, UnsupportedTensor):
        return True
    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    alone = all(size == 1 for size in tensor.shape)
    return (dtype is None or dtype.averaged) and not alone and 0 not in tensor.shape


def is_trained_number(name: str, tensor: Tensor) -> bool:
    """Whether a single number is trained: it was saved as a parameter, or its name says so."""
    if not isinstance(tensor, TensorRef) or any(size != 1 for size in tensor.shape):
        return False
    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    trained = tensor.requires_grad or _TRAINED_NUMBERS.search(name) is not None
    return dtype is not None and dtype.averaged and trained and _RESULTS.search(name) is None


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor has floating-point numbers in two or more dimensions."""
    return isinstance(tensor, TensorRef) and sum(size > 1 for size in tensor.shape) > 1 and is_trained(tensor)


def is_numpy_array(value: object) -> bool:
    """Whether a value is a pickled numpy array of floating-point numbers."""
    return _is_of_numpy(value, _ARRAYS)


def is_number(value: object) -> bool:
    """Whether a value is a floating-point number of Python or numpy."""
    return isinstance(value, float) or _is_of_numpy(value, ("scalar",))


def is_list_of_numbers(value: object) -> bool:
    """Whether a value is a list, or a list of lists, that begins with floating-point numbers or arrays of them."""
    for _ in range(_DEEPEST_LIST):
        if not isinstance(value, list | tuple) or not value:
            return False
        if any(is_number(entry) or is_numpy_array(entry) for entry in value[:_MOST_ENTRIES]):
            return True
        value = value[0]
    return False


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
