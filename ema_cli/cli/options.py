"""The options of the commands: Typer's parameters from the declarations, and the options of the command line alone."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ema_cli.cli.ci import CiMode, Service
from ema_cli.cli.config.command import load
from ema_cli.cli.config.settings import ONLY_FLAGS
from ema_cli.cli.console import Style
from ema_cli.errors import UsageError
from ema_cli.options.average import Options
from ema_cli.options.declaration import Option, TextForm, by_panel, declared, option, read_values
from ema_cli.record import record
from ema_cli.storage.locations import locate_on_disk

Given = Mapping[str, Any]
"""The values of core options by name, as ``make_options`` takes them."""
Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(
        help="Checkpoint files, folders that contain them, or quoted patterns.", metavar="CKPT...", show_default=False
    ),
]

FILE = TextForm(parse=locate_on_disk, noun="a file", example="ema-avg.toml")
_NUMBERS: dict[str, type] = {"number": float, "whole number": int}
_TYPES: dict[str, type] = {"switch": bool, **_NUMBERS}


@record
class CommandLine:
    """Options of the command line alone: they change what is shown, not the average."""

    dry_run: bool = option(False, short="-n", help="Show the plan and stop, as ema-avg plan does.", panel="Run")
    ci: CiMode = option(
        "auto", help="The CI service to write annotations, a summary, outputs and sections for.", panel="Run"
    )
    json: bool = option(
        False, help="Print one JSON document on stdout: the report, the plan or the error.", panel="Run"
    )
    quiet: bool = option(False, short="-q", help="Print errors only.", panel="Run")
    verbose: bool = option(False, short="-v", help="Print full tables, and what was ignored.", panel="Run")
    color: bool = option(True, help="Print without colors; setting NO_COLOR does the same.", panel="Run")
    config: Path | None = option(
        None,
        help="Configuration file.",
        unset="the nearest ema-avg.toml, or pyproject.toml with a [tool.ema-avg]",
        metavar="FILE",
        form=FILE,
        panel="Run",
        on_command_line={"callback": load, "is_eager": True},
    )
    show_config: bool = option(False, help="Show each option's value and where it comes from, and stop.", panel="Run")

    def style(self, service: Service = "none") -> Style:
        """Return how a command prints; ``service`` is for commands that make an average."""
        return Style(json=self.json, quiet=self.quiet, verbose=self.verbose, color=self.color, service=service)


def named(checkpoints: Sequence[str] | None, context: typer.Context) -> Sequence[str]:
    """Return the named checkpoints.

    Raises:
        UsageError: a command that only looks has none.

    """
    examples = {"plan": "ema-avg plan CKPT... --decay 0.9", "inspect": "ema-avg inspect CKPT..."}
    if not checkpoints and context.info_name in examples:
        raise UsageError("no checkpoints were named", hint=examples[context.info_name])
    return checkpoints or ()


def takes(
    core: type[Options] = Options, line: type[CommandLine] = CommandLine, only: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of two records, or those of them that are named in ``only``.

    The command gets the values of the first record as ``given``, for ``make_options``, and the second as ``line``.
    Typer reads the signature of a function; this writes one from the declarations.
    """
    options = tuple(by_panel(one for one in (*declared(core), *declared(line)) if not only or one.name in only))
    names = {one.name for one in declared(core)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def flat(**values: Any) -> None:  # noqa: ANN401 - by the signature below
            held = by_name(options, {one.parameter: values.pop(one.parameter) for one in options})
            given = {name: value for name, value in held.items() if name in names}
            records = {"given": given, "line": line(**read_values(line, held))}
            command(**values, **{name: record for name, record in records.items() if name in own})

        own = inspect.signature(command, eval_str=True).parameters
        kept = [own[name] for name in own if name not in ("given", "line")]
        flat.__signature__ = inspect.Signature([*kept, *map(_parameter, options)])  # type: ignore[attr-defined]
        # The options that can be configured; Typer copies the attribute to the command's callback.
        flat.options = tuple(one for one in options if one.key not in ONLY_FLAGS)  # type: ignore[attr-defined]
        return flat

    return decorate


def by_name(options: tuple[Option, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options by the names of their fields, from those of their parameters."""
    held = {one.name: values.get(one.parameter) for one in options}
    return held | {one.name: not held[one.name] for one in options if one.negated and held[one.name] is not None}


def _parameter(one: Option) -> inspect.Parameter:
    """Return the parameter that Typer turns into the option."""
    value: Any = _TYPES.get(one.kind, str)
    default = str(one.default) if isinstance(one.default, Path) else one.default
    unset = one.unset
    if one.default_warned:
        default, unset = None, unset or str(one.default)
    if one.many or one.negated:
        value, default = (list[value], None) if one.many else (value, False)
    text = f"{one.meaning} [default: {unset}]" if unset else one.meaning
    info = typer.Option(
        default,
        *filter(None, (one.flag, one.short)),
        help=text.replace("[", "\\["),  # a bracket is markup for Rich
        # A line of the help may end between choices, not inside a word.
        metavar=one.metavar or " | ".join(one.words) or None,
        parser=one.word if one.words else one.number if one.kind in _NUMBERS else None,
        path_type=str if one.form is FILE else None,  # shells complete its name
        autocompletion=(lambda: [*one.words, *one.aliases]) if one.words else None,
        rich_help_panel=one.panel,
        **one.on_command_line,
    )
    return inspect.Parameter(
        one.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=info,
        annotation=value | None if default is None else value,
    )
