"""Whether the run was still moving, in sentences, and why a report may not know it."""

from __future__ import annotations

from statistics import fmean

from ema_cli.records.fold_results import RunGeometry
from ema_cli.records.plan import Action
from ema_cli.records.series_evidence import APART, LEAST_ELEMENTS, Evidence
from ema_cli.report.model import Report
from ema_cli.text import percent

_DIRECTED = 0.2
"""A mean cosine above it is a direction, below its negative an oscillation."""


def movement(geometry: RunGeometry, found: Evidence | None) -> str:
    """Return what the angles between successive steps suggest.

    Empty if no angle is defined, or if the checkpoints are not of one run.
    """
    cosines = [cosine for cosine in geometry.step_cosines if cosine is not None]
    if not cosines or (found is not None and APART & set(found.verdicts)):
        return ""
    mean = fmean(cosines)
    if mean < -_DIRECTED:
        suggestion = "The checkpoints oscillate around a center, and an average is closer to it than each of them"
    elif mean > _DIRECTED:
        suggestion = "The run was still moving in one direction, and an average lags behind its last checkpoint"
    else:
        suggestion = "The run neither moved in one direction nor oscillated, as in a random walk"
    return (
        f"{suggestion} (mean cosine between successive steps {mean:z.2f}). This is geometry alone: only an evaluation "
        "can tell whether the average is a better model."
    )


def measured_on(geometry: RunGeometry) -> str:
    """Return which elements the distances are measured on."""
    if geometry.sampled_fraction >= 1:
        return "measured on all elements"
    return f"estimated from {percent(geometry.sampled_fraction)} of the elements, a fixed sample of every tensor"


def why_no_path(report: Report) -> str:
    """Return why a report has no path through its checkpoints."""
    if len(report.inputs) == 1:
        return "There is one checkpoint, so there is no path and nothing to compare."
    if report.command.options.get("geometry") == "none":
        return "The distances between the checkpoints were not measured: --geometry none."
    if report.geometry is not None:
        return "The checkpoints do not differ, so there is no path."
    if not any(tensor.action == Action.AVERAGED for tensor in report.averages[0].tensors):
        return "The distances between the checkpoints were not measured: no tensor was averaged element by element."
    return "The distances between the checkpoints are not known: they are not finite."


def why_no_evidence(report: Report) -> str:
    """Return why a report has no sample from before the fold."""
    if report.command.options.get("probe") is False:
        return "The checkpoints were not sampled before the fold: --no-probe."
    if len(report.inputs) == 1:
        return "There is one checkpoint, so there was nothing to compare before the fold."
    if report.summary.parameters < LEAST_ELEMENTS:
        return f"The checkpoints were not compared before the fold: they have fewer than {LEAST_ELEMENTS:,} weights."
    return "The checkpoints were not sampled before the fold."
