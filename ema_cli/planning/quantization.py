"""Recognize quantized weights: integer codes with scales in another tensor. The mean of codes is not a useful code.

Input -> output: names and element types -> pairs of codes and scale. A name alone proves nothing:
``logit_scale`` and ``layer.scale`` are parameters of ordinary models, so a scale counts only if the codes that it
scales are there, too. Sources of the names: compressed-tensors, AutoGPTQ and AutoAWQ (``qweight``, ``qzeros``,
``scales``), bitsandbytes (``absmax``, ``quant_state``, ``SCB``), DeepSeek (``weight_scale_inv``), MXFP4 (``_blocks``,
``_scales``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ema_cli.dtypes import DType, Kind

Types = Mapping[str, DType | None]
"""Element types by name; ``None`` for unknown types, such as four bits."""

_BEHIND = re.compile(
    r"(?P<codes>.+?)(?:_scale_inv|_global_scale|_scales?(?:_\d)?|_zero_points?|_zeros|_scb"
    r"|\.(?:scales?|nested_absmax|absmax|nested_quant_map|quant_map|quant_state\..+))",
    re.IGNORECASE,
)
"""The name of the codes plus a suffix."""
_BESIDE = re.compile(r"(?:input_scale|output_scale|scales?|zero_point|zeros|qzeros|g_idx|SCB)")
"""A tensor of the module that has the codes as its weight."""
_WEIGHTS = ("weight", "qweight", "weight_packed")
_PACKED = re.compile(r"(?:qweight|_packed|_blocks)$")
"""Integers of any size with several codes in each."""


def find_codes(types: Types) -> Iterator[tuple[str, str]]:
    """Yield pairs of names, of codes and of their scale, each scale once, among all tensors of a checkpoint."""
    for name in types:
        codes = next(
            (other for other in _possible_codes(name) if other in types and _may_be_codes(other, types[other])), None
        )
        if codes is not None and codes != name:
            yield codes, name


def _possible_codes(name: str) -> Iterator[str]:
    """Yield the possible names of the codes, if ``name`` is that of a scale."""
    found = _BEHIND.fullmatch(name)
    if found is not None:
        codes = found["codes"]
        yield from (codes, f"{codes}_packed", f"{codes}_blocks")
    module, _, part = name.rpartition(".")
    if _BESIDE.fullmatch(part):
        yield from (f"{module}.{weight}" if module else weight for weight in _WEIGHTS)


def _may_be_codes(name: str, dtype: DType | None) -> bool:
    """Whether elements of this type can be codes: one byte each, or packed in larger integers."""
    if dtype is None:
        return True
    if dtype.kind is Kind.INTEGER and _PACKED.search(name):
        return True
    return dtype.itemsize == 1 and dtype.kind is not Kind.BOOL
