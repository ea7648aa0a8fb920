"""``average`` and ``plan``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Unpack

from ema_cli.api.listening import Progress, issue, listening
from ema_cli.options.average import make_options
from ema_cli.options.keyword_messages import keywords_in_errors
from ema_cli.options.keywords import AverageKeywords, StrPath, listing_keywords
from ema_cli.pipeline import examine, planned, run_average
from ema_cli.records.plan import Plan
from ema_cli.report.readable_report import ReadableReport


@listing_keywords
def average(
    paths: StrPath | Iterable[StrPath], *, progress: Progress = False, **options: Unpack[AverageKeywords]
) -> ReadableReport:
    """Average checkpoints into a safetensors file, and write a report beside it.

    With one ``decay`` d the result is the running EMA ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n`` over the
    checkpoints in order, oldest first (Izmailov et al. 2018 for ``method="uniform"``). Tensors keep their shapes;
    sums are float64 and rounded once. Sizes are bytes, or text such as ``"5GB"``. Numbers and arrays of
    numpy and torch are accepted.

    Args:
        paths: files, folders or glob patterns; ``PATH:WEIGHT`` with ``method="manual"`` and no ``weights``.
        progress: ``True``: show a progress bar on a terminal, else a line every ten seconds, on standard error; or a
            function that is called with each event of ``ema_cli.events``, in this thread.
        output: the file to write, or a folder if it ends with a slash or ``max_shard_size`` is given; the name must
            contain ``{decay}``, ``{method}`` or the like if there are several averages. By default
            ``ema.safetensors``, or ``ema_0.9.safetensors`` and the like for several averages.
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
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: the GPU where it pays; or a ``torch.device``.
        dtype: type of averaged tensors in the output: its name, ``torch.bfloat16`` or the like; ``None`` for
            ``"same"``: as in the last checkpoint.
        threads: number of worker threads; by default one per core, at most 8.
        max_memory: limit for the buffers of the fold.
        geometry: measure the distances between the checkpoints on a sample of elements, or not.
        read_back: compare a sample of the output with what the disk returns, or all of it.
        probe: read a small sample of every checkpoint before the fold, to see whether they are one series in order.
        allow_nonfinite: average NaN and infinity instead of refusing them.
        format: ``"safetensors"``; ``"same"``: a copy of the last checkpoint with the averages in the places of its
            weights, implied by a name in ``.pt``, ``.pth``, ``.ckpt`` or ``.bin``; ``"dcp"``: a folder of
            ``torch.distributed.checkpoint``.
        max_shard_size: write a folder, in files of at most this size.
        report: further reports, ending in ``.html``, ``.md`` or ``.json``.
        tied: write tied tensors under every name, or ``"drop"`` all names but one.
        metadata: more metadata of the output.
        sha256: add the SHA-256 of every input to the report.
        force: overwrite an output that is not up to date.
        resume: continue an interrupted run; keep what is complete if this run is interrupted.
        strict: fail on a warning, and publish nothing.
        allow: codes of warnings that are accepted: they are in the report, but not issued, and pass ``strict``.
        run: the folder that ``{run}`` and ``{name}`` in ``output`` stand for; by default the one folder in ``paths``.

    Returns:
        The report, also of an output that was up to date. ``report.averages[k].output.path`` is the path of the k-th
        average.

    Warns:
        ema_cli.EmaAvgWarning: something is probably not what you want; issued before anything is published.

    Raises:
        ema_cli.errors.EmaAvgError: one of its kinds; then no output was changed.

    """
    with keywords_in_errors(), listening(progress) as listener:
        return ReadableReport.of(run_average(make_options(paths, **options), listener).report)


@listing_keywords
def plan(paths: StrPath | Iterable[StrPath], *, progress: Progress = False, **options: Unpack[AverageKeywords]) -> Plan:
    """Return what ``average`` would do, without writing anything; of the tensors, only a small sample is read.

    The keywords are those of ``average``. What would stop a run although the plan can be made, such as an existing
    output or a missing device, is a warning of the plan.

    Warns:
        ema_cli.EmaAvgWarning: one for each of ``plan.warnings``, except those in ``allow``.

    Raises:
        ema_cli.errors.EmaAvgError: the inputs cannot be averaged in this way, or the options contradict each other.

    """
    with keywords_in_errors(), listening(progress) as listener:
        given = make_options(paths, **options)
        with planned(given, listener) as made:
            examined, checked = examine(made, given)
        complete = replace(examined, warnings=checked.dry_run_warnings())
    for warning in complete.warnings:
        issue(warning)
    return complete
