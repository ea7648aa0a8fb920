"""Locations in remote stores."""

from __future__ import annotations

from pathlib import PurePosixPath

from ema_cli.text import without_secrets


class Url(PurePosixPath):
    """A location in a remote store, such as ``s3://bucket/run/model.safetensors``."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """The protocol, such as ``s3``."""
        return self.parts[0].removesuffix(":")

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which has files but cannot list them."""
        return self.scheme in ("http", "https")

    @property
    def address(self) -> str:
        """The URL as given. It may have a password or a signature, which are never shown."""
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}"

    def __str__(self) -> str:
        return without_secrets(self.address)

    def __fspath__(self) -> str:
        return str(self)
