"""How trainers lay out a checkpoint: the names of its parts, averages of the weights, placeholders for the weights.

Sources: ``lightning/pytorch/callbacks/weight_averaging.py``, ``torch/optim/swa_utils.py``,
``deepspeed/runtime/engine.py``, ``deepspeed/utils/zero_to_fp32.py``; timm, ultralytics and others keep their averages
under names with ``ema`` or ``swa``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ema_cli.dtypes import BY_TORCH_NAME, Kind
from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import Tensor, follow, named, parts
from ema_cli.formats.structure import MOST_DIMENSIONS
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.text import plural, quoted, shortlist

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
RAW_BESIDE_AVERAGE = "current_model_state"
"""Lightning's ``WeightAveraging`` puts the raw weights here, and its average in their usual place."""
USUAL_IN_LIGHTNING = "state_dict"
"""The usual place of the weights in Lightning."""
COUNTER = "n_averaged"
"""A counter of torch's ``AveragedModel``, beside the averaged ``module``."""
AVERAGED_MODEL_NOTE = "the weights are those of torch's AveragedModel: this averages averages"
_TRAINING_STATE = re.compile(
    r"optim|scheduler|(?:^|[_.])(?:(?:grad_|amp_|loss_)?scaler|rng|dataloader|callbacks|loops|grads?|gradients?)(?:[_.\d]|s?$)",
    re.IGNORECASE,
)
_AVERAGES = re.compile(r"(?:^|[_.])(?:ema|swa|averaged?)(?:[_.]|$)", re.IGNORECASE)
_WHOLE = "module."
"""Before the names if ``--key .`` takes the weights together with everything beside them."""


def is_parameter(name: str, value: object) -> bool:
    """Whether a tensor beside a model could be a part of it: not a counter, a loss or a random state."""
    scalar = isinstance(value, TensorRef) and value.shape == ()
    return not scalar and not _TRAINING_STATE.search(name)


def may_be_weights(name: str, value: object) -> bool:
    """Whether a part of a checkpoint may be weights: not state of the training, and not only counters."""
    return isinstance(value, Tensor) or not (_TRAINING_STATE.search(name) or _only_counts(value))


def _only_counts(value: object) -> bool:
    """Whether all tensors of a mapping are single integers, such as the ``train_state`` of a trainer."""
    members = named(value).values()
    tensors = [member for member in members if isinstance(member, Tensor)]
    return bool(tensors) and all(_is_count(tensor) for tensor in tensors) and not any(map(parts, members))


def _is_count(tensor: Tensor) -> bool:
    dtype = BY_TORCH_NAME.get(tensor.dtype_name) if isinstance(tensor, TensorRef) and tensor.shape == () else None
    return dtype is not None and dtype.kind is Kind.INTEGER


def is_average(name: str) -> bool:
    """Whether a part of a checkpoint is an average, judged by its name."""
    return _AVERAGES.search(name) is not None


def is_averaged_model(names: Collection[str]) -> bool:
    """Whether tensors of these names are an ``AveragedModel``: a counter, and everything else under ``module``."""
    others = [name for name in names if name != COUNTER]
    return len(others) < len(names) and bool(others) and all(name.startswith("module.") for name in others)


def note_on_choice(chosen: str, averages: Sequence[str]) -> str:
    """Return the warning about weights that were chosen beside or among averages; empty without averages."""
    if not averages:
        return ""
    if chosen in averages:
        return f"the only weights are the trainer's own average {quoted(chosen)}: this averages averages"
    names = shortlist(quoted(name) for name in averages)
    return f"the raw weights are used, not the trainer's own average {names} (choose it with --key)"


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
            hint="join the weights first, with DeepSpeed's script in the folder above: "
            "python zero_to_fp32.py . pytorch_model.bin",
        )


def _is_empty(tensor: Tensor) -> bool:
    return isinstance(tensor, TensorRef) and 0 in tensor.shape


def _has_elements(shape: object) -> bool:
    """Whether a shape has elements. A long tuple is not a shape: all names may share it."""
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        return False
    return all(type(size) is int and size for size in shape)
