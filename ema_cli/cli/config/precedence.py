"""Which setting wins: flags before the environment before files, and which weaker settings a stronger one drops.

The same weights can be chosen by different options. If flags choose the weights, configured options that contradict
them are dropped, not refused: whoever types ``--half-life 4`` does not want the configured decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ema_cli.cli.config.settings import Setting, Settings
from ema_cli.cli.config.sources import ConfigFile
from ema_cli.errors import RunWarning
from ema_cli.options.config_used import ConfigUsed
from ema_cli.options.declaration import Option, declared
from ema_cli.options.weighting import WeightOptions
from ema_cli.record import record
from ema_cli.weights.methods import DECAYS, IMPLIED, SPECS, MethodName, chosen_methods, takes


@record
class DroppedSetting:
    """A setting that contradicts a stronger one."""

    parameter: str
    setting: Setting
    by: str
    """The parameter of the stronger setting."""


@record
class Configured:
    """What the environment and the configuration file hold for a command, and the settings that apply."""

    file: ConfigFile | None
    options: tuple[Option, ...]
    """The configurable options of the command."""
    layers: tuple[Settings, ...]
    """Flags, environment, file: the strongest first."""
    settings: Mapping[str, Setting]
    """The settings that apply; every other option has its default."""
    dropped: tuple[DroppedSetting, ...]
    ignored: tuple[RunWarning, ...]
    """About files that were found and are not obeyed."""

    def config_used(self, settings: Settings) -> ConfigUsed | None:
        """Return the file, and which of ``settings`` it set; a batch has others for each of its jobs."""
        if self.file is None:
            return None
        in_file = self.layers[-1]
        keys = [
            one.key
            for one in self.options
            if one.parameter in settings and settings[one.parameter] is in_file.get(one.parameter)
        ]
        return ConfigUsed(path=str(self.file.path), options=tuple(keys))

    def hides_itself(self) -> bool:
        """Whether the program is quiet because of a file that was found, and that nobody may know of."""
        is_found = self.file is not None and self.file.found_from is not None
        quiet = self.settings.get("quiet")
        return is_found and quiet is not None and quiet.origin == "file"


def resolve(layers: Sequence[Settings]) -> tuple[dict[str, Setting], list[DroppedSetting]]:
    """Return the settings that apply, and those that were dropped.

    Args:
        layers: the strongest first. Contradictions inside one of them stay, and are refused where options are checked.

    """
    kept = dict(layers[0])
    dropped: list[DroppedSetting] = []
    for layer in filter(None, layers[1:]):
        fresh = {name: setting for name, setting in layer.items() if name not in kept}
        ruled_out = _ruled_out({name: setting.value for name, setting in kept.items()}, fresh)
        dropped += [DroppedSetting(parameter=name, setting=fresh.pop(name), by=by) for name, by in ruled_out.items()]
        kept.update(fresh)
    return kept, dropped


def _ruled_out(strong: Mapping[str, Any], weak: Settings) -> dict[str, str]:
    """Return the settings of a weaker layer that are dropped, each with the stronger setting that it contradicts."""
    named = [name for name in strong if name in _weights()]
    if not named:
        return {name: "continue_from" for name in weak if name in _weights() and "continue_from" in strong}
    out = dict(_other_ways(strong, weak))
    out |= {name: by for name, by in _other_methods(strong, weak) if name not in out}
    remaining = {**strong, **{name: setting.value for name, setting in weak.items() if name not in out}}
    methods = chosen_methods(remaining.get("method") or (), remaining)
    for name in weak:
        if name not in out and _is_unused(name, methods):
            out[name] = next((chooser for chooser in ("method", *IMPLIED) if chooser in strong), named[0])
    return out


def _other_ways(strong: Mapping[str, Any], weak: Settings) -> Iterator[tuple[str, str]]:
    """Yield weaker settings that give the same parameter in another way."""
    for name in weak:
        by = next((way for way in DECAYS if name in DECAYS and way in strong), None)
        if name in ("inv_gamma", "power") and strong.get("warmup") == "tf":
            by = "warmup"
        elif name == "warmup" and weak[name].value == "tf":
            by = next((other for other in ("inv_gamma", "power") if other in strong), None)
        if by:
            yield name, by


def _other_methods(strong: Mapping[str, Any], weak: Settings) -> Iterator[tuple[str, str]]:
    """Yield weaker settings that choose a method which does not take the stronger options."""
    if "method" in strong:
        return
    if "method" in weak:
        by = next((name for name in strong if _is_unused(name, weak["method"].value)), None)
        if by is None:
            return
        yield "method", by
    for name, method in IMPLIED.items():
        by = next((option for option in strong if _is_unused(option, [method])), None)
        if name in weak and by is not None:
            yield name, by


def _is_unused(parameter: str, methods: Sequence[MethodName]) -> bool:
    """Whether an option of the weights means nothing to the methods; unknown methods are refused elsewhere."""
    known = [name for name in SPECS if name in methods]
    return parameter in _weights() and parameter != "method" and bool(known) and not takes(known, _weights()[parameter])


@cache
def _weights() -> dict[str, str]:
    """Return the options of the weights: the names of their parameters, with those of their fields."""
    return {one.parameter: one.name for one in declared(WeightOptions)}
