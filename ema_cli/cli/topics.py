"""``ema-avg help``: topics, which are Markdown files in the package, and the help of the commands."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from ema_cli._version import __version__
from ema_cli.cli.console import Console, Style
from ema_cli.errors import UsageError
from ema_cli.naming import did_you_mean
from ema_cli.options.declaration import Option, by_panel, declared
from ema_cli.text import quoted

commands = typer.Typer()
_HELP_HELP = """\
Show a help topic, or the options of a command; without a name, list the topics.

  ema-avg help methods\n
  ema-avg help options\n
  ema-avg help batch
"""
OPTIONS = "options"
"""The topic that is made from the declarations of the options."""
_OPTIONS_PURPOSE = "The options of average, plan and batch, each with its default and its meaning."
_OPTIONS_KEYS = """\
The key of an option in a configuration file is its flag without the dashes, and its variable is EMA_AVG_ and the flag
in capitals: `half-life` and `EMA_AVG_HALF_LIFE` (`ema-avg help configuration`); `--config`, `--show-config`
and `--allow-remote` have neither. `verify` and `update-bn` have options of their own: `ema-avg help verify`,
`ema-avg help update-bn`."""
_FOLDER = Path(__file__).parent.parent / "help"
_SUFFIX = ".md"


def topic_names() -> list[str]:
    """Return the names of all topics, in alphabetical order."""
    return sorted([OPTIONS, *(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}"))])


def topic_text(name: str) -> str:
    """Return a topic as Markdown."""
    if name == OPTIONS:
        from ema_cli.cli.batch_options import BatchCommandLine, BatchOptions  # noqa: PLC0415 - needed for this topic alone

        return f"# options\n\n{_OPTIONS_PURPOSE}\n\n{_OPTIONS_KEYS}\n\n{options_table(BatchOptions, BatchCommandLine)}"
    return (_FOLDER / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def options_table(*records: type) -> str:
    """Return a Markdown table of the options of each panel, under a heading with the panel's name.

    Args:
        records: declare the options. Of two options with one name, the last is shown.

    """
    options = {one.name: one for record in records for one in declared(record)}
    return "\n".join(
        line
        for panel, group in groupby(by_panel(options.values()), lambda one: one.panel)
        for line in (f"## {panel}", "", "| option | default | meaning |", "|---|---|---|", *map(_row, group), "")
    )


def _row(option: Option) -> str:
    flags = ", ".join(flag for flag in (option.short, option.flag) if flag)
    shown = f"`{flags} {option.metavar}`" if option.metavar else f"`{flags}`"
    if option.choices:
        shown += " " + ", ".join(f"`{word}`" for word in option.choices)
    has_no_default = isinstance(option.default, bool) or option.default in (None, (), dict)
    default = option.unset or ("" if has_no_default else f"`{option.default}`")
    cells = (cell.replace("|", "\\|") for cell in (shown, default, option.meaning))  # a bar ends a cell
    return f"| {' | '.join(cells)} |"


TopicArgument = Annotated[
    str | None,
    typer.Argument(help="A topic or a command.", metavar="TOPIC", show_default=False, autocompletion=topic_names),
]


@commands.command("help", help=_HELP_HELP)
def show_help(context: typer.Context, *, topic: TopicArgument = None) -> None:
    """Show a topic, the help of a command, or the list of topics.

    Raises:
        UsageError: there is no such topic or command.

    """
    group: Any = context.parent.command if context.parent else None  # Click's, which Typer hides
    if topic is None:
        # The purpose of a topic is the first line below its title.
        topics = [f"* `{name}`: {topic_text(name).splitlines()[2]}" for name in topic_names()]
        _show("\n".join(["# ema-avg help TOPIC", "", *topics, "", "Options of a command: `ema-avg help COMMAND`."]))
    elif topic in group.commands:
        group.commands[topic].make_context(topic, ["--help"], parent=context.parent)
    elif topic in topic_names():
        _show(topic_text(topic))
    else:
        close = did_you_mean(topic, [*topic_names(), *group.commands], shown=lambda name: f"ema-avg help {name}")
        raise UsageError(f"there is no help topic {quoted(topic)}", hint=close or "ema-avg help")


@commands.command("version")
def show_version() -> None:
    """Show the version, and whether the compiled kernel is used."""
    from ema_cli.fold.kernel import describe_lane  # noqa: PLC0415 - a binary that other commands load when they fold

    console = Console(Style())
    console.result(f"ema-avg {__version__}")
    console.result(f"fold on the CPU: {describe_lane()}")


def _show(text: str) -> None:
    """Render Markdown on a terminal; print it as it is everywhere else."""
    console = Console(Style())
    if not os.isatty(1):
        console.raw_document(text)
        return
    from rich.markdown import Markdown  # noqa: PLC0415 - not needed in a pipe

    console.result(Markdown(text))
