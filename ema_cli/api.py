"""The public functions. Import them from ``ema_cli``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from ema_cli.discovery.checkpoints import close_all
from ema_cli.errors import UsageError
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import Options
from ema_cli.options.output_name import parse_output
from ema_cli.options.weighting import split_weights
from ema_cli.pipeline import planned, run_average
from ema_cli.preflight.check_plan import preflight
from ema_cli.records.plan import Plan
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import Report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import locate
from ema_cli.text import parse_bytes, quoted

StrPath = str | os.PathLike[str]
Numbers = float | Iterable[float]
_LISTS = {"steps", "include", "exclude", "reports", "weights"}


def average(
    paths: StrPath | Iterable[StrPath],
    *,
    output: StrPath,
    method: str | Iterable[str] | None = None,
    decay: Numbers | None = None,
    half_life: Numbers | None = None,
    **options: Any,  # noqa: ANN401 - the fields of Options
) -> Report:
    """Average checkpoints into a safetensors file, and write a report beside it.

    With one ``decay`` d the result is the running EMA ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n`` over the
    checkpoints in order, oldest first (Izmailov et al. 2018 for ``method="uniform"``). Tensors keep their shapes;
    sums are float64 and rounded once.

    Args:
        paths: files, folders or glob patterns.
        output: the file to write, or a folder if it ends with a slash or ``max_shard_size`` is given (``"5GB"``, or
            bytes); with several averages it must hold ``{decay}``, ``{method}`` or the like.
        method: a key of ``ema_cli.weights.methods.SPECS``, one or several; ``ema`` if nothing else is said.
        decay: in [0, 1), one or several.
        half_life: checkpoints or steps after which a share has halved, instead of ``decay``.
        **options: ``one_minus_decay``, ``sigma_rel``, and the other fields of ``ema_cli.options.average.Options``,
            such as ``per="step"`` or ``force=True``.

    Returns:
        The report; ``report.averages[k].output.path`` is where the k-th average lies.

    Raises:
        ema_cli.errors.EmaAvgError: one of its kinds; then no output was changed.

    """
    made = make_options(paths, output=output, method=method, decay=decay, half_life=half_life, **options)
    return run_average(made).report


def plan(
    paths: StrPath | Iterable[StrPath],
    *,
    method: str | Iterable[str] | None = None,
    decay: Numbers | None = None,
    half_life: Numbers | None = None,
    **options: Any,  # noqa: ANN401
) -> Plan:
    """Return what ``average`` would do, without reading tensor data or writing anything.

    Args:
        paths: files, folders or glob patterns.
        method: a key of ``ema_cli.weights.methods.SPECS``, one or several; ``ema`` if nothing else is said.
        decay: in [0, 1), one or several.
        half_life: checkpoints or steps after which a share has halved, instead of ``decay``.
        **options: as those of ``average``.

    Raises:
        ema_cli.errors.EmaAvgError: what ``average`` would raise before it reads tensor data.

    """
    asked = make_options(paths, method=method, decay=decay, half_life=half_life, **options)
    with planned(asked) as made:
        preflight(made, asked)
        return made


def inspect(path: StrPath, *, key: str | None = None, strip_prefix: str | None = None) -> Checkpoint:
    """Return what is in a checkpoint file: its format, where the weights are, steps, tensors. Reads no tensor data.

    Args:
        path: a checkpoint file in any supported format.
        key: dotted path to the weights in a nested checkpoint; ``None`` to find them.
        strip_prefix: prefix to take off the names; ``None`` for those of known wrappers.

    Raises:
        ema_cli.errors.InputRefused: it is not a checkpoint that can be read.
        ema_cli.errors.NothingMatched: there is no such file.

    """
    checkpoint = open_checkpoint(locate(os.fspath(path)), pool=LayoutPool(), key=key, strip_prefix=strip_prefix)
    close_all([checkpoint])
    return checkpoint


def make_options(
    paths: StrPath | Iterable[StrPath],
    *,
    method: str | Iterable[str] | None = None,
    decay: Numbers | None = None,
    half_life: Numbers | None = None,
    one_minus_decay: Numbers | None = None,
    sigma_rel: Numbers | None = None,
    **options: Any,  # noqa: ANN401
) -> Options:
    """Return the options of a call from Python.

    Raises:
        ema_cli.errors.UsageError: they contradict each other.

    """
    known = {field.name for field in fields(Options)}
    for name in options.keys() - known:
        close = get_close_matches(name, known, n=1)
        raise UsageError(f"there is no option {quoted(name)}", hint=f"{close[0]}=..." if close else "")
    for name in _LISTS & options.keys():
        options[name] = _listed(options[name])
    if options.get("output") is not None:
        shard_bytes = _size(options.get("max_shard_size"))
        options["output"], options["max_shard_size"] = parse_output(os.fspath(options["output"]), shard_bytes)
    if "reports" in options:
        options["reports"] = tuple(locate(os.fspath(report)) for report in options["reports"])
    if options.get("continue_from") is not None:
        options["continue_from"] = locate(os.fspath(options["continue_from"]))
    methods = _listed(method) or ()
    named = tuple(os.fspath(path) for path in _listed(paths))
    if "manual" in methods and options.get("weights") is None:
        named, options["weights"] = split_weights(named)
    return Options(
        paths=named,
        methods=methods,
        decays=_numbers(decay),
        half_lives=_numbers(half_life),
        one_minus_decays=_numbers(one_minus_decay),
        sigma_rels=_numbers(sigma_rel),
        **options,
    )


def _size(value: Any) -> Any:  # noqa: ANN401
    """Return a size in bytes, which may be given as text such as ``5GB``."""
    try:
        return parse_bytes(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{quoted(value)} is not a size", hint="5GB") from error


def _listed(value: Any) -> Any:  # noqa: ANN401
    """Return what is one or several of something as a tuple; ``None`` stays."""
    if value is None:
        return None
    return (value,) if isinstance(value, str | os.PathLike) else tuple(value)


def _numbers(value: Numbers | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return tuple(float(number) for number in value) if isinstance(value, Iterable) else (float(value),)
