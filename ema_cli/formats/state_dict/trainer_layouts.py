"""How trainers lay out a checkpoint: the names of its parts, the state of the training, placeholders for the weights.

Sources: ``deepspeed/runtime/engine.py``, ``deepspeed/utils/zero_to_fp32.py``, ``torch/optim``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from ema_cli.dtypes import BY_TORCH_NAME, Kind
from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.training_names import OF_OPTIMIZERS, is_training_state
from ema_cli.formats.state_dict.tree import Repeated, Tensor, follow, named, parts
from ema_cli.formats.structure import MOST_DIMENSIONS
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.text import plural, quoted

USUAL_NAMES = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "model_state",
)
"""Names of the weights, the most usual first."""
_MOST_MOMENTS = 8
"""Names that are examined for them."""
_WHOLE = "module."
"""Before the names if ``--key .`` takes the weights together with everything beside them."""


def is_parameter(name: str, value: object) -> bool:
    """Whether a tensor beside a model could be a part of it: not a counter, a loss or a random state."""
    scalar = isinstance(value, TensorRef) and value.shape == ()
    return not scalar and not is_training_state(name)


def may_be_weights(name: str, value: object) -> bool:
    """Whether a part of a checkpoint may be weights: not state of the training, and not only counters."""
    if isinstance(value, Tensor | Repeated):
        return isinstance(value, Tensor)
    return not (is_training_state(name) or _only_counts(value) or is_optimizer_state(value))


def is_optimizer_state(value: object) -> bool:
    """Whether a value is the state of an optimizer, whatever its name: ``state`` and ``param_groups``, or moments."""
    members = parts(value)
    if "param_groups" in members:
        return True
    first = next(iter(parts(members.get("state")).values()), None)
    some = next(iter(members.values()), None)
    names = [name for held in (value, first, some) for name in islice(parts(held), _MOST_MOMENTS)]
    return any(isinstance(name, str) and name.rpartition(".")[2] in OF_OPTIMIZERS for name in names)


def _only_counts(value: object) -> bool:
    """Whether all tensors of a mapping are single integers, such as the ``train_state`` of a trainer."""
    counts = False
    for name, member in parts(value).items():
        if not isinstance(name, str):
            continue
        if parts(member) or (isinstance(member, Tensor) and not _is_count(member)):
            return False
        counts = counts or isinstance(member, Tensor)
    return counts


def _is_count(tensor: Tensor) -> bool:
    dtype = BY_TORCH_NAME.get(tensor.dtype_name) if isinstance(tensor, TensorRef) and tensor.shape == () else None
    return dtype is not None and dtype.kind is Kind.INTEGER


def refuse_placeholders(root: object, tensors: Mapping[str, Tensor]) -> None:
    """Raise if the weights are the empty placeholders of DeepSpeed's ZeRO stage 3.

    Stage 3 splits every parameter over all ranks. The weights are flat partitions in the optimizer states of the
    ranks; the model's file has empty tensors, and the true shapes in ``param_shapes``, a list of mappings.

    Args:
        root: the value of the pickle.
        tensors: the weights that were found in it.

    Raises:
        InputRefused: naming the script that joins the weights.

    """
    shapes = follow(root, "param_shapes")
    groups = shapes if isinstance(shapes, list) else [shapes]
    declared = {name: shape for group in groups for name, shape in named(group).items()}
    empty = [
        name
        for name, tensor in tensors.items()
        if _is_empty(tensor) and _has_elements(declared.get(name, declared.get(name.removeprefix(_WHOLE))))
    ]
    if empty:
        raise InputRefused(
            f"holds {plural(len(empty), 'empty placeholder')} instead of weights, such as {quoted(empty[0])}: ZeRO "
            "stage 3 keeps the weights in the optimizer states of all ranks",
            hint="name the folder of the checkpoint, with the files of all ranks; or join the weights first, with "
            "DeepSpeed's script in the folder above: python zero_to_fp32.py . pytorch_model.bin",
        )


def _is_empty(tensor: Tensor) -> bool:
    return isinstance(tensor, TensorRef) and 0 in tensor.shape


def _has_elements(shape: object) -> bool:
    """Whether a shape has elements. A long tuple is not a shape: all names may share it."""
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        return False
    return all(type(size) is int and size for size in shape)
