"""Records of the core as people see them on the terminal. All views share one style of table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def plain_table(texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """Return a table without rules; the ``texts`` columns fold long words, the ``numbers`` are right-aligned."""
    table = Table(box=None, pad_edge=True, header_style="dim")
    for title in texts:
        table.add_column(title, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table
