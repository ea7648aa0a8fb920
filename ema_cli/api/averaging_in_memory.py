"""``average_tensors`` and ``load_average``: an average in memory, with the bytes that ``average`` would write."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from ema_cli.api.listening import Progress, listening
from ema_cli.discovery.changes import blaming_changed_inputs
from ema_cli.errors import UsageError
from ema_cli.events import Counted
from ema_cli.execution import check_fold
from ema_cli.fold.address_space import check_address_space
from ema_cli.in_memory.arrays import Filled, Framework, memory_maker
from ema_cli.in_memory.background_fold import BackgroundFold
from ema_cli.options.average import Options, make_options
from ema_cli.options.keyword_messages import keywords_in_errors
from ema_cli.options.keywords import AverageKeywords, KeywordsInMemory, StrPath, listing_keywords
from ema_cli.pipeline import announce, examine, planned
from ema_cli.records.plan import PlannedTensor

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Item = TypeVar("Item")
_listing = partial(listing_keywords, keywords=KeywordsInMemory)


@overload
def average_tensors(
    paths: StrPath | Iterable[StrPath],
    *,
    framework: Literal["np"] = "np",
    progress: Progress = False,
    **options: Unpack[KeywordsInMemory],
) -> Generator[tuple[str, NDArray[Any]]]: ...
@overload
def average_tensors(
    paths: StrPath | Iterable[StrPath],
    *,
    framework: Literal["pt"],
    progress: Progress = False,
    **options: Unpack[KeywordsInMemory],
) -> Generator[tuple[str, torch.Tensor]]: ...
@_listing
def average_tensors(
    paths: StrPath | Iterable[StrPath],
    *,
    framework: Framework = "np",
    progress: Progress = False,
    **options: Unpack[KeywordsInMemory],
) -> Generator[tuple[str, Any]]:
    """Yield the tensors of an average one after the other, without writing a file.

    They have the names, the order, the shapes and the bytes of the file that ``average`` would write. Memory is needed
    for the tensor that the caller holds, the next one, and twice the buffers of the fold (``max_memory``), whatever the
    size of the model. Files are closed and threads have ended when the generator ends or is closed; leaving a ``for``
    loop closes it.

    Args:
        paths: as for ``average``.
        framework: ``"np"``: ``numpy.ndarray``, with the types of ``ml_dtypes`` for bfloat16 and 8 bits; ``"pt"``:
            ``torch.Tensor`` on the CPU. Each owns its memory, tied tensors too, and can be changed.
        progress: as for ``average``.
        **options: as for ``average``, without those of the files that it writes (``output``, ``max_shard_size``,
            ``read_back``, ``report``, ``metadata``, ``sha256``, ``force``, ``resume``, ``run``) and of its report
            (``geometry``).

    Warns:
        ema_cli.EmaAvgWarning: as ``average`` does, when the first tensor is asked for, and at the end.

    Raises:
        ema_cli.errors.EmaAvgError: as ``average`` does. An input that was changed while it was read is an error after
            the last tensor: what was yielded is verified when the generator has ended.

    """
    given = _read(average_tensors.__name__, paths, options)
    return _averaged(given, framework, progress, lambda tensor, filled: (tensor.name, filled.array))


@overload
def load_average(
    paths: StrPath | Iterable[StrPath],
    *,
    framework: Literal["pt"] = "pt",
    progress: Progress = False,
    **options: Unpack[KeywordsInMemory],
) -> dict[str, torch.Tensor]: ...
@overload
def load_average(
    paths: StrPath | Iterable[StrPath],
    *,
    framework: Literal["np"],
    progress: Progress = False,
    **options: Unpack[KeywordsInMemory],
) -> dict[str, NDArray[Any]]: ...
@_listing
def load_average(
    paths: StrPath | Iterable[StrPath],
    *,
    framework: Framework = "pt",
    progress: Progress = False,
    **options: Unpack[KeywordsInMemory],
) -> dict[str, Any]:
    """Return an average as a state dict, without writing a file.

        for decay in (0.5, 0.8, 0.9):
            model.load_state_dict(ema_cli.load_average("run/", decay=decay))
            print(decay, evaluate(model))

    The bytes are those of the file that ``average`` would write. Tied tensors share their memory.

    Args:
        paths: as for ``average``.
        framework: ``"pt"``: ``torch.Tensor`` on the CPU; ``"np"``: ``numpy.ndarray``; see ``average_tensors``.
        progress: as for ``average``.
        **options: as for ``average_tensors``.

    Warns:
        ema_cli.EmaAvgWarning: as ``average`` does.

    Raises:
        ema_cli.errors.EmaAvgError: as ``average`` does.

    """
    state: dict[str, Any] = {}
    first: dict[str, Filled] = {}
    given = _read(load_average.__name__, paths, options)
    for tensor, filled in _averaged(given, framework, progress, lambda *both: both):
        known = first.setdefault(tensor.tied_to or tensor.name, filled)
        state[tensor.name] = (known if known.equals(filled) else filled).array  # averages of ties may differ
    return state


def _read(function: str, paths: StrPath | Iterable[StrPath], given: Mapping[str, Any]) -> Options:
    """Return the options of a call.

    Raises:
        TypeError: an option is not for averages in memory.
        UsageError: as ``make_options`` does.

    """
    for name in AverageKeywords.__annotations__.keys() - KeywordsInMemory.__annotations__.keys():
        if name in given:
            raise TypeError(f"{function}() writes no file, so it does not take {name!r}")
    with keywords_in_errors():
        return replace(make_options(paths, **given), in_memory=True)


def _averaged(
    options: Options, framework: Framework, progress: Progress, make_item: Callable[[PlannedTensor, Filled], Item]
) -> Generator[Item]:
    """Yield an item for each tensor of an average, and hold none of them; the steps are those of ``run_average``."""
    with (
        keywords_in_errors(),
        listening(progress) as listener,
        ExitStack() as locks,
        planned(options, listener) as made,
    ):
        make = memory_maker(framework)
        if len(made.outputs) > 1:
            message = f"these options ask for {len(made.outputs)} averages, and one can be returned"
            raise UsageError(message, hint="call it once per average, in a loop")
        plan = announce(*examine(made, options, locks), options, listener)
        check_address_space(plan.buffers)
        count = Counted("folding", plan.read_bytes, listener)
        with blaming_changed_inputs(plan.checkpoints), closing(BackgroundFold(plan, options, make)) as fold:
            fold.start()
            for number, tensor in enumerate(plan.tensors):
                yield make_item(tensor, fold.take(number))
                count.add(sum(plan.layout(tensor, i).nbytes for i in plan.readers(tensor)))
            folded = fold.result()
        check_fold(plan, folded, options, listener)
