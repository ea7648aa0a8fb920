"""The protocols of URLs that are opened: an explicit list. All others that fsspec knows are refused.

Some of those open other files (``dir``, ``reference``, ``zip``), copy to the disk (``simplecache``), or connect without
encryption and with a password (``ftp``); a chain such as ``zip://x::file://y`` combines them. None reads checkpoints
better than a local file does.
"""

from __future__ import annotations

import re

from ema_cli.errors import UsageError
from ema_cli.text import quoted, regex, without_secrets

PROTOCOLS: tuple[str, ...] = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss")
"""Names of protocols, in lower case. A URL may have its protocol in capitals. Tests add one."""
_LONGEST = 1 << 13
"""Characters of a URL; no server takes more."""
_SCHEME = regex(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""A single letter is no protocol: it may be a drive."""
_IPV6 = regex(r"(?:[^/@]*@)?\[[0-9A-Fa-f:.]+\](?=[:/]|$)")
"""A host that may contain ``::``, and a login before it."""
_CHAIN = regex(r"[A-Za-z][A-Za-z0-9+.-]*::.*://", re.DOTALL)


def split_protocol(name: str) -> tuple[str, str]:
    """Return the protocol of a URL in lower case, and what follows ``://``; an empty one for a local path.

    Raises:
        UsageError: the protocol is not in the list, or the name is a chain of URLs.

    """
    found = _SCHEME.match(name)
    host = _IPV6.match(name, found.end()) if found else None
    if _CHAIN.match(name) or (found and "::" in name[host.end() if host else 0 :]):
        raise _refused(f"{_shown(name)} is a chain of URLs (::), which ema-avg does not open")
    if found is None:
        return "", name
    protocol = found[1].lower()
    if protocol not in PROTOCOLS:
        raise _refused(f"{_shown(name)} has a protocol that ema-avg does not open")
    if len(name) > _LONGEST:
        raise UsageError(f"{_shown(name)} has {len(name):,} characters, too many for a URL")
    return protocol, name[found.end() :]


def _refused(message: str) -> UsageError:
    listed = ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
    hint = "use a local file; if its name looks like a URL, put ./ before it: ./NAME"
    return UsageError(f"{message}; it opens {listed}", hint=hint)


def _shown(name: str) -> str:
    return quoted(without_secrets(name[:_LONGEST]))
