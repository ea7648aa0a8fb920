"""Which setting wins: flags before the environment before files, and what a stronger setting rules out.

Options of the weights can say the same thing in several ways. Where flags name the weights, configured options that
would contradict them are dropped, not refused: whoever types ``--half-life 4`` does not mean the configured decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ema_cli.cli.config.settings import Setting, Settings
from ema_cli.weights.methods import SPECS, MethodName

_WAYS = ("decay", "one_minus_decay", "half_life")
"""Three ways to give one decay."""
_IMPLIED: dict[str, MethodName] = {
    "sigma_rel": "power",
    "shape": "lr-decay",
    "weights": "manual",
    "warmup": "ema-warmup",
}
"""The methods that these options choose where none is named."""
_TAKEN = {*_WAYS, *(flag[2:].replace("-", "_") for spec in SPECS.values() for flag in spec.takes)}
"""The parameters that mean something to some methods only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedSetting:
    """A setting that a stronger one contradicts."""

    parameter: str
    setting: Setting
    by: str
    """The parameter that rules it out."""


def resolve(layers: Sequence[Settings]) -> tuple[dict[str, Setting], list[DroppedSetting]]:
    """Return the settings that hold, and those that were dropped.

    Args:
        layers: the strongest first. Contradictions inside one of them stay, and are refused where options are checked.

    """
    kept: dict[str, Setting] = {}
    dropped: list[DroppedSetting] = []
    for layer in layers:
        fresh = {name: setting for name, setting in layer.items() if name not in kept}
        ruled_out = _ruled_out({name: setting.value for name, setting in kept.items()}, fresh)
        dropped += [DroppedSetting(parameter=name, setting=fresh.pop(name), by=by) for name, by in ruled_out.items()]
        kept.update(fresh)
    return kept, dropped


def _ruled_out(strong: Mapping[str, Any], weak: Settings) -> dict[str, str]:
    """Return which settings of a weaker layer contradict the stronger ones, and which of those each contradicts."""
    named = [name for name in strong if name in _TAKEN or name == "method"]
    if not named:
        by = "continue_from" if "continue_from" in strong else ""
        return {name: by for name in weak if by and (name in _TAKEN or name == "method")}
    out = dict(_other_ways(strong, weak))
    out |= {name: by for name, by in _other_methods(strong, weak) if name not in out}
    left = {**strong, **{name: setting.value for name, setting in weak.items() if name not in out}}
    methods = _methods(left)
    for name in weak:
        if name in _TAKEN and name not in out and not _take(methods, name):
            out[name] = next((chooser for chooser in ("method", *_IMPLIED) if chooser in strong), named[0])
    return out


def _other_ways(strong: Mapping[str, Any], weak: Settings) -> Iterator[tuple[str, str]]:
    """Yield what says in another way what was said already."""
    for name in weak:
        by = next((way for way in _WAYS if name in _WAYS and way in strong), None)
        if name in ("inv_gamma", "power") and strong.get("warmup") == "tf":
            by = "warmup"
        elif name == "warmup" and weak[name].value == "tf":
            by = next((other for other in ("inv_gamma", "power") if other in strong), None)
        if by:
            yield name, by


def _other_methods(strong: Mapping[str, Any], weak: Settings) -> Iterator[tuple[str, str]]:
    """Yield what chooses a method that has no use for the stronger options."""
    if "method" in strong:
        return
    if "method" in weak:
        by = _unused(strong, weak["method"].value)
        if by is None:
            return
        yield "method", by
    for name, method in _IMPLIED.items():
        by = _unused(strong, (method,))
        if name in weak and by is not None:
            yield name, by


def _unused(values: Mapping[str, Any], methods: Sequence[str]) -> str | None:
    """Return an option that none of the methods has."""
    return next((name for name in values if name in _TAKEN and not _take(methods, name)), None)


def _methods(values: Mapping[str, Any]) -> Sequence[str]:
    """Return the methods that options choose."""
    return values.get("method") or [_IMPLIED[name] for name in _IMPLIED if name in values][:1] or ("ema",)


def _take(methods: Sequence[str], parameter: str) -> bool:
    flag = "--decay" if parameter in _WAYS else f"--{parameter.replace('_', '-')}"
    known = [name for name in SPECS if name in methods]
    return not known or any(flag in SPECS[name].takes for name in known)
