"""Tensors that cannot be averaged: without plain numbers, or codes of a quantized model.

They are refused only if they are selected; all of them are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ema_cli.dtypes import DType, Kind
from ema_cli.errors import InputRefused
from ema_cli.formats.structure import QUANTIZE_LATER
from ema_cli.options.average import Options
from ema_cli.planning.matching import wanted
from ema_cli.planning.quantization import find_codes
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import listing, plural, quoted, shortlist

_MOST_LINES = 8


def refuse_unreadable(checkpoints: Sequence[Checkpoint], options: Options) -> None:
    """Raise if selected tensors have no plain numbers.

    Raises:
        InputRefused: naming each, with the reason and the checkpoints.

    """
    is_wanted = wanted(options)
    last = {
        *(layout.name for layout in checkpoints[-1].index.layouts),
        *(name for name, _ in checkpoints[-1].unreadable),
    }
    found: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        for name, reason in checkpoint.unreadable:
            if is_wanted(name) and (options.on_missing == "error" or name in last):
                found.setdefault((name, reason), []).append(checkpoint)
    if not found:
        return
    lines = [
        f"{quoted(name)} {reason} (in {shortlist((quoted(holder.path.name) for holder in holders), most=2)})"
        for (name, reason), holders in found.items()
    ]
    raise InputRefused(
        listing("some tensors cannot be averaged:", lines, most=_MOST_LINES),
        hint="save the checkpoints again with plain tensors, or exclude these with --exclude",
    )


def refuse_quantized(checkpoints: Sequence[Checkpoint], options: Options) -> None:
    """Raise if the selected tensors are of a quantized model, by their names and types or by its configuration.

    Raises:
        InputRefused: naming codes and their scale.

    """
    is_wanted = wanted(options)
    by_layouts = {id(checkpoint.index.layouts): checkpoint for checkpoint in checkpoints}
    for checkpoint in by_layouts.values():
        tensors: dict[str, TensorLayout | None] = {
            **dict.fromkeys(name for name, _ in checkpoint.unreadable),
            **{layout.name: layout for layout in checkpoint.index.layouts},
        }
        pairs = [(codes, by) for codes, by in find_codes(tensors) if is_wanted(codes) or is_wanted(by)]
        if pairs:
            codes, scale = pairs[0]
            count = plural(len({codes for codes, _ in pairs}), "tensor")
            layout = tensors[codes]
            of_type = f" ({layout.dtype.torch_name})" if layout is not None else ""
            raise InputRefused(
                f"{quoted(str(checkpoint.path))} is quantized: {count} of codes, which cannot be averaged, such as "
                f"{quoted(codes)}{of_type} with the scale {quoted(scale)}",
                hint=QUANTIZE_LATER,
            )
    for checkpoint in checkpoints:
        if checkpoint.quantized and not _are_plain_by_choice(checkpoint, options, is_wanted):
            raise InputRefused(
                f"{quoted(str(checkpoint.path))} {checkpoint.quantized}, and quantized weights cannot be averaged",
                hint=f"{QUANTIZE_LATER}; if the weights are plain numbers after all, select them with --include .",
            )


def refuse_scales(types: Iterator[tuple[str, DType]]) -> None:
    """Raise if tensors are of a type that is only used for scales.

    Raises:
        InputRefused: naming them.

    """
    scales = [quoted(name) for name, dtype in types if dtype.kind is Kind.CODE]
    if scales:
        raise InputRefused(
            f"scales of a quantized model cannot be averaged: {shortlist(scales)}",
            hint=f"{QUANTIZE_LATER}; or exclude the scales with --exclude",
        )


def _are_plain_by_choice(checkpoint: Checkpoint, options: Options, is_wanted: Callable[[str], bool]) -> bool:
    """Whether the user selected tensors, and none of them can be codes."""
    if not (options.include or options.exclude):
        return False
    return not any(layout.dtype.may_be_codes for layout in checkpoint.index.layouts if is_wanted(layout.name))
