"""Go on from an earlier output: fold new checkpoints into it as if all had been averaged at once.

Input -> output: the earlier file, whose metadata tell what is in it, and the ordered checkpoints of the command line
-> a ``Series`` of the earlier average, the checkpoint that it ends with where a method needs it, and the new ones.
Checkpoints that are in the average already are known by their step, or by their name where they have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, NothingNew, UsageError
from ema_cli.formats.open import SUFFIXES, open_checkpoint
from ema_cli.methods import SPECS, Decay, Method
from ema_cli.naming import name_depth, name_of, natural_key
from ema_cli.options import OUR_METADATA, Options
from ema_cli.records import (
    Checkpoint,
    Continuation,
    Folded,
    FoundStep,
    LeftOut,
    Notice,
    OrderedCheckpoint,
    Role,
    Series,
)
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted, shortlist
from ema_cli.timeline import Timeline
from ema_cli.uptodate import read_report
from ema_cli.weight_options import WeightOptions
from ema_cli.weights.continuing import split
from ema_cli.weights.solve import solve

_PRECISE_BYTES = 4
"""An average that is stored in fewer bytes per number is rounded visibly each time it is gone on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An earlier output and what its metadata say."""

    checkpoint: Checkpoint
    method: Method
    folded: tuple[Folded, ...]
    unit: str
    """Of the steps."""

    @property
    def names(self) -> list[str]:
        """The names of the checkpoints inside."""
        return [one.name for one in self.folded]


def open_earlier(path: Path, options: Options) -> Earlier:
    """Open an earlier output; its file stays open for the fold.

    Raises:
        UsageError: it was made with another method or with other options.
        InputRefused: it is not an output of this program that can be gone on from.
        NothingMatched: there is no such file.

    """
    checkpoint = open_checkpoint(path, pool=LayoutPool())
    try:
        earlier = _read_metadata(checkpoint)
        _refuse_other_options(earlier, options)
    except BaseException:
        checkpoint.index.source.close()
        raise
    return earlier


def continue_series(earlier: Earlier, series: Series, options: Options) -> Series:
    """Return the series that goes on from ``earlier`` with those checkpoints of ``series`` that are new.

    The file of a checkpoint that has to be read again is opened here if it was not named.

    Raises:
        NothingNew: there are none.
        NothingMatched: the last checkpoint inside is needed again, and was not found.
        InputRefused: the average cannot be gone on from; the message says why.

    """
    fresh, again, left_out, notices = _sort_out(earlier, series)
    if not fresh:
        inside = f"{plural(len(earlier.folded), 'checkpoint')} up to {_place(earlier.folded[-1], earlier.unit)}"
        raise NothingNew(f"nothing is new: {quoted(str(earlier.checkpoint.path))} holds {inside}")
    steps = [one.step for one in earlier.folded] + [member.step.value if member.step else None for member in fresh]
    timeline = Timeline.of(steps, series.unit)
    method = earlier.method
    factors = split(solve(method, timeline.until(len(earlier.folded))), solve(method, timeline))
    if factors is None:
        raise InputRefused(
            f"an average by {method.label} cannot be gone on from: the new checkpoints change the shares of the "
            "earlier ones against each other",
            hint="average all checkpoints at once, without --continue-from",
        )
    scale, needs_again = factors
    members = [_as_member(earlier)]
    if needs_again and again is not None:
        left_out = [left for left in left_out if left.path != again.checkpoint.path]
        members.append(replace(again, role=Role.AGAIN))
    elif needs_again:
        members.append(_find_again(earlier, fresh, options))
    return replace(
        series,
        members=(*members, *fresh),
        left_out=(*series.left_out, *left_out),
        notices=(*series.notices, *notices, *_warn_of_rounding(earlier)),
        continuation=Continuation(
            path=earlier.checkpoint.path,
            method=method,
            folded=earlier.folded,
            scale=scale,
            again=needs_again,
        ),
    )


def _read_metadata(checkpoint: Checkpoint) -> Earlier:
    path = quoted(str(checkpoint.path))
    if not checkpoint.made_by_us:
        raise InputRefused(f"{path} is not an output of ema-avg", hint="--continue-from takes an earlier output")
    ours = {
        key.removeprefix(OUR_METADATA): value
        for key, value in checkpoint.metadata.items()
        if key.startswith(OUR_METADATA)
    }
    try:
        return Earlier(
            checkpoint=checkpoint,
            method=_method(ours),
            folded=_folded(ours),
            unit=ours.get("step_unit", "checkpoint"),
        )
    except (KeyError, ValueError, TypeError, RecursionError, EmaAvgError) as error:
        raise InputRefused(
            f"{path} does not say, in a way that can be relied on, what is averaged in it",
            hint="it was changed, or made by an older version: average all checkpoints at once",
        ) from error


def _method(ours: Mapping[str, str]) -> Method:
    """Return the method that the metadata name, with its parameters checked as those of the command line are."""
    name = ours["method"]
    if name not in SPECS or name == "manual":
        raise ValueError(name)
    words = ("per", "init", "warmup", "shape") if name == "ema" else ("init", "warmup", "shape")
    given: dict[str, Any] = {key: ours[key] for key in words if key in ours}
    given |= {key: float(ours[key]) for key in ("inv_gamma", "power") if key in ours}
    said = WeightOptions(
        methods=(name,),
        one_minus_decays=tuple(float(ours[key]) for key in ("one_minus_decay",) if key in ours),
        sigma_rels=tuple(float(ours[key]) for key in ("sigma_rel",) if key in ours),
        **given,
    )
    said.check_weights()
    (method,) = said.expand()
    if method.decay is None:
        return method
    half_life = Decay.of_half_life(float(ours["half_life"])).half_life if "half_life" in ours else None
    exact = replace(method.decay, value=Decay.of(float(ours["decay"])).value, half_life=half_life)
    return replace(method, decay=exact)


def _folded(ours: Mapping[str, str]) -> tuple[Folded, ...]:
    names = json.loads(ours["folded"])
    steps = [int(step) for step in ours["steps"].split(",")] if "steps" in ours else [None] * len(names)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("names")
    growing = Timeline.of(steps, "step").steps is not None
    if not growing and "steps" in ours:
        raise ValueError("steps")
    return tuple(Folded(name=name, step=step) for name, step in zip(names, steps, strict=True))


def _refuse_other_options(earlier: Earlier, options: Options) -> None:
    path = quoted(str(earlier.checkpoint.path))
    if options.says_weights:
        asked = None if options.lacks_decay else options.expand()[0]
        if asked is None or not asked.same_as(earlier.method):
            made = _in_words(earlier.method, asked)
            raise UsageError(
                f"{path} was made with {made}, and can only be gone on from in the same way",
                hint="leave out the options of the weights, or average all checkpoints at once",
            )
    buffers = earlier.checkpoint.metadata.get(f"{OUR_METADATA}buffers", "average")
    if buffers != options.buffers:
        raise UsageError(
            f"{path} was made with --buffers {quoted(buffers)}, and can only be gone on from in the same way",
            hint=f"--buffers {buffers}",
        )


def _in_words(method: Method, asked: Method | None) -> str:
    """Name the method, and those of its parameters that differ from what was asked for."""
    other = asked.plain() if asked is not None else {}
    differing = {
        key: value
        for key, value in method.plain().items()
        if value is not None and value != other.get(key) and key not in ("name", "one_minus_decay")
    }
    words = ", ".join(f"--{key.replace('_', '-')} {value}" for key, value in differing.items())
    return f"--method {method.name}" + (f" {words}" if words else "")


def _sort_out(
    earlier: Earlier, series: Series
) -> tuple[list[OrderedCheckpoint], OrderedCheckpoint | None, list[LeftOut], list[Notice]]:
    """Tell new checkpoints from those inside, and from those that came too late to be folded in."""
    where = quoted(str(earlier.checkpoint.path))
    inside = _Inside(earlier.folded)
    last = earlier.folded[-1]
    fresh, left_out, late = [], [], []
    again = None
    for member in series.members:
        known = inside.find(member)
        if known is not None:
            left_out.append(LeftOut(path=member.checkpoint.path, reason=f"already in {where}"))
            again = member if known is last else again
        elif _is_after(member, last):
            fresh.append(_with_same_unit(member, earlier))
        else:
            reason = f"it lies before {_place(last, earlier.unit)}, where {where} ends"
            left_out.append(LeftOut(path=member.checkpoint.path, reason=reason))
            if _is_after(member, earlier.folded[0]):
                late.append(quoted(member.checkpoint.path.name))
    return fresh, again, left_out, list(_warn_of_late(late, where))


class _Inside:
    """Finds the checkpoint inside an average that a file is."""

    def __init__(self, folded: Sequence[Folded]) -> None:
        self._by_step = {one.step: one for one in folded if one.step is not None}
        self._by_name = {one.name: one for one in folded}
        self._depths = sorted({name_depth([one.name]) for one in folded})

    def find(self, member: OrderedCheckpoint) -> Folded | None:
        """Look by step, or by name where one of the two has no step."""
        if self._by_step and member.step is not None:
            return self._by_step.get(member.step.value)
        path = str(member.checkpoint.path)
        return next((one for d in self._depths if (one := self._by_name.get(name_of(path, d))) is not None), None)


def _is_after(member: OrderedCheckpoint, one: Folded) -> bool:
    if one.step is not None and member.step is not None:
        return member.step.value > one.step
    return natural_key(name_of(str(member.checkpoint.path), name_depth([one.name]))) > natural_key(one.name)


def _with_same_unit(member: OrderedCheckpoint, earlier: Earlier) -> OrderedCheckpoint:
    """Return a new checkpoint if it is numbered as those inside are."""
    unit = member.step.unit if member.step else "no step"
    if earlier.folded[0].step is not None and unit != earlier.unit:
        raise InputRefused(
            f"{quoted(str(member.checkpoint.path))} has {unit if member.step is None else f'{unit}s'}, but the "
            f"checkpoints in {quoted(str(earlier.checkpoint.path))} are numbered in {earlier.unit}s",
            hint="give the steps with --steps, in the order of the arguments",
        )
    return member


def _warn_of_late(late: Sequence[str], where: str) -> Iterator[Notice]:
    if late:
        message = f"{shortlist(late)} would belong between the checkpoints in {where}, but cannot be folded in later"
        hint = "average all checkpoints at once, without --continue-from"
        yield Notice(code="late-left-out", message=message, hint=hint)


def _warn_of_rounding(earlier: Earlier) -> Iterator[Notice]:
    names = {
        layout.dtype.torch_name
        for layout in earlier.checkpoint.index.layouts
        if layout.dtype.averaged and layout.dtype.itemsize < _PRECISE_BYTES
    }
    if names:
        where = quoted(str(earlier.checkpoint.path))
        yield Notice(
            code="continued-from-rounded",
            message=f"{where} is stored as {shortlist(sorted(names))}: what was rounded in it stays rounded",
            hint="write averages that will be gone on from with --dtype float32 or float64",
        )


def _as_member(earlier: Earlier) -> OrderedCheckpoint:
    last = earlier.folded[-1].step
    step = None if last is None else FoundStep(value=last, unit=earlier.unit, source="metadata")
    return OrderedCheckpoint(checkpoint=earlier.checkpoint, step=step, role=Role.AVERAGE)


def _find_again(earlier: Earlier, fresh: Sequence[OrderedCheckpoint], options: Options) -> OrderedCheckpoint:
    """Open the last checkpoint inside by its name: where it was, beside the new ones or beside the average."""
    last = earlier.folded[-1]
    report = read_report(earlier.checkpoint.path)
    neighbours = [Path(known.path) for known in report.inputs[-1:]] if report else []
    neighbours += [*(member.checkpoint.path for member in fresh[:1]), earlier.checkpoint.path]
    for path in _candidates(last.name, neighbours):
        found = open_checkpoint(path, pool=LayoutPool(), key=options.key, strip_prefix=options.strip_prefix)
        steps = [step.value for step in found.steps if step.unit == earlier.unit]
        if last.step is None or not steps or last.step in steps:
            step = None if last.step is None else FoundStep(value=last.step, unit=earlier.unit, source="metadata")
            return OrderedCheckpoint(checkpoint=found, step=step, role=Role.AGAIN)
        found.index.source.close()
    raise NothingMatched(
        f"the last checkpoint in {quoted(str(earlier.checkpoint.path))}, {quoted(last.name)} "
        f"({_place(last, earlier.unit)}), is needed again: the line from it to the next one is part of the average",
        hint="name it too, beside the new ones",
    )


def _candidates(name: str, neighbours: Sequence[Path]) -> Iterator[Path]:
    """Yield the files called ``name`` in the folders of ``neighbours``; the name cannot lead out of them."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        return
    for folder in dict.fromkeys(
        path.absolute().parents[min(len(parts), len(path.absolute().parents)) - 1] for path in neighbours
    ):
        yield from (path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file())


def _place(one: Folded, unit: str) -> str:
    return quoted(one.name) if one.step is None else f"{unit} {one.step:,}"
