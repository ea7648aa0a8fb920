"""``--strict``: a warning fails the run."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import RunWarning, StrictWarnings
from ema_cli.options.average import Options
from ema_cli.text import plural


def fail_if_strict(warnings: Sequence[RunWarning], options: Options) -> None:
    """Raise if there are warnings and ``--strict`` was given.

    Raises:
        StrictWarnings: naming the codes of the warnings.

    """
    if options.strict and warnings:
        codes = ", ".join(warning.code for warning in warnings)
        raise StrictWarnings(f"{plural(len(warnings), 'warning')} under --strict, so nothing was written: {codes}")
