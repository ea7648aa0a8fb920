"""Recognize quantized weights: integer codes with scales in another tensor. The mean of codes is not a useful code.

Input -> output: the layouts of all tensors -> pairs of codes and scale. A name alone proves nothing: ``logit_scale``
and ``layer.scale`` are parameters of ordinary models, so a scale counts only if the codes that it scales are there,
too. Two kinds of evidence:

* the name of the scale is made of the name of the codes. Sources of these names: compressed-tensors, AutoGPTQ and
  AutoAWQ (``qweight``, ``qzeros``, ``scales``), bitsandbytes (``absmax``, ``quant_state``, ``SCB``), DeepSeek
  (``weight_scale_inv``), MXFP4 (``_blocks``, ``_scales``);
* the structure: a module that has a matrix of integers or of eight-bit floats in place of its weight, and a smaller
  tensor, called a scale, with one element per row or per group of it. So are MLX, HQQ, quanto, torchao, AQLM, EXL2
  and the scaled float8 of ComfyUI.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ema_cli.dtypes import DType, Kind
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import regex

Tensors = Mapping[str, TensorLayout | None]
"""Layouts by name; ``None`` for tensors of unknown types, such as four bits."""

_BEHIND = regex(
    r"(?P<codes>.+?)(?:_scale_inv|_global_scale|_scales?(?:_\d)?|_zero_points?|_zeros|_scb"
    r"|\.(?:scales?|nested_absmax|absmax|nested_quant_map|quant_map|quant_state\..+))",
    re.IGNORECASE,
)
"""The name of the codes plus a suffix."""
_BESIDE = regex(r"(?:input_scale|output_scale|scales?|zero_point|zeros|qzeros|g_idx|SCB)")
"""A tensor of the module that has the codes as its weight."""
_WEIGHTS = ("weight", "qweight", "weight_packed")
_PACKED = regex(r"(?:qweight|_packed|_blocks)$")
"""Integers of any size with several codes in each."""
_PART = regex(r"(?<=[a-z])\._(?=[a-z])")
"""Parts of a tensor with a name of their own: ``weight._data``, ``weight._scale``."""
_SCALES = {"scale", "scales", "wscale", "wscales", "absmax", "scb"}
_ZEROS = {"zero", "zeros", "point", "points"}
_OFFSETS = {*_ZEROS, "bias", "biases", "shift", "shifts", "min"}
_DETAILS = {"inv", "max", "global", "block", "group"}
_WORDS_OF_WEIGHTS = {"weight", "kernel", "w", "qweight", "qdata", "data", "codes", "packed", "blocks"}
_FLOAT_CODES = regex(r"(?:^|_)(?:u?int\d?|qweight|qdata|codes|quantized|packed)(?:_|$)", re.IGNORECASE)
"""Parts of the name of a matrix that has codes although its elements are floating-point numbers."""
_MOST_CODES = 64
"""Of one module; real modules have one."""


def find_codes(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Yield pairs of names, of codes and of their scale, each scale once, among all tensors of a checkpoint."""
    found = set()
    candidates = {name for name, layout in tensors.items() if _may_be_codes(name, layout)}
    for name in tensors if candidates else ():
        codes = next((other for other in _possible_codes(name) if other in candidates), None)
        if codes is not None and codes != name:
            found.add(name)
            yield codes, name
    for codes, scale in _find_by_structure([layout for layout in tensors.values() if layout is not None]):
        if scale not in found:
            found.add(scale)
            yield codes, scale


def _possible_codes(name: str) -> Iterator[str]:
    """Yield the possible names of the codes, if ``name`` is that of a scale."""
    found = _BEHIND.fullmatch(name)
    if found is not None:
        codes = found["codes"]
        yield from (codes, f"{codes}_packed", f"{codes}_blocks")
    module, _, part = name.rpartition(".")
    if _BESIDE.fullmatch(part):
        yield from (f"{module}.{weight}" if module else weight for weight in _WEIGHTS)


def _may_be_codes(name: str, layout: TensorLayout | None) -> bool:
    """Whether the elements of a tensor can be codes: one byte each, or packed in larger integers."""
    if layout is None or (layout.dtype.kind is Kind.INTEGER and _PACKED.search(name)):
        return True
    return _is_byte(layout.dtype)


def _is_byte(dtype: DType) -> bool:
    return dtype.itemsize == 1 and dtype.kind is not Kind.BOOL


def _is_whole(dtype: DType) -> bool:
    """Whether elements are integers, or eight-bit floats."""
    return dtype.kind is Kind.INTEGER or _is_byte(dtype)


def _find_by_structure(layouts: Sequence[TensorLayout]) -> Iterator[tuple[str, str]]:
    modules: dict[str, list[tuple[set[str], TensorLayout]]] = defaultdict(list)
    if any(_may_be_matrix_of_codes(layout) for layout in layouts):
        for layout in layouts:
            module, _, part = _PART.sub("_", layout.name).rpartition(".")
            modules[module].append((set(re.findall(r"[a-z]+", part.lower())), layout))
    for members in modules.values():
        codes = [
            (words, layout)
            for words, layout in members
            if _may_be_matrix_of_codes(layout) and not words & (_SCALES | _OFFSETS)
        ][:_MOST_CODES]
        scales = [(words, layout) for words, layout in members if codes and _is_scale(words, layout)]
        for words, scale in scales:
            for of, matrix in codes:
                if _belongs(words - _SCALES - _DETAILS - _OFFSETS, scale, of, matrix, members):
                    yield matrix.name, scale.name
                    break


def _may_be_matrix_of_codes(layout: TensorLayout) -> bool:
    """Whether a tensor has at least two dimensions and elements that can be codes."""
    return len(layout.shape) > 1 and (layout.dtype.may_be_codes or _is_named_as_codes(layout))


def _is_named_as_codes(layout: TensorLayout) -> bool:
    """Whether a floating-point tensor has a name of codes, which proves nothing without a scale and a zero point."""
    return layout.dtype.averaged and _FLOAT_CODES.search(layout.name.rpartition(".")[2]) is not None


def _is_scale(words: set[str], layout: TensorLayout) -> bool:
    return bool(words & _SCALES) and (layout.dtype.averaged or _is_byte(layout.dtype))


def _belongs(
    rest: set[str],
    scale: TensorLayout,
    of: set[str],
    matrix: TensorLayout,
    members: Sequence[tuple[set[str], TensorLayout]],
) -> bool:
    """Whether a scale is that of a matrix of codes.

    Args:
        rest: the words in its name that do not say that it is a scale.
        scale: the tensor with that name.
        of: the words in the name of the matrix.
        matrix: what may be codes. A floating-point tensor of its shape is the weight instead, and it is a mask.
        members: all tensors of the module.

    """
    if not rest <= of or 2 * scale.elements > matrix.nbytes:
        return False
    others = (other for _, other in members if other is not matrix)
    if any(other.shape == matrix.shape and other.dtype.averaged and not _is_byte(other.dtype) for other in others):
        return False
    if not (_is_whole(matrix.dtype) or any(words & _ZEROS and other.shape == scale.shape for words, other in members)):
        return False
    is_weight = bool(of & _WORDS_OF_WEIGHTS)
    if rest and is_weight:
        return True
    if scale.elements == 1:
        return is_weight and _is_byte(matrix.dtype)
    has_offset = any(words & _OFFSETS and other.shape == scale.shape for words, other in members)
    return _fits(scale.shape, matrix.shape) and (is_weight or has_offset or sum(size > 1 for size in scale.shape) > 1)


def _fits(scale: tuple[int, ...], matrix: tuple[int, ...]) -> bool:
    """Whether a scale has one element per row or per group of a matrix: ``(R,)`` or ``(R, G)`` for ``(R, C)``.

    Several codes may be packed into one element, along either dimension.
    """
    scale, matrix = tuple(size for size in scale if size != 1), tuple(size for size in matrix if size != 1)
    if len(scale) == 1:
        return any(_is_packed(scale[0], size) for size in matrix)
    if len(scale) != len(matrix):
        return False
    pairs = list(zip(scale, matrix, strict=True))
    return any(_is_packed(*pair) for pair in pairs) and all(
        _is_packed(rows, size) or (rows and size % rows == 0) for rows, size in pairs
    )


def _is_packed(rows: int, size: int) -> bool:
    """Whether ``rows`` codes are in ``size`` elements: one in each, or 2, 4, 8, ... or ten of three bits."""
    return size > 0 and (rows in (size, 2 * size, 4 * size, 8 * size, 16 * size, 32 * size) or -(-rows // 10) == size)
