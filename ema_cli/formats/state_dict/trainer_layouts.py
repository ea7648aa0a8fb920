"""How trainers lay out a checkpoint: the names of its parts, the state of the training, placeholders for the weights.

Sources: ``deepspeed/runtime/engine.py``, ``deepspeed/utils/zero_to_fp32.py``, ``torch/optim``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

from ema_cli.dtypes import BY_TORCH_NAME, Kind
from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import Repeated, Tensor, follow, named, parts
from ema_cli.formats.structure import MOST_DIMENSIONS
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.text import plural, quoted, regex

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
_TRAINING_STATE = regex(
    r"optimi[sz]er|(?:optims?|schedulers?)(?!(?-i:[a-z]))|(?:^|[_.])(?:(?:grad_|amp_|loss_)?scaler|rng|dataloader|callbacks|loops|grads?|gradients?)(?:[_.\d]|s?$)",
    re.IGNORECASE,
)
_RECORDS = regex(
    r"(?:^|[_.])(?:loss(?:es)?|criteri(?:on|a)|metrics?|fitness|history|hyper_?parameters|hparams|args|cfg|config|sampler"
    r"|scores?)(?:_(?:fn|state|state_dict)|[_.]?[0-9]+)?$",
    re.IGNORECASE,
)
"""Names of what a trainer notes down: no part of the model even if it has tensors."""
_WITHOUT_MATRICES = regex(r"scheduler|scaler|criteri(?:on|a)|loss(?:es)?_fn", re.IGNORECASE)
"""Names of parts that have matrices only if these are trained. Metrics and loops have matrices of their own."""
OF_OPTIMIZERS = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "exp_inf"),
        *("momentum_buffer", "square_avg", "acc_delta"),
    }
)
"""Names in the state of an optimizer, for each parameter; see ``torch/optim``."""
_MOST_MOMENTS = 8
"""Names that are examined for them."""
_WHOLE = "module."
"""Before the names if ``--key .`` takes the weights together with everything beside them."""


def is_parameter(name: str, value: object) -> bool:
    """Whether a tensor beside a model could be a part of it: not a counter, a loss or a random state."""
    scalar = isinstance(value, TensorRef) and value.shape == ()
    return not scalar and not _TRAINING_STATE.search(name)


def may_be_weights(name: str, value: object) -> bool:
    """Whether a part of a checkpoint may be weights: not state of the training, and not only counters."""
    if isinstance(value, Tensor | Repeated):
        return isinstance(value, Tensor)
    return not (_TRAINING_STATE.search(name) or _only_counts(value) or is_optimizer_state(value))


def is_training_state(name: str) -> bool:
    """Whether a part of a checkpoint is state of the training, judged by its name."""
    return _TRAINING_STATE.search(name) is not None


def is_record(name: str) -> bool:
    """Whether a part of a checkpoint is a loss, a metric or a setting, judged by its name."""
    return _RECORDS.search(name) is not None


def has_no_matrices(name: str) -> bool:
    """Whether matrices in a part of this name must be trained, although the name says state of the training."""
    return _WITHOUT_MATRICES.search(name) is not None


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
