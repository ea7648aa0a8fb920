"""``average_tensors`` and ``load_average``: an average in memory, with the bytes that ``average`` would write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ema_cli.api import StrPath, in_keywords, keywords_in_errors, make_options
from ema_cli.discovery.changes import blaming_changed_inputs
from ema_cli.errors import UsageError
from ema_cli.events import Event, WarningIssued
from ema_cli.execution import check_fold
from ema_cli.fold.address_space import check_address_space
from ema_cli.in_memory.arrays import Filled, Framework, memory_maker
from ema_cli.in_memory.background_fold import BackgroundFold
from ema_cli.options.average import Options
from ema_cli.pipeline import announce, examine, planned
from ema_cli.records.plan import Plan, PlannedTensor

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
_OF_FILES = ("output", "max_shard_size", "report", "metadata", "sha256", "force", "resume", "geometry", "run")
"""Options of the files that ``average`` writes."""


@overload
def average_tensors(
    paths: StrPath | Iterable[StrPath], *, framework: Literal["np"] = "np", **options: Any
) -> Generator[tuple[str, NDArray[Any]]]: ...
@overload
def average_tensors(
    paths: StrPath | Iterable[StrPath], *, framework: Literal["pt"], **options: Any
) -> Generator[tuple[str, torch.Tensor]]: ...
def average_tensors(
    paths: StrPath | Iterable[StrPath], *, framework: Framework = "np", **options: Any
) -> Generator[tuple[str, Any]]:
    """Yield the tensors of an average one after the other, without writing a file.

    They have the names, the order, the shapes and the bytes of the file that ``average`` would write. Memory is needed
    for the tensor that the caller holds, the next one, and twice the buffers of the fold (``max_memory``), whatever the
    size of the model. Files are closed and threads have ended when the generator ends or is closed, which also happens
    when a ``for`` loop is left.

    Args:
        paths: as for ``average``.
        framework: ``"np"``: ``numpy.ndarray``, with the types of ``ml_dtypes`` for bfloat16 and 8 bits; ``"pt"``:
            ``torch.Tensor`` on the CPU. Each owns its memory, also tied tensors, and can be changed.
        **options: the other keywords of ``average``, except those of the files that it writes: ``output``,
            ``max_shard_size``, ``report``, ``metadata``, ``sha256``, ``force``, ``resume``, ``run``, and ``geometry``:
            the distances of the report are not measured.

    Raises:
        ema_cli.errors.EmaAvgError: as ``average`` does. The last errors, such as an input that was changed while it
            was read, come after the last tensor: what was yielded is verified when the generator has ended.

    """
    with keywords_in_errors():
        given = _make_options(average_tensors.__name__, paths, options)
    return _fold(given, framework, lambda tensor, filled: (tensor.name, filled.array))


@overload
def load_average(
    paths: StrPath | Iterable[StrPath], *, framework: Literal["pt"] = "pt", **options: Any
) -> dict[str, torch.Tensor]: ...
@overload
def load_average(
    paths: StrPath | Iterable[StrPath], *, framework: Literal["np"], **options: Any
) -> dict[str, NDArray[Any]]: ...
def load_average(
    paths: StrPath | Iterable[StrPath], *, framework: Framework = "pt", **options: Any
) -> dict[str, Any]:
    """Return an average as a state dict, without writing a file: ``model.load_state_dict(load_average("run/", ...))``.

    The bytes are those of the file that ``average`` would write. Tied tensors share their memory.

    Args:
        paths: as for ``average``.
        framework: ``"pt"``: ``torch.Tensor`` on the CPU; ``"np"``: ``numpy.ndarray``; see ``average_tensors``.
        **options: as for ``average_tensors``.

    Raises:
        ema_cli.errors.EmaAvgError: as ``average`` does.

    """
    with keywords_in_errors():
        given = _make_options(load_average.__name__, paths, options)
    state: dict[str, Any] = {}
    first: dict[str, Filled] = {}
    for tensor, filled in _fold(given, framework, lambda tensor, filled: (tensor, filled)):
        known = first.setdefault(tensor.tied_to or tensor.name, filled)
        state[tensor.name] = (known if _are_equal(known, filled) else filled).array
    return state


def _make_options(function: str, paths: StrPath | Iterable[StrPath], given: dict[str, Any]) -> Options:
    for name in _OF_FILES:
        if name in given:
            raise TypeError(f"{function}() writes no file: it does not take {name}")
    return make_options(paths, **given)


def _fold(
    options: Options, framework: Framework, make_item: Callable[[PlannedTensor, Filled], Item]
) -> Generator[Item]:
    """Do what ``pipeline.run_average`` does up to the files; yield an item per tensor, and keep none of them."""
    with keywords_in_errors(), ExitStack() as locks, planned(options, _listen) as made:
        make = memory_maker(framework)
        plan = announce(*examine(made, options, locks), options, _listen)
        _refuse_several(plan)
        check_address_space(plan.buffers)
        with blaming_changed_inputs(plan.checkpoints), BackgroundFold(plan, options, make) as fold:
            for number, tensor in enumerate(plan.tensors):
                yield make_item(tensor, fold.take(number))
            folded = fold.result()
        check_fold(plan, folded, options, _listen)


def _refuse_several(plan: Plan) -> None:
    if len(plan.outputs) > 1:
        raise UsageError(
            f"these options ask for {len(plan.outputs)} averages, and one can be returned",
            hint="call the function in a loop, once per average",
        )


def _are_equal(known: Filled, filled: Filled) -> bool:
    """Whether two tensors that are tied in the last checkpoint are the same in the average, too."""
    return known.array.dtype == filled.array.dtype and np.array_equal(known.raw, filled.raw)


def _listen(event: Event) -> None:
    if isinstance(event, WarningIssued):
        warnings.warn(in_keywords(f"{event.warning.code}: {event.warning.message}"), UserWarning, stacklevel=2)
