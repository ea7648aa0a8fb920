"""``--strict``: a warning fails the run."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import StrictWarnings
from ema_cli.options.average import Options
from ema_cli.records.series import Notice
from ema_cli.text import plural


def fail_if_strict(notices: Sequence[Notice], options: Options) -> None:
    """Raise if there are warnings and ``--strict`` was given.

    Raises:
        StrictWarnings: naming the codes of the warnings.

    """
    if options.strict and notices:
        codes = ", ".join(notice.code for notice in notices)
        raise StrictWarnings(f"{plural(len(notices), 'warning')} under --strict, so nothing was written: {codes}")
