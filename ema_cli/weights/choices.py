"""What a few choices would do to this many checkpoints: the answer to a run without a decay."""

from __future__ import annotations

from ema_cli.records import Method
from ema_cli.text import plural
from ema_cli.weights.diagnostics import diagnose, percent, short_decay
from ema_cli.weights.schedules import decay_for_first_share, solve

_FIRST_SHARE = 0.1


def describe_choices(checkpoints: int) -> tuple[str, str]:
    """Return a table of choices as a message, and a hint naming the one that fits most runs."""
    if checkpoints == 1:
        return (
            "neither --decay nor --half-life was given",
            "--decay 0.9; with one checkpoint any decay copies it",
        )
    fitting = short_decay(decay_for_first_share(checkpoints, _FIRST_SHARE))
    decays = sorted({"0.5", "0.9", "0.99", "0.999", fitting}, key=float)
    rows = [(f"--decay {decay}", Method(name="ema", decay=float(decay), init="first")) for decay in decays]
    rows.append(("--method uniform", Method(name="uniform")))
    lines = [_line(option, method, checkpoints) for option, method in rows]
    title = f"neither --decay nor --half-life was given. For these {plural(checkpoints, 'checkpoint')}:"
    header = f"  {'':<18}{'first':>9}{'last':>9}{'as many as':>13}"
    return "\n".join([title, header, *lines]), f"--decay {fitting} leaves the first checkpoint a tenth"


def _line(option: str, method: Method, checkpoints: int) -> str:
    found = diagnose(solve(method, checkpoints), None, "")
    return f"  {option:<18}{percent(found.first):>9}{percent(found.last):>9}{found.effective_checkpoints:>13.1f}"
