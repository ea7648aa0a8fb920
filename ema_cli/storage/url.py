"""Locations in remote stores, and on the web."""

from __future__ import annotations

import re
import sys
from pathlib import PurePosixPath
from urllib.parse import unquote

from ema_cli.text import HIDDEN, regex, without_secrets

_SCHEME = regex(r"[A-Za-z][A-Za-z0-9+.-]+(?=://)")
_WEB = ("http", "https")
_ENCODED = regex(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_SLASH = "\0"
"""Stands for a slash that separates no parts: in a query, or after another slash. No address has this character."""
_SHORTEST_SECRET = 4
"""Characters of a part of an address that may not be repeated."""
_SIGNATURE = regex(r"x-(?:amz|goog)-.*|x-id|.*token|.*signature|sig|auth", re.IGNORECASE)
"""Parameters that sign a request."""
_WITH_SIGNATURE = {
    "signature": {"expires", "key-pair-id", "policy", "awsaccesskeyid", "googleaccessid"},
    "sig": {*("sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "sip", "si", "sdd", "skoid", "sktid", "skt", "ske")}
    | {*("sks", "skv", "saoid", "suoid", "scid", "ses", "rscd", "rsct")},
}
"""Parameters that belong to a signature, if there is one: of CloudFront, old S3 and old Google; of Azure."""


class Url(PurePosixPath):
    """A location in a remote store, such as ``s3://bucket/run/model.safetensors``.

    The query of a web address belongs to its last part, but not to its ``name``; ``parent`` has none.
    """

    __slots__ = ()

    def __new__(cls, *segments: str | PurePosixPath) -> Url:  # noqa: D102, PYI034 - as the base class declares it
        return super().__new__(cls, *map(_packed, segments))

    if sys.version_info >= (3, 12):

        def __init__(self, *segments: str | PurePosixPath) -> None:
            super().__init__(*map(_packed, segments))

    @property
    def scheme(self) -> str:
        """The protocol, such as ``s3``."""
        return self.parts[0].removesuffix(":")

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which has files but cannot list them."""
        return self.scheme in _WEB

    @property
    def name(self) -> str:
        """The last part, without a query."""
        return re.split(r"[?#]", super().name, maxsplit=1)[0].rstrip(_SLASH) if self.is_web else super().name

    @property
    def address(self) -> str:
        """The URL as given. It may have a password or a signature, which are never shown."""
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}".replace(_SLASH, "/")

    @property
    def is_encoded(self) -> bool:
        """Whether it can be sent as it is. Then nothing of it is encoded again: a signature may cover every byte."""
        return _ENCODED.fullmatch(self.address) is not None

    @property
    def place(self) -> str:
        """Where a file is, as far as its name tells: the URL without password, and on the web without query."""
        place = str(self).replace(f"{HIDDEN}@", "", 1)
        return re.split(r"[?#]", place, maxsplit=1)[0] if self.is_web else place

    @property
    def choice(self) -> tuple[str, ...]:
        """The parameters of the query that may choose another file: all but those that sign the request."""
        if not self.is_web:
            return ()
        query = self.address.partition("#")[0].partition("?")[2]
        by_name = {part: part.partition("=")[0].lower() for part in query.split("&") if part}
        signing = set().union(*(names for one, names in _WITH_SIGNATURE.items() if one in by_name.values()))
        return tuple(part for part, name in by_name.items() if name not in signing and not _SIGNATURE.fullmatch(name))

    @property
    def identity(self) -> tuple[str, ...]:
        """What distinguishes the file from others, whoever asks for it: neither password nor signature matter."""
        return (self.place, *self.choice) if self.is_web else (self.address,)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The parts of the address that are not shown, encoded and decoded, the longest first: others may repeat them.

        They are a login and a query as a whole, and the password and the values in them. Short ones are no secret.
        """
        found, rest = set[str](), self.address
        shown, *after = str(self).split(HIDDEN)
        rest = rest.removeprefix(shown)
        for piece in after:
            hidden, _, rest = rest.partition(piece) if piece else (rest, "", "")
            values = (part.rpartition("=")[2] for part in re.split("[&;#]", hidden))
            found |= {hidden, hidden.partition(":")[2], *values}
        found |= {unquote(one) for one in found}
        return tuple(sorted((one for one in found if len(one) >= _SHORTEST_SECRET), key=len, reverse=True))

    def __eq__(self, other: object) -> bool:
        return self.address == other.address if isinstance(other, Url) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.address)

    def __str__(self) -> str:
        return without_secrets(self.address, whole=True)

    def __fspath__(self) -> str:
        return str(self)


def _packed(segment: str | PurePosixPath) -> str | PurePosixPath:
    """Return an address with slashes replaced where ``PurePosixPath`` would drop them, its scheme in small letters."""
    found = _SCHEME.match(segment) if isinstance(segment, str) else None
    if found is None:
        return segment
    scheme, rest = found[0].lower(), str(segment)[found.end() + 3 :]
    if scheme in _WEB:
        path, mark, query = re.split(r"([?#])", rest, maxsplit=1) if re.search(r"[?#]", rest) else (rest, "", "")
        path = re.sub(r"/(?=/)|/$" if mark else r"/(?=/)", _SLASH, path)
        rest = f"{path}{mark}{query.replace('/', _SLASH)}"
    return f"{scheme}://{rest}"
