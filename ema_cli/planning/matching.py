"""Match the tensors of all checkpoints by name, and report every difference that makes them different models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from ema_cli.dtypes import DType, Kind
from ema_cli.errors import InputRefused, UsageError
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options.average import Options
from ema_cli.options.name_filter import name_filter
from ema_cli.planning.unused_patterns import nearest_tensors
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import listing, plural, quoted, shortlist

_MOST_DIFFERENCES = 12
_WHOLE = {Kind.INTEGER, Kind.BOOL}

Chosen = dict[str, tuple[int, TensorLayout]]
"""Tensors by name, with their position in the layout of a checkpoint."""


@record
class Matched:
    """The tensors of all checkpoints, by name."""

    tensors: tuple[Chosen, ...]
    """Per distinct layout."""
    lacking: frozenset[str] = frozenset()
    """Tensors that some checkpoint lacks: they are copied from the last."""
    dropped: tuple[str, ...] = ()
    """Tensors that the last checkpoint lacks: they are not written."""


def wanted(options: Options) -> Callable[[str], bool]:
    """Return a function of a name: whether ``--include`` and ``--exclude`` select the tensor."""
    return name_filter(options.include, options.exclude)


def choose_tensors(layouts: Sequence[TensorLayout], options: Options) -> Chosen:
    """Return the tensors that ``--include`` and ``--exclude`` select.

    Raises:
        UsageError: they select none.
        InputRefused: the checkpoints have none.

    """
    is_wanted = wanted(options)
    chosen = {layout.name: (position, layout) for position, layout in enumerate(layouts) if is_wanted(layout.name)}
    if not chosen:
        if not layouts:
            raise InputRefused("the checkpoints contain no tensors")
        names = [layout.name for layout in layouts]
        hint = partial(nearest_tensors, [*options.include, *options.exclude], names)
        raise UsageError("--include and --exclude select no tensor", hint=hint)
    return chosen


def match_tensors(
    checkpoints: Sequence[Checkpoint],
    layout_numbers: Sequence[int],
    chosen: Sequence[Chosen],
    options: Options,
    lacked_before: Collection[str] = (),
    *,
    joined: Mapping[str, int] = MappingProxyType({}),
) -> Matched:
    """Compare every layout with that of the last checkpoint. Copied tensors need not agree in shape and type.

    ``layout_numbers`` has the layout of each checkpoint, ``chosen`` the selected tensors of each layout, and
    ``lacked_before`` the tensors that some checkpoint inside the previous average lacks. Tensors in ``joined`` may have
    any length along the axis given there.

    Raises:
        InputRefused: they are not checkpoints of one model; all differences are reported at once.

    """
    last_name = quoted(checkpoints[-1].path.name)
    reference = chosen[layout_numbers[-1]]
    others = [tensors for tensors in chosen if tensors is not reference]
    lacking = {name for tensors in others for name in reference if name not in tensors}
    lacking.update(name for name in lacked_before if name in reference)
    absent: list[str] = []
    unlike: list[str] = []
    for number, tensors in enumerate(chosen):
        if tensors is not reference:
            name = quoted(checkpoints[layout_numbers.index(number)].path.name)
            absent.extend(_absent(tensors, reference, name, last_name, may_be=options.on_missing == "last"))
            alike = _averaged_alike(tensors, reference, lacking, options)
            unlike.extend(_unlike(alike, name, last_name, joined))
    if absent or unlike:
        raise _different_models([*absent, *unlike], only_absent=not unlike and _share_some(chosen))
    return Matched(
        tensors=tuple(chosen),
        lacking=frozenset(lacking),
        dropped=tuple(dict.fromkeys(name for tensors in others for name in tensors if name not in reference)),
    )


def _share_some(chosen: Sequence[Chosen]) -> bool:
    """Whether all layouts have some tensor in common."""
    first, *others = chosen
    return any(all(name in other for other in others) for name in first)


def _different_models(differences: Sequence[str], *, only_absent: bool) -> InputRefused:
    message = listing("the checkpoints are not of one model:", differences, most=_MOST_DIFFERENCES)
    hint = "name only checkpoints that agree, or exclude the tensors that differ with --exclude"
    if only_absent:
        hint += "; or --on-missing last, which copies tensors that only the last has and drops those it lacks"
    return InputRefused(message, hint=hint)


def _absent(tensors: Chosen, reference: Chosen, name: str, last_name: str, *, may_be: bool) -> Iterator[str]:
    """Yield the tensors that either lacks; with ``may_be`` (``--on-missing last``), only that they share no tensor."""
    if may_be:
        if not tensors.keys() & reference.keys():
            yield f"{name} and {last_name} have no tensor in common"
        return
    pairs = ((reference, tensors, last_name, name), (tensors, reference, name, last_name))
    for having, lacking, owner, other in pairs:
        missing = [quoted(tensor) for tensor in having if tensor not in lacking]
        if missing:
            yield f"{other} lacks {plural(len(missing), 'tensor')} of {owner}: {shortlist(missing, most=3)}"


def why_copied(name: str, dtype: DType, options: Options) -> str:
    """Return why a tensor of this name and type is copied, for people; empty if it is averaged."""
    if not dtype.averaged:
        return "no floating-point numbers"
    return f"--buffers {options.buffers}" if options.buffers != "average" and is_batch_norm_statistic(name) else ""


def _averaged_alike(
    tensors: Chosen, reference: Chosen, lacking: Collection[str], options: Options
) -> Iterator[tuple[str, TensorLayout, TensorLayout]]:
    """Yield the tensors that must agree in shape and type with those of the last checkpoint, and both layouts.

    Only one of the checkpoints is read for a tensor that is copied.
    """
    for name, (_, layout) in tensors.items():
        if name not in reference or name in lacking:
            continue
        expected = reference[name][1]
        if {layout.dtype.kind, expected.dtype.kind} <= _WHOLE:
            continue
        if not (expected.dtype.averaged and why_copied(name, expected.dtype, options)):
            yield name, layout, expected


def _unlike(
    pairs: Iterable[tuple[str, TensorLayout, TensorLayout]], name: str, last_name: str, joined: Mapping[str, int]
) -> Iterator[str]:
    """Yield the tensors that have different shapes, or types that cannot be averaged together."""
    for tensor, layout, expected in pairs:
        if _fixed(layout.shape, joined.get(tensor)) != _fixed(expected.shape, joined.get(tensor)):
            yield f"{quoted(tensor)}: shape {layout.shape} in {name}, {expected.shape} in {last_name}"
        elif layout.dtype is not expected.dtype and {layout.dtype.kind, expected.dtype.kind} != {Kind.FLOAT}:
            yield f"{quoted(tensor)}: {layout.dtype.torch_name} in {name}, {expected.dtype.torch_name} in {last_name}"


def _fixed(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """Return the lengths that must be equal: all but that along ``axis``."""
    return shape if axis is None else (*shape[:axis], -1, *shape[axis + 1 :])
