"""``inspect``, ``diff``, ``verify`` and ``load_report``: the functions that only read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from ema_cli.api.listening import Progress, issue, listening
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.discovery.folder_listing import look_into
from ema_cli.discovery.search import AVERAGES_AVERAGED
from ema_cli.errors import UsageError
from ema_cli.formats.folder import Folder
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.own_outputs import marked
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix
from ema_cli.options.average import DEFAULT_SAMPLES, Options, make_options
from ema_cli.options.keyword_messages import in_keywords, keywords_in_errors
from ema_cli.options.keywords import StrPath
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import load_report as load
from ema_cli.report.readable_report import ReadableReport
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, exists, is_folder, locate
from ema_cli.text import quoted

if TYPE_CHECKING:  # both need numpy, which the others need not
    from ema_cli.compare import Comparison
    from ema_cli.verification.checks import Verification


@overload
def inspect(  # type: ignore[overload-overlap]  # text is an iterable of text, too
    paths: StrPath, *, key: str | Iterable[str] = ..., strip_prefix: str | None = ...
) -> Checkpoint | Any: ...  # noqa: ANN401 - a list for a folder, which the type of a path does not tell
@overload
def inspect(
    paths: Iterable[StrPath], *, key: str | Iterable[str] = ..., strip_prefix: str | None = ...
) -> list[Checkpoint]: ...
def inspect(
    paths: StrPath | Iterable[StrPath], *, key: str | Iterable[str] = (), strip_prefix: str | None = None
) -> Checkpoint | list[Checkpoint]:
    """Return what is in a checkpoint: its format, where the weights are, steps, tensors. Reads no tensor data.

    The path of one checkpoint, be it a file or a folder, gives its ``Checkpoint``. Anything else gives a list: a folder
    that contains checkpoints, a pattern, or several paths.

    Args:
        paths: checkpoints in any supported format, folders that contain them, patterns or URLs.
        key: dotted path to the weights in a nested checkpoint; several for several parts, each under its own prefix;
            by default they are found.
        strip_prefix: prefix to remove from tensor names; ``None`` for those of known wrappers, ``""`` for none.

    Warns:
        ema_cli.EmaAvgWarning: a file in a folder is skipped, and the like.

    Raises:
        ema_cli.errors.InputRefused: something that was named is not a checkpoint that can be read.
        ema_cli.errors.NothingMatched: there is no such file.

    """
    with keywords_in_errors():
        options = make_options(paths, key=key, strip_prefix=strip_prefix)
        if isinstance(paths, str | os.PathLike) and _is_checkpoint(location := locate(options.paths[0])):
            return _open_one(location, options)
        found = discover(options)
        close_all(found.checkpoints)
    for warning in found.warnings:
        if warning.code != AVERAGES_AVERAGED:  # nothing is averaged here
            issue(warning)
    return list(found.checkpoints)


def _is_checkpoint(location: Location) -> bool:
    """Whether a location is a file, or a folder that is one checkpoint."""
    return look_into(Folder(location)).whole if is_folder(location) else exists(location)


def _open_one(location: Location, options: Options) -> Checkpoint:
    checkpoint = open_checkpoint(location, pool=LayoutPool(), keys=options.key, strip_prefix=options.strip_prefix)
    close_all([checkpoint])
    refuse_unused_prefix(options.strip_prefix, [checkpoint.stripped])
    return marked(checkpoint)


def diff(
    a: StrPath,
    b: StrPath,
    *,
    key: str | Iterable[str] = (),
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    strip_prefix: str | None = None,
    progress: Progress = False,
) -> Comparison:
    """Compare two checkpoints tensor by tensor, in bounded memory. Equal means: the same names, shapes, types and bits.

    Args:
        a: a checkpoint file or folder of any format, or a URL.
        b: another one; distances are relative to it.
        key: dotted path to the weights in a nested checkpoint, or several; by default they are found.
        include: regular expressions: only tensors whose name matches one of them.
        exclude: regular expressions: no tensors whose name matches one of them.
        strip_prefix: prefix to remove from tensor names; ``None`` for those of known wrappers, ``""`` for none.
        progress: as for ``ema_cli.average``.

    Returns:
        The comparison: ``equal``, ``tensors`` with their distances, ``different``, ``only_in_a``, ``only_in_b``,
        ``total``.

    Raises:
        ema_cli.errors.NothingMatched: a checkpoint is missing.
        ema_cli.errors.InputRefused: a checkpoint cannot be read.

    """
    from ema_cli.compare import compare  # noqa: PLC0415 - numpy

    with keywords_in_errors(), listening(progress) as listener:
        options = make_options([a, b], key=key, include=include, exclude=exclude, strip_prefix=strip_prefix)
        return compare(options, listener)


def verify(
    output: StrPath,
    *,
    inputs: StrPath | Iterable[StrPath] = (),
    samples: SupportsIndex = DEFAULT_SAMPLES,
    seed: SupportsIndex = 0,
    quick: bool = False,
    output_only: bool = False,
    allow_remote: bool = False,
    progress: Progress = False,
) -> Verification:
    """Check an output against its report and its inputs; pieces of tensors are recomputed and compared bit for bit.

    Args:
        output: a file or folder that this program wrote, with its report beside it.
        inputs: the inputs, if they are not where the report says: files, folders, patterns or URLs, in any order.
        samples: number of pieces of tensors to recompute.
        seed: selects the pieces.
        quick: skip the digests of the inputs' weights, which need all their bytes.
        output_only: check the output and its report only, not the inputs.
        allow_remote: open the URLs that the report names; by default only those given here.
        progress: as for ``ema_cli.average``.

    Returns:
        The checks: ``ok``, ``checks``, ``failures``; ``raise_if_failed()`` raises ``VerificationFailed``.

    Raises:
        ema_cli.errors.NothingMatched: there is no such output, or one of ``inputs`` is missing.
        ema_cli.errors.InputRefused: the output cannot be opened; one of ``inputs`` is no checkpoint.

    """
    from ema_cli.verification.checks import verify as check  # noqa: PLC0415 - numpy

    names = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    with keywords_in_errors(), listening(progress) as listener:
        found = check(
            locate(os.fspath(output)),
            samples=_whole(samples=samples),
            seed=_whole(seed=seed),
            quick=quick,
            output_only=output_only,
            inputs=[os.fspath(name) for name in names],
            allow_remote=allow_remote,
            listener=listener,
        )
    named = [replace(one, message=in_keywords(one.message), hint=in_keywords(one.hint)) for one in found.checks]
    return replace(found, checks=tuple(named), in_python=True)


def _whole(**given: SupportsIndex) -> int:
    """Return a number of any library as a plain one; raise ``UsageError`` for anything else."""
    ((name, value),) = given.items()
    try:
        return index(value)
    except TypeError as error:
        raise UsageError(f"{name}={quoted(str(value))} is not a whole number") from error


def load_report(path: StrPath) -> ReadableReport:
    """Return the report in a JSON file: ``OUT.report.json`` beside an output, or one that was saved.

    Raises:
        ema_cli.errors.NothingMatched: there is no such file.
        ema_cli.errors.InputRefused: it is not a report of ema-avg.

    """
    with keywords_in_errors():
        return ReadableReport.of(load(locate(os.fspath(path)), several=True))
