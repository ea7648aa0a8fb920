"""The step of a checkpoint, read from inside it.

Input -> output: the inert value of a pickle -> the steps and epochs under the keys that trainers use, best first.
"""

from __future__ import annotations

from collections.abc import Iterator

from ema_cli.dtypes import BY_TORCH_NAME, Kind
from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.tree import follow
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.formats.torch.tensor_locations import FindStorage, locate_tensor
from ema_cli.records.series import FoundStep
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_STEP_KEYS = (
    "global_step",
    "global_steps",
    "step",
    "iteration",
    "num_updates",
    "iter",
    "train_state.step",
    "updates",
    "optimizer_history.num_updates",
)
_EPOCH_KEYS = ("epoch", "extra_state.train_iterator.epoch")
KEYS = (*_STEP_KEYS, *_EPOCH_KEYS)
"""Keys of a position in training, best first."""
STEP_LIMIT = 1 << 62
"""Valid steps are below this."""


def read_steps(root: object, source: ByteSource, find_storage: FindStorage) -> Iterator[FoundStep]:
    """Yield the steps in ``root``, best first: Python and numpy integers, and zero-dimensional integer tensors.

    The values of such tensors are the only tensor data that is read while planning.

    Raises:
        InputRefused: a tensor that should hold a step exceeds its storage.

    """
    for unit, keys in (("step", _STEP_KEYS), ("epoch", _EPOCH_KEYS)):
        for key in keys:
            value = _value(root, key)
            number = _tensor_value(key, value, source, find_storage) if isinstance(value, TensorRef) else _number(value)
            if number is not None and 0 <= number < STEP_LIMIT:  # negative ones mark stripped files
                yield FoundStep(value=number, unit=unit, source=f"inside: {key}")


def _value(root: object, key: str) -> object:
    """Return the value under ``key``; of fairseq's history, a list, the last entry."""
    first, _, rest = key.partition(".")
    history = follow(root, first) if first == "optimizer_history" else None
    return follow(history[-1], rest) if isinstance(history, list) and history else follow(root, key)


def _number(value: object) -> int | None:
    """Return a Python integer, or a numpy integer, pickled as ``numpy.core.multiarray.scalar(dtype, bytes)``."""
    match value:
        case Inert(kind=Global(name="scalar"), args=(Inert(kind=Global(name="dtype")) as dtype, raw)):
            return _numpy_integer(dtype, raw)
    return value if type(value) is int else None


def _numpy_integer(dtype: Inert, raw: object) -> int | None:
    """Decode the bytes of a numpy integer: its type has a name like ``i8``, and the state ``(version, order, ...)``."""
    match raw:
        case Inert(kind=Global(module="_codecs", name="encode"), args=(str(text), "latin1")):
            raw = text.encode("latin1")
    match dtype.args, dtype.state:
        case (str(name), *_), (_, str(order), *_) if name[:1] in ("i", "u") and isinstance(raw, bytes):
            return int.from_bytes(raw, "big" if order == ">" else "little", signed=name[0] == "i")
    return None


def _tensor_value(key: str, tensor: TensorRef, source: ByteSource, find_storage: FindStorage) -> int | None:
    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    if dtype is None or dtype.kind is not Kind.INTEGER or tensor.shape != ():
        return None
    try:
        start, size = find_storage(tensor.storage.key)
        _, offset = locate_tensor(key, tensor, size)
    except InputRefused as refused:
        raise InputRefused(f"{quoted(key)} {refused.message}", hint=refused.hint) from refused
    raw = source.read(start + offset, dtype.itemsize)
    return int.from_bytes(raw, "little", signed=not dtype.name.startswith("U"))
