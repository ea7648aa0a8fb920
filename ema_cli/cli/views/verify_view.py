"""What people see of a verification: one line per check. What failed is told by the error."""

from __future__ import annotations

from ema_cli.cli.console import Console, clean
from ema_cli.text import plural
from ema_cli.verify.checks import Verification


def verification(found: Verification, console: Console) -> None:
    """Show the checks that passed; inputs one by one only when all is to be shown."""
    inputs = [check for check in found.checks if check.name.startswith("input")]
    passed = sum(check.ok for check in inputs)
    for check in found.checks:
        if check.ok and (check not in inputs or console.style.verbose):
            console.talk(clean(f"ok  {check.name}: {check.message}"))
        if check in inputs[-1:] and passed and not console.style.verbose:
            console.talk(f"ok  inputs: {passed:,} of {len(inputs):,} as they were")


def result_line(found: Verification) -> str:
    """Say what was verified, and on how much."""
    inputs = sum(check.name.startswith("input") for check in found.checks)
    if not inputs:
        return f"verified {found.output}  output and report alone"
    return f"verified {found.output}  {plural(inputs, 'input')}  {plural(found.samples, 'piece')} recomputed"
