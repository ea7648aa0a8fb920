"""The table of all options, as Markdown for the documentation."""

from __future__ import annotations

from itertools import groupby

from ema_cli.options.average import Options
from ema_cli.options.declaration import Option, by_panel, declared


def options_table(*records: type) -> str:
    """Return a Markdown table of the options of each panel, under a heading with the panel's name.

    Args:
        records: declare the options; by default ``Options``. Of two options with one name, the last is shown.

    """
    options = {one.name: one for record in records or (Options,) for one in declared(record)}
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
    default = option.unset or ("" if option.default in (None, (), dict, True, False) else f"`{option.default}`")
    return f"| {shown} | {default} | {option.help} |"
