"""Checkpoints of DeepSpeed's ZeRO stage 3, whose model file holds no weights.

Stage 3 cuts every parameter over all ranks and leaves an empty tensor in its place; the weights are flat partitions in
the optimizer states of all ranks. What a parameter should be stands in ``param_shapes``, a list of mappings.
Source: ``deepspeed/runtime/engine.py`` and ``deepspeed/utils/zero_to_fp32.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import Tensor, follow, named
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.text import plural, quoted

_WHOLE = "module."
"""In front of the names where ``--key .`` takes the weights together with what lies beside them."""
_MOST_DIMENSIONS = 64
_RECOVER = "python zero_to_fp32.py . pytorch_model.bin, in the folder above, where DeepSpeed left that script"


def refuse_placeholders(root: object, tensors: Mapping[str, Tensor]) -> None:
    """Raise if the weights are empty tensors in place of partitioned ones.

    Args:
        root: the value of the pickle.
        tensors: the weights that were found in it.

    Raises:
        InputRefused: naming the script that puts the weights together.

    """
    shapes = follow(root, "param_shapes")
    groups = shapes if isinstance(shapes, list) else [shapes]
    declared = {name: shape for group in groups for name, shape in named(group).items()}
    empty = [
        name
        for name, tensor in tensors.items()
        if _is_empty(tensor) and _holds_something(declared.get(name, declared.get(name.removeprefix(_WHOLE))))
    ]
    if empty:
        raise InputRefused(
            f"holds {plural(len(empty), 'empty placeholder')} instead of weights, such as {quoted(empty[0])}: ZeRO "
            "stage 3 keeps them in the optimizer states of all ranks",
            hint=f"put them together first: {_RECOVER}",
        )


def _is_empty(tensor: Tensor) -> bool:
    return isinstance(tensor, TensorRef) and 0 in tensor.shape


def _holds_something(shape: object) -> bool:
    """Whether a shape is that of a tensor with elements; a long one may be shared by all names, and is none."""
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        return False
    return all(type(size) is int and size for size in shape)
