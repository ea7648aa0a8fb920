"""Commands whose options can be configured: Click's ``default_map`` is filled before the other options are read.

Typer vendors Click and hides it, so its contexts and parameters are ``Any`` here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from ema_cli.cli.config.precedence import Configured, resolve
from ema_cli.cli.config.settings import PREFIX, Setting, Settings, from_environment, from_table
from ema_cli.cli.config.sources import ConfigSearch, find_file, read_file
from ema_cli.cli.config.trust import refuse_in_found
from ema_cli.cli.console import Console, Style
from ema_cli.options.declaration import Option
from ema_cli.storage.locations import locate_on_disk
from ema_cli.text import quoted
from ema_cli.weights.methods import SPECS

_META = "ema_cli.configured"
"""The key of the configuration in a context's ``meta``."""


class ConfiguredCommand(TyperCommand):
    """A command that averages, with ``--config`` and ``--show-config``; its help ends with a table of the methods."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Show the options, then the methods."""
        from rich.console import Console as RichConsole  # noqa: PLC0415 - slow to import, and needed for help alone
        from rich.panel import Panel  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        super().format_help(ctx, formatter)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("method", "weights", "steps", "in the literature"):
            table.add_column(title, overflow="fold")
        for name, spec in SPECS.items():
            table.add_row(Text(name, style="bold cyan"), spec.definition, spec.steps, spec.literature)
        RichConsole().print(Panel(table, title="Methods", title_align="left", border_style="dim"))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse, reset configured settings that contradict the flags, and show all under ``--show-config``."""
        rest: list[str] = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        options = ctx.command.callback.options
        flags = {
            one.parameter: Setting(value=ctx.params[one.parameter], origin="flag", where=f"--{one.key}")
            for one in options
            if ctx.get_parameter_source(one.parameter).name == "COMMANDLINE"
        }
        search, *configured = ctx.meta[_META]
        layers = (flags, *configured)
        settings, dropped = resolve(layers)
        mine = tuple(one for one in dropped if one.parameter in {option.parameter for option in options})
        for parameter in ctx.command.params:
            if any(one.parameter == parameter.name for one in mine):
                ctx.params[parameter.name] = _value(ctx, parameter, settings)
        held = Configured(
            file=search.file,
            options=options,
            layers=layers,
            settings=settings,
            dropped=mine,
            ignored=search.ignored,
        )
        ctx.meta[_META] = held
        if ctx.params["show_config"]:
            style = Style(json=ctx.params["json"], color=not ctx.params["no_color"])
            from ema_cli.cli.config.show import show  # noqa: PLC0415 - rarely asked for

            show(held, ctx.params, speaker(ctx, style))
            raise typer.Exit
        return rest


def load(context: typer.Context, file: str | None) -> str | None:
    """Fill the defaults of a command from the environment and from the file ``--config``, or the nearest one.

    Raises:
        UsageError: a setting, or the file, cannot be used.

    """
    if context.resilient_parsing:
        return file
    search = ConfigSearch(file=read_file(locate_on_disk(file))) if file else _search()
    found = search.file
    known = _configurable(context) if found or any(name.startswith(PREFIX) for name in os.environ) else []
    in_file = from_table(found.table, known, found.path) if found else {}
    if found and found.found_from:
        refuse_in_found(in_file, known, found.path, found.found_from)
    environment = from_environment(os.environ, known)
    context.meta[_META] = (search, environment, in_file)
    context.default_map = {name: setting.value for name, setting in {**in_file, **environment}.items()}
    return file


def _configurable(context: typer.Context) -> list[Option]:
    """Return the options that can be configured, of all commands: a file is for all of them."""
    group: Any = context.parent.command if context.parent else None
    commands: list[Any] = [context.command]
    if group:
        commands = [one for one in group.commands.values() if isinstance(one, ConfiguredCommand)]
    return list({one.key: one for command in commands for one in command.callback.options}.values())


def _search() -> ConfigSearch:
    try:
        folder = Path.cwd()
    except OSError:  # it was removed
        return ConfigSearch(file=None)
    return find_file(folder)


def configured(context: typer.Context) -> Configured:
    """Return the configuration of the command of ``context``."""
    found: Configured = context.meta[_META]
    return found


def values_of(context: Any, settings: Settings) -> dict[str, Any]:  # noqa: ANN401
    """Return the value of each parameter of a command under ``settings``, as its function would get it."""
    names = {one.parameter for one in context.command.callback.options}
    return {one.name: _value(context, one, settings) for one in context.command.params if one.name in names}


def _value(context: Any, parameter: Any, settings: Settings) -> Any:  # noqa: ANN401
    setting = settings.get(parameter.name)
    return parameter.type_cast_value(context, setting.value if setting else parameter.default)


def speaker(context: typer.Context, style: Style) -> Console:
    """Return the console of the run; from now on it prints in ``style``, errors too."""
    console = context.obj if isinstance(context.obj, Console) else Console(style)
    console.style = style
    return console


def begin(context: typer.Context, style: Style) -> tuple[Console, dict[str, Any]]:
    """Return the console of a command that averages, and what its options hold about the configuration.

    First, print which configuration files are ignored, and which options a file sets: errors may be due to them.
    """
    console, held = speaker(context, style), configured(context)
    for warning in held.ignored:
        console.warning(warning)
    used = held.config_used(held.settings)
    if used is not None and used.options:
        line = f"options from {quoted(_from_here(used.path))}: {', '.join(used.options)}"
        console.talk(line, always=held.hides_itself())
    return console, {"config": used, "config_warnings": held.ignored}


def _from_here(path: str) -> str:
    """Return a path as short as possible: relative if it is below the working directory."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):  # above, or the working directory was removed
        return path
