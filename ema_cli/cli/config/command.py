"""Commands whose options can be configured: Click's ``default_map`` is filled before the other options are read.

Typer vendors Click and hides it, so its contexts and parameters are ``Any`` here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from ema_cli.cli.config.precedence import Configured, resolve
from ema_cli.cli.config.settings import Origin, Setting, Settings, configurable, from_environment, from_table
from ema_cli.cli.config.show import show
from ema_cli.cli.config.sources import ConfigFile, find_file, read_file
from ema_cli.cli.console import Console, Style
from ema_cli.cli.group import MainCommand
from ema_cli.options.declaration import Option

_META = "ema_cli.configured"
"""The key of the configuration in a context's ``meta``."""


class ConfiguredCommand(MainCommand):
    """A command with ``--config`` and ``--show-config``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse, then drop configured settings that contradict the flags."""
        rest: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            _apply(ctx)
        return rest


def load(context: typer.Context, file: Path | None) -> Path | None:
    """Fill the defaults of a command from the environment and from the file ``--config``, or the nearest one.

    Raises:
        UsageError: a setting, or the file, cannot be used.

    """
    if context.resilient_parsing:
        return file
    command: Any = context.command
    group: Any = context.parent.command if context.parent else None
    commands = [one for one in group.commands.values() if isinstance(one, ConfiguredCommand)] if group else [command]
    known = list({one.key: one for command in commands for one in options_of(command)}.values())
    found = read_file(file) if file else _nearest_file()
    in_file = from_table(found.table, known, found.path) if found else {}
    environment = from_environment(os.environ, known)
    context.meta[_META] = (found, environment, in_file)
    context.default_map = {name: setting.value for name, setting in {**in_file, **environment}.items()}
    return file


def configured(context: typer.Context) -> Configured:
    """Return the configuration of the command of ``context``."""
    found: Configured = context.meta[_META]
    return found


def values_of(context: Any, settings: Settings) -> dict[str, Any]:  # noqa: ANN401
    """Return the value of each parameter of a command under ``settings``, as its function would get it."""
    names = {one.parameter for one in options_of(context.command)}
    return {one.name: _value(context, one, settings) for one in context.command.params if one.name in names}


def _value(context: Any, parameter: Any, settings: Settings) -> Any:  # noqa: ANN401
    setting = settings.get(parameter.name)
    return parameter.type_cast_value(context, setting.value if setting else parameter.default)


def speaker(context: typer.Context, style: Style) -> Console:
    """Return the console of the run; from now on it prints in ``style``, errors too."""
    console = context.obj if isinstance(context.obj, Console) else Console(style)
    console.style = style
    return console


def options_of(command: Any) -> list[Option]:  # noqa: ANN401
    """Return the options of a command that can be configured."""
    return configurable(command.callback.options)


def _nearest_file() -> ConfigFile | None:
    """Return the configuration file of the working directory; ``None`` if there is none, or no such directory."""
    try:
        folder = Path.cwd()
    except OSError:
        return None
    return find_file(folder)


def _apply(context: Any) -> None:  # noqa: ANN401
    """Find the settings that apply, give dropped ones their defaults, and show all under ``--show-config``."""
    found, environment, in_file = context.meta[_META]
    options = tuple(options_of(context.command))
    flags = {
        one.parameter: Setting(value=context.params[one.parameter], origin=Origin(kind="flag", where=f"--{one.key}"))
        for one in options
        if context.get_parameter_source(one.parameter).name == "COMMANDLINE"
    }
    layers = (flags, environment, in_file)
    settings, dropped = resolve(layers)
    names = {one.parameter for one in options}
    mine = tuple(one for one in dropped if one.parameter in names)
    for parameter in context.command.params:
        if any(one.parameter == parameter.name for one in mine):
            context.params[parameter.name] = _value(context, parameter, settings)
    held = Configured(file=found, options=options, layers=layers, settings=settings, dropped=mine)
    context.meta[_META] = held
    if context.params["show_config"]:
        style = Style(json=context.params["json"], color=not context.params["no_color"])
        show(held, context.params, speaker(context, style))
        raise typer.Exit
