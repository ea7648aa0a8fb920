"""The keywords of the Python functions that average: one per option, with its type.

``Options`` declares the options; a test compares the two. The values are read by ``make_options``, which also takes
objects of other libraries: ``torch.bfloat16``, ``torch.device("cuda:0")``, numbers and arrays of numpy and torch.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypedDict, TypeVar

from ema_cli.options.average import BufferPolicy, GeometryMode, LoraMode, Options
from ema_cli.options.declaration import declared
from ema_cli.options.input_options import OnMissing, Order
from ema_cli.options.output_options import OutputDtype, OutputFormat, ReadBack, TiedPolicy
from ema_cli.weights.methods import Clock, Init, MethodName, Per, Shape, Warmup

Function = TypeVar("Function", bound=Callable[..., Any])
StrPath = str | os.PathLike[str]
Numbers = float | Iterable[float] | None


class Dtype(Protocol):
    """An element type of torch or numpy: ``torch.bfloat16``, ``numpy.dtype("float32")``."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""


class Device(Protocol):
    """A device of torch."""

    @property
    def type(self) -> str:
        """``cpu`` or ``cuda``."""


class KeywordsInMemory(TypedDict, total=False):
    """The keywords of ``average_tensors`` and ``load_average``: what to average, and how."""

    method: MethodName | Iterable[MethodName]
    decay: Numbers
    one_minus_decay: Numbers
    half_life: Numbers
    per: Per | None
    init: Init | None
    clock: Clock | None
    warmup: Warmup | None
    inv_gamma: float | None
    power: float | None
    sigma_rel: Numbers
    shape: Shape | None
    weights: str | Iterable[float] | None
    normalize: bool
    continue_from: StrPath | None
    order: Order
    steps: str | Iterable[int] | None
    from_step: int | None
    to_step: int | None
    every: int
    last: int | None
    key: str | Iterable[str]
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    strip_prefix: str | None
    on_missing: OnMissing
    allow_remote: bool
    buffers: BufferPolicy | None
    lora: LoraMode
    device: str | Device
    dtype: OutputDtype | Dtype | type | None
    threads: int | None
    max_memory: int | str | None
    probe: bool
    allow_nonfinite: bool
    tied: TiedPolicy
    strict: bool
    allow: str | Iterable[str]


class AverageKeywords(KeywordsInMemory, total=False):
    """The keywords of ``average`` and ``plan``, which ``help(ema_cli.average)`` explains."""

    output: StrPath | None
    format: OutputFormat | None
    max_shard_size: int | str | None
    report: StrPath | Iterable[StrPath]
    metadata: Mapping[str, str] | None
    sha256: bool
    geometry: GeometryMode
    read_back: ReadBack
    force: bool
    resume: bool
    run: str | None


def listing_keywords(function: Function, keywords: type = AverageKeywords) -> Function:
    """Let the signature of a function with ``**options: Unpack[keywords]`` list the keywords and their defaults.

    ``help``, notebooks and shells that complete names read it.
    """
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    defaults = {
        one.name: None if one.default_warned or one.default is dict else one.default for one in declared(Options)
    }
    listed = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name),
            annotation=getattr(hint, "__forward_arg__", hint),
        )
        for name, hint in keywords.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *listed])  # type: ignore[attr-defined]
    return function
