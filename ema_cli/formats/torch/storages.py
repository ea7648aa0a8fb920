"""The storages in a pickle of ``torch.save``: the blocks of bytes that its tensors are views of.

Source: the persistent ids of ``torch/serialization.py``, and the storage classes of ``torch/storage.py``.
"""

from __future__ import annotations

from functools import cache

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.formats.inert_pickle.values import Global, PickleError
from ema_cli.formats.structure import are_sizes
from ema_cli.record import record

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}
_UNWRITABLE_BYTES = {"complex128": 16, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
"""Element sizes of types that cannot be written, but may occur beside the weights."""


@record
class StorageRef:
    """A block of bytes that the file stores under ``key``."""

    key: str
    kind: str
    """The torch class, such as ``FloatStorage``."""
    elements: int
    """Declared number of elements of ``kind``."""

    @property
    def dtype_name(self) -> str:
        """The torch name of the element type; of an unknown class, the name of the class."""
        return storage_dtype_name(self.kind)


def storage_dtype_name(kind: str) -> str:
    """Return the torch name of the element type of a storage class; of an unknown class, the name of the class."""
    return _STORAGE_DTYPES.get(kind, kind)


def storage_kind(dtype_name: str) -> str:
    """Return the storage class that torch saves an element type in: newer types have none of their own."""
    return next((kind for kind, name in _STORAGE_DTYPES.items() if name == dtype_name), "UntypedStorage")


@cache
def element_bytes(kind: str) -> int | None:
    """Return the bytes of one element of a storage class; ``None`` if the class is unknown."""
    name = storage_dtype_name(kind)
    dtype = BY_TORCH_NAME.get(name)
    return dtype.itemsize if dtype else _UNWRITABLE_BYTES.get(name)


def storage_from_persistent_id(pid: object) -> object:
    """Return the ``StorageRef`` of torch's persistent id ``('storage', class, key, location, elements[, view])``."""
    match pid:
        case ("module", thing, *_):
            return thing
        case ("storage", Global(name=kind), str(key), _, int(elements)):
            return _declared(key, kind, elements)
        case ("storage", Global(name=kind), str(key), _, int(elements), None):
            return _declared(key, kind, elements)
        case ("storage", _, str(), _, int(), (_, _, _)):
            raise PickleError("it has views of storages, the format of torch before 0.4")
    raise PickleError("a persistent id is not a torch storage")


def _declared(key: str, kind: str, elements: int) -> StorageRef:
    if not are_sizes((elements,)):
        raise PickleError("a storage has a damaged size")
    return StorageRef(key=key, kind=kind, elements=elements)
