"""The first page of the help: what fits on one screen, and where the rest is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ema_cli.cli.options import CommandLine
from ema_cli.options.average import Options
from ema_cli.options.declaration import Option, declared

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDEST = 100
_PURPOSE = "Average training checkpoints into one .safetensors file, with a report."
_EXAMPLES = (
    ("ema-avg run/ --decay 0.9", "EMA of a folder"),
    ("ema-avg run/ --method uniform --last 5 -o swa.safetensors", "SWA: the last five"),
    ("ema-avg plan run/ --per step --half-life 500", "only look first"),
)
_MORE = (
    "All options: ema-avg average --help. The methods: ema-avg help methods. More topics, such as choosing, formats "
    "and ci: ema-avg help."
)


def show_front_page(group: Any, context: Any) -> None:  # noqa: ANN401 - Click's, which Typer hides
    """Print usage, examples, commands and the options that most runs need, on one screen."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and needed for help alone

    console = Console(highlight=False, soft_wrap=False, emoji=False)
    console.width = min(console.width, _WIDEST)
    for part in _parts(group, context):
        console.print(part)


def _parts(group: Any, context: Any) -> Iterator[RenderableType]:  # noqa: ANN401
    yield "[bold]Usage:[/] ema-avg CKPT... \\[OPTIONS]\n       ema-avg COMMAND ...\n"
    yield f"{_PURPOSE}\n"
    yield from _section("Examples", _EXAMPLES)
    yield from _section("Commands", group.short_helps.items())
    yield from _section("The options that most runs need", ((_flags(one), one.brief) for one in brief_options()))
    own = ((", ".join(sorted(one.opts, key=len)), one.help or "") for one in group.get_params(context))
    yield from _section("Other options", own)
    yield _MORE


def brief_options() -> list[Option]:
    """Return the options of the first page: the output, the weights, the others."""
    found = [one for record in (Options, CommandLine) for one in declared(record) if one.brief]
    return sorted(found, key=lambda one: (one.name != "output", one.panel != "Weights"))


def _flags(one: Option) -> str:
    value = one.metavar or "|".join(one.words)
    return " ".join(filter(None, (f"{one.short}," if one.short else "", one.flag, value)))


def _section(title: str, rows: Any) -> Iterator[RenderableType]:  # noqa: ANN401
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for term, meaning in rows:
        table.add_row(Text(f"  {term}", style="cyan"), Text(meaning))
    yield Text(title, style="bold")
    yield table
    yield ""
