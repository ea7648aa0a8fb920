"""The public functions. Import them from ``ema_cli``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from ema_cli.discovery.checkpoints import close_all
from ema_cli.errors import EmaAvgError
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix
from ema_cli.options.average import BufferPolicy, GeometryMode, LoraMode, Options, make_options
from ema_cli.options.declaration import declared
from ema_cli.options.input_options import OnMissing, Order
from ema_cli.options.output_options import OutputDtype, TiedPolicy
from ema_cli.pipeline import examine, planned, run_average
from ema_cli.records.plan import Plan
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import Report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import locate
from ema_cli.weights.methods import Clock, Init, MethodName, Per, Shape, Warmup

__all__ = ["average", "inspect", "make_options", "plan"]

StrPath = str | os.PathLike[str]
Numbers = float | Iterable[float] | None


def average(
    paths: StrPath | Iterable[StrPath],
    *,
    output: StrPath | None = None,
    method: MethodName | Iterable[MethodName] = (),
    decay: Numbers = (),
    one_minus_decay: Numbers = (),
    half_life: Numbers = (),
    per: Per | None = None,
    init: Init | None = None,
    clock: Clock | None = None,
    warmup: Warmup | None = None,
    inv_gamma: float | None = None,
    power: float | None = None,
    sigma_rel: Numbers = (),
    shape: Shape | None = None,
    weights: str | Iterable[float] | None = None,
    normalize: bool = True,
    continue_from: StrPath | None = None,
    order: Order = "auto",
    steps: str | Iterable[int] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    every: int = 1,
    last: int | None = None,
    key: str | Iterable[str] = (),
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    strip_prefix: str | None = None,
    on_missing: OnMissing = "error",
    allow_remote: bool = False,
    buffers: BufferPolicy | None = None,
    lora: LoraMode = "factors",
    device: str = "cpu",
    dtype: OutputDtype | None = None,
    threads: int | None = None,
    max_memory: int | str | None = None,
    geometry: GeometryMode = "sample",
    probe: bool = True,
    allow_nonfinite: bool = False,
    max_shard_size: int | str | None = None,
    report: StrPath | Iterable[StrPath] = (),
    tied: TiedPolicy = "keep",
    metadata: Mapping[str, str] | None = None,
    sha256: bool = False,
    force: bool = False,
    resume: bool = False,
    strict: bool = False,
    allow: str | Iterable[str] = (),
    run: str | None = None,
) -> Report:
    """Average checkpoints into a safetensors file, and write a report beside it.

    With one ``decay`` d the result is the running EMA ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n`` over the
    checkpoints in order, oldest first (Izmailov et al. 2018 for ``method="uniform"``). Tensors keep their shapes;
    sums are float64 and rounded once. Sizes are bytes, or text such as ``"5GB"``.

    Args:
        paths: files, folders or glob patterns; ``PATH:WEIGHT`` with ``method="manual"`` and no ``weights``.
        output: the file to write, or a folder if it ends with a slash or ``max_shard_size`` is given; the name must
            contain ``{decay}``, ``{method}`` or the like if there are several averages. By default
            ``ema.safetensors``, or ``ema_{label}.safetensors`` for several averages.
        method: one or several of ``ema_cli.weights.methods.SPECS``; by default ``"ema"``, or the method that
            ``sigma_rel``, ``shape``, ``weights`` or ``warmup`` implies.
        decay: d in [0, 1), one or several.
        one_minus_decay: 1 - d, instead of ``decay``.
        half_life: number of checkpoints (or steps, with ``per="step"``) after which a share has halved, instead of
            ``decay``.
        per: whether ``ema`` applies its decay per ``"checkpoint"``, the default, or per training ``"step"``.
        init: ``"first"``, the default: E_1 = theta_1; ``"debias"``: start from zero, divide by the sum of the weights.
        clock: what the steps count.
        warmup: how the decay of ``ema-warmup`` grows.
        inv_gamma: parameter of ``warmup="inv-gamma"``.
        power: parameter of ``warmup="inv-gamma"``.
        sigma_rel: width of a power profile, relative to the training time, one or several.
        shape: learning-rate decay that ``lr-decay`` imitates.
        weights: weights by hand, one per checkpoint, in the order of ``paths``.
        normalize: divide weights by hand by their sum.
        continue_from: a previous average that the checkpoints are folded into.
        order: how the checkpoints are ordered; ``"auto"``: by step if every checkpoint has one, else by name.
        steps: the steps of the checkpoints, in the order of ``paths``.
        from_step: use checkpoints from this step on.
        to_step: use checkpoints up to this step.
        every: use every K-th checkpoint, counted back from the last.
        last: use only the last K checkpoints.
        key: dotted path to the weights in a nested checkpoint; several for several parts, each under its own prefix;
            by default they are found.
        include: regular expressions: only tensors whose name matches one of them.
        exclude: regular expressions: no tensors whose name matches one of them.
        strip_prefix: prefix to remove from tensor names; ``None`` for those of known wrappers, ``""`` for none.
        on_missing: ``"last"``: if not all checkpoints have the same tensors, write those of the last one.
        allow_remote: open the URLs that the report of ``continue_from`` names; by default only those given here.
        buffers: whether BatchNorm statistics are averaged, or copied from the last or first checkpoint; ``None`` for
            ``"average"``, with a warning.
        lora: ``"exact"``: average the updates B A of LoRA adapters, not their factors; the ranks add up.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``.
        dtype: type of averaged tensors in the output; ``None`` for ``"same"``: as in the last checkpoint.
        threads: number of worker threads; by default one per core, at most 4.
        max_memory: limit for the buffers of the fold.
        geometry: measure the distances between the checkpoints on a sample of elements, or not.
        probe: read a small sample of every checkpoint before the fold, to see whether they are one series in order.
        allow_nonfinite: average NaN and infinity instead of refusing them.
        max_shard_size: write a folder, in files of at most this size.
        report: further reports, ending in ``.html``, ``.md`` or ``.json``.
        tied: write tied tensors under every name, or ``"drop"`` all names but one.
        metadata: more metadata of the output.
        sha256: add the SHA-256 of every input to the report.
        force: overwrite an output that is not up to date.
        resume: continue an interrupted run; keep what is complete if this run is interrupted.
        strict: fail on a warning, and publish nothing.
        allow: codes of warnings that are accepted under ``strict``.
        run: the folder that ``{run}`` and ``{name}`` in ``output`` stand for; by default the one folder in ``paths``.

    Returns:
        The report; ``report.averages[k].output.path`` is the path of the k-th average.

    Raises:
        ema_cli.errors.EmaAvgError: one of its kinds; then no output was changed.

    """
    given = locals()
    with keywords_in_errors():
        return run_average(make_options(**given)).report


def plan(
    paths: StrPath | Iterable[StrPath],
    *,
    output: StrPath | None = None,
    method: MethodName | Iterable[MethodName] = (),
    decay: Numbers = (),
    one_minus_decay: Numbers = (),
    half_life: Numbers = (),
    per: Per | None = None,
    init: Init | None = None,
    clock: Clock | None = None,
    warmup: Warmup | None = None,
    inv_gamma: float | None = None,
    power: float | None = None,
    sigma_rel: Numbers = (),
    shape: Shape | None = None,
    weights: str | Iterable[float] | None = None,
    normalize: bool = True,
    continue_from: StrPath | None = None,
    order: Order = "auto",
    steps: str | Iterable[int] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    every: int = 1,
    last: int | None = None,
    key: str | Iterable[str] = (),
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    strip_prefix: str | None = None,
    on_missing: OnMissing = "error",
    allow_remote: bool = False,
    buffers: BufferPolicy | None = None,
    lora: LoraMode = "factors",
    device: str = "cpu",
    dtype: OutputDtype | None = None,
    threads: int | None = None,
    max_memory: int | str | None = None,
    geometry: GeometryMode = "sample",
    probe: bool = True,
    allow_nonfinite: bool = False,
    max_shard_size: int | str | None = None,
    report: StrPath | Iterable[StrPath] = (),
    tied: TiedPolicy = "keep",
    metadata: Mapping[str, str] | None = None,
    sha256: bool = False,
    force: bool = False,
    resume: bool = False,
    strict: bool = False,
    allow: str | Iterable[str] = (),
    run: str | None = None,
) -> Plan:
    """Return what ``average`` would do, without writing anything; of the tensors, only a small sample is read.

    The keywords are those of ``average``. What would stop a run although the plan can be
    made, such as an existing output or a missing device, is a warning of the plan.

    Raises:
        ema_cli.errors.EmaAvgError: the inputs cannot be averaged in this way, or the options contradict each other.

    """
    given = locals()
    with keywords_in_errors():
        options = make_options(**given)
        with planned(options) as made:
            examined, checked = examine(made, options)
            return replace(examined, warnings=checked.dry_run_warnings())


def inspect(path: StrPath, *, key: str | Iterable[str] = (), strip_prefix: str | None = None) -> Checkpoint:
    """Return what a checkpoint contains: its format, where the weights are, steps, tensors. Reads no tensor data.

    Args:
        path: a checkpoint file in any supported format.
        key: dotted path to the weights in a nested checkpoint; several for several parts, each under its own prefix;
            by default they are found.
        strip_prefix: prefix to remove from tensor names; ``None`` for those of known wrappers, ``""`` for none.

    Raises:
        ema_cli.errors.InputRefused: it is not a checkpoint that can be read.
        ema_cli.errors.NothingMatched: there is no such file.

    """
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    with keywords_in_errors():
        checkpoint = open_checkpoint(locate(os.fspath(path)), pool=LayoutPool(), keys=keys, strip_prefix=strip_prefix)
        close_all([checkpoint])
        refuse_unused_prefix(strip_prefix, [checkpoint.stripped])
        return checkpoint


@contextmanager
def keywords_in_errors() -> Iterator[None]:
    """Let errors name options as keywords: their messages name them as flags of the command line."""
    try:
        yield
    except EmaAvgError as error:
        error.message, error.hint = in_keywords(error.message), in_keywords(error.hint)
        error.args = (error.message,)
        raise


_FLAG = re.compile(
    r"""(?P<kept> "[^"]*" | ema-avg\ .* )  # a name, a command
      | (?<![\w-]) (?P<flag> --[a-z][\w-]* | -o ) (?! [\w-] )
        (?: \ (?!--|-[a-z]\b) (?P<value> "[^"]*" | '[^']*' | \S+? (?= [,;:)]* \.? (?:\s|$) ) ) )?""",
    re.VERBOSE,
)

_STRING = r'"[^"]*"'
_REPEATED = re.compile(rf"\b(?P<name>\w+)={_STRING}(?: (?P=name)={_STRING})+")


def in_keywords(text: str) -> str:
    """Return a message with keywords in place of flags: ``--half-life 4`` becomes ``half_life=4``."""
    options = {flag: one for one in declared(Options) for flag in (one.flag, one.short) if flag}

    def replaced(found: re.Match[str]) -> str:
        option, value = options.get(found["flag"]), found["value"]
        if found["kept"] or option is None:
            return found[0]
        if option.kind == "switch":
            return f"{option.name}={not option.negated}" + (f" {value}" if value else "")
        is_word = value is not None and value.isalpha() and value.islower() and value not in option.words
        if value is None or (is_word and found.end() < len(text)):  # a plain word continues the sentence
            return option.name + (f" {value}" if value else "")
        literal = value if option.kind in ("number", "whole number") else '"' + value.strip("'\"") + '"'
        if option.kind == "pairs" and "=" in literal:
            literal = "{" + literal.replace("=", '": "', 1) + "}"
        return f"{option.name}={literal}"

    return _REPEATED.sub(_as_list, _FLAG.sub(replaced, text))


def _as_list(repeated: re.Match[str]) -> str:
    """Return ``key=["a", "b"]`` for ``key="a" key="b"``."""
    return f"{repeated['name']}=[{', '.join(re.findall(_STRING, repeated[0]))}]"
