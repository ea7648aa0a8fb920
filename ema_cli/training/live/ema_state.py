"""The state of a live EMA as plain values and tensors, for ``torch.save`` and ``torch.distributed.checkpoint``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ema_cli.errors import UsageError
from ema_cli.records.live_snapshot import possible_steps
from ema_cli.text import plural, quoted, safe_text, shortlist
from ema_cli.training.live.averages import Cohort, average_dtype, cohorts_of, held
from ema_cli.training.live.model_tensors import as_sharded
from ema_cli.weights.methods import DECAYS, Method

_SAME = 1e-9
"""Relative difference below which two values of 1 - d are the same, written in different ways."""

_UNSHOWN = ("name", "one_minus_decay", "per")


def state_of(methods: Sequence[Method], step: int, cohorts: Sequence[Cohort]) -> dict[str, Any]:
    """Return the averages under the names of their tensors, whatever cohort they are in, and the rest.

    What has no tensors is in tuples, which ``torch.distributed.checkpoint`` stores and loads as one value.
    """
    return {
        "methods": tuple(method.plain() for method in methods),
        "step": step,
        "cohorts": tuple(
            {
                "names": tuple(cohort.averages[0]),
                "first_step": cohort.first_step,
                "last_step": cohort.last_step,
                "updates": cohort.updates,
            }
            for cohort in cohorts
        ),
        "averages": [
            {name: tensor for cohort in cohorts for name, tensor in cohort.averages[number].items()}
            for number in range(len(methods))
        ],
    }


def part_of(state: Any, part: str | None) -> Any:  # noqa: ANN401 - untrusted
    """Return the part of a state that has this name; the state itself if there is none.

    Raises:
        ema_cli.errors.UsageError: the state has no such part.

    """
    if part is not None and part not in (state or ()):
        raise UsageError(
            f"the state has no part of {part}",
            hint="under FullyShardedDataParallel each process loads what it saved, as many as there were",
        )
    return state if part is None else state[part]


def position_from(state: object, methods: Sequence[Method]) -> int:
    """Return the training step of a state.

    Raises:
        ema_cli.errors.UsageError: it is not a state, or was made with other methods.

    """
    if not isinstance(state, Mapping):
        raise _malformed(f"it is of type {type(state).__name__}")
    saved = _entry(state, "methods", (list, tuple))
    if not all(isinstance(one, Mapping) for one in saved):
        raise _malformed('"methods" has another form')
    own = [method.plain() for method in methods]
    if len(saved) != len(own) or not all(map(_same_method, saved, own)):
        raise UsageError(
            f"the state was made with {in_words(saved)}, and this EMA has {in_words(own)}",
            hint="make the EMA with the same options, or begin a new average with register()",
        )
    return _count(state, "step")


def cohorts_from(
    state: Mapping[str, Any],
    averaged: Mapping[str, torch.Tensor],
    *,
    averages: int,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> list[Cohort]:
    """Return copies of the averages in a state, sharded as the model is.

    Args:
        state: what ``state_of`` returned.
        averaged: the tensors of the model that may be averaged.
        averages: how many averages each has.
        dtype: type of the averages; ``None`` for that in the state.
        device: where they are kept; ``None`` for the device of the model's tensor.

    Raises:
        ema_cli.errors.UsageError: it has another form, or was made for another model.

    """
    saved = _entry(state, "averages", (list, tuple))
    if len(saved) != averages or not all(isinstance(one, Mapping) for one in saved):
        raise _malformed(f'"averages" does not hold {plural(averages, "average")}')
    seen: set[str] = set()
    cohorts = []
    for group in _entry(state, "cohorts", (list, tuple)):
        if not isinstance(group, Mapping):
            raise _malformed('"cohorts" has another form')
        names = _entry(group, "names", (list, tuple))
        if not names or not all(isinstance(name, str) for name in names) or seen.intersection(names):
            raise _malformed('"cohorts" has another form')
        seen.update(names)
        _refuse_missing(
            names, averaged, "the model has no {} to average", "it is of another model, or of an EMA of other buffers"
        )
        begun = [_tensors(one, names, averaged, dtype=dtype, device=device) for one in saved]
        times = {name: _count(group, name) for name in ("first_step", "last_step", "updates")}
        if not possible_steps(**times, step=_count(state, "step")):
            raise _malformed('the steps of "cohorts" contradict each other')
        cohorts += cohorts_of(begun, **times)
    return cohorts


@torch.inference_mode(mode=False)
@torch.no_grad()
def _tensors(
    saved: Mapping[str, Any],
    names: Sequence[str],
    averaged: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> dict[str, torch.Tensor]:
    """Return copies of the averages of these names."""
    _refuse_missing(
        names, saved, "the state has no average of {}", "before dcp.load, call register()" if not saved else ""
    )
    copies = {}
    for name in names:
        stored = saved[name]  # from a file it is read each time
        if not isinstance(stored, torch.Tensor):
            raise _malformed('"averages" does not hold tensors alone')
        tensor = as_sharded(stored.detach(), averaged[name])
        place = device or averaged[name].device
        copies[name] = tensor.to(device=place, dtype=average_dtype(tensor.dtype, dtype), copy=True)
    held({name: averaged[name] for name in names}, copies)
    return copies


def _entry(state: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401 - as stored
    if not isinstance(state.get(key), kind):
        raise _malformed(f"it has no {quoted(key)}" if key not in state else f"{quoted(key)} has another form")
    return state[key]


def _count(state: Mapping[str, Any], key: str) -> int:
    count: int = _entry(state, key, int)
    if count < 0:
        raise _malformed(f"{quoted(key)} is negative")
    return count


def _malformed(problem: str) -> UsageError:
    return UsageError(f"not a state of EMA.state_dict(): {problem}")


def _refuse_missing(names: Sequence[str], known: Mapping[str, object], fact: str, hint: str = "") -> None:
    there = set(known)
    missing = [quoted(name) for name in names if name not in there]
    if missing:
        raise UsageError(fact.format(shortlist(missing)), hint=hint)


def _same_method(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether two methods are equal, however their decay was given."""
    a, b = saved.get("one_minus_decay"), own["one_minus_decay"]
    numbers = isinstance(a, float) and b is not None
    same_decay = math.isclose(a, b, rel_tol=_SAME) if numbers else a is b  # type: ignore[arg-type]
    return same_decay and all(saved.get(key) == value for key, value in own.items() if key not in DECAYS)


def in_words(methods: Sequence[Mapping[str, Any]]) -> str:
    """Return methods as text: ``ema decay=0.999 init=first``."""
    shown = [
        [str(one.get("name")), *(f"{key}={value}" for key, value in one.items() if value and key not in _UNSHOWN)]
        for one in methods
    ]
    return " and ".join(safe_text(" ".join(words)) for words in shown)
