"""Put the name of a file in front of the reason why it was refused."""

from __future__ import annotations

from ema_cli.errors import InputRefused
from ema_cli.text import quoted

_VERBS = ("cannot", "contradicts", "declares", "has", "holds", "is", "names", "refers")
"""A reason that begins with one of these goes on after the name of the file; any other after a colon."""


def refusal_of(name: str, refused: InputRefused) -> InputRefused:
    """Return a refusal whose message begins with the name of what was refused.

    Args:
        name: of the file or folder.
        refused: its message goes on after the name, or names the file already.

    """
    if refused.message.startswith(quoted(name)):
        return refused
    verb = refused.message.partition(" ")[0] in _VERBS
    return InputRefused(f"{quoted(name)}{'' if verb else ':'} {refused.message}", hint=refused.hint)
