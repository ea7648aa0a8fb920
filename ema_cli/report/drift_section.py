"""How far an average is from the last checkpoint, and where: in a sentence, as charts, and by layer."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ema_cli.records.plan import Action
from ema_cli.report import tables
from ema_cli.report.charts.histogram import histogram
from ema_cli.report.charts.strip import drift_strip
from ema_cli.report.model import Average, Report, Tensor
from ema_cli.report.tensor_groups import TensorGroup, group_drift, group_tensors
from ema_cli.text import percent, plural, quoted, safe_text

_MOST_ROWS = 4000
"""Tensors in all tables of a page; further ones are in the JSON report only."""
_FEW_TENSORS = 15
"""So many tensors are shown in one table, not by layer, and without a histogram."""
_MOST_OPEN_LAYERS = 20
_ROUNDING = 1e-12
"""The largest drift that is only the rounding of float64."""


def drift_in_short(average: Average) -> str:
    """Return the drift of all tensors together and the median of the tensors."""
    total = group_drift(average.tensors)
    if total is None:
        return "no drift"
    return f"drift {percent(total)}, median tensor {tables.median_drift(average)}".replace(" %", "\N{NO-BREAK SPACE}%")


def drift_view(report: Report, average: Average, averages: int) -> dict[str, object]:
    """Return the values of the drift of one of several averages in the template."""
    groups = group_tensors(average.tensors)
    moved = _moved(groups) if len(report.inputs) > 1 else []
    moved = moved if any((one.drift or 0) > _ROUNDING for one in moved) else []
    drifts = [tensor.drift for tensor in moved]
    few = len(average.tensors) <= _FEW_TENSORS
    shown = _shown(average.tensors, _MOST_ROWS // averages)
    more = sum(tensor.name not in shown for tensor in average.tensors)
    layers = [] if few else _layers(groups, shown)
    return {
        "empty": "" if moved else _why_empty(report, average),
        "sentence": _sentence(average) if moved else "",
        "histogram": _histogram(drifts) if len(moved) > _FEW_TENSORS else "",
        "strip": _chart(drift_strip(drifts, [safe_text(tensor.name) for tensor in moved])) if moved else "",
        "titles": tables.TENSOR_TITLES,
        "layers": layers,
        "rows": [tables.tensor_row(tensor) for tensor in average.tensors] if few else [],
        "is_folded": len(layers) > _MOST_OPEN_LAYERS or not moved,
        "summary": plural(len(average.tensors), "tensor") + ("" if few else " by layer"),
        "more": f"{plural(more, 'tensor')} of smallest drift: only in the JSON report." if more else "",
    }


def _moved(groups: Sequence[TensorGroup]) -> list[Tensor]:
    """Return the tensors with a drift, tied ones once, in the order of the layers."""
    return [one for group in groups for one in group.tensors if one.drift is not None and one.tied_to is None]


def _histogram(drifts: Sequence[float | None]) -> Markup:
    return _chart(histogram([100 * (one or 0) for one in drifts], x_label="drift (%)", y_label="tensors"))


def _sentence(average: Average) -> str:
    """Return the drift of all weights together, of the median tensor, and the largest; no line begins with a % sign."""
    largest = tables.by_drift(average)[-1]
    sentence = (
        f"The average is {percent(group_drift(average.tensors) or 0)} away from the last checkpoint, all weights "
        f"together. The median tensor has a drift of {tables.median_drift(average)}, {quoted(largest.name)} the "
        f"largest: {percent(largest.drift or 0)}."
    )
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def _why_empty(report: Report, average: Average) -> str:
    """Return why no tensor has a drift."""
    if len(report.inputs) == 1:
        return "There is one checkpoint, and the average is a copy of it: there is no drift."
    if any(tensor.action == Action.CONCATENATED for tensor in average.tensors):
        return "The tensors have other shapes than in the last checkpoint, so they have no drift."
    if all(tensor.action == Action.COPIED for tensor in average.tensors):
        return "All tensors were copied from the last checkpoint, so there is no drift."
    if _moved(group_tensors(average.tensors)):
        return (
            "The average equals the last checkpoint: no tensor has a drift, apart from the rounding of its measurement."
        )
    return "No tensor has a drift: the drift from a tensor that is zero or not finite is not defined."


def _shown(tensors: Sequence[Tensor], most: int) -> set[str]:
    """Return the names of at most ``most`` tensors, those of largest drift."""
    return {tensor.name for tensor in sorted(tensors, key=lambda tensor: -(tensor.drift or 0))[:most]}


def _layers(groups: Sequence[TensorGroup], shown: set[str]) -> list[dict[str, object]]:
    drifts = [group_drift(group.tensors) for group in groups]
    largest = max((drift for drift in drifts if drift is not None), default=0.0) or 1.0
    return [
        {
            "label": safe_text(group.label),
            "beginning": safe_text(group.beginning),
            "count": f"{len(group.tensors):,}",
            "drift": tables.UNDEFINED if drift is None else percent(drift),
            "width": 0 if drift is None else round(100 * drift / largest, 1),
            "rows": [
                tables.tensor_row(tensor, tensor.name[len(group.beginning) :])
                for tensor in group.tensors
                if tensor.name in shown
            ],
        }
        for group, drift in zip(groups, drifts, strict=True)
    ]


def _chart(chart: str) -> Markup:
    """Mark a chart as markup, not to be escaped: ``ema_cli.report.charts`` has escaped the text in it."""
    return Markup(chart)  # noqa: S704
