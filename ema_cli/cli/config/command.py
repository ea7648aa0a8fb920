"""Commands whose options can be configured: Click's ``default_map`` is filled before the other options are read.

Typer vendors Click and hides it, so its contexts and parameters are ``Any`` here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ema_cli.cli.config.precedence import DroppedSetting, resolve
from ema_cli.cli.config.settings import ONLY_FLAGS, Key, Kind, Origin, Setting, Settings, from_environment, from_table
from ema_cli.cli.config.sources import ConfigFile, find_file, read_file
from ema_cli.cli.console import Console, Style
from ema_cli.cli.help import MainCommand

_META = "ema_cli.configured"
"""Where a context keeps what was configured."""
_KINDS: dict[str, Kind] = {"boolean": "switch", "float": "number", "int": "whole number"}
_FORMS: dict[str, Kind] = {"S,S,...": "list", "W,W,...": "list", "KEY=VALUE": "pairs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """What files and the environment say, and what came of it."""

    file: ConfigFile | None
    keys: tuple[Key, ...]
    """Of the command."""
    layers: tuple[Settings, ...]
    """Flags, environment, file: the strongest first."""
    settings: Mapping[str, Setting]
    """Those that hold; what is missing has its default."""
    dropped: tuple[DroppedSetting, ...]


class ConfiguredCommand(MainCommand):
    """A command with ``--config`` and ``--show-config``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse, then drop what was configured and contradicts the flags."""
        rest: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            _settle(ctx)
        return rest


def load(context: typer.Context, file: Path | None) -> Path | None:
    """Fill the defaults of a command from the file ``--config``, or the nearest, and from the environment.

    Raises:
        UsageError: the file or the environment is not as it must be.

    """
    if context.resilient_parsing:
        return file
    command: Any = context.command
    group: Any = context.parent.command if context.parent else None
    commands = [one for one in group.commands.values() if isinstance(one, ConfiguredCommand)] if group else [command]
    known = {key.name: key for one in commands for key in keys_of(one.params)}
    found = read_file(file) if file else _nearest_file()
    in_file = from_table(found.table, list(known.values()), found.path) if found else {}
    environment = from_environment(os.environ, list(known.values()))
    context.meta[_META] = (found, environment, in_file)
    context.default_map = {name: setting.value for name, setting in {**in_file, **environment}.items()}
    return file


def configured(context: typer.Context) -> Configured:
    """Return what was configured for the command of ``context``."""
    found: Configured = context.meta[_META]
    return found


def values_of(context: Any, settings: Settings) -> dict[str, Any]:  # noqa: ANN401
    """Return the values that ``settings`` give to the parameters of a command, as its function would get them."""
    keys = {key.parameter for key in keys_of(context.command.params)}
    return {
        one.name: _value(context, one, settings.get(one.name)) for one in context.command.params if one.name in keys
    }


def _value(context: Any, option: Any, held: Setting | None) -> Any:  # noqa: ANN401
    value = option.type_cast_value(context, held.value if held else option.default)
    if option.type.name == "path" and value is not None:  # Click leaves paths to Typer
        value = [Path(one) for one in value] if option.multiple else Path(value)
    return list(value) or None if option.multiple else value


def speaker(context: typer.Context, style: Style) -> Console:
    """Return the console of the run, which from now on speaks in ``style``: its errors, too."""
    console = context.obj if isinstance(context.obj, Console) else Console(style)
    console.style = style
    return console


def keys_of(parameters: Iterable[Any]) -> list[Key]:
    """Return the keys of the options of a command, which are named by their first long flags."""
    options = [one for one in parameters if one.param_type_name == "option"]
    keys = [_key(one, next(flag for flag in one.opts if flag.startswith("--"))[2:]) for one in options]
    return [key for key in keys if key.name not in ONLY_FLAGS]


def _key(option: Any, name: str) -> Key:  # noqa: ANN401
    kind = _FORMS.get(option.metavar or "") or _KINDS.get(option.type.name, "text")
    words = tuple(getattr(option.type, "choices", ()))
    return Key(name=name, parameter=option.name, kind=kind, words=words, many=option.multiple)


def _nearest_file() -> ConfigFile | None:
    """Return the file of the working directory, if there is one; a directory that was removed has none."""
    try:
        folder = Path.cwd()
    except OSError:
        return None
    return find_file(folder)


def _settle(context: Any) -> None:  # noqa: ANN401
    """Work out which settings hold, take away the others, and show them all if that was asked for."""
    found, environment, in_file = context.meta[_META]
    keys = tuple(keys_of(context.command.params))
    flags = {
        key.parameter: Setting(value=context.params[key.parameter], origin=Origin(kind="flag", where=f"--{key.name}"))
        for key in keys
        if context.get_parameter_source(key.parameter).name == "COMMANDLINE"
    }
    layers = (flags, environment, in_file)
    settings, dropped = resolve(layers)
    names = {key.parameter for key in keys}
    mine = tuple(one for one in dropped if one.parameter in names)
    for option in context.command.params:
        if any(one.parameter == option.name for one in mine):
            held = settings.get(option.name)
            context.params[option.name] = option.type_cast_value(context, held.value if held else option.default)
    context.meta[_META] = Configured(file=found, keys=keys, layers=layers, settings=settings, dropped=mine)
    if context.params["show_config"]:
        from ema_cli.cli.config.show import show  # noqa: PLC0415

        style = Style(json=context.params["json"], color=not context.params["no_color"])
        show(configured(context), context.params, speaker(context, style))
        raise typer.Exit
