"""The step of a checkpoint, read from inside it.

Input -> output: the inert value of a pickle -> the steps and epochs under the keys that trainers use, best first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.step_keys import EPOCH_KEYS, INSIDE, STEP_KEYS, whole_number
from ema_cli.formats.state_dict.tree import follow, is_module, join, parts
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.records.series import FoundStep
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, regex

if TYPE_CHECKING:
    from ema_cli.formats.torch.tensor_locations import FindStorage

_NESTED = {
    "step": ("global_step", "global_steps", "num_updates", "step", "iteration", "iter", "iter_num", "current_iter"),
    "epoch": ("epoch", "cur_epoch", "current_epoch"),
}
"""Keys of a position in a dictionary of the trainer's own, such as ``progress.step``, by unit."""
_NO_PROGRESS = regex(
    r"optim|sched|scaler|conf|cfg|arg|param|hyper|model|net|weight|state_dict|ema|module|loader|sampl|data|rng|callback"
    r"|loop|best|eval|val|test|early|loss|metric|^opt$|^lr",
    re.IGNORECASE,
)
"""Names of dictionaries whose numbers are settings, or count something else."""
_DEEPEST = 2
_MOST_ENTRIES = 64
_FLOATS = {2: "e", 4: "f", 8: "d"}
_KINDS = {
    **dict.fromkeys(("int8", "int16", "int32", "int64"), "i"),
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), "u"),
    **dict.fromkeys(("float16", "float32", "float64"), "f"),
}


def read_steps(root: object, source: ByteSource, find_storage: FindStorage) -> Iterator[FoundStep]:
    """Yield the steps in ``root``, best first: whole numbers of Python and numpy, as text, or tensors of one number.

    Dictionaries of unknown trainers are searched if there is none under the keys of known ones.

    Raises:
        InputRefused: a tensor that should hold a step exceeds its storage.

    """
    for unit, keys in (("step", STEP_KEYS), ("epoch", EPOCH_KEYS)):
        known = list(_steps_at(keys, unit, root, source, find_storage))
        yield from known or _steps_at(_nested_keys(root, unit), unit, root, source, find_storage)


def _steps_at(
    keys: Iterable[str], unit: str, root: object, source: ByteSource, find_storage: FindStorage
) -> Iterator[FoundStep]:
    for key in keys:
        value = _value(root, key)
        number = _tensor_value(key, value, source, find_storage) if isinstance(value, TensorRef) else _number(value)
        if number is not None:
            yield FoundStep(value=number, unit=unit, source=f"{INSIDE}{key}")


def _nested_keys(root: object, unit: str) -> Iterator[str]:
    """Yield the keys of steps in the small dictionaries of ``root``, outermost first."""
    if is_module(root) or len(parts(root)) > _MOST_ENTRIES:
        return
    level = [("", root)]
    for _ in range(_DEEPEST):
        level = [(join(path, name), child) for path, node in level for name, child in _dictionaries(node)]
        yield from (join(path, leaf) for path, node in level for leaf in _NESTED[unit] if leaf in parts(node))


def _dictionaries(node: object) -> Iterator[tuple[str, object]]:
    """Yield the small dictionaries in a dictionary that may hold the trainer's progress."""
    for name, child in parts(node).items():
        small = isinstance(child, dict | Inert) and not is_module(child) and 0 < len(parts(child)) <= _MOST_ENTRIES
        if isinstance(name, str) and small and not _NO_PROGRESS.search(name):
            yield name, child


def _value(root: object, key: str) -> object:
    """Return the value under ``key``; of fairseq's history, a list, the last entry."""
    first, _, rest = key.partition(".")
    history = follow(root, first) if first == "optimizer_history" else None
    return follow(history[-1], rest) if isinstance(history, list) and history else follow(root, key)


def _number(value: object) -> int | None:
    """Return a whole number that is valid as a step, also of numpy.

    numpy pickles its numbers as ``numpy.core.multiarray.scalar(dtype, bytes)``.
    """
    match value:
        case Inert(kind=Global(name="scalar"), args=(Inert(kind=Global(name="dtype")) as dtype, raw)):
            value = _numpy_number(dtype, raw)
    return whole_number(value)


def _numpy_number(dtype: Inert, raw: object) -> int | float | None:
    """Decode the bytes of a numpy number: its type has a name like ``i8``, and the state ``(version, order, ...)``."""
    match raw:
        case Inert(kind=Global(module="_codecs", name="encode"), args=(str(text), "latin1")):
            raw = text.encode("latin1")
    match dtype.args, dtype.state:
        case (str(name), *_), (_, str(order), *_) if isinstance(raw, bytes):
            return _decoded(name[:1], raw, "big" if order == ">" else "little")
    return None


def _decoded(kind: str, raw: bytes, order: Literal["little", "big"]) -> int | float | None:
    """Decode a number of kind ``i``, ``u`` or ``f``."""
    if kind in ("i", "u"):
        return int.from_bytes(raw, order, signed=kind == "i")
    form = _FLOATS.get(len(raw)) if kind == "f" else None
    return None if form is None else float(struct.unpack((">" if order == "big" else "<") + form, raw)[0])


def _tensor_value(key: str, tensor: TensorRef, source: ByteSource, find_storage: FindStorage) -> int | None:
    from ema_cli.formats.torch.tensor_locations import locate_tensor  # noqa: PLC0415 - a safetensors file has none

    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    if dtype is None or tensor.shape != () or dtype.torch_name not in _KINDS:
        return None
    try:
        start, size = find_storage(tensor.storage.key)
        _, offset = locate_tensor(key, tensor, size)
    except InputRefused as refused:
        raise InputRefused(f"{quoted(key)} {refused.message}", hint=refused.hint) from refused
    raw = source.read(start + offset, dtype.itemsize)
    return _number(_decoded(_KINDS[dtype.torch_name], raw, "little"))
