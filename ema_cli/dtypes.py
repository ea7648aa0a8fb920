"""The element types of checkpoints: names in safetensors and torch, sizes, and kinds.

Invariant: ``DTYPES`` has the order in which safetensors sorts the tensors of a file (large elements first), so every
tensor is naturally aligned. Source: the safetensors format and its ``Dtype`` enumeration.
"""

from __future__ import annotations

from enum import Enum

from ema_cli.record import record

_INDEX_BYTES = 8


class Kind(Enum):
    """The kind of an element, which decides whether tensors of it are averaged."""

    FLOAT = "float"
    COMPLEX = "complex"
    INTEGER = "integer"
    BOOL = "bool"
    CODE = "code"
    """A scale or a packed code: the mean of codes is not the code of the mean."""


@record
class DType:
    """One element type."""

    name: str
    """The safetensors name, such as ``BF16``."""
    torch_name: str
    """The torch name, such as ``bfloat16``."""
    itemsize: int
    """Bytes of one element."""
    kind: Kind

    @property
    def averaged(self) -> bool:
        """Whether tensors of this type are averaged. Other tensors are copied."""
        return self.kind in (Kind.FLOAT, Kind.COMPLEX)

    @property
    def may_be_codes(self) -> bool:
        """Whether a quantizer stores codes in this type. Integers of eight bytes are indices and counters."""
        is_small_integer = self.kind is Kind.INTEGER and self.itemsize < _INDEX_BYTES
        return is_small_integer or (self.itemsize == 1 and self.kind is not Kind.BOOL)


def _dtype(name: str, torch_name: str, itemsize: int, kind: Kind = Kind.FLOAT) -> DType:
    return DType(name=name, torch_name=torch_name, itemsize=itemsize, kind=kind)


DTYPES: tuple[DType, ...] = (
    _dtype("U64", "uint64", 8, Kind.INTEGER),
    _dtype("I64", "int64", 8, Kind.INTEGER),
    _dtype("F64", "float64", 8),
    _dtype("C64", "complex64", 8, Kind.COMPLEX),
    _dtype("F32", "float32", 4),
    _dtype("U32", "uint32", 4, Kind.INTEGER),
    _dtype("I32", "int32", 4, Kind.INTEGER),
    _dtype("BF16", "bfloat16", 2),
    _dtype("F16", "float16", 2),
    _dtype("U16", "uint16", 2, Kind.INTEGER),
    _dtype("I16", "int16", 2, Kind.INTEGER),
    _dtype("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
    _dtype("F8_E4M3FNUZ", "float8_e4m3fnuz", 1),
    _dtype("F8_E8M0", "float8_e8m0fnu", 1, Kind.CODE),
    _dtype("F8_E4M3", "float8_e4m3fn", 1),
    _dtype("F8_E5M2", "float8_e5m2", 1),
    _dtype("I8", "int8", 1, Kind.INTEGER),
    _dtype("U8", "uint8", 1, Kind.INTEGER),
    _dtype("BOOL", "bool", 1, Kind.BOOL),
)

BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in DTYPES}
BY_TORCH_NAME: dict[str, DType] = {dtype.torch_name: dtype for dtype in DTYPES}
RANK: dict[str, int] = {dtype.name: rank for rank, dtype in enumerate(DTYPES)}
"""Position of a type in the order of a safetensors file."""
