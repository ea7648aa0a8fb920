"""Text from untrusted files, made safe for a terminal, a log or a message; numbers and sizes as text.

Invariant: ``safe_text`` returns printable characters only, on one line, of bounded length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LONGEST_NAME = 120
"""Characters of a name that are shown; the middle of a longer name is replaced by an ellipsis."""

HIDDEN = "***"
"""What is shown in place of a secret."""
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s]*@")
_QUERY = re.compile(r"(https?://[^\s?]*)\?[^\s]*")
_COMMAND = re.compile(r"(?<!\S)::|##(?=vso\[|teamcity\[|\[)")
"""Commands of GitHub and Azure, and of TeamCity."""
_LONGEST_SIZE = 24
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?")


def without_secrets(text: str) -> str:
    """Return ``text`` without what may be a secret: user and password, and the query, of every URL in it.

    Each is replaced by ``HIDDEN``.
    """
    return _CREDENTIALS.sub(
        lambda found: f"{found[1]}{HIDDEN}@", _QUERY.sub(lambda found: f"{found[1]}?{HIDDEN}", text)
    )


def is_redacted(text: str) -> bool:
    """Whether a secret was removed from ``text``: as an address it is not whole, and cannot be opened."""
    return HIDDEN in text


def safe_text(text: str, *, limit: int = LONGEST_NAME) -> str:
    """Return ``text`` with every unprintable character escaped, shortened in the middle to ``limit`` characters.

    Control characters, line and paragraph separators, bidirectional marks and surrogates all count as
    unprintable (``str.isprintable``), so no escape sequence, no forged line and no reversed text survives. Commands
    of CI services, recognized at the beginning of a line or anywhere, are escaped too.
    """
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[len(text) - half :]}"
    text = _COMMAND.sub(lambda found: f"\\x{ord(found[0][0]):02x}{found[0][1:]}", text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_writable_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can hold; a name from the file system may not be."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def quoted(text: str) -> str:
    """Return ``text`` in safe form and double quotes, for messages."""
    return f'"{safe_text(text)}"'


def shortlist(items: Iterable[str], *, most: int = 5) -> str:
    """Join at most ``most`` of the ``items`` with commas, and add the number of the others."""
    listed = list(items)
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def listing(title: str, lines: Sequence[str], *, most: int) -> str:
    """Return ``title`` with at most ``most`` of the ``lines`` below it, indented, and the number of the others."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return "\n  ".join([title, *lines[:most], *more])


def plural(count: int, noun: str) -> str:
    """Return ``count`` with its noun: ``1 tensor``, ``2 tensors``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(share: float) -> str:
    """Return a share as text: ``13.4 %``. A share above zero is never shown as zero."""
    if 0 < share < 1e-6:  # noqa: PLR2004 - smaller shares do not matter
        return "< 0.0001 %"
    if 0 < share < 0.0005:  # noqa: PLR2004 - one decimal would show zero
        return f"{100 * share:.1g} %"
    return f"{100 * share:.1f} %"


def human_bytes(size: float) -> str:
    """Return a size in decimal units: ``545 MB``, ``4.1 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # noqa: PLR2004 - not rounded to 1000
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"  # noqa: PLR2004
        size /= 1000
    return f"{size:,.1f} TB"


def parse_bytes(text: str) -> int:
    """Return the number of bytes in ``512MB``, ``1.5 GiB`` or ``65536``.

    Raises:
        ValueError: ``text`` is not a size.

    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(text) > _LONGEST_SIZE:
        raise ValueError(text)
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** " kMGT".index(prefix.replace("K", "k") or " "))
