"""Text from untrusted files, made safe for a terminal, a log or a message; numbers and sizes as text.

Invariant: ``safe_text`` returns printable characters only, on one line, of bounded length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, AnyStr, cast


class _Regex:
    """A regular expression that is compiled when one of its attributes is first asked for."""

    def __init__(self, text: Any, flags: int) -> None:  # noqa: ANN401 - text or bytes
        self._written = text, flags

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of the compiled expression
        found = getattr(re.compile(*self._written), name)
        setattr(self, name, found)
        return found


def regex(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return a regular expression that is compiled when it is first used: a run uses 40 of a hundred.

    Functions of ``re`` do not take it in place of a compiled one, but it has the same methods.
    """
    return cast("re.Pattern[AnyStr]", _Regex(text, flags))


LONGEST_NAME = 120
"""Characters of a name that are shown; the middle of a longer name is replaced by an ellipsis."""

LONGEST_LINE = 600
"""Characters of a line of a message that are shown."""
HIDDEN = "***"
"""What is shown in place of a secret."""
_SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]{1,20}:\\?/|(?:https?|ftps?|s3a?|gc?s|hf|az|abfss?):)\\?/"
"""The beginning of a URL, also with one slash, as a path of the file system has it, or escaped, as JSON may have it."""
# Patterns of what few texts have are compiled when the first text has it: compiling all takes 5 ms.
_URLS = rf"""(?i)(["'`(<\[{{]?)({_SCHEME}\S*)"""
_URL_TO_THE_END = rf"""(?is)\A((?:[\w.+-]+(?:=|::))*["'`(<\[{{]?)({_SCHEME}.*)"""
"""A value that is a URL, maybe with a key, a flag or another protocol before it."""
_OPENING = frozenset("\"'`(<[{")
_CLOSING = {"(": ")", "<": ">", "[": "]", "{": "}"}
_PUNCTUATION = "\"'`)>]}.,;:"
_CONTAINERS = ("hf", "az", "adl", "abfs", "abfss", "wasb", "wasbs")
"""Schemes of which the part before an @ is a repository or a container, unless it has a password."""
_PARAMETERS = r"\?(?=[\w.~%+-]+=)"
_HARMLESS = {"versionid", "generation", "revision"}
"""Parameters of stores that are no secret: they select a version."""
_SIGNED = (
    r"(?i)([?&;](?:[\w-]{0,40}(?:signature|token|secret|password|passwd|credential|api[_-]?key|access[_-]?key(?:id)?)"
    r"|sig|auth|pwd)=)([^\s&]+)"
)
_REQUESTED = r"(\burl: /[^\s?]*\?)\S+"
"""The path in an error of urllib3."""
_ENCODED = r"(?i)([a-z][a-z0-9+.-]{1,20}%(?:25)*3a%(?:25)*2f%(?:25)*2f)[^\s\"'<>]*"
_ENCODED_PARTS = r"(?i)%(?:25)*(?:40|3f|23)|[@?#]"
_LOGIN = r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token)\s+)?)[^\s\"',]+"
_TOKEN = regex(
    r"(hf_|gh[pousr]_)(?:(?=[A-Z0-9]*[a-z])(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{20,}|[A-Za-z0-9]{30,})|(github_pat_)\w{30,}"
    r"|(\b(?:AKIA|ASIA))[0-9A-Z]{16}\b|(\bglpat-|\bya29\.|\bAIza|\bxox[a-z]-)[\w-]{20,}"
    r"|(\beyJ)[\w-]{10,}\.[\w-]{10,}(?:\.[\w-]*)?"
)
"""Tokens of well-known forms: the Hub, GitHub, AWS, GitLab, Google, Slack, JSON web tokens."""
_REMOVED = r"(?i)/\*{3}@|(?:[?#=_]|2f|AKIA|ASIA|AIza|eyJ|glpat-|ya29\.|xox[a-z]-)\*{3}"
"""``HIDDEN`` where ``without_secrets`` puts it, and not in the name of a local file."""
_COMMAND = regex(r"(?<!\S)::|##(?=vso\[|teamcity\[|\[)")
"""Commands of GitHub and Azure, and of TeamCity."""
_LONGEST_SIZE = 24
_SHORT = 1000
_SIZE = regex(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?")


def without_secrets(text: str, *, whole: bool = False) -> str:
    """Return ``text`` with ``HIDDEN`` in place of what may be a secret.

    Removed are user and password of every URL; the query and the fragment of a web address; the query of an address in
    a store, unless it only selects a version; parameters such as ``?sig=`` anywhere; and tokens of well-known forms.
    Everything else stays, names of local files too, and what was removed once is not changed again.

    Args:
        text: a message, a document, or one value.
        whole: it is one value, such as an argument or a path: if it is a URL, it goes to the end, with its blanks.

    """
    if ":/" in text or ":\\/" in text:
        text = (_clean_short_text if len(text) <= _SHORT else _clean_urls)(text, whole=whole)
    if "%" in text and ("3a" in text or "3A" in text):
        text = re.sub(_ENCODED, _without_encoded_secrets, text)
    if "=" in text or " url: /" in text:
        text = re.sub(_SIGNED, _without_value, re.sub(_REQUESTED, rf"\1{HIDDEN}", text))
    if "uthorization" in text or "UTHORIZATION" in text:
        text = re.sub(_LOGIN, rf"\1{HIDDEN}", text)
    return _TOKEN.sub(lambda found: f"{next(filter(None, found.groups()))}{HIDDEN}", text)


def _clean_urls(text: str, *, whole: bool) -> str:
    is_url = whole and re.match(_URL_TO_THE_END, text)
    return re.sub(_URL_TO_THE_END if is_url else _URLS, _without_secrets_of_urls, text)


_clean_short_text = lru_cache(maxsize=1 << 12)(_clean_urls)
"""The same address is cleaned many times in a run."""


def _without_secrets_of_urls(found: re.Match[str]) -> str:
    """Return a word that begins with a URL, and may contain others, without secrets."""
    before, word = found.groups()
    opening = before[-1:]
    end = word.rfind(_CLOSING.get(opening, opening)) if opening in _OPENING else -1
    if end < 0 or word[end:].strip(_PUNCTUATION):
        end = len(word.rstrip(",;:"))
    word, rest = word[:end], word[end:]
    begins = [*(one.start() for one in re.finditer(_SCHEME, word, re.IGNORECASE)), len(word)]
    cleaned = []
    for begin, end in pairwise(begins):
        url = word[begin:end]
        cleaned.append(url if url.lower().startswith("file:") else _without_query(_without_login(url)))
        if cleaned[-1].endswith(HIDDEN):  # what follows is part of the query
            break
    return f"{before}{''.join(cleaned)}{rest}"


def _without_login(url: str) -> str:
    """Return a URL without user and password. A password may contain a slash: then the port is no number."""
    begin = re.match(r"[^:]*:[\\/]*", url)
    scheme = begin[0] if begin else ""
    rest = url[len(scheme) :]
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "0"
    login, at, place = rest.rpartition("@") if not port.isdecimal() and "@" not in host else host.rpartition("@")
    if not at or (scheme.partition(":")[0].lower() in _CONTAINERS and ":" not in login):
        return url
    return f"{scheme}{HIDDEN}@{place}{rest[len(login) + 1 + len(place) :]}"


def _without_query(url: str) -> str:
    """Return a URL without its query and fragment, as far as they can hold a secret."""
    if url[:4].lower() == "http":
        found = re.search(r"[?#]", url)
    else:
        found = re.search(_PARAMETERS, url)
        names = {part.partition("=")[0].lower() for part in url[found.end() :].split("&")} if found else set()
        found = None if names <= _HARMLESS else found
    query = url[found.end() :] if found else ""
    if not found or not query or re.match(rf"{re.escape(HIDDEN)}(?![\w&=%/+-])", query):
        return url
    return f"{url[: found.end()]}{HIDDEN}"


def _without_encoded_secrets(found: re.Match[str]) -> str:
    return f"{found[1]}{HIDDEN}" if re.search(_ENCODED_PARTS, found[0][len(found[1]) :]) else found[0]


def _without_value(found: re.Match[str]) -> str:
    """Return a parameter without its value, with the punctuation after it."""
    value = found[2].rstrip(_PUNCTUATION)
    return found[0] if value == HIDDEN else f"{found[1]}{HIDDEN}{found[2][len(value) :]}"


def redacted(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Return lists, mappings and values of them with ``without_secrets`` for every text: each is one value."""
    match value:
        case str():
            return without_secrets(value, whole=True)
        case Mapping():
            return {redacted(key): redacted(one) for key, one in value.items()}
        case list() | tuple():
            return type(value)(map(redacted, value))
    return value


def is_redacted(text: str) -> bool:
    """Whether a secret was removed from ``text``: as an address it is not whole, and cannot be opened."""
    return HIDDEN in text and re.search(_REMOVED, text) is not None


def safe_text(text: str, *, limit: int = LONGEST_NAME, whole: bool = True) -> str:
    """Return ``text`` without secrets, unprintable characters escaped, shortened in the middle to ``limit`` characters.

    Control characters, line and paragraph separators, bidirectional marks and surrogates all count as
    unprintable (``str.isprintable``), so no escape sequence, no forged line and no reversed text survives. Commands
    of CI services, recognized at the beginning of a line or anywhere, are escaped too. With ``whole`` it is one name or
    value, see ``without_secrets``.
    """
    text = without_secrets(text, whole=whole)
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[len(text) - half :]}"
    text = _COMMAND.sub(lambda found: f"\\x{ord(found[0][0]):02x}{found[0][1:]}", text)
    return printable(text)


def printable(text: str, *, kept: str = "") -> str:
    """Return ``text`` with unprintable characters escaped, except those in ``kept``, whatever its length."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def safe_lines(text: str, *, limit: int = LONGEST_LINE, most: int = 12) -> list[str]:
    """Return the lines of a message, each in safe form, at most ``most``; blanks at their beginning are kept."""
    lines = without_secrets(text).split("\n")
    more = [f"and {plural(len(lines) - most + 1, 'more line')}"] if len(lines) > most else []
    shown = lines[: most - 1] if more else lines
    return [safe_text(line, limit=limit, whole=False) for line in shown] + more


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


def numbered(names: Sequence[str]) -> list[str]:
    """Return names, with a number after those that are equal because a secret was removed."""
    count, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if count[name] > 1 and is_redacted(name) else name)
    return found


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
    return f"{100 * share:,.1f} %" if abs(share) < 100 else f"{number(100 * share)} %"  # noqa: PLR2004 - as a factor


def number(value: float) -> str:
    """Return a number with three significant digits and thousands separators: ``0.0123``, ``477``, ``12,345``.

    Digits before the point are never dropped, a whole number has no point, and a trailing zero is kept where it is
    measured: ``1.00`` is near 1, ``1`` is an ``int``.
    """
    if isinstance(value, int) or abs(value) >= 99.95:  # noqa: PLR2004 - three digits before the point
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.2e}"  # noqa: PLR2004 - beyond that it is exact no more
    if value and abs(value) < 1e-3:  # noqa: PLR2004
        return f"{value:.3g}"
    return f"{value:#.3g}"


def cosine(value: float) -> str:
    """Return a cosine with six decimals, so that those near 1 differ."""
    return f"{value:z.6f}"


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
